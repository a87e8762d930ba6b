#!/usr/bin/env python3
"""A multiple-choice task for lm-eval of documents that were held out.

    tasks.py TEST.jsonl OUT

OUT gets `halves4.yaml` and `halves4.jsonl`: the second half of a document's words after the first,
one of four (chance 0.25). The others are second halves of other documents, of about as many words.
The choice is by likelihood. The YAML names its data as OUT does, relative to where lm-eval runs.
"""

import json
import random
import sys
from pathlib import Path

ITEMS, CHOICES = 250, 4
WORDS = range(10, 31)  # of documents
TASK = """task: halves4
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{query}}}}"
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - metric: acc
  - metric: acc_norm
metadata:
  version: 1
"""


def items(texts: list[str]) -> list[dict[str, object]]:
    """Return the items of the first documents that fit."""
    draw = random.Random(0)
    fit = [words for text in texts if len(words := text.split()) in WORDS]
    halves = [(" ".join(w[: len(w) // 2]), " ".join(w[len(w) // 2 :])) for w in fit]
    found = []
    for query, gold in halves[:ITEMS]:
        length = len(gold.split())
        others = [end for _, end in halves if end != gold and abs(len(end.split()) - length) < 3]
        choices = [gold, *draw.sample(others, CHOICES - 1)]
        draw.shuffle(choices)
        found.append({"query": query, "choices": choices, "gold": choices.index(gold)})
    return found


def main() -> None:
    """Write the task."""
    source, out = map(Path, sys.argv[1:])
    texts = [json.loads(line)["text"] for line in source.read_text("utf-8").splitlines()]
    out.mkdir(parents=True, exist_ok=True)
    data = out / "halves4.jsonl"
    data.write_text("".join(json.dumps(item) + "\n" for item in items(texts)), "utf-8")
    (out / "halves4.yaml").write_text(TASK.format(data=data))


if __name__ == "__main__":
    main()
