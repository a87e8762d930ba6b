"""Methods and families of other packages: found by entry points, refused or left out by name."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tiny
from prunecli import registry
from prunecli.errors import UsageError
from prunecli.methods import Method
from prunecli.methods import registry as methods
from prunecli.model.families import Family
from prunecli.model.families import registry as families
from prunecli.registry import Registry

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "plugin"
MADE = """from prunecli.methods import Method, Option
METHOD = Method("{name}", "Mine", "none", "layers", "layers", ("layers",), options=({options}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Return a folder in which the example is installed, as `pip install` does it."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for path in EXAMPLE.rglob("*"):
        if path.suffix in (".py", ".toml"):
            copy = source / path.relative_to(EXAMPLE)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(path.read_bytes())
    offline = ("--no-deps", "--no-build-isolation", "--no-index")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", *offline, "--target", target, source],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return target


def started(folder, *arguments):
    """Run the program with the packages of a folder beside its own."""
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-m", "prunecli", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def package(folder, name, code, entry, group=methods.GROUP, attribute="METHOD"):
    """Write an installed package of one module with one entry point."""
    module = name.replace("-", "_")
    folder.mkdir(exist_ok=True)
    (folder / f"{module}.py").write_text(code)
    record = folder / f"{module}-3.1.dist-info"
    record.mkdir()
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 3.1\n")
    (record / "entry_points.txt").write_text(f"[{group}]\n{entry} = {module}:{attribute}\n")
    return folder


def fresh(group=methods.GROUP, kind="method", record=Method):
    """Return a registry that has not looked yet."""
    own = "methods" if record is Method else "model/families"
    folder = ROOT / "src" / "prunecli" / own
    place = f"prunecli.{own.replace('/', '.')}"
    return Registry(place, str(folder), kind, kind.upper(), group, record)


def test_the_example_is_found(installed):
    record = json.loads(started(installed, "methods", "--json").stdout)["results"]
    assert {one["name"]: one["package"] for one in record} == {
        **dict.fromkeys(methods.own(), "prunecli"),
        "filter-norm": "prunecli-example",
    }
    explained = started(installed, "methods", "filter-norm")
    assert "--norm 1|2" in explained.stdout and explained.stderr == ""
    names = [line.split()[0] for line in started(installed, "families").stdout.splitlines()[2:]]
    assert "ministral" in names and set(names) >= {"llama", "qwen3"}


def test_a_method_of_others_prunes_a_family_of_others(installed, tmp_path):
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

    sizes = {**tiny.SIZES, "sliding_window": 8}
    assert "ministral" in CONFIG_MAPPING
    config = AutoConfig.for_model("ministral", **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "in")
    asked = ("prune", "--method", "filter-norm", "--ratio", "0.5", "--norm", "2")
    done = started(installed, *asked, "--quiet", tmp_path / "in", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    tiny.stock(tmp_path / "out")
    made = tiny.sidecar(tmp_path / "out")
    assert made["options"]["method"] == "filter-norm"
    assert made["options"]["options"]["norm"] == "2"
    assert made["run"]["libraries"]["prunecli-example"] == "0.1.0"
    helped = started(installed, *asked, "--help").stdout
    assert "Options of filter-norm" in helped and "--norm 1|2" in helped


def test_without_it_nothing_is_there(tmp_path):
    done = started(tmp_path, "prune", "--method", "filter-norm", "--norm", "2", "in", "out")
    assert done.returncode == 2 and "unknown option --norm" in done.stderr


def test_help_and_start_look_for_no_package(installed):
    code = (
        "import sys\n"
        "from prunecli.cli import app\n"
        "sys.argv[1:] = ['--help']\n"
        "try:\n"
        "    app.main()\n"
        "except SystemExit as end:\n"
        "    assert not end.code\n"
        "heavy = {'torch', 'transformers', 'prunecli_example'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    path = os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import nothing_of_this_name", "ModuleNotFoundError: No module named"),
        ("raise SystemExit('no licence')", "SystemExit: no licence"),
        ("METHOD = 3", "TypeError: broken_one:METHOD is a int, expected a Method"),
        (MADE.format(name="other", options=""), "its Method is called 'other', its entry point"),
        ("print('hello')", "AttributeError"),
    ],
)
def test_a_package_that_fails_is_left_out_with_a_line(code, why, tmp_path, monkeypatch, capsys):
    folder = package(tmp_path / "p", "broken-one", code, "mine")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "broken_one", raising=False)
    told = []
    monkeypatch.setattr("logging.Logger.warning", lambda logger, text: told.append(text))
    found = fresh()
    assert found.names() == methods.own() == found.names()
    (line,) = told
    assert line.startswith("prunecli: warning: method 'mine' of package 'broken-one' is left out: ")
    assert why in line and "\n" not in line
    assert capsys.readouterr().out == ""


