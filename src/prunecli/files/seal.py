"""Seals: digests in a sidecar's `run` that tell any later change of it, and of files beside it.

The tensors have a digest of their own in `outputs`, which does not depend on how they are stored.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from prunecli.interruption import safe_point

CHUNK = 1 << 20


def of_record(record: Mapping[str, Any]) -> str:
    """Return the sha256 of a sidecar's JSON without its own `run.digest`, however it is set out."""
    run = {key: value for key, value in record["run"].items() if key != "digest"}
    return of_value({**record, "run": run})


def of_value(value: Any) -> str:
    """Return the sha256 of a JSON value, however it is set out."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def of_file(path: Path) -> str:
    """Return the sha256 of a file; raise OSError if it cannot be read."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            safe_point()
            sha.update(chunk)
    return sha.hexdigest()


def of_folder(folder: Path, apart: Collection[str]) -> dict[str, str]:
    """Return the sha256 of each file in a folder by its path; tensors and `apart` are left out."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {
        name: of_file(path)
        for name, path in names.items()
        if path.suffix != ".safetensors" and name not in apart
    }
