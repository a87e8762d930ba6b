"""config.json as transformers' own classes read it, which decide what they can build.

Of the config.json of a multimodal model (`text_config`) only the language model is read.
"""

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

from prunecli import limits
from prunecli.errors import InputError, of_memory, suggest
from prunecli.files import regular, strict
from prunecli.model import companions, foreign
from prunecli.model.families._base import CONFIG_KEYS, EXPERT_KEYS, Experts, Family
from prunecli.model.families._wrappers import WRAPPERS

LONGEST = 200  # characters of a library's message
CANNOT_BUILD = "transformers cannot build a model from config.json"
MOST_LAYERS = 10_000
MOST_EXPERTS = 10_000
MOST = 2**31 - 1
SECONDS = 10.0  # of computing, to build a model without weights, or to run a tiny one
MEMORY = 4 << 30  # bytes, to build a model without weights
PATTERN = "sliding_window_pattern"
HYBRID = "hybrid_override_pattern"  # the same of Nemotron-H, in letters of its own
LETTERS = re.compile(r"[LG]{1,1000}")  # how some configs write it; see `windows` of the families


# sizes of FFNs and mixers of which not all layers have one
MIXER_SIZES = (
    "shared_expert_intermediate_size", "shared_intermediate_size", "linear_conv_kernel_dim",
    "linear_key_head_dim", "linear_value_head_dim", "linear_num_key_heads",
    "linear_num_value_heads", "mamba_n_heads", "mamba_n_groups", "mamba_d_state", "mamba_d_conv",
    "mamba_expand", "mamba_num_heads", "mamba_head_dim", "ssm_state_size", "n_groups",
    "conv_kernel", "moe_shared_expert_intermediate_size",
)  # fmt: skip


# of heads, and of what attention is squeezed through
LATENT_SIZES = (
    "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
)  # fmt: skip


# sizes of the layers with full attention, and of what layers get beside the residual stream
OF_KINDS = ("global_head_dim", "num_global_key_value_heads", "vocab_size_per_layer_input")


# how many experts there are, or a token takes, where the usual keys do not say so
EXPERT_COUNTS = ("n_routed_experts", "moe_num_experts", "moe_k")


# bounds of the numbers that prunecli itself computes with
NUMBERS: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(CONFIG_KEYS.values(), (1, MOST)),
    CONFIG_KEYS["layers"]: (1, MOST_LAYERS),
    "max_position_embeddings": (1, MOST),
    "sliding_window": (0, MOST),
    PATTERN: (0, MOST),
    "no_rope_layer_interval": (1, MOST),
    "max_window_layers": (0, MOST),
    "rms_norm_eps": (0, 1),
    "initializer_range": (0, 1e6),
    "logits_scaling": (1e-6, 1e6),
    "final_logit_softcapping": (1e-6, 1e6),
    "logit_scale": (1e-6, 1e6),
    "ffn_dim": (1, MOST),
    "moe_intermediate_size": (1, MOST),
    **dict.fromkeys((*EXPERT_KEYS.values(), *EXPERT_COUNTS), (1, MOST_EXPERTS)),
    "num_local_experts": (0, MOST_EXPERTS),
    "n_shared_experts": (1, MOST_EXPERTS),
    "moe_num_shared_experts": (0, MOST_EXPERTS),
    "moe_layer_start_index": (0, MOST_LAYERS),
    "moe_layer_end_index": (-1, MOST_LAYERS),
    **dict.fromkeys(("n_group", "topk_group"), (1, MOST_EXPERTS)),
    **dict.fromkeys(LATENT_SIZES, (1, MOST)),
    **dict.fromkeys(OF_KINDS, (1, MOST)),
    "hidden_size_per_layer_input": (0, MOST),
    "num_kv_shared_layers": (0, MOST_LAYERS),
    "init_std": (0, 1e6),
    "norm_eps": (0, 1),
    "layer_norm_epsilon": (0, 1),
    "decoder_sparse_step": (1, MOST_LAYERS),
    "interleave_moe_layer_step": (1, MOST_LAYERS),
    "intermediate_size_mlp": (1, MOST),
    "attention_chunk_size": (1, MOST),
    "full_attention_interval": (1, MOST_LAYERS),
    "first_k_dense_replace": (0, MOST_LAYERS),
    **dict.fromkeys(MIXER_SIZES, (1, MOST)),
    "conv_L_cache": (1, MOST),
    "block_multiple_of": (1, MOST),
    "block_ffn_dim_multiplier": (1e-6, 1e6),
    "router_aux_loss_coef": (0, 1e6),
}


