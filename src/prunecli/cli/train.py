"""`prunecli train`."""

from typing import Annotated

import typer

from prunecli.cli import console, options, records
from prunecli.cli.options import COMPUTE_PANEL, OUTPUT_PANEL, Text, of_record
from prunecli.settings import Compute, Training

DATA_PANEL = "Training data"
EVAL_PANEL = "Evaluation data"

TRAINING: options.Group = {
    **of_record(
        Training,
        DATA_PANEL,
        data=Text("rows from `prunecli tokenize`, or FILE.safetensors:NAME", "ROWS[:A:B]"),
        tokens=Text("train on this many tokens [default: one epoch, all rows once]", "N"),
        steps=Text("train for this many steps", "N"),
        batch_size=Text("sequences per step, over all processes [default: 16]", "N"),
        recipe=Text("512 rows of 8192 tokens per step, and --lr sweep", "paper"),
        repeat=Text("train for several epochs where there are fewer rows than needed"),
        allow_overlap=Text("accept rows that an ancestor of IN was trained on"),
    ),
    **of_record(
        Training,
        "Optimizer and schedule",
        lr=Text(
            "peak learning rate, several to pick the best of in short trials (1e-3,3e-3), or "
            "`sweep` for five from 1e-5 to 1e-3 [default: 3e-4]",
            "R[,R...]|sweep",
        ),
        sweep_steps=Text(
            "steps per trial of a sweep [default: 5 % of all steps, at least 20]", "N"
        ),
        warmup=Text("fraction of the steps over which the learning rate rises", "R"),
        floor=Text("learning rate at the end, as a fraction of the peak", "R"),
        weight_decay=Text("weight decay of AdamW, on all weights", "R"),
        beta1=Text("first moment decay of AdamW", "R"),
        beta2=Text("second moment decay of AdamW", "R"),
        eps=Text("epsilon of AdamW", "R"),
        clip=Text("clip the global gradient norm to this", "R"),
    ),
    **of_record(
        Training,
        "Masks and distillation",
        masks=Text(
            "keep pruned weights at zero, drop the mask (train them), or take the mask of another "
            "checkpoint",
            "keep|drop|DIR",
        ),
        teacher=Text("distill from this checkpoint", "DIR"),
        kd_weight=Text("weight of the distillation loss, 0 to 1 [default: 0.5]", "R"),
        temperature=Text("distillation temperature, for teacher and student [default: 1]", "R"),
    ),
    **of_record(
        Training,
        EVAL_PANEL,
        eval_data=Text("held-out DATA, or ROWS:A:B, to evaluate on", "DATA"),
        eval_every=Text("steps between evaluations [default: 20 evaluations per run]", "N"),
    ),
    **options.under(EVAL_PANEL, options.READING),
    **of_record(
        Training,
        COMPUTE_PANEL,
        micro_batch=Text(
            "sequences per process in one pass [default: as many as make 8192 tokens]", "N"
        ),
        activation_checkpointing=Text("recompute activations in the backward pass to save memory"),
        compile=Text("compile the layers (torch.compile)"),
    ),
    **of_record(
        Training,
        OUTPUT_PANEL,
        save_dtype=Text("storage type of OUT; auto: that of IN"),
        save_every=Text("steps between saved states [default: 20 states per run]", "N"),
        keep_states=Text("states to keep in OUT.partial", "N"),
        track=Text(
            "also log metrics to this tracker (needs `pip install 'prunecli[NAME]'`)",
            "tensorboard|wandb|trackio",
        ),
    ),
}

COMPUTE: options.Group = {
    **options.COMPUTE,
    **of_record(
        Compute,
        COMPUTE_PANEL,
        dtype=Text("compute type; auto: float32 on a CPU, bfloat16 on a GPU"),
    ),
    **of_record(Training, COMPUTE_PANEL, seed=Text("seed of the row order and of dropout", "N")),
}


@options.with_options(
    TRAINING,
    COMPUTE,
    options.OUTPUT,
    options.RESTART,
    options.PROBE,
    options.VERBOSITY,
    options.CONFIG,
)
def train(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="IN", help="model folder, hf:org/name, or - for stdin")
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="folder to write")],
) -> None:
    """Train on token rows, from scratch or after pruning.

    Pruned weights stay zero. Progress is saved in OUT.partial. Rerun the same command to resume;
    the result is bit-identical. Under torchrun the model is sharded over all processes. OUT records
    which rows it was trained on, so that `prunecli table` can tell which runs are token-matched.
    """
    report = records.setup(context)
    folder, values = records.from_stdin(model)[0] or "", context.params
    fields = {name: values[name] for name in (*TRAINING, "seed")}
    from prunecli.training.train import train as verb

    run = records.run_context(values, out, report, records.command_line(context))
    console.print_made(verb(Training(model=folder, **fields), run), values, "eval {out}")


EXAMPLES = (
    ("a scratch baseline", "train --data rows:0:50000 --tokens 4e6 --batch-size 8 s/ s-trained/"),
    (
        "choose the learning rate",
        "train --data rows --lr sweep --eval-data rows:900:1000 p/ t/",
    ),
    ("distill from the parent", "train --data rows --steps 500 --teacher in/ p/ t/"),
)
