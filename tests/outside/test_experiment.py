"""The experiment's Makefile, at toy size, as a user runs it. Run by `make outside`."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[2] / "examples" / "experiment"
pytestmark = pytest.mark.outside


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("PRUNECLI_", "MAKE"))}
    return {**plain, "PATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


UNKNOWN = "the cost is known once there are a parent and pruned models\n"


def command(work: Path, *more: str) -> list[str]:
    return ["make", "-j2", "-f", str(HERE / "Makefile"), f"WORK={work}", *more]


def make(work: Path, *more: str) -> str:
    ended = subprocess.run(
        command(work, *more), env=environment(), capture_output=True, text=True, timeout=900
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def cost(work: Path, *more: str) -> str:
    """Return what `make --dry-run` and `make cost` say on stderr, which is the same."""
    said = []
    for target in ("--dry-run", "cost"):
        ended = subprocess.run(
            command(work, target, *more),
            env=environment(), capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        said.append(ended.stderr)
    assert said[0] == said[1]
    return said[0]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """The whole toy experiment, killed once while it trains."""
    folder = tmp_path_factory.mktemp("experiment")
    going = subprocess.Popen(command(folder), env=environment(), start_new_session=True)
    started = time.monotonic()
    while not list((folder / "parent.partial").glob("*")) and time.monotonic() - started < 300:
        assert going.poll() is None
        time.sleep(0.2)
    os.killpg(going.pid, signal.SIGKILL)
    going.wait()
    assert not (folder / "parent" / "prunecli.json").exists()
    assert cost(folder) == UNKNOWN
    text = make(folder)
    assert "prunecli tokenize" not in text  # went on, did not begin again
    return folder


def test_what_it_makes(work):
    table = (work / "table.md").read_text()
    for method in ("flap", "minitron-depth"):
        for rows in (256, 512):
            run = f"{method}-0.5.{rows}.0"
            assert f"scratch.{run} - pruned.{run}" in table
            assert f"whole.{run} - pruned.{run}" in table
    assert "not compared" not in table
    assert "<svg" in (work / "report.html").read_text()


def test_a_second_run_does_nothing(work):
    assert "Nothing to be done" in make(work)


def test_touching_one_input_rebuilds_its_children_only(work):
    os.utime(work / "cut" / "flap-0.5.0" / "prunecli.json")
    made = make(work)
    assert "prunecli init" in made and "pruned.flap-0.5.256.0" in made
    commands = [line for line in made.splitlines() if line.startswith("prunecli")]
    assert not [line for line in commands if "minitron-depth" in line]
    assert not [line for line in commands if " prune " in line or " tokenize " in line]


@pytest.mark.parametrize("setting", ["toy", "smoke", "mini", "full"])
def test_a_fresh_folder_has_no_cost_yet(setting, tmp_path):
    work = tmp_path / "none"
    assert cost(work, f"SETTING={setting}") == UNKNOWN
    assert not work.exists()


def test_the_cost_is_known_with_pruned_models(work, tmp_path):
    said = cost(work).splitlines()
    assert said[0].startswith("run ") and said[-1].startswith("all ")
    shutil.copytree(work / "parent", tmp_path / "parent")
    assert cost(tmp_path) == UNKNOWN
    (tmp_path / "cut" / "flap-0.5.0.partial").mkdir(parents=True)
    assert cost(tmp_path) == UNKNOWN


def test_dry_run_prints_the_papers_cost(tmp_path):
    ended = subprocess.run(
        command(tmp_path / "none", "SETTING=paper", "--dry-run"),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    # 3 x 17.545 TFLOPs per 2048 tokens, 50 billion tokens; 902 hours at 0.4 of 989 TFLOP/s
    lines = [x.split() for x in ended.stderr.splitlines()]
    assert ["pruned", "minitron-depth", "0.5", "4540469248", "5e+10", "1.29e+21", "902.3"] in lines
    assert not [line for line in lines if "table" in line]  # every run has a size
    assert "--recipe paper" in ended.stdout and "torchrun" in ended.stdout
    assert not (tmp_path / "none").exists()
