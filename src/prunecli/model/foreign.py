"""Formats that are not read, recognised by names of files and tensors, each with a remedy.

No file is opened.
"""

from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from prunecli.errors import InputError

SOURCE = "take the safetensors checkpoint that it was made from"
GGUF = f"{SOURCE}, or let transformers convert it ('Only a GGUF file?' in docs/running.md)"
SAVE = "load it with the library that wrote it, and save it with save_pretrained"
MERGE = "merge it into its base model first: peft's merge_and_unload(), then save_pretrained"
MXFP4 = "load it with transformers' Mxfp4Config(dequantize=True), and save it in bfloat16"
PICKLED = "a model of pickled weights, which can run code"
ADAPTER = "adapter_config.json"


# names of files, what a folder with one of them is, and what to do; the first match counts
FILES: tuple[tuple[str, str, str], ...] = (
    (ADAPTER, "a PEFT adapter, not a model", MERGE),
    ("adapter_model.*", "a PEFT adapter, not a model", MERGE),
    ("*.gguf", "a GGUF model", GGUF),
    ("model_index.json", "a diffusers pipeline, not a language model", "give a language model"),
    ("modules.json", "a sentence-transformers model", "give a language model"),
    ("*.distcp", "a distributed checkpoint of torch", SAVE),
    ("pytorch_model*.bin", PICKLED, "save it as safetensors first"),
    ("consolidated*", "a checkpoint in its maker's own format", "take its transformers version"),
    ("*.nemo", "a NeMo model", SAVE),
    ("tf_model.h5", "a TensorFlow checkpoint", SAVE),
    ("flax_model.msgpack", "a Flax checkpoint", SAVE),
    ("weights*.npz", "an MLX model", SAVE),
    ("*.onnx", "an ONNX model", SOURCE),
    ("model*.bin", PICKLED, "save it as safetensors first"),
    ("*.pt", PICKLED, "save it as safetensors first"),
    ("*.pth", PICKLED, "save it as safetensors first"),
    ("*.ckpt", PICKLED, "save it as safetensors first"),
)


# the same of tensors: libraries put these before their names, or into them
NAMES: tuple[tuple[str, str, str], ...] = (
    ("*lora_*", "an adapter's tensor", MERGE),
    ("base_model.model.*", "named by peft around the model", MERGE),
    ("_orig_mod.*", "named by torch.compile around the model", "save model._orig_mod instead"),
    ("*._orig_mod.*", "named by torch.compile around a part", "save the model before compiling it"),
    ("module.*", "named by DistributedDataParallel around the model", "save model.module instead"),
    ("_fsdp_wrapped_module.*", "named by FSDP around the model", "save a full state_dict of it"),
    ("*.qweight", "a quantised tensor", "dequantise the model first"),
    ("*.weight_packed", "a quantised tensor", "dequantise the model first"),
    ("*_proj_blocks", "quantised to MXFP4", MXFP4),
    ("*_proj_scales", "the scales of a tensor quantised to MXFP4", MXFP4),
    ("*.weight_scale*", "the scale of a quantised tensor", "dequantise the model first"),
)


def refuse_folder(folder: Path) -> None:
    """Raise InputError if a folder has files of a format that is not read."""
    names = sorted(path.name for path in folder.iterdir())
    for pattern, what, remedy in FILES:
        for name in names:
            if fnmatch(name, pattern):
                raise InputError(f"'{folder}' is {what} ('{name}' in it)", remedy)


def refuse_file(path: Path) -> None:
    """Raise InputError for a file whose name shows a format that is not read."""
    for pattern, what, remedy in FILES:
        if fnmatch(path.name, pattern):
            raise InputError(f"'{path}' is {what}", remedy)


def refuse_names(names: Iterable[str]) -> None:
    """Raise InputError if names of tensors show what was saved around a model, or instead of it."""
    for name in names:
        for pattern, what, remedy in NAMES:
            if fnmatch(name, pattern):
                raise InputError(f"tensor '{name}' is {what}", remedy)
