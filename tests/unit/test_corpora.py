"""Corpora as they are shipped: every cell of the tables in docs/corpora.md, and the rest of it."""

import gzip
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet as parquet
import pytest

from prunecli.data import documents, rows, textfiles
from prunecli.data.records import Reading
from prunecli.errors import InputError, UsageError
from prunecli.report import Report

PAGE = Path(__file__).resolve().parents[2] / "docs" / "corpora.md"
TEXTS = ["one é", "", "three"]
FORMATS = [".jsonl", ".json", ".json, an array", ".parquet", ".txt"]
BOM = b"\xef\xbb\xbf"


class Heard(Report):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def info(self, message: str) -> None:
        self.notes.append(message)


def packed(content: bytes, codec: str) -> bytes:
    """Compress in two members or frames, as concatenated files are."""
    if not codec:
        return content
    half = len(content) // 2
    return b"".join(
        gzip.compress(part)
        if codec == ".gz"
        else bytes(pyarrow.compress(part, "zstd", asbytes=True))
        for part in (content[:half], content[half:])
    )


def content_of(form: str, texts: list) -> bytes:
    rows = [{"id": f"id-{i}", "text": text} for i, text in enumerate(texts)]
    if form == ".parquet":
        sink = pyarrow.BufferOutputStream()
        table = {"id": [row["id"] for row in rows], "text": pyarrow.array(texts, pyarrow.string())}
        parquet.write_table(pyarrow.table(table), sink)
        return sink.getvalue().to_pybytes()
    if form == ".json, an array":
        return json.dumps(rows, indent=1).encode()
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write(
    folder: Path, form: str, codec: str, texts: list, mark: bytes = b"", cut: int = 0
) -> Path:
    """Write a corpus; return its file, or the folder of the files of .txt, one a document."""
    folder.mkdir(parents=True)
    suffix = form.split(",")[0] + codec
    if form != ".txt":
        content = packed(mark + content_of(form, texts), codec)
        (folder / f"part{suffix}").write_bytes(content[: len(content) - cut])
        return folder / f"part{suffix}"
    for index, text in enumerate(texts):
        content = packed(mark + (b"\xff" if text is None else text.encode()), codec)
        last = index == len(texts) - 1
        (folder / f"{index}{suffix}").write_bytes(content[: len(content) - cut * last])
    return folder


def outcome(source: Path | str, skip_bad: int = 0) -> str:
    """Return in words what reading comes to; all that is read must be right."""
    reading, read = Reading(skip_bad=skip_bad), []
    try:
        for text in documents.open_text(str(source), "calibration", True, reading).documents:
            read.append(text)
    except InputError as error:
        assert "\n" not in str(error)
        place = re.search(r"(line|row|item) (\d) of", str(error))
        return f"stops at {place[0][:-3]}" if place else "stops at the file"
    expected = [text for text in TEXTS if text in read]
    assert read == expected or read == [*TEXTS[:2], TEXTS[2][:-5]]
    skipped = f", {reading.skipped} skipped" if reading.skipped else ""
    return f"{len(read)} documents{skipped}"


def row(form: str, codec: str, root: Path) -> list[str]:
    """Try one kind of file; return the cells of its row."""
    alone = write(root / "a", form, codec, TEXTS)
    write(root / "nested" / "deep" / "er", form, codec, TEXTS)
    bad = write(root / "bad", form, codec, [TEXTS[0], None, TEXTS[2]])
    worse = write(root / "worse", form, codec, [TEXTS[0], None, None])
    cut = write(root / "cut", form, codec, TEXTS, cut=5)
    marked = write(root / "marked", form, codec, TEXTS, mark=BOM)
    name, _, more = form.partition(",")
    return [
        f"`{name}{codec}`{',' * bool(more)}{more}",
        outcome(alone),
        outcome(root / "nested"),
        outcome(bad),
        outcome(bad, skip_bad=1),
        outcome(worse, skip_bad=1),
        outcome(cut),
        "not applicable" if form == ".parquet" else outcome(marked),
    ]


INFO = SimpleNamespace(sha="c" * 40)  # of any data set, as the hub tells it


