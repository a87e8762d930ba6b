"""Print the lowest version that pyproject.toml allows of every dependency, as pip constraints."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
for requirement in project["dependencies"]:
    name, lowest = re.fullmatch(r"([\w.-]+)>=([\w.]+)(?:,.*)?", requirement).groups()  # type: ignore[union-attr]
    print(f"{name}=={lowest}")
