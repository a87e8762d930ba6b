"""Small files that unpack to much: read in flat memory, or refused in a line."""

import gzip
import json
import os
import resource
import time

import pyarrow
import pyarrow.parquet
import pytest
from forks import in_child

from prunecli.cli.config import _read_config
from prunecli.data import textfiles
from prunecli.data.records import Reading
from prunecli.errors import InputError, UsageError

MEMORY = 300_000_000  # bytes, of which the process itself has none: what comes beside that


def refused_in_little_memory(path):
    """Read a file in a process that may grow by MEMORY; return whether that was refused."""

    def read():
        before = _resident()
        try:
            for _ in textfiles.documents(path, Reading()):
                pass
            status = 0
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 500
            status = 3
        os._exit(status if _resident() - before < MEMORY else 4)

    def _resident():
        with open("/proc/self/status") as file:
            (peak,) = (line for line in file if line.startswith("VmHWM"))
        return 1024 * int(peak.split()[1])

    status = in_child(read)
    assert status != 4, "it filled the memory"
    return status == 3


def packed(name, content):
    return gzip.compress(content, 9) if name.endswith(".gz") else _zstd(content)


def _zstd(content):
    return pyarrow.Codec("zstd").compress(content, asbytes=True)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst", "a.jsonl.gz", "a.jsonl.zst"])
def test_one_long_text(name, tmp_path):
    piece = b"x" * (1 << 24)
    content = piece if ".txt" in name else b'{"text": "' + piece
    (tmp_path / name).write_bytes(packed(name, content) + packed(name, piece) * 29)
    assert (tmp_path / name).stat().st_size < 1_000_000
    assert refused_in_little_memory(tmp_path / name)


def test_lines_without_end(tmp_path):
    lines = _zstd(b'{"text": ""}\n' * 1_000_000)
    (tmp_path / "a.jsonl.zst").write_bytes(lines * 30)
    assert refused_in_little_memory(tmp_path / "a.jsonl.zst")


def test_what_is_small_may_unpack_to_anything(tmp_path):
    content = json.dumps({"text": "x" * 1_000_000}).encode() + b"\n"
    for name in ("a.jsonl.gz", "a.jsonl.zst"):
        (tmp_path / name).write_bytes(packed(name, content))
        (text,) = textfiles.documents(tmp_path / name, Reading())
        assert text == "x" * 1_000_000


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_more_values_than_memory_holds(name, tmp_path):
    (tmp_path / name).write_bytes(b"[" + b"{}," * 6_000_000 + b"{}]")
    assert refused_in_little_memory(tmp_path / name)


def parquet(path, texts, **options):
    table = pyarrow.table({"text": texts})
    options = {"compression": "zstd", "write_statistics": False, "store_schema": False, **options}
    pyarrow.parquet.write_table(table, path, **options)


def test_a_text_that_many_rows_of_parquet_share(tmp_path):
    """One page of 900 kB and 3000 rows: a thousand at a time took 2 GB."""
    shared = pyarrow.DictionaryArray.from_arrays([0] * 3000, ["y" * 900_000])
    parquet(tmp_path / "a.parquet", shared, dictionary_pagesize_limit=2_000_000)
    assert (tmp_path / "a.parquet").stat().st_size < 1000
    assert refused_in_little_memory(tmp_path / "a.parquet")


def test_long_rows_of_parquet_that_pack_well(tmp_path):
    parquet(tmp_path / "a.parquet", ["z" * 3_000_000] * 30, use_dictionary=False)
    assert (tmp_path / "a.parquet").stat().st_size < 100_000
    assert refused_in_little_memory(tmp_path / "a.parquet")


def test_rows_of_parquet_that_are_shared_and_long_are_read(tmp_path):
    texts = [f"{i % 7} " * 200_000 for i in range(40)] + ["", None]
    parquet(tmp_path / "a.parquet", texts)
    reading = Reading(skip_bad=1)
    assert list(textfiles.documents(tmp_path / "a.parquet", reading)) == texts[:-1]
    assert reading.skipped == 1


def test_long_texts_are_refused_with_a_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(textfiles, "LARGEST_TEXT", 1 << 20)
    (tmp_path / "a.txt").write_text("x" * (1 << 21))
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x" * (1 << 21)}))
    for name, remedy in (("a.txt", "JSON lines"), ("a.jsonl", "a line of its own")):
        with pytest.raises(InputError, match=f"1 MiB; .*{remedy}"):
            list(textfiles.documents(tmp_path / name, Reading()))


def test_parquet_that_lies_about_its_sizes(tmp_path, monkeypatch):
    """What is claimed is little, what comes out is much: the library is held at PARQUET_MEMORY."""
    monkeypatch.setattr(textfiles, "PARQUET_MEMORY", 1 << 26)
    monkeypatch.setattr(textfiles, "EXPANSION", 1 << 30)
    parquet(tmp_path / "a.parquet", ["z" * 90_000_000] * 3, use_dictionary=False)
    assert refused_in_little_memory(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="with smaller pages and row groups"):
        list(textfiles.documents(tmp_path / "a.parquet", Reading()))


MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40)
)
SHARED = "a0: &a0 [x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 40)
)


@pytest.mark.parametrize("name, content", [
    ("a.toml", "a" + ".a" * 40_000 + " = 1\n"), ("b.toml", "[a" + ".a" * 40_000 + "]\n"),
    ("c.toml", "x = {a" + ".a" * 40_000 + " = 1}\n"), ("d.toml", "x = " + "[" * 40_000),
    ("a.yaml", MERGES), ("b.yaml", SHARED), ("c.yaml", "[" * 40_000),
])  # fmt: skip
def test_config_files_are_bounded(name, content, tmp_path):
    (tmp_path / name).write_text(content)

    def read():
        before = time.process_time()
        try:
            _read_config(str(tmp_path / name))
            status = 3 if name == "b.yaml" else 5  # shared lists are small
        except UsageError as error:
            assert "\n" not in str(error)
            status = 3
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - at_first
        os._exit(status if time.process_time() - before < 5 and peak < MEMORY else 4)

    at_first = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert in_child(read) == 3