@pytest.fixture
def of_hub(monkeypatch):
    """Return a function from a local corpus to its name on a hub, which `datasets` then reads."""
    import datasets
    import huggingface_hub

    real, places = datasets.load_dataset, {}

    def load_dataset(repo, streaming, split, revision, **settings):
        files = places[repo]
        files = sorted(files.iterdir()) if files.is_dir() else [files]
        kind = textfiles.format_of(files[0])[0]
        builder = {".txt": "text", ".parquet": "parquet"}.get(kind, "json")
        settings["data_files"] = [str(file) for file in files]
        return real(builder, split=split, streaming=streaming, **settings)

    def name(path: Path) -> str:
        places[f"org/set{len(places)}"] = path
        return f"hf:org/set{len(places) - 1}"

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, repo, timeout: INFO)
    return name


def held(*cells: str) -> bool:
    """Return whether the page has these cells as a row of a table."""
    return "| " + " | ".join(cells) + " |" in PAGE.read_text("utf-8").splitlines()


@pytest.mark.parametrize("codec", ["", ".gz", ".zst"])
@pytest.mark.parametrize("form", FORMATS)
def test_table_of_files(form, codec, tmp_path, of_hub):
    cells, alone = row(form, codec, tmp_path), tmp_path / "a"
    file = alone if form == ".txt" else next(alone.iterdir())
    assert held(*cells, outcome(of_hub(file)))


# ---- folders

HELLO = b'{"text": "hello"}\n'
LFS = textfiles.LFS + b"v1\noid sha256:0\nsize 7\n"
# what lies beside a text of "first": bytes, a link (str), or a pipe (None)
ENTRIES: dict[str, dict[str, bytes | str | None]] = {
    "`b.TXT`, `b.JSONL.GZ`": {"b.TXT": b"hello", "b.JSONL.GZ": gzip.compress(HELLO)},
    "`.hidden.jsonl`": {".hidden.jsonl": HELLO},
    "`.ipynb_checkpoints/a-checkpoint.txt`": {".ipynb_checkpoints/a-checkpoint.txt": b"hello"},
    "`README.md`, `b.csv`, `b.jsonl.bz2`, `part-00000`": dict.fromkeys(
        ("README.md", "b.csv", "b.jsonl.bz2", "part-00000"), HELLO
    ),
    "a link `b.jsonl` to a file": {"b.jsonl": "../outside/far.jsonl"},
    "a link `b` to a folder": {"b": "../outside"},
    "a link `b` to the folder itself": {"b": "."},
    "a link `b.jsonl` to nothing": {"b.jsonl": "nowhere"},
    "a named pipe `b.jsonl`": {"b.jsonl": None},
    "a `b.txt` that is a pointer of Git LFS": {"b.txt": LFS},
    'a `b.json` of one object without text, such as `{"version": "1.0"}`': {
        "b.json": b'{"version": "1.0",\n "size": 3}',
        "b.json.gz": gzip.compress(b'{"version": "1.0"}\n\n'),
    },
    "an empty `b.jsonl`": {"b.jsonl": b""},
    "an empty `b.jsonl.gz`": {"b.jsonl.gz": b""},
}


def put(file: Path, content: bytes | str | None) -> None:
    file.parent.mkdir(exist_ok=True)
    if content is None:
        os.mkfifo(file)
    elif isinstance(content, str):
        file.symlink_to(content)
    else:
        file.write_bytes(content)


@pytest.mark.parametrize("name", ENTRIES)
def test_table_of_folders(name, tmp_path):
    put(tmp_path / "folder" / "a.txt", b"first")
    put(tmp_path / "outside" / "far.jsonl", HELLO)
    for file, content in ENTRIES[name].items():
        put(tmp_path / "folder" / file, content)
    heard = Heard()
    try:
        read = list(textfiles.documents(tmp_path / "folder", Reading(report=heard)))
    except InputError as error:
        assert "/folder/b." in str(error)
        happens = "the run stops, naming it"
    else:
        assert read in (["first"], ["first", *["hello"] * len(ENTRIES[name])])
        happens = "read" if len(read) > 1 else "not read"
        if heard.notes:
            (note,) = heard.notes
            assert happens == "not read"
            assert note.endswith(f": {', '.join(ENTRIES[name])}")
            happens = "not read, named on stderr"
        if all(content == b"" for content in ENTRIES[name].values()):
            happens = "no documents"
    assert held(name, happens)


