"""Options from a file, `--config FILE`; and what they came to, `--print-config`.

Flags win over the environment (PRUNECLI_DEVICE for --device), that over --config FILE, that over
the defaults.
"""

import json
import re
from typing import Any

import typer

from prunecli.errors import InputError, UsageError, suggest
from prunecli.files import regular, strict

MAX_CONFIG = 100_000  # bytes


def load_config(context: typer.Context, path: str | None) -> str | None:
    """Make the values of a TOML, YAML or JSON file the defaults of this command.

    Keys are option names; they stand at the top level or in a table named like the command.
    """
    if path is None:
        return None
    record = _read_config(path)
    name = context.info_name or ""
    commands = getattr(context.parent.command, "commands", {}) if context.parent else {}
    own = record.get(name, {})
    if not isinstance(own, dict) or not all(isinstance(key, str) for key in own):
        raise UsageError(f"--config '{path}': '{name}' is not a table of options")
    values = {key: value for key, value in record.items() if key not in commands} | own
    known = {
        param.name: param for param in context.command.params if param.param_type_name == "option"
    }
    known = {n: p for n, p in known.items() if n not in ("config", "print_config", "help")}
    defaults = {}
    for key, value in values.items():
        field = key.replace("-", "_").lstrip("_")
        by_flag = {p.opts[0].lstrip("-").replace("-", "_"): n for n, p in known.items()}
        field = by_flag.get(field, field)
        if field not in known:
            flags = sorted(p.opts[0].lstrip("-") for p in known.values())
            raise UsageError(f"--config '{path}': unknown key '{key}'{suggest(key, flags)}")
        defaults[field] = _checked(context, path, known[field], key, value)
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


def _checked(context: typer.Context, path: str, parameter: Any, key: str, value: Any) -> Any:
    text = parameter.display_type(context) == "<str>" and not parameter.multiple
    if text and not isinstance(value, str):
        # YAML reads 2:4 as a number of base 60
        raise UsageError(
            f"--config '{path}': {key} is {strict.told(value)}, expected text in quotes"
        )
    return value


def _read_config(path: str) -> dict[str, Any]:
    try:
        text = regular.content(path, MAX_CONFIG).decode()
        if path.endswith(".toml"):
            import tomllib

            _check_names(text)
            record = tomllib.loads(text)
        elif path.endswith((".yaml", ".yml")):
            record = _yaml(text)
        else:
            record = strict.parsed(text)
        strict.check_depth(record)
    except FileNotFoundError:
        raise UsageError(f"no such --config: '{path}'", "check the path") from None
    except InputError as error:
        raise UsageError(f"--config: {error.what}", error.remedy) from None
    except Exception as error:
        # each format has an error class of its own
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"--config '{path}' is not valid: {why}") from None
    if not isinstance(record, dict) or not all(isinstance(key, str) for key in record):
        raise UsageError(f"--config '{path}' is not a table of options")
    return record


def _check_names(text: str) -> None:
    """Raise ValueError for TOML with a name of many parts: each is copied with all before it."""
    for piece in re.split(r"[=,\n\[\]{}]", text):
        if piece.count(".") > strict.MAX_DEPTH:
            raise ValueError(f"a name in it has more than {strict.MAX_DEPTH} parts")


def _yaml(text: str) -> Any:
    """Return the value of YAML, without its merges: a few lines of them make millions of keys."""
    import yaml  # type: ignore[import-untyped]

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        def flatten_mapping(self, node: Any) -> None:
            """Leave `<<` as it is, so that it is refused."""

    return yaml.load(text, Loader)


def show_config(context: typer.Context, wanted: bool) -> None:
    """Remember that --print-config was given; `records.setup` prints them and exits."""
    context.obj = {"print_config": wanted}


def resolved(context: typer.Context) -> None:
    """With --print-config, print every option with its value as JSON and exit."""
    if not (context.obj or {}).get("print_config"):
        return
    skip = {"config", "print_config", "help"}
    values = {
        param.opts[0].lstrip("-"): context.params.get(param.name or "")
        for param in context.command.params
        if param.param_type_name == "option" and param.name not in skip
    }
    shown = {k: v for k, v in values.items() if v is not None and v != []}
    print(json.dumps(shown, indent=1))
    raise typer.Exit(0)
