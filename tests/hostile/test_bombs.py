"""Small files that unpack to much: read in flat memory, or refused in a line."""

import gzip
import json
import os

import pyarrow
import pyarrow.parquet
import pytest
from forks import in_child

from prunecli.data import textfiles
from prunecli.data.records import Reading
from prunecli.errors import InputError

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
