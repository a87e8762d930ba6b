#!/usr/bin/env python3
"""Copy the README, and every file that it leads to, into a folder of the same shape: `make site`.

So a link that works in the repository works in the site, also one to a file of source code.
"""

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def gather(start: Path) -> set[Path]:
    """Return a page and all files that links lead to from it, step by step."""
    found, left = {start}, [start]
    while left:
        page = left.pop()
        targets = LINK.findall(page.read_text("utf-8")) if page.suffix == ".md" else []
        new = {(page.parent / target).resolve() for target in targets} - found
        if missing := [path for path in new if not path.is_file()]:
            raise SystemExit(f"{page}: a link to {missing[0]}, which is no file")
        found |= new
        left += new
    return found


def main(out: Path) -> None:
    """Make the folder anew."""
    shutil.rmtree(out, ignore_errors=True)
    for path in gather(ROOT / "README.md"):
        copy = out / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
