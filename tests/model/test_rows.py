"""Token rows: text in, rows out, the same however many processes and interruptions there were."""

import json
import random
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tiny
from prunecli import check, evaluate, init, tokenize, train
from prunecli.data import rows, shards
from prunecli.data.shards import Encoding, Exact
from prunecli.data.tokenizer import Tokenizer, alphabet, byte_level, files_of
from prunecli.errors import InputError, OutputExists, UsageError
from prunecli.settings import Data, Output

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
        expected += [*tokenizer.encode_all([document])[0], tokenizer.marks.eos]
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
    monkeypatch.setattr(shards, "BATCH", 500)
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
    monkeypatch.setattr(shards, "BATCH", 300)
    real, calls = shards.encoder, []

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
    monkeypatch.setattr(shards, "encoder", dying)
    with pytest.raises(Killed):
        tokenize(str(text), out, **settings)
    assert not (tmp_path / "out").exists()
    tokenize(str(text), out, **settings)
    again = len(calls) - after
    assert all_ids(tmp_path / "out").tolist() == all_ids(made).tolist()
    if after > 5:
        fresh = tmp_path / "fresh"
        calls.clear()
        monkeypatch.setattr(shards, "encoder", real)
        tokenize(str(text), str(fresh), **settings)
        found = shards.pieces(DOCUMENTS, lambda text, at: None)
        assert again < sum(1 for _ in shards._batches(found, lambda piece: None))
        assert rows.open_rows(str(fresh)).digest == rows.open_rows(out).digest


def test_resuming_refuses_other_text(made, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shards, "BATCH", 300)
    text = tmp_path / "t.txt"
    text.write_text("\n".join(DOCUMENTS))
    real, calls = shards.Shards._flush, []

    def dying(self, size):
        calls.append(size)
        if len(calls) == 3:
            raise Killed
        real(self, size)

    monkeypatch.setattr(shards.Shards, "_flush", dying)
    monkeypatch.setattr(shards, "PIECE", 100)
    monkeypatch.setattr(shards, "CONTEXT", 40)
    settings = {"seq_len": 16, "tokenizer": str(made), "shard_tokens": 320, "workers": 1}
    with pytest.raises(Killed):
        tokenize(str(text), str(tmp_path / "o"), **settings)
    monkeypatch.setattr(shards.Shards, "_flush", real)
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


def test_long_documents_are_cut_at_line_ends_to_train_a_tokenizer(monkeypatch) -> None:
    monkeypatch.setattr(shards, "PIECE", 10)
    documents = ["one\ntwo\nthree\nfour", "", "x" * 25]
    found = list(shards.pieces(documents, shards.at_lines))
    assert [piece.own for piece in found] == [
        "one\ntwo\n", "three\nfour", "x" * 10, "x" * 10, "x" * 5,
    ]  # fmt: skip
    assert [piece.first for piece in found] == [True, False, True, False, False]
    assert [piece.last for piece in found] == [False, True, False, False, True]


LLAMA2, LLAMA3, GPT2, MISTRAL, LEGACY = TOKENIZERS = (
    "prepend", "digits in threes", "byte level", "metaspace first", "metaspace always",
)  # fmt: skip


@pytest.fixture(scope="module")
def prose() -> str:
    """Text with every kind of neighbours: paragraphs, runs of spaces, digits, no spaces at all."""
    draw = random.Random(3)
    words = ["the", "quick", "don't", "x=1;", "fox.", "2024", "1234567", "naïve", "日本語。", "🙂"]
    gaps = [" "] * 12 + ["\n", "\n\n", "  ", "\t", "\n\n\n", " \n ", ""]
    return "".join(draw.choice(words) + draw.choice(gaps) for _ in range(9000))


