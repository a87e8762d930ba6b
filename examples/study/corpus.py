#!/usr/bin/env python3
"""Public English text from Debian packages, split into documents by their hashes.

    corpus.py KIND OUT

KIND is `definitions` (two dictionaries: short documents, few constructions) or `prose` (a book in
paragraphs). OUT gets `KIND-train.jsonl`, `-validation`, `-test` and `-calibration`.
Packages come by `apt-get download` and are unpacked, not installed; that takes Debian, or a system
that has its packages.

The SHA-256 of a document says into which split it goes, and orders the split. So the training text
is in random order: its first rows are for pretraining, the next ones for retraining. Documents that
occur twice count once. `corpus.json` beside this file holds the digests of what the study was run
on; other text is refused, because results on it could not be compared.
"""

import argparse
import gzip
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

RECORD = Path(__file__).with_name("corpus.json")
# shares of all documents, in parts of 1000; the rest is for training
SHARES = {"test": 20, "validation": 10, "calibration": 20}


def gcide(root: Path) -> Iterator[str]:
    """Yield entries of the GNU dictionary without pronunciation, etymology and sources."""
    text = gzip.decompress((root / "usr/share/dictd/gcide.dict.dz").read_bytes())
    for entry in re.split(r"\n(?=\S)", text.decode("utf-8", "replace")):
        plain = re.sub(r"\[[^\[\]]*\]|\\[^\\\n]*\\|[{}]", "", entry)
        yield re.sub(r"\s+([,.;:])", r"\1", " ".join(plain.split()))


def wordnet(root: Path) -> Iterator[str]:
    """Yield `word: definition` of every entry."""
    for part in ("noun", "verb", "adj", "adv"):
        text = (root / f"usr/share/wordnet/data.{part}").read_text("utf-8")
        for line in text.splitlines():
            if not line.startswith("  ") and "|" in line:
                head, gloss = line.split("|", 1)
                yield f"{head.split()[4].replace('_', ' ')}: {gloss.strip()}"


def anarchism(root: Path) -> Iterator[str]:
    """Yield the paragraphs of the FAQ."""
    for file in sorted((root / "usr/share/doc/anarchism/markdown").rglob("*")):
        if file.is_file():
            data = file.read_bytes()
            data = gzip.decompress(data) if file.suffix == ".gz" else data
            for paragraph in re.split(r"\n\s*\n", data.decode("utf-8", "replace")):
                yield " ".join(paragraph.split())


KINDS = {
    "definitions": {"dict-gcide": gcide, "wordnet-base": wordnet},
    "prose": {"anarchism": anarchism},
}
SHORTEST = 40  # characters: headings and cross references are no documents


def documents(kind: str) -> dict[bytes, str]:
    """Return the documents of all packages of a kind, by their hashes."""
    found = {}
    for package, read in KINDS[kind].items():
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["apt-get", "-qq", "download", package], cwd=folder, check=True)
            (archive,) = Path(folder).glob("*.deb")
            subprocess.run(["dpkg-deb", "-x", archive, f"{folder}/root"], check=True)
            for text in read(Path(folder) / "root"):
                if len(text) >= SHORTEST:
                    found[sha256(text.encode()).digest()] = text
    return found


def split_of(digest: bytes) -> str:
    """Return the split of a document: the last bytes of its hash, since the first ones sort it."""
    draw = int.from_bytes(digest[-4:]) * 1000 >> 32
    for name, share in SHARES.items():
        if draw < share:
            return name
        draw -= share
    return "train"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    splits: dict[str, list[str]] = {name: [] for name in ("train", *SHARES)}
    for digest, text in sorted(documents(given.kind).items()):
        splits[split_of(digest)].append(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    data = {f"{name}.jsonl": "".join(lines).encode() for name, lines in splits.items()}
    made = {name: sha256(content).hexdigest() for name, content in data.items()}
    recorded = json.loads(RECORD.read_text()).get(given.kind)
    if recorded not in (None, made):
        sys.exit(f"the packages hold other text than {RECORD.name} records: {made}")
    given.out.mkdir(parents=True, exist_ok=True)
    for name, content in data.items():
        (given.out / f"{given.kind}-{name}").write_bytes(content)
    print(json.dumps({given.kind: made}, indent=1))


if __name__ == "__main__":
    main()
