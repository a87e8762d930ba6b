"""What the tests of devices run: every method and command on a tiny model, on a device or another.

`python tests/device/work.py` prints the table of docs/devices.md.
"""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny
from prunecli import calibrate, evaluate, prune, score, search_arch, speed, train
from prunecli.methods import registry
from prunecli.settings import Amount, Compute, Data, Result, Timing

REAL = os.environ.get("PRUNECLI_TEST_DEVICE")
HALF = Amount(ratio=0.5)
STEPS, BATCH, ROWS, LENGTH = 6, 2, 18, 64  # two batches of the streamed walk
# four layers are fewer than are protected by default, and a run that learns is long
OPTIONS: dict[str, dict[str, Any]] = {
    "shortened-llama": {"protect": "1,1"},
    "sheared-llama": {"tokens": STEPS * BATCH * LENGTH, "batch_size": BATCH},
}
TRAINING = {"steps": STEPS, "batch_size": BATCH, "lr": "1e-3", "save_every": 3}

Stop = Callable[[], bool]
Command = Callable[[str, Compute], Result]  # of OUT and where to compute


def never() -> bool:
    return False


class Work:
    """A tiny model, its texts, and every command on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = str(tiny.make(folder / "model"))
        self.teacher = str(tiny.make(folder / "teacher", "qwen3"))
        self.ids = tiny.tokens(folder / "ids.safetensors", ROWS, LENGTH, seed=1)
        self.held = tiny.tokens(folder / "held.safetensors", ROWS, LENGTH, seed=2)

    def prune(self, method: str, out: str, compute: Compute, **more: Any) -> Result:
        model = str(tiny.subject(self.model, method))
        return prune(
            model, out, method=method, amount=HALF, data=Data(self.ids), compute=compute,
            options=OPTIONS.get(method, {}), **more,
        )  # fmt: skip

    def evaluate(self, out: str, compute: Compute) -> Result:
        return evaluate(self.model, data=[Data(self.held)], compute=compute)

    def train(self, out: str, compute: Compute, stop: Stop = never, **more: Any) -> Result:
        return train(self.model, out, self.ids, compute=compute, stop=stop, **TRAINING | more)

    def teach(self, out: str, compute: Compute, **more: Any) -> Result:
        # another model: the loss to one's own is zero
        return self.train(out, compute, teacher=self.teacher, temperature=2.0, **more)

    def search(self, out: str, compute: Compute) -> Result:
        return search_arch(
            self.model, f"{out}.json", method="minitron-width", ratio=0.4, multiple=16,
            data=Data(self.ids), eval_data=Data(self.held), compute=compute,
        )  # fmt: skip

    def calibrate(self, out: str, compute: Compute) -> Result:
        file, methods = f"{out}.safetensors", ["wanda", "minitron-width"]
        return calibrate(self.model, file, methods=methods, data=Data(self.ids), compute=compute)

    def score(self, out: str, compute: Compute) -> Result:
        file = f"{out}.safetensors"
        return score(self.model, file, method="shortgpt", data=Data(self.ids), compute=compute)

    def speed(self, out: str, compute: Compute) -> Result:
        timing = Timing(rounds=1, decode_tokens=4)
        return speed(self.model, timing=timing, seq_len=16, compute=compute)

    def commands(self) -> dict[str, Command]:
        """Return what the table has a row for."""
        methods = {f"prune --method {m}": partial(self.prune, m) for m in registry.names()}
        return methods | {
            "eval": self.evaluate,
            "calibrate --for wanda,minitron-width": self.calibrate,
            "score --method shortgpt": self.score,
            "search-arch --method minitron-width": self.search,
            "train": self.train,
            "train --teacher": self.teach,
            "speed": self.speed,
        }


def main() -> None:
    """Print a row for every command: copies and bytes, to the device and back."""
    import simulated

    compute = Compute(device=simulated.register(), dtype="float32")
    print("| command | to the device | bytes | to the host | bytes |\n|---|---|---|---|---|")
    with TemporaryDirectory() as folder:
        for number, (name, run) in enumerate(Work(Path(folder)).commands().items()):
            with simulated.traffic() as seen:
                run(f"{folder}/{number}", compute)
            print(
                f"| `{name}` | {seen.to_device} | {seen.to_device_bytes} "
                f"| {seen.to_host} | {seen.to_host_bytes} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