def write_tokenizer(kind: str, folder, text: str) -> str:
    """Write a BPE that cuts up text as this kind of tokenizer does, its merges learned from it."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    bare = Tokenizer(models.BPE(unk_token="<unk>"))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == GPT2)
    if kind == LLAMA2:
        bare.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    elif kind == LLAMA3:
        pattern = Regex(r" ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
        split = pre_tokenizers.Split(pattern, "isolated")
        bare.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    elif kind == GPT2:
        bare.pre_tokenizer = level
    else:
        scheme = "first" if kind == MISTRAL else "always"
        bare.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<unk>", "</s>"], show_progress=False
    )
    # without a pre-tokenizer the trainer takes a whole text for one word
    bare.train_from_iterator(text[:40000].split(" ") + ["\n\n", "  "] * 50, trainer)
    for name, content in files_of(bare, eos_token="</s>", unk_token="<unk>").items():
        (folder / name).write_bytes(content)
    return str(folder)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_long_document_has_the_tokens_of_the_whole(kind, prose, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shards, "PIECE", 3000)
    monkeypatch.setattr(shards, "CONTEXT", 200)
    folder = write_tokenizer(kind, tmp_path, prose)
    tokenizer = Tokenizer(folder)
    found = list(shards.pieces([prose, "short", prose], Exact(tokenizer)))
    assert len(found) > 2 * len(prose) / 4000
    assert max(len(piece.text) for piece in found) < 3000 + 8 * 200
    ids = shards.encoder(Encoding(folder, "text", [7], 1))(found)
    whole, short = tokenizer.encode_all([prose, "short"])
    assert ids.tolist() == [7, *whole, 1, 7, *short, 1, 7, *whole, 1]


@pytest.mark.parametrize("run", ["1", "=", "\n", " ", "a"])
@pytest.mark.parametrize("kind", [LLAMA2, LLAMA3])
def test_a_long_run_is_not_cut(kind, run, prose, tmp_path, monkeypatch) -> None:
    """What a tokenizer does within a run can hang on all of it, as on where it begins."""
    monkeypatch.setattr(shards, "PIECE", 1000)
    monkeypatch.setattr(shards, "CONTEXT", 200)
    text = prose[:700] + run * 5000 + prose[:3000]
    folder = write_tokenizer(kind, tmp_path, prose + 20 * (run * 64 + " "))
    found = list(shards.pieces([text], Exact(Tokenizer(folder))))
    assert len(found) > 2
    assert max(len(piece.own) for piece in found) >= 5000
    ids = shards.encoder(Encoding(folder, "text", [], None))(found)
    assert ids.tolist() == Tokenizer(folder).encode_all([text])[0]


@pytest.mark.parametrize("empty", ["", " \n\t"])
def test_empty_documents_give_nothing(made, text, tmp_path, empty) -> None:
    source = tmp_path / "holes.jsonl"
    lines = text.read_text().splitlines()
    hole = json.dumps({"text": empty})
    source.write_text("\n".join([hole, hole, *lines[:20], hole, *lines[20:], hole]) + "\n")
    tokenize(str(source), str(tmp_path / "rows"), seq_len=16, tokenizer=str(made))
    assert rows.open_rows(str(tmp_path / "rows")).digest == rows.open_rows(str(made)).digest
    source.write_text((hole + "\n") * 40)
    for settings in ({"tokenizer": str(made)}, {"train_tokenizer": 300}):
        with pytest.raises(InputError, match=r"no text.*: every document is empty"):
            tokenize(str(source), str(tmp_path / "none"), seq_len=4, **settings)
    assert not list(tmp_path.glob("none*"))


def marked_tokenizer(folder, adds: bool, **special: str) -> str:
    """Write a tokenizer of bytes with <s>, </s>; `adds`: it begins every text with <s>."""
    from tokenizers import models, processors

    bare = byte_level(models.BPE({byte: i for i, byte in enumerate(alphabet())}, []))
    bare.add_special_tokens(["<s>", "</s>"])
    if adds:
        bare.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 256)]
        )
    folder.mkdir(parents=True)
    for name, content in files_of(bare, **special).items():
        (folder / name).write_bytes(content)
    return str(folder)


BOTH = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize(
    ("adds", "special", "settings", "front", "behind"),
    [
        (True, BOTH, {}, [256], [257]),
        (True, BOTH, {"bos": "never"}, [], [257]),
        (False, BOTH, {}, [], [257]),
        (False, BOTH, {"bos": "always"}, [256], [257]),
        (False, BOTH, {"bos": "always", "separator": "none"}, [256], []),
        (False, BOTH, {"separator": "7"}, [], [7]),
        # without an end of sequence the beginning separates, once
        (False, {"bos_token": "<s>"}, {}, [], [256]),
        (True, {"bos_token": "<s>"}, {}, [256], []),
        (False, {}, {}, [], []),
    ],
)
def test_what_documents_begin_and_end_with(tmp_path, adds, special, settings, front, behind):
    folder = marked_tokenizer(tmp_path / "tokenizer", adds, **special)
    (tmp_path / "t.jsonl").write_text('{"text": "ab"}\n{"text": "c"}\n')
    out = tmp_path / "rows"
    made = tokenize(str(tmp_path / "t.jsonl"), str(out), seq_len=2, tokenizer=folder, **settings)
    a, b, c = Tokenizer(folder).encode_all(["abc"])[0]
    expected = [*front, a, b, *behind, *front, c, *behind]
    assert all_ids(out).ravel().tolist() == expected[: len(expected) // 2 * 2]
    assert made.sidecar["options"]["bos"] == front
    assert made.sidecar["options"]["separator"] == (behind or [None])[0]


def test_rows_differ_by_what_marks_documents(tmp_path) -> None:
    """The tokenizer's digest is that of tokenizer.json, which does not name its BOS and EOS."""
    folder = marked_tokenizer(tmp_path / "tokenizer", False, **BOTH)
    (tmp_path / "t.txt").write_text("abcdefgh")
    again = {"seq_len": 2, "tokenizer": folder, "output": Output(skip_existing=True)}
    source, out = str(tmp_path / "t.txt"), str(tmp_path / "rows")
    first = tokenize(source, out, **again)
    assert tokenize(source, out, **again).sidecar == first.sidecar
    for settings in ({"bos": "always"}, {"special_tokens": "ids"}):
        with pytest.raises(OutputExists, match="other inputs or options"):
            tokenize(source, out, **again, **settings)
    marked_tokenizer(tmp_path / "other", False, eos_token="<s>")
    with pytest.raises(OutputExists, match="other inputs or options"):
        tokenize(source, out, **{**again, "tokenizer": str(tmp_path / "other")})


