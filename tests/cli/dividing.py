"""Every verb whose rows processes divide, one after the other: as one process, or under torchrun.

`python dividing.py MODEL DATA OUT [HOW]`: with HOW, the second process ends by itself at the last
layer, by an error (`fails`) or killed (`killed`).
"""

import errno
import os
import signal
import sys
from pathlib import Path

import prunecli
from prunecli.settings import Amount

SPARSE = ("wanda", "sparsegpt")
CUT = ("flap", "wanda-sp")
# every statistic that is no recursion over rows in their order
STATISTICS = (
    "wanda", "sparsegpt", "flap", "minitron-width", "shortgpt", "minitron-depth", "sleb",
    "llm-pruner", "shortened-llama", "slicegpt-global",
)  # fmt: skip


def work(model: str, data: str, out: Path) -> None:
    """Calibrate, prune, evaluate and search; DATA is `FILE.safetensors:ids`, with `held` beside."""
    one_layer = Amount(layers=3)
    prunecli.calibrate(model, out / "s.safetensors", STATISTICS, data=data, amount=one_layer)
    for method in SPARSE:
        amount = Amount(sparsity="2:4") if method == "sparsegpt" else Amount(ratio=0.5)
        prunecli.prune(model, out / method, method=method, amount=amount, data=data)
    for method in CUT:
        prunecli.prune(model, out / method, method=method, amount=Amount(ratio=0.5), data=data)
    held = data.removesuffix("ids") + "held"
    prunecli.evaluate(model, out / "e.json", data=held)
    prunecli.search_arch(
        model, out / "a.json", "minitron-width", data=data, eval_data=held, ratio=0.4
    )


def end_early(how: str) -> None:
    """Let the second process end where it loads the last layer for the first time."""
    from prunecli.model.stream import LayerStream

    load = LayerStream.layer

    def layer(stream: LayerStream, i: int):
        if i == stream.arch.layers - 1 and os.environ["RANK"] == "1":
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "buffer")
        return load(stream, i)

    LayerStream.layer = layer


if __name__ == "__main__":
    given_model, given_data, given_out, *more = sys.argv[1:]
    if more:
        from prunecli.cli import app

        end_early(more[0])
        line = f"prune --method wanda --ratio 0.5 --data {given_data} {given_model} {given_out}"
        sys.argv[1:] = line.split()
        app.main()
    work(given_model, given_data, Path(given_out))
