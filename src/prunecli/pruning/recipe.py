"""Recipes: the text and options of a paper, or of its official implementation, by one word."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from prunecli.data.tokenizer import IDS, OFFICIAL
from prunecli.errors import UsageError
from prunecli.methods._base import Method
from prunecli.settings import Data

# how recipes that name a text turn it into tokens: the official implementations call their
# tokenizers as for a prompt, then cut windows, so that few of them begin with BOS
OFFICIAL_TEXT = {"bos": OFFICIAL, "special_tokens": IDS}


def with_recipe(
    method: Method,
    recipe: str | None,
    data: Data,
    options: Mapping[str, Any],
    *,
    from_plan: bool = False,
    reads_text: bool = True,
) -> tuple[Data, dict[str, Any]]:
    """Return data and options with a recipe's values wherever none are explicit.

    Where a plan says what is removed, the option of biases is the only one taken. Raises UsageError
    for a recipe that the method does not have, or that changes nothing where no text is read.
    """
    if recipe is None:
        return data, dict(options)
    if recipe not in method.recipes:
        known = ", ".join(method.recipes) or "none"
        raise UsageError(f"'{method.name}' has no recipe '{recipe}'", f"it has: {known}")
    values = method.recipes[recipe]
    if "source" in values:
        values = {**OFFICIAL_TEXT, **values}
    default = asdict(Data())
    explicit = {
        name: value
        for name, value in asdict(data).items()
        if value != default[name] or name in data.asked
    }
    of_text = {name: value for name, value in values.items() if name in default}
    of_method = {
        name: value
        for name, value in values.items()
        if name not in default and (name == "bias" or not from_plan)
    }
    if not (reads_text or of_method):
        raise UsageError(
            f"--recipe {recipe} changes nothing: it describes the text that '{method.name}' reads, "
            "and none is read here",
            "remove it",
        )
    return replace(data, **{**of_text, **explicit}), {**of_method, **options}