# ---- columns

A = "a real document"
STRINGS = pyarrow.array([A] * 3)
TABLES = {
    "`text` of strings, `large_string`": STRINGS.cast(pyarrow.large_string()),
    "`text` of strings, `string_view`": STRINGS.cast(pyarrow.string_view()),
    "`text` of strings, dictionary-encoded": STRINGS.dictionary_encode(),
    "`text` of bytes in UTF-8": STRINGS.cast(pyarrow.binary()),
    "`text` of lists": pyarrow.array([[A]] * 3),
    "`text` of numbers": pyarrow.array([1, 2, 3]),
    "`text` of nothing but null": pyarrow.nulls(3),
}
URL = {"url": "u"}
LINES = {
    "`text` null in the first row": [{"text": None, **URL}, {"text": A, **URL}],
    "no `text` in the first row, but in a later one": [URL, {"text": A, **URL}],
    "no `text`, one column of strings": [{"body": A, "n": 1}, {"body": A, "n": 2}],
    "no `text`, one column of strings, null in the first row": [
        {"body": None, "n": 1},
        {"body": A},
    ],
    "no `text`, two columns of strings": [{"body": A, **URL}],
    "no `text`, no column of strings": [{"n": 1}],
}


def column_outcome(source: Path | str) -> str:
    heard, read = Heard(), []
    reading = Reading(report=heard)
    try:
        for text in documents.open_text(str(source), "calibration", True, reading).documents:
            read.append(text)
    except InputError as error:
        assert re.search("'(text|body)'", str(error))
        assert set(read) <= {A, "u"}
        return "stops at row 1" if re.search("(line|row) 1 of", str(error)) else "refused"
    assert set(read) == {A}
    return "read, named on stderr" if heard.notes else "read"


@pytest.mark.parametrize("name", [*TABLES, *LINES])
def test_table_of_columns(name, tmp_path, of_hub):
    file = tmp_path / ("x.parquet" if name in TABLES else "x.jsonl")
    if name in TABLES:
        parquet.write_table(pyarrow.table({"text": TABLES[name], "id": list("abc")}), file)
    else:
        file.write_text("".join(json.dumps(line) + "\n" for line in LINES[name]))
    assert held(name, column_outcome(file), column_outcome(of_hub(file)))


def read(path: Path | str, **settings) -> list[str]:
    return list(documents.open_text(str(path), "calibration", True, Reading(**settings)).documents)


def test_the_order_is_that_of_paths(tmp_path):
    names = ["a/z.txt", "a.txt", "a-b/c.jsonl.gz", "B.txt", "a/b/c.json", "a/b.txt"]
    for name in names:
        content = name.encode() if name.endswith("txt") else json.dumps({"text": name}).encode()
        put_in = tmp_path / name
        put_in.parent.mkdir(parents=True, exist_ok=True)
        put_in.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert read(tmp_path) == sorted(names)


def test_a_folder_is_read_once(tmp_path):
    """Links in a ladder would lead to each file in 2^20 ways."""
    for level in range(20):
        (tmp_path / f"{level}").mkdir()
        for name in "ab":
            (tmp_path / f"{level}" / name).symlink_to(f"../{level + 1}")
    (tmp_path / "20").mkdir()
    (tmp_path / "20" / "a.txt").write_text("found")
    assert read(tmp_path / "0") == ["found"]


def test_reading_goes_no_further_than_needed(tmp_path):
    lines = b"".join(
        json.dumps({"text": os.urandom(500).hex()}).encode() + b"\n" for _ in range(2000)
    )
    for name, content in ((".gz", gzip.compress(lines)), (".zst", pyarrow.compress(lines, "zstd"))):
        file = tmp_path / f"a.jsonl{name}"
        file.write_bytes(bytes(content)[:-1000])
        found = iter(textfiles.documents(file, Reading()))
        assert len([next(found) for _ in range(1000)]) == 1000
        with pytest.raises(InputError, match=rf"cannot unpack '.*a.jsonl{name}': truncated"):
            list(found)


