"""What `make docs` writes is what is committed."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from prunecli.cli import app

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_files_are_up_to_date(generator: ModuleType) -> None:
    for path, text in generator.files().items():
        assert (ROOT / path).read_text("utf-8") == text, f"{path} is old: run `make docs`"


def test_a_page_for_every_command(generator: ModuleType) -> None:
    pages = {path.name for path in (ROOT / "man").glob("*.1")}
    assert pages == {"prunecli.1", *(f"prunecli-{name}.1" for name in app.COMMANDS)}


def test_pages_hold_every_option(generator: ModuleType) -> None:
    for command in generator.commands():
        page = (ROOT / f"man/prunecli-{command.name}.1").read_text("utf-8").replace("\\-", "-")
        for option in command.options:
            assert all(f"\\fB{flag}\\fR" in page for flag in option.flags), option
        for section in ("SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXAMPLES", "EXIT STATUS"):
            assert f".SH {section}\n" in page