def test_the_line_is_all_that_a_user_sees(tmp_path):
    folder = package(tmp_path / "p", "broken-one", "raise ValueError('a\\nb')", "mine")
    done = started(folder, "methods")
    assert done.returncode == 0 and "magnitude" in done.stdout
    assert done.stderr == (
        "prunecli: warning: method 'mine' of package 'broken-one' is left out: ValueError: a b\n"
    )


def test_a_package_without_metadata_is_known_by_its_module(tmp_path, monkeypatch):
    """What lies beside others without them has a version that sidecars can record."""
    folder = package(tmp_path / "p", "bare", MADE.format(name="mine", options=""), "mine")
    (folder / "bare-3.1.dist-info" / "METADATA").unlink()
    monkeypatch.syspath_prepend(folder)
    found = fresh()
    assert found.get("mine").name == "mine" and found.source("mine") == "bare:METHOD"
    assert registry.packages.pop("bare:METHOD") == registry.UNKNOWN


def test_a_name_of_ours_is_refused_with_both_packages(tmp_path):
    folder = package(tmp_path / "p", "theirs", MADE.format(name="wanda", options=""), "wanda")
    done = started(folder, "prune", "--method", "magnitude", "--ratio", "0.5", "in", "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "prunecli: error: 'prunecli' and 'theirs' both have a method 'wanda'; uninstall 'theirs', "
        "or rename its method\n"
    )
    assert started(folder, "--help").returncode == 0


def test_a_name_of_two_others_is_refused_with_both(tmp_path, monkeypatch):
    for name in ("one-a", "one-b"):
        package(tmp_path / "p", name, MADE.format(name="mine", options=""), "mine")
    monkeypatch.syspath_prepend(tmp_path / "p")
    with pytest.raises(UsageError, match="'one-a' and 'one-b' both have a method 'mine'"):
        fresh().names()


def test_a_model_type_of_ours_is_refused(tmp_path, monkeypatch):
    code = (
        "from prunecli.model.families import Family\n"
        "FAMILY = Family('mine', ('qwen3',), 'Mine', {}, ())\n"
    )
    package(tmp_path / "p", "two-q", code, "mine", families.GROUP, "FAMILY")
    monkeypatch.syspath_prepend(tmp_path / "p")
    registry = fresh(families.GROUP, "family", Family)
    for name in ("names", "get", "source"):
        monkeypatch.setattr(families, name, getattr(registry, name))
    with pytest.raises(UsageError) as refused:
        families.of_model_type("llama")
    assert re.search("'mine' of 'two-q' and 'qwen3' of 'prunecli' both read", str(refused.value))


@pytest.mark.parametrize(
    ("option", "why"),
    [
        (
            "Option('ratio', float, 1.0, 'x'),",
            "method 'mine' of 'clash' has an option 'ratio', and",
        ),
        ("Option('scope', int, 1, 'x'),", "option 'scope' is int of 'mine' and str of 'magnitude'"),
    ],
)
def test_an_option_that_is_another_is_refused(option, why, tmp_path):
    folder = package(tmp_path / "p", "clash", MADE.format(name="mine", options=option), "mine")
    done = started(folder, "prune", "--method", "magnitude", "--ratio", "0.5", "in", "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert why in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_our_tests_of_families_run_on_theirs(installed):
    path = os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")])
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-rA", "-k"]
    done = subprocess.run(
        [
            *(sys.executable, *command, "ministral and not ministral3"),
            str(ROOT / "tests" / "model" / "test_families.py"),
        ],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert len(re.findall(r"^PASSED .*\[.*ministral.*\]$", done.stdout, re.M)) >= 8
