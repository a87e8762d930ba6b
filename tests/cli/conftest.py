"""`run`: the program in this process, as a shell would see it."""

import io
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from prunecli.cli import app, signals


@dataclass
class Ended:
    code: int
    out: str
    err: str


Run = Callable[..., Ended]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Return a function of arguments and stdin; signals are handled as before afterwards."""
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}

    def call(*arguments: str, stdin: str = "") -> Ended:
        monkeypatch.setattr(sys, "argv", ["prunecli", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        try:
            app.main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(bool(end.code))
        return Ended(code, *capsys.readouterr())

    yield call
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Options of whoever runs the tests are not those of the tests."""
    for name in list(os.environ):
        if name.startswith("PRUNECLI_"):
            monkeypatch.delenv(name)