def test_no_bos_to_begin_with(tmp_path) -> None:
    folder = marked_tokenizer(tmp_path / "tokenizer", False, eos_token="</s>")
    (tmp_path / "t.txt").write_text("abcdefgh")
    for settings in ({"tokenizer": folder}, {"train_tokenizer": 300}):
        with pytest.raises(InputError, match="--bos always: the tokenizer has no beginning of"):
            tokenize(
                str(tmp_path / "t.txt"), str(tmp_path / "o"), seq_len=2, bos="always", **settings
            )
    with pytest.raises(UsageError, match="--bos: unknown value 'sometimes'"):
        tokenize(
            str(tmp_path / "t.txt"), str(tmp_path / "o"), seq_len=2, bos="sometimes", **settings
        )


@pytest.mark.parametrize("workers", [1, 2])
def test_special_tokens_spelled_out(tmp_path, monkeypatch, workers) -> None:
    monkeypatch.setattr(shards, "BATCH", 10)
    folder = marked_tokenizer(tmp_path / "tokenizer", True, **BOTH)
    (tmp_path / "t.jsonl").write_text('{"text": "a</s>b"}\n' * 8)
    a, b, *word = Tokenizer(folder).encode_all(["ab</s>"])[0]
    assert len(word) == 4 and max(word) < 256
    for chosen, inside in ((None, word), ("text", word), ("ids", [257])):
        settings = {} if chosen is None else {"special_tokens": chosen}
        out = tmp_path / f"{chosen}"
        tokenize(
            str(tmp_path / "t.jsonl"), str(out), seq_len=2, tokenizer=folder, workers=workers,
            **settings,
        )  # fmt: skip
        document = [256, a, *inside, b, 257]
        assert all_ids(out).ravel().tolist() == (document * 8)[: 8 * len(document) // 2 * 2]
        assert tiny.sidecar(out)["options"]["special_tokens"] == (chosen or "text")


def test_a_failure_leaves_no_state_without_work(made, tmp_path) -> None:
    source, out = tmp_path / "t.jsonl", tmp_path / "out"
    source.write_text('{"text": "one two three four"}\n{"text": null}\n')
    with pytest.raises(InputError, match="line 2"):
        tokenize(str(source), str(out), seq_len=4, tokenizer=str(made))
    assert not list(tmp_path.glob("out*"))
    # as it is left by SIGKILL before anything was done
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "key").write_text(f"{0:032}\n")
    source.write_text('{"text": "one two three four"}\n')
    tokenize(str(source), str(out), seq_len=4, tokenizer=str(made))
    assert rows.open_rows(str(out)).seq_len == 4
    assert not (tmp_path / "out.partial").exists()