def test_damaged_files_are_no_bad_lines(tmp_path):
    for name in ("a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.txt.gz", "a.parquet.zst"):
        (tmp_path / name).write_bytes(b"what a server says instead")
        with pytest.raises(InputError, match=f"{name}'"):
            read(tmp_path / name, skip_bad=100)


def test_bad_lines_say_what_is_wrong(tmp_path):
    lines = [b'{"text": "fine"}', b'{"text": "caf\xe9"}', b'{"text":', b"[1]", b'{"text": 5}', b""]
    lines += [b"[" * 100_000, b'{"text": ' + b"9" * 5000 + b"}", b'{"id": "x"}', b'{"text": "end"}']
    lines += [b'{"text": "\x01"}']
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"\r\n".join(lines))
    messages = [
        "line 2 of '.*' is not JSON: no UTF-8, .* at byte 13; fix it, or .* --skip-bad N",
        r"line 3 of '.*' is not JSON: Expecting value at character 9 \(bad line 2, --skip-bad 1\)",
        "line 4 of '.*' is no JSON object",
        "line 5 of '.*' has no string in 'text': it holds a number",
        "line 7 of '.*' is not JSON: nested too deeply",
        "line 8 of '.*' is not JSON: a number has too many digits",
        "line 9 of '.*' has no column 'text': id",
        "line 11 of '.*' is not JSON: Invalid control character at character 11",
    ]
    for count, message in enumerate(messages):
        with pytest.raises(InputError, match=message):
            read(file, skip_bad=count)
    assert read(file, skip_bad=len(messages)) == ["fine", "end"]


def test_a_mark_before_any_line(tmp_path):
    part = BOM + b'{"text": "one"}\n'
    (tmp_path / "a.jsonl").write_bytes(part * 3)
    (tmp_path / "b.txt").write_bytes(BOM + b"two\r\nlines")
    (tmp_path / "c.jsonl").write_bytes(BOM)
    (tmp_path / "d.json").write_bytes(BOM + b"\r\n" + part)
    assert read(tmp_path) == ["one"] * 3 + ["two\nlines", "one"]


