"""Standard streams that are closed: the work is done, and a path that was to come is asked for."""

import subprocess

import pytest

import tiny


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(closed, llama, tmp_path):
    out = tmp_path / "out"
    line = f"prunecli prune --method magnitude --ratio 0.5 {llama} {out} {closed}"
    ended = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert ended.returncode == 0 and "error" not in ended.stderr
    other = tmp_path / "other"
    subprocess.run(["prunecli", "prune", "--method", "magnitude", "--ratio", "0.5", llama, other])
    assert tiny.same(out, other)


def test_a_path_from_a_closed_stdin(tmp_path):
    ended = subprocess.run(["bash", "-c", "prunecli eval - <&-"], capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("prunecli: error: stdin is empty, expected a path")
