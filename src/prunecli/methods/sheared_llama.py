"""Sheared LLaMA: masks learned together with the weights (Xia et al. 2024, arXiv 2310.06694).

Hard-concrete gates on hidden channels, layers, KV groups and FFN channels are trained with the
weights by the language-modelling loss, under an augmented Lagrangian that holds their expected
shares to a given shape (pruning/sheared.py, pruning/gates.py). Not a score: what stays, and the
weights that it was trained with, come out of the run. `--freeze-weights` trains the masks alone,
for machines that cannot hold optimiser state; that variant is not the method, and is called so.

`--compat official` learns as the official code does: embedding without gates, output head times
the gates when they are folded in, one clipping for everything that is trained, learning rates one
step later. pruning/sheared.py says what else differs.
"""

from prunecli.methods._base import Method, Option

METHOD = Method(
    name="sheared-llama",
    title="Sheared LLaMA",
    reference="arXiv 2310.06694",
    unit="channels",
    granularity="layers, hidden channels, KV groups + FFN channels",
    axes=("layers", "hidden", "heads", "ffn"),
    trains_masks=True,
    quirks=lambda beside: "",
    options=(
        Option(
            "tokens",
            float,
            None,
            "token budget for mask training [default: one pass over the data, at least 300 steps]",
            metavar="N",
        ),
        Option("batch_size", int, 8, "sequences per step"),
        Option(
            "lr",
            float,
            1e-4,
            "peak learning rate of the weights",
            idle=lambda beside: "weights are frozen" if beside.options["freeze_weights"] else "",
        ),
        Option("mask_lr", float, 1.0, "peak learning rate of masks and Lagrange multipliers"),
        Option(
            "domains",
            str,
            "",
            "more training data beside --data, separated by commas; dynamic batch loading draws "
            "more from data whose loss is further above the parent's",
            metavar="DATA,...",
        ),
        Option(
            "domain_weights",
            str,
            "",
            "initial sampling weights of --data and each of --domains, separated by commas "
            "[default: by their numbers of rows]",
            metavar="R,R,...",
            idle=lambda beside: "" if beside.options["domains"] else "there are no --domains",
        ),
        Option(
            "domain_every",
            int,
            50,
            "steps between updates of the domain weights",
            idle=lambda beside: "" if beside.options["domains"] else "there are no --domains",
        ),
        Option(
            "freeze_weights", bool, False, "train masks only (a variant, not the paper's method)"
        ),
        Option(
            "activation_checkpointing",
            bool,
            False,
            "recompute activations in the backward pass to save memory",
        ),
    ),
    # 3200 steps of RedPajama, which --data and --domains must name; --domain-weights are its shares
    recipes={
        "official": {
            "tokens": 3200 * 32 * 4096,
            "batch_size": 32,
            "seq_len": 4096,
            "seed": 17,
        },
    },
)
