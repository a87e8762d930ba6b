"""Token rows: text in, rows out, the same however many processes and interruptions there were."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from prunecli.checks import check
from prunecli.errors import InputError, OutputExists, UsageError
from prunecli.io import rows, token_shards
from prunecli.io.tokenizer import Tokenizer
from prunecli.settings import Output
from prunecli.tokenizing import tokenize

DOCUMENTS = [f"Document {i}: " + "words and more words, " * (i % 7) + "\nend." for i in range(60)]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text("".join(json.dumps({"text": document}) + "\n" for document in DOCUMENTS))
    return path


@pytest.fixture(scope="module")
def made(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("rows") / "rows"
    tokenize(str(text), str(out), seq_len=16, train_tokenizer=300, workers=1)
    return out


def all_ids(folder) -> np.ndarray:
    return np.concatenate([load_file(f)["rows"] for f in sorted(folder.glob("*.safetensors"))])


def test_rows_are_the_documents_in_a_row(made) -> None:
    tokenizer = Tokenizer(str(made))
    expected: list[int] = []
    for document in DOCUMENTS:
        expected += [*tokenizer.encode_plain([document])[0], tokenizer.separator]
    ids = all_ids(made)
    assert ids.dtype == np.uint16
    assert ids.ravel().tolist() == expected[: ids.size]
    assert 0 <= len(expected) - ids.size < 16
    record = json.loads((made / "prunecli.json").read_text())
    assert record["kind"] == "rows"
    assert record["results"]["tokens"] == ids.size
    assert record["results"]["vocab"] == 300
    assert not made.with_name("rows.partial").exists()


@pytest.mark.parametrize("settings", [{}, {"workers": 2}, {"shard_tokens": 100}])
def test_bytes_depend_on_text_and_tokenizer_alone(made, text, tmp_path, monkeypatch, settings):
    monkeypatch.setattr(token_shards, "BATCH", 500)
    out = tmp_path / "again"
    options = {"workers": 1, **settings}
    tokenize(str(text), str(out), seq_len=16, tokenizer=str(made), **options)
    assert all_ids(out).tolist() == all_ids(made).tolist()
    assert rows.open_rows(str(out)).digest == rows.open_rows(str(made)).digest
    assert (out / "tokenizer.json").read_bytes() == (made / "tokenizer.json").read_bytes()


def test_training_a_tokenizer_is_deterministic(made, text, tmp_path) -> None:
    tokenize(
        str(text),
        str(tmp_path / "a"),
        seq_len=16,
        train_tokenizer=300,
        tokenizer=str(tmp_path / "tok"),
    )
    for copy in (tmp_path / "a", tmp_path / "tok"):
        assert (copy / "tokenizer.json").read_bytes() == (made / "tokenizer.json").read_bytes()


class Killed(BaseException):
    """Stands for SIGKILL: nothing may be done about it."""


@pytest.mark.parametrize("after", [1, 2, 5, 9])
def test_stopped_and_resumed(made, text, tmp_path, monkeypatch, after) -> None:
    """Cut off at any batch, the same call goes on after the finished shards."""
    monkeypatch.setattr(token_shards, "BATCH", 300)
    real, calls = token_shards.encoder, []

    def dying(*arguments):
        encode = real(*arguments)

        def once(batch):
            calls.append(len(batch))
            if len(calls) == after:
                raise Killed
            return encode(batch)

        return once

    out = str(tmp_path / "out")
    settings = {"seq_len": 16, "tokenizer": str(made), "shard_tokens": 64, "workers": 1}
    monkeypatch.setattr(token_shards, "encoder", dying)
    with pytest.raises(Killed):
        tokenize(str(text), out, **settings)
    assert not (tmp_path / "out").exists()
    tokenize(str(text), out, **settings)
    again = len(calls) - after
    assert all_ids(tmp_path / "out").tolist() == all_ids(made).tolist()
    if after > 5:
        fresh = tmp_path / "fresh"
        calls.clear()
        monkeypatch.setattr(token_shards, "encoder", real)
        tokenize(str(text), str(fresh), **settings)
        assert again < sum(1 for _ in token_shards._batches(token_shards.pieces(DOCUMENTS), len))
        assert rows.open_rows(str(fresh)).digest == rows.open_rows(out).digest


def test_resuming_refuses_other_text(made, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(token_shards, "BATCH", 300)
    text = tmp_path / "t.txt"
    text.write_text("\n".join(DOCUMENTS))
    real, calls = token_shards.Shards._flush, []

    def dying(self, size):
        calls.append(size)
        if len(calls) == 3:
            raise Killed
        real(self, size)

    monkeypatch.setattr(token_shards.Shards, "_flush", dying)
    monkeypatch.setattr(token_shards, "PIECE", 100)
    settings = {"seq_len": 16, "tokenizer": str(made), "shard_tokens": 320, "workers": 1}
    with pytest.raises(Killed):
        tokenize(str(text), str(tmp_path / "o"), **settings)
    monkeypatch.setattr(token_shards.Shards, "_flush", real)
    text.write_text(text.read_text().replace("Document 3", "Dokument 3"))
    with pytest.raises(InputError, match="text has changed"):
        tokenize(str(text), str(tmp_path / "o"), **settings)
    with pytest.raises(OutputExists, match="other inputs or options"):
        tokenize(str(text), str(tmp_path / "o"), **{**settings, "seq_len": 8})
    tokenize(str(text), str(tmp_path / "o"), restart=True, **settings)


@pytest.mark.parametrize("tokens", [16, 100, 333])
def test_so_many_tokens(made, text, tmp_path, tokens) -> None:
    out = tmp_path / "few"
    tokenize(
        str(text),
        str(out),
        seq_len=16,
        tokenizer=str(made),
        tokens=tokens,
        shard_tokens=48,
        workers=1,
    )
    assert all_ids(out).tolist() == all_ids(made)[: tokens // 16].tolist()


def test_long_documents_are_cut_at_line_ends(monkeypatch) -> None:
    monkeypatch.setattr(token_shards, "PIECE", 10)
    found = list(token_shards.pieces(["one\ntwo\nthree\nfour", "", "x" * 25]))
    assert "".join(text for text, _ in found[:2]) == "one\ntwo\nthree\nfour"
    assert [text for text, _ in found] == [
        "one\ntwo\n", "three\nfour", "", "x" * 10, "x" * 10, "x" * 5,
    ]  # fmt: skip
    assert [ends for _, ends in found] == [False, True, True, False, False, True]


def test_ranges_and_forms(made, tmp_path) -> None:
    whole = rows.open_rows(str(made))
    part = rows.open_rows(f"{made}:3:9")
    assert (part.start, part.stop, len(part), part.digest) == (3, 9, 6, whole.digest)
    assert part.read([3, 8]).tolist() == all_ids(made)[[3, 8]].tolist()
    assert len(rows.open_rows(f"{made}:5:")) == len(whole) - 5
    save_file({"ids": all_ids(made).astype(np.int64)}, tmp_path / "t.safetensors")
    same = rows.open_rows(f"{tmp_path}/t.safetensors:ids:3:9")
    assert same.digest == whole.digest
    assert same.read([4]).tolist() == part.read([4]).tolist()
    for wrong in (f"{made}:9:3", f"{made}:0:999999", f"{made}:4:4"):
        with pytest.raises(InputError, match="asks for rows"):
            rows.open_rows(wrong)


def test_bad_input(made, text, tmp_path) -> None:
    out = str(tmp_path / "o")
    with pytest.raises(UsageError, match="no tokenizer"):
        tokenize(str(text), out, seq_len=16)
    with pytest.raises(UsageError, match="more than 256"):
        tokenize(str(text), out, seq_len=16, train_tokenizer=200)
    with pytest.raises(InputError, match="lower --train-tokenizer"):
        tokenize(str(text), out, seq_len=16, train_tokenizer=60000)
    with pytest.raises(UsageError, match="separator"):
        tokenize(str(text), out, seq_len=16, tokenizer=str(made), separator="300", restart=True)
    with pytest.raises(InputError, match="too short"):
        tokenize(str(text), out, seq_len=10**6, tokenizer=str(made), restart=True)
    assert not (tmp_path / "o").exists()


def test_check(made, tmp_path) -> None:
    assert check(str(made), deep=True) == []
    copy = tmp_path / "rows"
    shutil.copytree(made, copy)
    shard = copy / rows.shard_name(0)
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert check(str(copy)) == []
    assert "digest differs" in check(str(copy), deep=True)[0]
    shard.write_bytes(content[:-2])
    assert "truncated" in check(str(copy))[0]


def test_skip_existing(made, text) -> None:
    again = {"seq_len": 16, "train_tokenizer": 300, "output": Output(skip_existing=True)}
    assert tokenize(str(text), str(made), **again).results["seq_len"] == 16
    with pytest.raises(OutputExists):
        tokenize(str(text), str(made), **{**again, "seq_len": 8})
    with pytest.raises(OutputExists):
        tokenize(str(text), str(made), seq_len=16, train_tokenizer=300)


# ---- text that is bad in places


@pytest.fixture
def bad_text(tmp_path):
    """The documents with a bad line before every tenth, and two at the end."""
    lines = [json.dumps({"text": document}) for document in DOCUMENTS]
    for index in range(50, -1, -10):
        lines.insert(index, '{"text": null}')
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join([*lines, "{", '{"text": 1}']))
    return path


@pytest.mark.parametrize("settings", [{}, {"workers": 2}, {"shard_tokens": 100}])
def test_bad_lines_are_skipped_and_counted(made, bad_text, tmp_path, monkeypatch, settings):
    monkeypatch.setattr(token_shards, "BATCH", 500)
    options = {"seq_len": 16, "tokenizer": str(made), "workers": 1, **settings}
    with pytest.raises(InputError, match=r"line 1 of .* has no string in 'text': it holds null"):
        tokenize(str(bad_text), str(tmp_path / "o"), **options)
    with pytest.raises(InputError, match=r"line 68 of .* \(bad line 8, --skip-bad 7\)"):
        tokenize(str(bad_text), str(tmp_path / "o"), skip_bad=7, **options, restart=True)
    result = tokenize(str(bad_text), str(tmp_path / "o"), skip_bad=8, **options, restart=True)
    assert all_ids(tmp_path / "o").tolist() == all_ids(made).tolist()
    assert result.results["skipped"] == 8
    assert result.sidecar["options"]["skip_bad"] == 8
    assert json.loads((made / "prunecli.json").read_text())["results"]["skipped"] == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_counted_does_not_depend_on_how_far_processes_run_ahead(
    made, bad_text, tmp_path, monkeypatch, workers
):
    monkeypatch.setattr(token_shards, "BATCH", 200)
    options = {"seq_len": 16, "tokenizer": str(made), "workers": workers, "skip_bad": 8}
    few = tokenize(str(bad_text), str(tmp_path / "few"), tokens=320, **options)
    assert few.results["skipped"] == 2
    assert all_ids(tmp_path / "few").tolist() == all_ids(made)[:20].tolist()


def test_bad_lines_while_a_tokenizer_is_trained(made, bad_text, tmp_path) -> None:
    options = {"seq_len": 16, "train_tokenizer": 300}
    with pytest.raises(InputError, match="line 1 of"):
        tokenize(str(bad_text), str(tmp_path / "o"), **options)
    result = tokenize(str(bad_text), str(tmp_path / "o"), skip_bad=8, **options, restart=True)
    assert result.results["skipped"] == 8
    assert rows.open_rows(str(tmp_path / "o")).digest == rows.open_rows(str(made)).digest


def test_a_dry_run_opens_the_text(made, bad_text, tmp_path) -> None:
    options = {"seq_len": 16, "tokenizer": str(made), "output": Output(dry_run=True)}
    with pytest.raises(InputError, match="line 1 of"):
        tokenize(str(bad_text), str(tmp_path / "o"), **options)
    assert tokenize(str(bad_text), str(tmp_path / "o"), skip_bad=8, **options).results
    assert not list(tmp_path.glob("o*"))