def test_an_unusable_tokenizer_is_named_before_any_work(made, text, tmp_path) -> None:
    shutil.copytree(made, tmp_path / "bad")
    (tmp_path / "bad" / "tokenizer.json").write_text("{")
    for dry_run in (True, False):
        with pytest.raises(InputError, match=r"cannot read the tokenizer in '.*bad'"):
            tokenize(
                str(text), str(tmp_path / "out"), seq_len=4, tokenizer=str(tmp_path / "bad"),
                output=Output(dry_run=dry_run),
            )  # fmt: skip
        with pytest.raises(UsageError, match="an id below 300"):
            tokenize(
                str(text), str(tmp_path / "out"), seq_len=4, tokenizer=str(made), separator="300",
                output=Output(dry_run=dry_run),
            )  # fmt: skip
    assert not list(tmp_path.glob("out*"))


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


@pytest.mark.parametrize("dry_run", [True, False])
def test_an_out_that_cannot_be_written_is_refused_first(
    made, text, tmp_path, monkeypatch, dry_run
) -> None:
    options = {"seq_len": 16, "tokenizer": str(made), "output": Output(dry_run=dry_run)}
    for name in ("o" * 245, "o" * 300, f"{'o' * 300}/rows"):  # OUT.partial has to fit as well
        with pytest.raises(InputError, match=r"has a name longer than \d+ bytes; choose"):
            tokenize(str(text), str(tmp_path / name), **options)
    assert list(tmp_path.iterdir()) == []
    # as of a folder that may only be read, which no folder is to root
    monkeypatch.setattr("os.access", lambda path, mode, **place: False)
    with pytest.raises(InputError, match=rf"no permission in '{tmp_path}'"):
        tokenize(str(text), str(tmp_path / "o" / "rows"), **options)
    same = {"seq_len": 16, "train_tokenizer": 300, "output": Output(skip_existing=True)}
    assert tokenize(str(text), str(made), **same).results["seq_len"] == 16


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
    monkeypatch.setattr(shards, "BATCH", 500)
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
    monkeypatch.setattr(shards, "BATCH", 200)
    options = {"seq_len": 16, "tokenizer": str(made), "workers": workers, "skip_bad": 8}
    few = tokenize(str(bad_text), str(tmp_path / "few"), tokens=320, **options)
    assert few.results["skipped"] == 2
    assert all_ids(tmp_path / "few").tolist() == all_ids(made)[:20].tolist()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_line_is_met_in_its_turn(made, bad_text, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(shards, "BATCH", 200)
    options = {"seq_len": 16, "tokenizer": str(made), "workers": workers, "skip_bad": 2}
    # the third bad line is beyond these rows, but not beyond what is read ahead
    few = tokenize(str(bad_text), str(tmp_path / "few"), tokens=320, **options)
    assert few.results["skipped"] == 2
    # what was made before it is kept
    with pytest.raises(InputError, match=r"line 23 of .* \(bad line 3, --skip-bad 2\)"):
        tokenize(str(bad_text), str(tmp_path / "all"), shard_tokens=16, **options)
    kept = all_ids(tmp_path / "all.partial")
    assert len(kept) >= 20
    assert kept.tolist() == all_ids(made)[: len(kept)].tolist()


def test_bos_in_front_where_unknown_words_are_bos_too(tmp_path):
    from tokenizers import Tokenizer as Bare
    from tokenizers import models, pre_tokenizers, processors

    bare = Bare(models.WordLevel({"<s>": 0, "x": 1, "y": 2}, unk_token="<s>"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    bare.add_special_tokens(["<s>"])
    bare.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    bare.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "unk_token": "<s>"}'
    )
    assert Tokenizer(str(tmp_path)).marks.front("auto") == [0]
    (tmp_path / "text.txt").write_text("x z y")
    options = {"seq_len": 4, "tokenizer": str(tmp_path), "workers": 1}
    tokenize(str(tmp_path / "text.txt"), str(tmp_path / "out"), **options)
    assert all_ids(tmp_path / "out").tolist() == [[0, 1, 0, 2]]


def test_ids_beyond_the_count_of_a_vocabulary_with_gaps(tmp_path):
    from tokenizers import Tokenizer as Bare
    from tokenizers import models, pre_tokenizers

    bare = Bare(models.WordLevel({"?": 0, "x": 70_000, "y": 2}, unk_token="?"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    bare.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "?"}'
    )
    (tmp_path / "text.txt").write_text("x y x x")
    options = {"seq_len": 2, "tokenizer": str(tmp_path), "separator": "69999", "workers": 1}
    result = tokenize(str(tmp_path / "text.txt"), str(tmp_path / "out"), **options)
    assert all_ids(tmp_path / "out").tolist() == [[70_000, 2], [70_000, 70_000]]
    assert result.results["vocab"] == 70_001
    for wrong in ("70001", "9" * 5000):
        with pytest.raises(UsageError, match="an id below 70001"):
            tokenize(
                str(tmp_path / "text.txt"), str(tmp_path / "o"), **options | {"separator": wrong}
            )


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


def test_a_model_of_rows_is_told_that_text_joins_documents_otherwise(made, text, tmp_path):
    """It has never seen the blank lines that its loss would count; rows need no such word."""
    told = tiny.Told()

    def joints():
        found = [one for one in told.notes if "join its documents otherwise than the rows" in one]
        told.notes.clear()
        return len(found)

    config = tiny.config_of("llama", vocab_size=300)
    (tmp_path / "config.json").write_text(json.dumps(config))
    init(tmp_path / "m", config=tmp_path / "config.json", tokenizer=made)
    of_text = Data(text, nsamples=2, seq_len=16)
    evaluate(tmp_path / "m", data=[of_text], report=told)
    assert joints() == 0
    rows_of = f"{made}:0:32"
    train(tmp_path / "m", tmp_path / "t", data=rows_of, steps=2, eval_data=text, report=told)
    assert joints() == 1
    evaluate(tmp_path / "t", data=[of_text, Data(f"{made}:40:44")], report=told)
    assert joints() == 1
    evaluate(tmp_path / "t", data=[Data(f"{made}:40:44")], report=told)
    train(tmp_path / "m", tmp_path / "u", data=rows_of, steps=2, eval_data=f"{made}:40:44",
          report=told)  # fmt: skip
    assert joints() == 0