def test_json_that_is_one_object_or_lines_with_a_bad_first(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text('\n{\n "text": "one",\n "n": 1\n}\n')
    assert read(tmp_path) == ["one"]
    lines = '{"text": "one"\n' + '{"text": "two"}\n' * 5
    (tmp_path / "a.json").write_text(lines)
    with pytest.raises(InputError, match=r"line 1 of .* is not JSON"):
        read(tmp_path)
    assert read(tmp_path, skip_bad=1) == ["two"] * 5
    monkeypatch.setattr(textfiles, "LARGEST_TEXT", 50)
    assert read(tmp_path, skip_bad=1) == ["two"] * 5
    (tmp_path / "a.json").write_text('[{"text": "one"},\n {"text": }]')
    with pytest.raises(InputError, match=r"a.json' is not JSON: .* of line 2"):
        read(tmp_path, skip_bad=9)


def test_the_text_of_one_object_is_not_guessed(tmp_path):
    file = tmp_path / "train-v1.1.json"
    for form in ('{"version": "1.1", "data": []}', '{\n"version": "1.1",\n"data": []\n}'):
        file.write_text(form)
        with pytest.raises(InputError, match="one object without 'text': it has version, data; "):
            read(file)
        assert read(file, skip_bad=1) == []
        assert read(file, column="version") == ["1.1"]
    file.write_text('{"body": "one"}\n{"body": "two"}\n')
    assert read(file) == ["one", "two"]


def test_strings_of_a_table_that_are_not_utf8(tmp_path):
    lengths = pyarrow.array([0, 3, 3, 7], pyarrow.int32()).buffers()[1]
    strings = [None, lengths, pyarrow.py_buffer(b"fin\xff\xfeab")]
    table = pyarrow.table({"text": pyarrow.StringArray.from_buffers(3, *strings[1:])})
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"row 3 of .* has no UTF-8 in 'text'"):
        read(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", skip_bad=1) == ["fin", ""]


def test_a_column_named_like_a_field_of_another(tmp_path):
    table = pyarrow.table({"text": [{"raw": "no"}], "text.raw": ["yes"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", column="text.raw") == ["yes"]


def test_frames_of_large_windows_say_so(tmp_path):
    # a frame of zstd --long=31 by RFC 8878: no size, a window of 2 GiB, one last raw block
    frame = bytes.fromhex("28b52ffd 00 a8 290000") + b"hello"
    (tmp_path / "a.txt.zst").write_bytes(frame)
    with pytest.raises(InputError, match=r"a.txt.zst' .* window too large .*zstd -d --long=31"):
        read(tmp_path / "a.txt.zst")
    (tmp_path / "a.txt.zst").write_bytes(frame.replace(b"\xa8", b"\x58"))  # 2 MiB
    assert read(tmp_path / "a.txt.zst") == ["hello"]


def test_names_that_cannot_be_looked_up(tmp_path):
    for look in (read, rows.is_rows, rows.source_path):
        with pytest.raises(InputError, match="File name too long"):
            look(f"{tmp_path}/{'x' * 300}.txt")
    (tmp_path / "a\nb.txt").write_text("hello")
    assert not rows.is_rows(f"{tmp_path}/a\nb.txt")


def test_what_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(textfiles, "LARGEST_TEXT", 100)
    monkeypatch.setattr(textfiles, "LARGEST_FILE", 100)
    contents = {
        "a.jsonl.gz": (json.dumps({"text": "x" * 200}).encode(), "line 1 of .* is longer than"),
        "b.json.gz": (b'[\n{"text": "' + b"x" * 200 + b'"}]', "is one array of more than"),
        "c.txt.gz": (b"x" * 101, "is one document of more than"),
        "d.parquet.gz": (content_of(".parquet", ["x"]), "unpacks to more than"),
    }
    for name, (content, message) in contents.items():
        (tmp_path / name).write_bytes(gzip.compress(content))
        with pytest.raises(InputError, match=message):
            read(tmp_path / name, skip_bad=9)


def test_the_column_that_was_asked_for(tmp_path, of_hub):
    (tmp_path / "a.jsonl").write_text('{"text": "no", "body": "yes"}\n{"body": "yes"}\n')
    assert read(tmp_path / "a.jsonl", column="body") == ["yes", "yes"]
    assert read(of_hub(tmp_path / "a.jsonl"), column="body") == ["yes", "yes"]
    table = pyarrow.table({"text": ["no"], "body": ["yes"]})
    parquet.write_table(table, tmp_path / "b.parquet")
    assert read(tmp_path, column="body") == ["yes"] * 3
    with pytest.raises(InputError, match=r"b.parquet' has no column 'prose': text, body"):
        read(tmp_path / "b.parquet", column="prose")
    (tmp_path / "c.txt").write_text("text")
    with pytest.raises(UsageError, match=r"'prose': '.*c.txt' has no columns"):
        read(tmp_path / "c.txt", column="prose")
    with pytest.raises(UsageError, match="builtin has none"):
        read("builtin", column="prose")
    with pytest.raises(UsageError, match="names another column than --text-column"):
        read("hf:org/name:train:body", column="text")


def test_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(InputError, match="is no regular file"):
        read(tmp_path / "a.jsonl")


def test_bad_rows_of_a_hub(tmp_path, of_hub):
    texts = [f"document {index}" for index in range(20)]
    name = of_hub(write(tmp_path / "a", ".parquet", "", [*texts[:7], None, *texts[7:]]))
    assert read(name, skip_bad=1) == texts
    with pytest.raises(InputError, match=f"row 8 of '{name}' has no string in 'text'"):
        read(name)
    reading = Reading(skip_bad=1)
    found = documents.open_text(name, "calibration", False, reading).documents
    assert [found[index] for index in (6, 7, 8)] == [texts[6], "", texts[7]]
    assert reading.skipped == 1
