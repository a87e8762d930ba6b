"""What libraries say is talk: on stderr, printable, cut, and silent with --quiet."""

import json
import shutil
import subprocess
import sys

import pytest

SPEAKER = """
import ctypes, logging, os, sys, warnings
from prunecli.cli import streams

streams.keep_apart(quiet="--quiet" in sys.argv)
print("printed\\x1b[31m")
print("x" * 1000, file=sys.stderr)
logging.getLogger("library").warning("two\\nlines")
warnings.warn("a warning")
os.write(1, b"raw\\n")
ctypes.CDLL(None).printf(b"buffered by C\\n")
subprocess = os.system("echo from a child")
streams.result("the result")
"""


@pytest.mark.parametrize("quiet", [False, True])
def test_libraries_are_kept_off_stdout(quiet):
    line = [sys.executable, "-c", SPEAKER, *["--quiet"] * quiet]
    ended = subprocess.run(line, capture_output=True, text=True)
    assert ended.stdout == "the result\n"
    if quiet:
        assert ended.stderr == ""
        return
    said = ended.stderr.splitlines()
    assert "printed\ufffd[31m" in said and "two" in said and "lines" in said
    assert any("a warning" in one for one in said)
    assert max(map(len, said)) == 500


@pytest.mark.parametrize("quiet", [False, True])
def test_a_config_that_a_library_complains_of(quiet, llama, tmp_path):
    record = json.loads((llama / "config.json").read_text())
    kind = "x\x1b[31m\ny" + "z" * 600
    record["rope_parameters"] = {"rope_type": kind, "rope_theta": 10000.0}
    (tmp_path / "config.json").write_text(json.dumps(record))
    shutil.copy(llama / "model.safetensors", tmp_path)
    line = ["prunecli", "prune", "--method", "magnitude", "--ratio", "0.5", tmp_path, "o"]
    line[2:2] = ["--quiet"] * quiet
    ended = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 4 and ended.stdout == ""
    assert "\x1b" not in ended.stderr and max(map(len, ended.stderr.splitlines())) <= 500
    if quiet:
        assert ended.stderr.count("\n") == 1


def test_a_bar_of_a_library_is_shown_where_somebody_watches(capsys, monkeypatch):
    from prunecli.cli import streams

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    streams.keep_apart(quiet=False)
    try:
        sys.stderr.write("\r 10%")
        sys.stderr.write("\r 20%\x1b[A")
        sys.stderr.write("\r 30%\n")
    finally:
        streams.rejoin()
    assert capsys.readouterr().err == "\r 10%\r 20%\ufffd[A\r 30%\n"
