"""The examples for others' CI run as they are: with the installed program, without network."""

import os
import subprocess
import sys
from pathlib import Path

CI = Path(__file__).resolve().parents[2] / "examples" / "ci"


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    plain = {k: v for k, v in os.environ.items() if not k.startswith("PRUNECLI_")}
    return {**plain, "PATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def test_script(tmp_path: Path) -> None:
    ended = subprocess.run(
        [CI / "smoke.sh", tmp_path], env=environment(), capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    assert "tiny: ok\nflap: ok\n" in ended.stdout
    assert "0.5000" in ended.stdout.splitlines()[-2]


def test_rules(tmp_path: Path) -> None:
    def make() -> str:
        ended = subprocess.run(
            ["make", "-f", CI / "Makefile", f"WORK={tmp_path}", "METHODS=flap"],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    assert "| flap |" in make()
    assert "up to date" in make()
