#!/usr/bin/env python3
"""llama.cpp's own quantizer, to Q4_K_M: `quantize.py RUNTIMES IN.gguf OUT.gguf [STATS]`.

It is the function that `llama-quantize` calls, in the library that `get.sh` brings. STATS of
`prunecli calibrate --for wanda` take the place of an imatrix: both hold, for every input of a
matrix, the sum of its squares over the calibration text, each up to a factor that the quantizer
does not see.
"""

import ctypes
import re
import sys
from pathlib import Path
from typing import Any

# the projections that share an input, as GGUF names them, by the one that STATS names
SHARED = {
    "self_attn.q_proj": ("attn_q", "attn_k", "attn_v"),
    "self_attn.o_proj": ("attn_output",),
    "mlp.gate_proj": ("ffn_gate", "ffn_up"),
    "mlp.down_proj": ("ffn_down",),
}
Q4_K_M = 15  # of enum llama_ftype


class Importance(ctypes.Structure):
    """`llama_model_imatrix_data`; a list of them ends with one without a name."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.POINTER(ctypes.c_float)),
        ("size", ctypes.c_size_t),
    )


class Parameters(ctypes.Structure):
    """`llama_model_quantize_params` of llama.h."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("nthread", "ftype", "output_type", "embedding_type")),
        *((name, ctypes.c_bool) for name in ("allow_requantize", "output", "only_copy", "pure")),
        *((name, ctypes.c_bool) for name in ("keep_split", "dry_run")),
        ("imatrix", ctypes.POINTER(Importance)),
        *((name, ctypes.c_void_p) for name in ("kv_overrides", "types", "prune_layers")),
        ("max_buf_size", ctypes.c_size_t),
    )


def importances(stats: str) -> dict[str, Any]:
    """Return the sums of squares by the names of GGUF's tensors, as float32 arrays [I]."""
    from safetensors.numpy import load_file

    found = {}
    for name, values in load_file(stats).items():
        layer, point = re.fullmatch(r"model\.layers\.(\d+)\.(.+):in\.feature_norm", name).groups()  # type: ignore[union-attr]
        found |= {f"blk.{layer}.{one}.weight": values for one in SHARED[point]}
    return found


def quantizer(runtimes: Path) -> Any:
    """Return llama.cpp's library."""
    (folder,) = runtimes.glob("node_modules/@node-llama-cpp/*/bins/*")
    for name in ("libggml-base.so", "libggml.v*.so"):
        (path,) = folder.glob(name)
        ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    (path,) = folder.glob("libllama.v*.so")
    library = ctypes.CDLL(str(path))
    library.llama_model_quantize_default_params.restype = Parameters
    return library


def main() -> None:
    """Quantize one file."""
    runtimes, source, made, *stats = sys.argv[1:]
    library = quantizer(Path(runtimes))
    parameters = library.llama_model_quantize_default_params()
    parameters.nthread, parameters.ftype = 1, Q4_K_M
    if stats:
        known = importances(stats[0])
        listed = [
            Importance(
                name.encode(), array.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), array.size
            )
            for name, array in known.items()
        ]
        parameters.imatrix = (Importance * (len(listed) + 1))(*listed)
    failed = library.llama_model_quantize(source.encode(), made.encode(), ctypes.byref(parameters))
    if failed:
        sys.exit(f"quantize.py: llama.cpp cannot quantize {source}")


if __name__ == "__main__":
    main()