DTYPES = ("float32", "bfloat16", "float16", "float64")
FRACTIONS = (
    "rms_norm_eps", "initializer_range", "init_std", "logits_scaling", "logit_scale",
    "final_logit_softcapping", "router_aux_loss_coef", "norm_eps",
    "layer_norm_epsilon", "block_ffn_dim_multiplier",
)  # fmt: skip


# sizes without a default in any family's table
FILLED = ("layers", "hidden", "ffn", "heads", "vocab")


# keys that a language model may take from the multimodal model's config
SHARED = ("dtype", "torch_dtype", "bos_token_id", "eos_token_id", "pad_token_id")


# keys that transformers' classes take beside those that the class of a family declares
PASSED = (
    *NUMBERS, "layer_types", "model_type", "dtype", "torch_dtype", "rope_theta", "rope_scaling",
    "rope_local_base_freq", "partial_rotary_factor", "original_max_position_embeddings", PATTERN,
)  # fmt: skip


# keys that choose code, or how it runs, and not what a model computes: they go no further
PREFERENCES = (
    companions.CODE, "attn_implementation", "_attn_implementation", "experts_implementation",
    "_experts_implementation", "use_kernels", "_attn_implementation_internal",
    "_experts_implementation_internal", "distributed_config", "fusion_config",
)  # fmt: skip


# keys by which any class of transformers becomes another model, and what they may be beside null
ORDINARY: Mapping[str, tuple[Any, ...]] = {
    "per_layer_config": (),
    "transformers_weights": (),
    "is_causal": (True,),
    "is_encoder_decoder": (False,),
}


class Endless(InputError):
    """A model that is not built, or run, in the time that models take (exit status 4)."""


