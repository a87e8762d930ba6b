"""Models that hold a language model among other parts, such as one that sees images.

Their config.json has the language model's own under `text_config`. A table says what names of
stored tensors begin with, and what the same names begin with in the language model by itself; a
tensor whose name begins with none of these belongs to another part.
"""

from collections.abc import Mapping

from prunecli.model.families._base import Family

Prefixes = tuple[tuple[str, str], ...]


# what is saved today, as transformers 4 saved it, and the model without its output head
LLAVA: Prefixes = (
    ("model.language_model.", "model."),
    ("lm_head.", "lm_head."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("language_model.", "model."),
)


IDEFICS: Prefixes = (
    ("model.text_model.", "model."),
    ("lm_head.", "lm_head."),
    ("text_model.", "model."),
)


WRAPPERS: Mapping[str, Prefixes] = {
    "gemma3": LLAVA,
    "gemma4": LLAVA,
    "idefics3": IDEFICS,
    "internvl": LLAVA,
    "llama4": LLAVA,
    "llava": LLAVA,
    "llava_next": LLAVA,
    "llava_onevision": LLAVA,
    "mistral3": LLAVA,
    "qwen3_5": LLAVA,
    "qwen3_5_moe": LLAVA,
    "smolvlm": IDEFICS,
    "vipllava": LLAVA,
}


def plain(family: Family) -> Prefixes:
    """Return those of a language model by itself: as they are, or of a body without its head."""
    return (("", ""), ("", f"{family.body}."))
