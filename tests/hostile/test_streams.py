"""Standard streams that are closed: the work is done, and a path that was to come is asked for."""

import subprocess

import pytest

import tiny

PRUNE = "prunecli prune --method magnitude --ratio 0.5"


@pytest.fixture(scope="module")
def pruned(llama, tmp_path_factory):
    out = tmp_path_factory.mktemp("open") / "out"
    subprocess.run([*PRUNE.split(), llama, out], check=True, capture_output=True)
    return out


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(closed, llama, pruned, tmp_path):
    out = tmp_path / "out"
    line = f"{PRUNE} {llama} {out} {closed}"
    ended = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert ended.returncode == 0 and "error" not in ended.stderr
    assert tiny.same(out, pruned)


@pytest.mark.parametrize(("progress", "kept"), [("json", "2>/dev/full"), ("auto", "2> >(true)")])
def test_nobody_gets_the_talk(kept, progress, llama, tmp_path):
    """The work is done nevertheless, and the status says how it ended."""
    out = tmp_path / "out"
    line = f"{PRUNE} --progress {progress} {llama} {out}"
    for status in (0, 5):
        ended = subprocess.run(["bash", "-c", f"{line} {kept}"], capture_output=True, text=True)
        assert (ended.returncode, ended.stderr) == (status, "")
        assert (out / "prunecli.json").exists()


@pytest.mark.parametrize("command", ["--version", "prune --help", "methods --json"])
def test_nobody_gets_the_results(command):
    """Whether they fit into a buffer or not: told once, with what could not be written and why."""
    line = f"prunecli {command} >/dev/full"
    ended = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr == (
        "prunecli: error: cannot write to standard output: No space left on device; free some "
        "space, or choose another disk\n"
    )


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("</dev/zero", "more than 100000000 characters"),
        ("< <(printf '\\xff')", "not text in UTF-8"),
    ],
)
def test_a_path_from_a_stdin_that_has_none(given, told):
    line = f"PYTHONIOENCODING=utf-8:strict prunecli eval - {given}"
    ended = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2 and told in ended.stderr


def test_a_path_from_a_closed_stdin(tmp_path):
    ended = subprocess.run(["bash", "-c", "prunecli eval - <&-"], capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("prunecli: error: stdin is empty, expected a path")