def without_preferences(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config without keys that choose code, in the configs that it holds as well."""
    return {
        key: without_preferences(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if key not in PREFERENCES
    }


class Config(NamedTuple):
    """The config of a language model, and the `model_type` of the multimodal model around it."""

    values: dict[str, Any]
    part_of: str | None


def read(folder: str | Path, counted: bool = False, asked: bool = True) -> Config:
    """Read FOLDER/config.json; raise InputError if it is missing or transformers rejects it.

    With `counted` the sizes alone matter: it may be an architecture that transformers cannot build,
    or quantised. Then, and unless it is to be `asked`, transformers, which is slow to load, is only
    used where sizes are absent, and where the model is part of a multimodal one.
    """
    path = Path(folder) / "config.json"
    try:
        values = strict.read_object(regular.inside(Path(folder), path))
    except FileNotFoundError:
        raise InputError(
            f"'{folder}' is not a checkpoint: it has no config.json",
            "give a Hugging Face model folder",
        ) from None
    return of_language_model(values, counted, asked)


def of_language_model(values: dict[str, Any], counted: bool = False, asked: bool = True) -> Config:
    """Return the config of the language model that a config.json describes, or is a part of.

    Sizes that are absent are filled in as transformers does. Raises InputError where it describes
    none.
    """
    kind = values.get("model_type")
    if not isinstance(kind, str):
        raise InputError("config.json has no model_type", "is this a Hugging Face model folder?")
    _refuse_kernels(values)
    if kind not in WRAPPERS:
        if isinstance(values.get("text_config"), dict):
            raise InputError(
                f"'{kind}' is not a supported multimodal model{suggest(kind, sorted(WRAPPERS))}",
                "save its language model in a folder of its own",
            )
        return Config(_filled(values, counted, asked), None)
    text = values.get("text_config") or {}
    if not isinstance(text, dict):
        raise InputError(f"config.json: text_config is {strict.told(text)}, expected an object")
    check_numbers(text)
    if "model_type" not in text:
        usual = transformers_config({"model_type": kind}).get_text_config(decoder=True)
        text = {**text, "model_type": usual.model_type}
    tie = {key: values[key] for key in ("tie_word_embeddings",) if key in values}
    with refusals("transformers rejects the text_config of config.json"):
        known = passed_on(text)
    multimodal = transformers_config({"model_type": kind, **tie, "text_config": known})
    own = multimodal.get_text_config(decoder=True)
    shared = {key: values[key] for key in SHARED if key in values}
    if "dtype" in text or "torch_dtype" in text:
        shared = {key: value for key, value in shared.items() if "dtype" not in key}
    tied = bool(getattr(multimodal, "tie_word_embeddings", False))
    language = {"model_type": own.model_type, **shared, **text, "tie_word_embeddings": tied}
    if "quantization_config" in values:
        language["quantization_config"] = values["quantization_config"]
    return Config(_filled(language, counted, asked), kind)


def _refuse_kernels(values: Mapping[str, Any]) -> None:
    """Raise InputError where a config names code on a hub, which transformers would run."""
    for key, value in values.items():
        names = [value, *value.values()] if isinstance(value, dict) else [value]
        if "_implementation" in key and any(isinstance(n, str) and "/" in n for n in names):
            raise InputError(
                f"config.json: {key} is {strict.told(value)}, code on a hub, which is never run",
                "remove the key",
            )
        if isinstance(value, dict):
            _refuse_kernels(value)


def _filled(values: dict[str, Any], counted: bool, asked: bool) -> dict[str, Any]:
    from prunecli.model import nearest
    from prunecli.model.families import registry

    # before transformers could mistake an unknown family
    if not registry.knows(values["model_type"]):
        raise registry.unknown(values["model_type"], nearest.described(values["model_type"]))
    family = registry.of_config(values)
    check_numbers(values)  # of which a family can make others
    values = family.renamed(values)
    if not counted and values.get("quantization_config") is not None:
        raise _quantised(values["quantization_config"])
    for key, allowed in {**ORDINARY, **family.only}.items():
        if values.get(key) not in (None, *allowed):
            raise InputError(
                f"config.json: {key} is {strict.told(values[key])}, which makes it another kind of "
                "model",
                "give a causal language model with layers of one shape",
            )
    check_numbers(values)
    if isinstance(values.get(HYBRID), str):
        values = _counted_letters(values, family.key("layers"))
    absent = [key for key in map(family.key, FILLED) if values.get(key) is None]
    if not absent and any(isinstance(values.get(key), str) for key in (PATTERN, HYBRID)):
        values = {**values, **_lists(family, values)}
    if not absent and (counted or not asked):
        return values
    known = transformers_config(values)
    return {**values, **{key: getattr(known, key) for key in absent}}


def _quantised(how: Any) -> InputError:
    """Return the error for a config.json of quantised weights.

    Whatever it says, transformers would read plain weights as quantised ones.
    """
    method = how.get("quant_method") if isinstance(how, dict) else None
    told = "" if method is None else f" of quant_method {strict.told(method)}"
    usual = "dequantise the model first, or remove the key if its weights are not quantised"
    remedy = foreign.MXFP4 if method == "mxfp4" else usual
    return InputError(f"config.json has a quantization_config{told}", remedy)


def _counted_letters(values: dict[str, Any], key: str) -> dict[str, Any]:
    """Return config.json with as many layers as letters, which transformers goes by alone."""
    letters = len(values[HYBRID])
    if values.get(key) not in (None, letters):
        raise InputError(
            f"config.json: {HYBRID} has {letters} letters, expected one for each of "
            f"{values[key]} layers"
        )
    return {**values, key: letters}


def _lists(family: Family, values: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the lists that config.json leaves out, where a pattern in letters stands for them.

    No class of transformers makes them from letters.
    """
    layers = range(values[family.key("layers")])
    return {
        key: [rule(values, i) for i in layers]
        for key, rule in family.layer_lists.items()
        if rule is not None and values.get(key) is None
    }


def check_numbers(values: Mapping[str, Any]) -> None:
    """Raise InputError for an unknown dtype, and numbers that are none or out of bounds."""
    for key in ("dtype", "torch_dtype"):
        if values.get(key) is not None and values[key] not in DTYPES:
            raise InputError(
                f"config.json: {key} is {strict.told(values[key])}, expected one of "
                f"{', '.join(DTYPES)}"
            )
    for key, (least, most) in NUMBERS.items():
        value = values.get(key)
        letters = isinstance(value, str) and LETTERS.fullmatch(value)
        if value is None or (key == PATTERN and letters):
            continue
        fits = isinstance(value, int | float if key in FRACTIONS else int)
        if not fits or isinstance(value, bool) or not least <= value <= most:
            what = "a number" if key in FRACTIONS else "an integer"
            raise InputError(
                f"config.json: {key} is {strict.told(value)}, "
                f"expected {what} from {least:g} to {most:.10g}"
            )


def transformers_config(values: Mapping[str, Any]) -> Any:
    """Return the config as transformers' own class; raise InputError if that rejects it.

    It takes any key, and some choose code; only those that say what the model is are passed on.
    """
    from transformers import AutoConfig

    with refusals("transformers rejects config.json"):
        config = AutoConfig.for_model(**passed_on(values))
    kinds = getattr(config, "layer_types", None) or ()
    if "sliding_attention" in kinds and getattr(config, "sliding_window", None) is None:
        raise InputError(
            "config.json has layers of sliding_attention but no sliding_window",
            "is it as it came with the model?",
        )
    return config


def passed_on(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what transformers is told of a config: the keys that the class of its kind declares.

    Raises InputError for a kind that the installed version does not know.
    """
    from transformers import CONFIG_MAPPING, PretrainedConfig, __version__

    kind = values["model_type"]
    if kind not in CONFIG_MAPPING:
        raise InputError(
            f"config.json has model_type {strict.told(kind)}, which transformers {__version__} "
            "does not know",
            "install a version of transformers that knows it",
        )
    declared = signature(CONFIG_MAPPING[kind]).parameters.keys()
    known = {*declared, *PASSED} - (signature(PretrainedConfig).parameters.keys() - {*PASSED})
    # its classes change nested values in place
    return {key: _decoded(value) for key, value in values.items() if key in known}


def _decoded(value: Any) -> Any:
    """Return a copy, with the numbers that JSON has none for as transformers writes them."""
    if isinstance(value, list):
        return [_decoded(one) for one in value]
    if isinstance(value, dict) and {*value} == {"__float__"}:
        return {"Infinity": inf, "-Infinity": -inf}.get(str(value["__float__"]), value)
    return copy.deepcopy(value)


def shapes(
    values: Mapping[str, Any], layers: str | None = None, names: Experts | None = None
) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor, by its name in files, of what transformers builds.

    Of a kind that no family reads, `layers` is the list of layers, and `names` are its experts: as
    long as nobody knows these, they are as transformers has them. Takes no memory for weights.
    Raises InputError if it cannot build one.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from prunecli.model import experts
    from prunecli.model.families import registry

    config, kind = transformers_config(values), values["model_type"]
    with bounded(CANNOT_BUILD), limits.memory(MEMORY), torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    if registry.knows(kind):
        family = registry.of_config(values)
        layers, names = family.layer.removesuffix(".{i}."), family.experts
    for layer in model.get_submodule(layers) if layers is not None else ():
        experts.unstack(layer, names)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@contextmanager
def bounded(what: str) -> Iterator[None]:
    """Refuse as `refusals` does; raise Endless for what takes longer than models that there are.

    It is for models of which no weights say how many layers and parts they have.
    """
    with refusals(what):
        try:
            with limits.seconds(SECONDS):
                yield
        except (limits.TookTooLong, MemoryError) as error:
            why = str(error) or f"it takes more than {MEMORY >> 30} GiB of memory"
            raise Endless(f"{what}: {why}", "is config.json as it came with the model?") from None


@contextmanager
def refusals(what: str) -> Iterator[None]:
    """Turn whatever transformers' configs and models raise into one InputError."""
    try:
        yield
    except (MemoryError, InputError):
        raise
    except Exception as error:
        # its validators and look-ups raise errors without a common base
        raise of_memory(error) or InputError(
            f"{what}: {why(error)}", "is config.json as it came with the model?"
        ) from error


def why(error: Exception) -> str:
    """Return a library's error message as one line, without preambles and a full stop."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    if isinstance(error, KeyError):
        text = f"it has no {text}"
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    text = text.rpartition("ValueError: ")[2].rpartition("TypeError: ")[2]
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
