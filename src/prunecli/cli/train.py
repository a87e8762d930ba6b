"""`prunecli train`."""

from typing import Annotated

import typer

from prunecli.cli import console, options
from prunecli.cli.options import option
from prunecli.cli.signals import first_signal
from prunecli.settings import Compute, Training
from prunecli.training import world


@options.takes(options.READING, options.COMPUTE, options.OUTPUT, options.TALK, options.CONFIG)
def train(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="IN", help="model folder, hf:org/name, or -")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="folder to write")],
    data: Annotated[
        str,
        option("data", "rows made by tokenize, or FILE.safetensors:NAME", metavar="ROWS[:A:B]"),
    ],
    tokens: Annotated[
        float | None,
        option("tokens", "train on this many tokens [default: one pass over the rows]"),
    ] = None,
    steps: Annotated[int | None, option("steps", "train this many steps")] = None,
    batch_size: Annotated[
        int | None, option("batch-size", "sequences per step, over all processes [16]")
    ] = None,
    lr: Annotated[
        str | None,
        option("lr", "peak learning rate, or sweep: the best of five on a short prefix [3e-4]"),
    ] = None,
    recipe: Annotated[
        str | None, option("recipe", "paper: 512 rows of 8192 tokens per step, --lr sweep")
    ] = None,
    repeat: Annotated[
        bool, option("repeat", "read the rows again when there are fewer than needed")
    ] = False,
    allow_overlap: Annotated[
        bool, option("allow-overlap", "accept rows that an ancestor was trained on")
    ] = False,
    masks: Annotated[
        str,
        option(
            "masks",
            "keep the zeros of sparse matrices, drop (train them), or a checkpoint whose zeros "
            "to keep",
            metavar="keep|drop|DIR",
        ),
    ] = Training.masks,
    teacher: Annotated[
        str | None, option("teacher", "distil from this checkpoint", metavar="DIR")
    ] = None,
    kd_weight: Annotated[
        float | None, option("kd-weight", "share of the distillation loss in the whole [0.5]")
    ] = None,
    temperature: Annotated[float, option("temperature", "of distillation")] = Training.temperature,
    eval_data: Annotated[
        str | None, option("eval-data", "held-out D or ROWS:A:B to validate on", metavar="D")
    ] = None,
    eval_every: Annotated[
        int | None, option("eval-every", "steps between validations [20 in a run]")
    ] = None,
    save_every: Annotated[
        int | None, option("save-every", "steps between saved states [20 in a run]")
    ] = None,
    keep_states: Annotated[
        int, option("keep-states", "how many states to keep in OUT.partial")
    ] = Training.keep_states,
    restart: options.Restart = False,
    sweep_steps: Annotated[
        int | None,
        option("sweep-steps", "steps per learning rate of a sweep [5 % of all, from 20]"),
    ] = None,
    warmup: Annotated[
        float, option("warmup", "fraction of the steps over which the learning rate rises")
    ] = Training.warmup,
    floor: Annotated[
        float, option("floor", "fraction of the peak that the cosine ends at")
    ] = Training.floor,
    weight_decay: Annotated[
        float, option("weight-decay", "of AdamW, on all weights")
    ] = Training.weight_decay,
    beta1: Annotated[float, option("beta1", "of AdamW")] = Training.beta1,
    beta2: Annotated[float, option("beta2", "of AdamW")] = Training.beta2,
    eps: Annotated[float, option("eps", "of AdamW")] = Training.eps,
    clip: Annotated[float, option("clip", "greatest norm of all gradients")] = Training.clip,
    micro_batch: Annotated[
        int | None,
        option("micro-batch", "sequences at once per process [as many as make 8192 tokens]"),
    ] = None,
    activation_checkpointing: Annotated[
        bool, option("activation-checkpointing", "compute activations twice to save memory")
    ] = False,
    compile: Annotated[bool, option("compile", "compile the layers (torch.compile)")] = False,
    track: Annotated[
        str | None,
        option("track", "also send figures there (an extra)", metavar="tensorboard|wandb|trackio"),
    ] = None,
    seed: Annotated[int, option("seed", "seed of the order of rows, and of dropout")] = 0,
    dtype: Annotated[
        str, option("dtype", "compute type; auto is float32 on a CPU, bfloat16 on a GPU")
    ] = Compute.dtype,
) -> None:
    """Train a model on token rows: from scratch, or after pruning with its zeros held.

    The state lives in OUT.partial: stopped at any moment, the same command goes on and ends with
    the same bytes. Under torchrun the model is sharded over all processes. The rows that were
    trained on are recorded, so that table can tell which runs are token-matched.
    """
    first = world.is_first()
    report = options.settings(context, silent=not first)
    folder = options.from_stdin(model)[0] or ""
    fields = {name: context.params.get(name) for name in Training.__dataclass_fields__}
    from prunecli.training.train import train as run

    with first_signal(report) as stop:
        made = run(
            folder,
            out,
            Training(**fields),  # type: ignore[arg-type]
            compute=options.compute_of(context.params),
            output=options.output(context.params),
            report=report,
            stop=stop,
        )
    if first:
        console.print_made(made, context.params)


EXAMPLES = (
    ("A scratch twin", "train --data rows:0:50000 --tokens 4e6 --batch-size 8 s/ s-trained/"),
    (
        "With the learning rate chosen",
        "train --data rows --lr sweep --eval-data rows:900:1000 p/ t/",
    ),
    ("Distilled from the parent", "train --data rows --steps 500 --teacher in/ p/ t/"),
)
