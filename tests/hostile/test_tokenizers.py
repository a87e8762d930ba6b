"""Tokenizers of strangers, through the program: a result, or one line that says what to do."""

import json
import subprocess

import pytest

import tiny
from prunecli import init
from prunecli.data import growth, tokenizer
from prunecli.data.tokenize import train_bpe
from prunecli.errors import InputError

REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 60}
ENDLESS = {"type": "Split", "pattern": {"Regex": "(a|a|aa)*$|(a+)+c"}, "behavior": "Isolated",
           "invert": False}  # fmt: skip
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    root = tmp_path_factory.mktemp("reader")
    (root / "c.json").write_text(json.dumps(tiny.config_of("llama", vocab_size=300)))
    init(str(root / "m"), config=str(root / "c.json"), seed=3, tokenizer="bytes")
    (root / "t.txt").write_text("a" * 40 + "b some text. " * 40)
    return root / "m"


def changed(reader, folder, file, **changes):
    """Make a tokenizer of the reader's, with keys of one file changed."""
    folder.mkdir()
    for path in reader.glob("tokenizer*"):
        record = json.loads(path.read_text()) | (changes if path.name == file else {})
        (folder / path.name).write_text(json.dumps(record))
    return str(folder)


def evaluated(reader, strange):
    line = ["prunecli", "eval", "--quiet", "--nsamples", "2", "--seq-len", "16", "--tokenizer"]
    line += [strange, "--data", str(reader.parent / "t.txt"), str(reader)]
    return subprocess.run(line, capture_output=True, text=True)


@pytest.mark.parametrize("what", ["growth", "panic", "class"])
def test_refused_in_one_line(what, reader, tmp_path):
    four = {"normalizer": {"type": "Sequence", "normalizers": [REPLACE] * 4}}
    split = {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [ENDLESS, BYTES]}}
    file, changes, told = {
        "growth": ("tokenizer.json", four, "its normalizer makes a text up to 1.3e+07 times"),
        "panic": ("tokenizer.json", split, "retry-limit-in-match over"),
        "class": ("tokenizer_config.json", {"tokenizer_class": "BertTokenizer"}, "tokenizer"),
    }[what]
    ended = evaluated(reader, changed(reader, tmp_path / "s", file, **changes))
    assert (ended.returncode, ended.stdout) == (4, "")
    assert told in ended.stderr and ended.stderr.count("\n") == 1, ended.stderr
    assert ended.stderr.endswith("give another with --tokenizer\n")


def test_nothing_but_the_result_on_stdout(reader, tmp_path):
    # the library prints the names of keys that it does not know
    end = {"__type": "AddedToken", "content": "!", "strange\x1b[31m": 1}
    strange = changed(reader, tmp_path / "s", "tokenizer_config.json", pad_token=end)
    before, after = evaluated(reader, str(reader)), evaluated(reader, strange)
    assert before.returncode == after.returncode == 0
    assert after.stdout == before.stdout and not after.stderr


def test_growth():
    assert growth.growth(REPLACE) == 60
    regex = {"type": "Replace", "pattern": {"Regex": "x*"}, "content": "abc"}
    assert growth.growth({"type": "Sequence", "normalizers": [REPLACE, regex]}) == 240
    # a space that becomes another sign, as in Llama's
    one = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    assert growth.growth({"type": "Sequence", "normalizers": [one, one]}) == 1
    pieces = [{"Sequence": {"id": "A", "type_id": 0}}] * 3
    assert growth.growth({"type": "TemplateProcessing", "single": pieces}) == 3


def test_the_tables_of_sentencepiece_are_allowed(reader):
    from base64 import b64encode

    table = (8).to_bytes(4, "little") + bytes(8) + b"a\0" + b"b" * 33 + b"\0"
    part = {"type": "Precompiled", "precompiled_charsmap": b64encode(table).decode()}
    assert growth.growth(part) == 33 <= growth.MOST


def test_errors_name_the_tokenizer(reader, tmp_path):
    strange = changed(reader, tmp_path / "s", "tokenizer.json", post_processor={"type": "Sequence",
        "processors": [{"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A",
        "type_id": 0}}] * 11, "pair": [], "special_tokens": {}}] * 2})  # fmt: skip
    with pytest.raises(InputError, match="its post_processor makes a text up to 121 times"):
        tokenizer.Tokenizer(strange)


def test_tokens_are_not_drawn(tmp_path):
    """With dropout each merge would be left out at random."""
    text = "some words of text, and some more of them. " * 20
    ids = []
    for dropout in (None, 0.5, 1.0):
        folder = tmp_path / str(dropout)
        folder.mkdir()
        for name, content in train_bpe([text], 275).items():
            record = json.loads(content)
            if name == "tokenizer.json":
                record["model"]["dropout"] = dropout
            (folder / name).write_text(json.dumps(record))
        ids += [tokenizer.Tokenizer(str(folder)).encode(text).tolist() for _ in range(2)]
    assert len(ids[0]) < len(text) and ids == ids[:1] * 6
