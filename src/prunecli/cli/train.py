"""`prunecli train`."""

from typing import Annotated

import typer

from prunecli.cli import console, options
from prunecli.cli.options import Group, of_record, option
from prunecli.cli.signals import first_signal
from prunecli.settings import Output, Training
from prunecli.training import world

# one option for every field of Training but the model, which is IN
TRAINING: Group = of_record(
    Training,
    {
        "data": option(
            "data", "rows made by tokenize, or FILE.safetensors:NAME", metavar="ROWS[:A:B]"
        ),
        "tokens": option("tokens", "train on this many tokens [default: one pass over the rows]"),
        "steps": option("steps", "train this many steps"),
        "batch_size": option("batch-size", "sequences per step, over all processes [default: 16]"),
        "lr": option(
            "lr",
            "peak learning rate, or `sweep` to pick the best of five in short trials "
            "[default: 3e-4]",
        ),
        "recipe": option("recipe", "paper: 512 rows of 8192 tokens per step, --lr sweep"),
        "repeat": option("repeat", "read the rows for several epochs if there are too few"),
        "allow_overlap": option(
            "allow-overlap", "accept rows that an ancestor of IN was trained on"
        ),
        "masks": option(
            "masks",
            "keep the zeros of sparse matrices, drop (train them), or a checkpoint whose zeros "
            "are kept",
            metavar="keep|drop|DIR",
        ),
        "teacher": option("teacher", "distill from this checkpoint", metavar="DIR"),
        "kd_weight": option("kd-weight", "weight of the distillation loss, 0 to 1 [default: 0.5]"),
        "temperature": option(
            "temperature", "distillation temperature of both models [default: 1]"
        ),
        "eval_data": option(
            "eval-data", "held-out D or ROWS:A:B to evaluate on while training", metavar="D"
        ),
        "eval_every": option(
            "eval-every", "steps between evaluations [default: 20 evaluations per run]"
        ),
        "save_every": option(
            "save-every", "steps between saved states [default: 20 states per run]"
        ),
        "keep_states": option("keep-states", "how many states to keep in OUT.partial"),
        "save_dtype": option(
            "save-dtype", "storage type of the weights in OUT; auto is that of IN"
        ),
        "sweep_steps": option(
            "sweep-steps",
            "steps per learning rate of a sweep [default: 5 % of all steps, at least 20]",
        ),
        "warmup": option("warmup", "fraction of the steps over which the learning rate rises"),
        "floor": option("floor", "fraction of the peak learning rate at which the cosine ends"),
        "weight_decay": option("weight-decay", "weight decay of AdamW, on all weights"),
        "beta1": option("beta1", "beta1 of AdamW"),
        "beta2": option("beta2", "beta2 of AdamW"),
        "eps": option("eps", "epsilon of AdamW"),
        "clip": option("clip", "clip the global gradient norm to this"),
        "micro_batch": option(
            "micro-batch", "sequences per process at once [default: 8192 tokens, at most]"
        ),
        "activation_checkpointing": option(
            "activation-checkpointing", "recompute activations to save memory"
        ),
        "compile": option("compile", "compile the layers (torch.compile)"),
        "track": option(
            "track",
            "also log metrics to this tracker (needs `pip install 'prunecli[NAME]'`)",
            metavar="tensorboard|wandb|trackio",
        ),
    },
)
SEED = of_record(Training, {"seed": option("seed", "seed of the order of rows, and of dropout")})
DTYPE = option("dtype", "compute type; auto is float32 on a CPU, bfloat16 on a GPU")
RESTART: Group = {"restart": (options.Restart, Output.restart)}
COMPUTE: Group = {
    **options.COMPUTE,
    **SEED,
    "dtype": (Annotated[str, DTYPE], options.COMPUTE["dtype"][1]),
}


@options.takes(
    TRAINING, options.READING, COMPUTE, RESTART, options.OUTPUT, options.TALK, options.CONFIG
)
def train(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="IN", help="model folder, hf:org/name, or -")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="folder to write")],
) -> None:
    """Train on tokenized rows, from scratch or after pruning. Pruned weights stay zero.

    Progress is saved in OUT.partial. Rerun the same command to resume; the result is bit-identical.
    Under torchrun the model is sharded over all processes. The rows that were trained on are
    recorded, so that `table` finds which runs are token-matched.
    """
    is_main = world.is_first()
    report = options.settings(context, silent=not is_main)
    folder, values = options.from_stdin(model)[0] or "", context.params
    from prunecli import api

    with first_signal(report) as stop:
        made = api.train(
            folder,
            out,
            **{name: values[name] for name in (*TRAINING, *options.READING, *SEED)},
            compute=options.compute_of(values),
            output=options.output(values),
            restart=values["restart"],
            report=report,
            stop=stop,
        )
    if is_main:
        console.print_made(made, values)


EXAMPLES = (
    ("A scratch twin", "train --data rows:0:50000 --tokens 4e6 --batch-size 8 s/ s-trained/"),
    (
        "With a sweep of learning rates",
        "train --data rows --lr sweep --eval-data rows:900:1000 p/ t/",
    ),
    ("Distilled from the parent", "train --data rows --steps 500 --teacher in/ p/ t/"),
)
