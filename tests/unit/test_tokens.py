"""Tokens: every form of D, samplers against naive versions, and what is refused."""

import json
import random
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from prunecli.data import hub, samplers, windows
from prunecli.errors import InputError, PruneError, UsageError
from prunecli.methods import registry
from prunecli.pruning.recipe import with_recipe
from prunecli.report import Report
from prunecli.settings import Data

VOCAB = 259
BOS = 256


def make_tokenizer(folder: Path, bos: bool = False) -> Path:
    """Write a tokenizer of 256 bytes, without merges; <s>, </s> and <pad> follow them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>", "<pad>"])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", BOS)]
        )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def decode(folder: Path, row: torch.Tensor) -> str:
    from tokenizers import Tokenizer

    return str(Tokenizer.from_file(str(folder / "tokenizer.json")).decode(row.tolist()))


class Heard(Report):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def info(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture
def model(tmp_path) -> Path:
    return make_tokenizer(tmp_path / "model")


@pytest.fixture
def load(model):
    """Load from the byte tokenizer's folder; keyword arguments are those of Data or of load."""

    def run(source: str, *, report: Report | None = None, **settings) -> windows.Tokens:
        to_load = {"folder": str(model), "vocab_size": VOCAB, "max_positions": 4096}
        to_load |= {name: settings.pop(name) for name in [*to_load, "part"] if name in settings}
        return windows.load(Data(source, **settings), report=report or Heard(), **to_load)

    return run


def text_of(words: int, seed: int = 0) -> str:
    draw = random.Random(seed)
    return " ".join("".join(draw.choices("abcdefgh", k=draw.randint(1, 9))) for _ in range(words))


def words(text: str) -> np.ndarray:
    """Encode by a toy tokenizer whose tokens are words, not characters."""
    return np.array([int(word, 36) for word in text.split()], dtype=np.int64)


# ---- samplers


DOCUMENTS = [text_of(words=length, seed=length) for length in (3, 40, 7, 200, 31, 30, 90)]


def test_docs_is_the_official_sampler():
    length, seed = 30, 7
    random.seed(seed)
    expected = []
    for _ in range(25):
        while True:
            ids = words(DOCUMENTS[random.randint(0, len(DOCUMENTS) - 1)])
            if ids.shape[0] > length:
                break
        start = random.randint(0, ids.shape[0] - length - 1)
        expected.append(ids[start : start + length])
    found = samplers.docs(iter(DOCUMENTS), words, 25, length, seed)
    assert np.array_equal(np.stack(found.rows), np.stack(expected))


def test_concat_random_is_the_official_sampler():
    length, seed = 30, 3
    ids = words(" ".join(DOCUMENTS))
    random.seed(seed)
    expected = []
    for _ in range(25):
        start = random.randint(0, ids.shape[0] - length - 1)
        expected.append(ids[start : start + length])
    found = samplers.concat_random(DOCUMENTS, words, 25, length, seed)
    assert np.array_equal(np.stack(found.rows), np.stack(expected))
    assert found.text == sha256(" ".join(DOCUMENTS).encode()).hexdigest()


@pytest.mark.parametrize("count", [1, 3, 1000])
def test_concat_contiguous_is_the_start_of_all_text(count):
    length = 30
    ids = words("\n\n".join(DOCUMENTS))
    whole = len(ids) // length
    found = samplers.concat_contiguous(iter(DOCUMENTS), words, count, length, seed=0)
    expected = ids[: whole * length].reshape(whole, length)[:count]
    assert np.array_equal(np.stack(found.rows), expected)


def test_concat_contiguous_reads_no_further_than_needed_and_gathers_more_if_needed():
    read = []

    def documents():
        for index in range(10_000):
            read.append(index)
            yield text_of(words=50, seed=index)

    found = samplers.concat_contiguous(documents(), words, 10, 100, seed=0)
    assert len(read) < 120
    everything = "\n\n".join(text_of(words=50, seed=index) for index in read)
    assert np.array_equal(np.concatenate(found.rows), words(everything)[:1000])


def test_windows_do_not_depend_on_how_many_are_asked():
    def encode(text: str) -> np.ndarray:
        # the last words change with what follows them
        ids = words(text)
        ids[-100:] += len(text)
        return ids

    documents = [text_of(words=20_000)]
    few = samplers.concat_contiguous(documents, encode, 3, 64, seed=0).rows
    many = samplers.concat_contiguous(documents, encode, 40, 64, seed=0).rows
    assert np.array_equal(np.stack(few), np.stack(many[:3]))


def test_docs_gives_up(monkeypatch):
    with pytest.raises(InputError, match=r"no document of 7 has more than 200 tokens.*concat"):
        samplers.docs(DOCUMENTS, words, 1, 200, seed=0)
    with pytest.raises(InputError, match="no document of 0"):
        samplers.docs([], words, 1, 200, seed=0)
    monkeypatch.setattr(samplers, "MAX_MISSES", 100)
    calls = []

    class Endless(list):
        def __len__(self):
            return 10**9

        def __getitem__(self, index):
            calls.append(index)
            return "a b"

    with pytest.raises(InputError, match="no document of 100 has more than 5"):
        samplers.docs(Endless(), words, 1, 5, seed=0)
    assert len(calls) == 100


def test_docs_tokenises_each_document_once():
    calls = []
    samplers.docs(DOCUMENTS, lambda text: calls.append(text) or words(text), 50, 30, seed=0)
    assert len(calls) == len(set(calls))


def test_concat_random_needs_more_than_a_window():
    samplers.concat_random(["a b c d"], words, 2, 3, seed=0)
    with pytest.raises(InputError, match="the text has 4 tokens, expected more than 4"):
        samplers.concat_random(["a b c d"], words, 2, 4, seed=0)


# ---- built-in text


def test_builtin_by_default(load):
    report = Heard()
    found = load("builtin", report=report)
    assert found.ids.shape == windows.BUILTIN_SIZE == (32, 512)
    assert found.ids.dtype == torch.int32
    assert len(report.notes) == 1
    assert "suits trials only" in report.notes[0]
    assert "--recipe paper" in report.notes[0]
    assert found.meta["source"] == "builtin:calibration"
    assert found.meta["sampler"] == "concat-contiguous"
    assert found.meta["python"].count(".") == 2
    assert (found.meta["nsamples"], found.meta["seq_len"], found.meta["seed"]) == (32, 512, 0)
    assert len(set(found.windows)) == 32
    again = load("builtin:calibration")
    assert again.meta == found.meta
    assert torch.equal(again.ids, found.ids)


def test_builtin_parts_have_no_window_in_common(load):
    calibration = load("builtin", nsamples=100, seq_len=512)
    evaluation = load("builtin", part="evaluation", nsamples=100, seq_len=512)
    assert evaluation.meta["source"] == "builtin:evaluation"
    assert set(calibration.windows).isdisjoint(evaluation.windows)
    explicit = load("builtin:evaluation", nsamples=100, seq_len=512)
    assert explicit.windows == evaluation.windows


def test_default_length_is_capped_by_the_model(load):
    report = Heard()
    found = load("builtin", max_positions=64, report=report)
    assert found.ids.shape == (32, 64)
    assert any("from 512 to 64" in note for note in report.notes)


# ---- files


def test_text_file(load, model, tmp_path):
    file = tmp_path / "corpus.txt"
    file.write_text(text_of(3000), "utf-8")
    found = load(str(file), nsamples=4, seq_len=50)
    assert decode(model, found.ids.flatten()) == file.read_text()[:200]
    assert found.meta["source"] == "corpus.txt"
    assert found.meta["digest"] != found.meta["text"]
    tokenizer = (model / "tokenizer.json").read_bytes()
    assert found.meta["tokenizer"] == sha256(tokenizer).hexdigest()
    assert str(tmp_path) not in json.dumps(found.meta)


def test_fewer_windows_than_the_default_are_noted(load, tmp_path):
    file = tmp_path / "corpus.txt"
    file.write_text("abcd" * 1500)
    report = Heard()
    found = load(str(file), report=report)
    assert found.ids.shape == (2, windows.TEXT_SIZE[1])
    assert found.meta["nsamples"] == 2
    assert any("gives 2 windows of 2048 tokens, not 128" in note for note in report.notes)


@pytest.mark.parametrize(
    ("adds", "bos", "begins"),
    [
        (True, None, True),
        (True, "auto", True),
        (True, "always", True),
        (True, "never", False),
        (False, "auto", False),
        (False, "always", True),
        (False, "never", False),
    ],
)
@pytest.mark.parametrize("sampler", ["docs", "concat-random", "concat-contiguous"])
def test_every_window_begins_with_bos(load, tmp_path, adds, bos, begins, sampler):
    """auto: where the tokenizer itself begins a text with it, as lm-eval's tasks do."""
    folder = make_tokenizer(tmp_path / "tokenizer", bos=adds)
    file = tmp_path / "corpus.txt"
    file.write_text(text_of(600))
    settings = {"nsamples": 3, "sampler": sampler}
    found = load(str(file), seq_len=20, tokenizer=str(folder), bos=bos, **settings)
    assert found.ids.shape == (3, 20)
    if begins:
        assert (found.ids[:, 0] == BOS).all()
        text = load(str(file), seq_len=19, **settings).ids
        assert torch.equal(found.ids[:, 1:], text)
    else:
        assert torch.equal(found.ids, load(str(file), seq_len=20, **settings).ids)
    assert found.meta["bos"] == ({"ids": [BOS], "before": "windows"} if begins else None)


def test_official_windows_have_bos_where_their_texts_begin(load, tmp_path):
    """As transformers encodes a text, cut into windows; only recipes ask for it."""
    from transformers import AutoTokenizer

    folder = str(make_tokenizer(tmp_path / "bos", bos=True))
    text = "abcd</s>" * 100
    (tmp_path / "corpus.txt").write_text(text)
    official = {"bos": "official", "special_tokens": "ids", "tokenizer": folder}
    found = load(str(tmp_path / "corpus.txt"), nsamples=3, seq_len=20, **official)
    expected = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    assert found.ids.flatten().tolist() == expected[:60]
    assert (found.ids == BOS).sum() == 1
    assert found.meta["bos"] == {"ids": [BOS], "before": "text"}
    assert found.meta["special_tokens"] == "ids"


def test_recipes_take_texts_as_the_official_codes_do():
    for name in registry.names():
        method = registry.get(name)
        for recipe, values in method.recipes.items():
            data, options = with_recipe(method, recipe, Data(), {})
            named = "source" in values
            assert (data.bos, data.special_tokens) == (
                ("official", "ids") if named else (None, None)
            )
            assert not {"bos", "special_tokens"} & options.keys()
            assert with_recipe(method, recipe, Data(bos="never"), {})[0].bos == "never"


def test_special_tokens_spelled_out_are_text(load, model, tmp_path):
    (tmp_path / "corpus.txt").write_text("ab</s>c<pad>" * 4)
    plain = load(str(tmp_path / "corpus.txt"), nsamples=1, seq_len=12)
    assert decode(model, plain.ids[0]) == "ab</s>c<pad>"
    assert plain.ids.max() < 256
    ids = load(str(tmp_path / "corpus.txt"), nsamples=1, seq_len=5, special_tokens="ids").ids
    a, b, c = plain.ids[0, [0, 1, 6]].tolist()
    assert ids.tolist() == [[a, b, 257, c, 258]]
    with pytest.raises(UsageError, match="--special-tokens: unknown value 'id'"):
        load(str(tmp_path / "corpus.txt"), special_tokens="id")


def test_no_bos_and_no_room(load, tmp_path):
    folder = make_tokenizer(tmp_path / "tokenizer")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (tmp_path / "corpus.txt").write_text("abcd" * 100)
    with pytest.raises(InputError, match="--bos always: the tokenizer has no beginning"):
        load(str(tmp_path / "corpus.txt"), seq_len=20, tokenizer=str(folder), bos="always")
    with pytest.raises(UsageError, match="--bos: unknown value 'yes'"):
        load(str(tmp_path / "corpus.txt"), seq_len=20, bos="yes")


@pytest.mark.parametrize("sampler", ["docs", "concat-random", "concat-contiguous"])
def test_a_corpus_of_empty_documents_is_refused(load, tmp_path, sampler):
    file = tmp_path / "empty.jsonl"
    file.write_text('{"text": "\\n\\n"}\n' * 40)
    with pytest.raises(InputError, match=r"has no text|no document of 40 has more than"):
        load(str(file), nsamples=2, seq_len=8, sampler=sampler)


def test_the_folder_of_files_is_read_in_order_of_names(load, model, tmp_path):
    import pyarrow
    import pyarrow.parquet as parquet

    folder = tmp_path / "texts"
    (folder / "b").mkdir(parents=True)
    (folder / "c.txt").write_text("third")
    rows = [{"id": 1, "text": "first"}, {"text": "first too", "url": "x"}]
    (folder / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    table = pyarrow.table({"n": [1, 2], "story": ["second", "second too"]})
    parquet.write_table(table, folder / "b" / "x.parquet")
    (folder / "README.md").write_text("not text to read")
    found = load(str(folder), nsamples=1, seq_len=43)
    expected = "first\n\nfirst too\n\nsecond\n\nsecond too\n\nthird"
    assert decode(model, found.ids[0]) == expected[:43]
    assert found.meta["source"] == "texts"


@pytest.mark.parametrize("sampler", ["docs", "concat-random", "concat-contiguous"])
def test_samplers_by_name(load, tmp_path, sampler):
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(json.dumps({"text": text}) for text in DOCUMENTS))
    found = load(str(file), sampler=sampler, nsamples=5, seq_len=64, seed=1)
    other = load(str(file), sampler=sampler, nsamples=5, seq_len=64, seed=2)
    assert found.ids.shape == (5, 64)
    assert found.meta["sampler"] == sampler
    assert torch.equal(found.ids, other.ids) == (sampler == "concat-contiguous")


def test_half_a_surrogate_pair_is_replaced(load, tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "ab\\ud83dcd"}\n')
    assert load(str(file), nsamples=1, seq_len=5).ids.shape == (1, 5)


@pytest.mark.parametrize("sampler", ["docs", "concat-random", "concat-contiguous"])
def test_bad_lines_are_recorded(load, tmp_path, sampler):
    good = [json.dumps({"body": text, "n": 1}) for text in DOCUMENTS]
    (tmp_path / "a.jsonl").write_text("\n".join(good))
    (tmp_path / "b.jsonl").write_text("\n".join(['{"body": 1}', *good[:4], "{", *good[4:]]))
    settings = {"sampler": sampler, "nsamples": 3, "seq_len": 300, "text_column": "body"}
    with pytest.raises(
        InputError, match=r"line 6 of .* is not JSON.* \(bad line 2, --skip-bad 1\)"
    ):
        load(str(tmp_path / "b.jsonl"), **settings, skip_bad=1)
    report = Heard()
    found = load(str(tmp_path / "b.jsonl"), **settings, skip_bad=2, report=report)
    expected = load(str(tmp_path / "a.jsonl"), **settings)
    assert torch.equal(found.ids, expected.ids)
    assert (expected.meta["skipped"], found.meta["skipped"]) == (0, 2)
    assert found.meta["text_column"] == "body"
    assert "2 bad lines skipped, the first: line 1 of" in report.notes[-1]


# ---- token ids


@pytest.fixture
def rows(tmp_path) -> Path:
    ids = torch.arange(80, dtype=torch.int32).reshape(8, 10)
    tensors = {
        "calib": ids,
        "long": ids.long(),
        "bytes": ids.to(torch.uint8),
        "short": ids.to(torch.uint16),
        "flat": ids.flatten().clone(),
        "float": ids.float(),
        "negative": ids - 1,
        "none": ids[:0].clone(),
    }
    save_file(tensors, tmp_path / "tokens.safetensors")
    return tmp_path / "tokens.safetensors"


@pytest.mark.parametrize("name", ["calib", "long", "bytes", "short"])
def test_given_ids_are_used_as_they_are(load, rows, tmp_path, name):
    found = load(f"{rows}:{name}", folder=str(tmp_path / "no-tokenizer"))
    assert torch.equal(found.ids, torch.arange(80, dtype=torch.int32).reshape(8, 10))
    assert found.ids.dtype == torch.int32
    meta = {name: found.meta[name] for name in ("sampler", "seed", "tokenizer", "text")}
    assert set(meta.values()) == {None}
    assert found.meta["source"] == f"tokens.safetensors:{name}"
    assert found.meta["digest"] == load(f"{rows}:calib").meta["digest"]


def test_first_rows_of_given_ids(load, rows):
    every = load(f"{rows}:calib", seq_len=10)
    first = load(f"{rows}:calib", nsamples=3)
    assert torch.equal(first.ids, every.ids[:3])
    assert first.windows == every.windows[:3]
    assert all(len(window) == 16 for window in every.windows)
    assert first.meta["digest"] != every.meta["digest"]


# ---- refusals


TENSOR_REFUSALS = {
    ":nope": (InputError, "has no tensor 'nope'; .*integer tensors: .*calib"),
    "": (InputError, "without a tensor's name; write tokens.safetensors:NAME"),
    ":flat": (InputError, r"is I32 \[80\], expected integers \[sequences, length\]"),
    ":float": (InputError, r"is F32 \[8, 10\], expected integers"),
    ":negative": (InputError, "tokens of another vocabulary: id -1 < 0"),
    ":none": (InputError, "too short"),
}


@pytest.mark.parametrize("name", TENSOR_REFUSALS)
def test_refused_tensors(load, rows, name):
    kind, message = TENSOR_REFUSALS[name]
    with pytest.raises(kind, match=message):
        load(f"{rows}{name}")


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"nsamples": 9}, InputError, "has 8 sequences, asked for 9"),
        ({"seq_len": 5}, UsageError, r"used as it is \(8 sequences of 10 tokens\); .*--seq-len"),
        ({"sampler": "docs"}, UsageError, "used as it is .*--sampler"),
        ({"text_column": "body"}, UsageError, "used as it is .*--text-column"),
        ({"skip_bad": 1}, UsageError, "used as it is .*--skip-bad"),
        ({"bos": "always"}, UsageError, "used as it is .*--bos"),
        ({"special_tokens": "ids"}, UsageError, "used as it is .*--special-tokens"),
        ({"max_positions": 9}, InputError, "10 tokens exceed the model's context length of 9"),
        ({"vocab_size": 79}, InputError, "another vocabulary: id 79 >= vocab_size 79"),
        ({"nsamples": 0}, UsageError, "--nsamples 0"),
        ({"seq_len": 1}, UsageError, "--seq-len 1: expected at least 2"),
    ],
)
def test_refused_requests_for_given_ids(load, rows, settings, kind, message):
    with pytest.raises(kind, match=message):
        load(f"{rows}:calib", **settings)


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        ("wikitext3", UsageError, "unknown data 'wikitext3': did you mean 'wikitext"),
        ("builtn", UsageError, "did you mean 'builtin'?"),
        ("builtin:training", UsageError, "unknown part 'training' of builtin"),
        ("builtin:", UsageError, "unknown part ''"),
        ("hf:wikitext", UsageError, "is not hf:org/name"),
        ("hf:org/name:train:text:more", UsageError, "is not hf:org/name"),
        ("missing.txt", InputError, "no such file or folder: 'missing.txt'; check the path"),
        ("org/name", InputError, "no such file or folder.*write hf:org/name"),
        ("missing.safetensors:ids", InputError, "no such file: 'missing.safetensors'"),
    ],
)
def test_refused_sources(load, source, kind, message):
    with pytest.raises(kind, match=message):
        load(source)


def test_unknown_sampler(load):
    with pytest.raises(UsageError, match="unknown sampler 'concat': did you mean 'concat-"):
        load("builtin", sampler="concat")


FILE_REFUSALS = {
    "empty.txt": (b"", "has no text"),
    "latin.txt": (b"caf\xe9 au lait " * 10, "is not UTF-8 text: .* at byte 3"),
    "empty.jsonl": (b"\n\n", "has no text"),
    "broken.jsonl": (b'{"text": "fine"}\n{"text": ', "line 2 of '.*broken.jsonl' is not JSON"),
    "list.jsonl": (b"[1]\n", "line 1 of .* is no JSON object"),
    "two.jsonl": (b'{"q": "a", "a": "b"}\n', "no column 'text' and 2 columns of strings: .* q, a"),
    "none.jsonl": (b'{"n": 1}\n', "0 columns of strings: it has n"),
    "null.jsonl": (b'{"text": "x"}\n{"text": null}\n', "line 2 of .* no string in 'text'"),
    "broken.parquet": (b"PAR1 and then nothing", "is not a valid parquet file"),
    "table.csv": (b"a,b\n", "cannot read .* as text: expected .jsonl, .json, .parquet, .txt"),
}


@pytest.mark.parametrize("name", FILE_REFUSALS)
def test_refused_files(load, tmp_path, name):
    content, message = FILE_REFUSALS[name]
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(InputError, match=message) as refused:
        load(str(file), nsamples=1, seq_len=20)
    assert "\n" not in str(refused.value)


def test_refused_parquet_columns(load, tmp_path):
    import pyarrow
    import pyarrow.parquet as parquet

    parquet.write_table(pyarrow.table({"q": ["a"], "a": ["b"]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="no column 'text' and 2 columns of strings: it has q, a"):
        load(str(tmp_path / "x.parquet"))


def test_refused_folder_without_text(load, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"has no text: expected .jsonl, .json, .parquet"):
        load(str(tmp_path / "folder"))


def test_refused_sizes_of_text(load, tmp_path):
    file = tmp_path / "corpus.txt"
    file.write_text("abcd" * 100)
    with pytest.raises(InputError, match="gives 4 windows of 100 tokens, not 5; lower --nsamples"):
        load(str(file), nsamples=5, seq_len=100)
    with pytest.raises(InputError, match="100 exceeds the model's context length of 99 tokens"):
        load(str(file), seq_len=100, max_positions=99)
    with pytest.raises(InputError, match="no document of 1 has more than 400 tokens"):
        load(str(file), seq_len=400, sampler="docs")


def test_refused_tokenizers(load, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match=r"has no tokenizer.*--tokenizer DIR.*safetensors:NAME"):
        load("builtin", folder=str(empty))
    with pytest.raises(InputError, match="no such tokenizer folder"):
        load("builtin", tokenizer=str(tmp_path / "none"))
    (empty / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="cannot read the tokenizer in") as refused:
        load("builtin", folder=str(empty))
    assert "\n" not in str(refused.value)
    with pytest.raises(InputError, match=r"another vocabulary: id .* >= vocab_size 50"):
        load("builtin", vocab_size=50)


# ---- the hub


@pytest.fixture
def offline(monkeypatch):
    import huggingface_hub.constants

    # the variable is read when the library is first imported, which may have been before
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("source", [*hub.SETS, "hf:org/name", "hf:org/name:train:body"])
@pytest.mark.parametrize("sampler", ["docs", "concat-contiguous"])
def test_hub_sets_offline(load, offline, source, sampler):
    with pytest.raises(InputError, match=r"needs the Hugging Face hub.*download it") as refused:
        load(source, sampler=sampler)
    assert source.split(":train")[0] in str(refused.value)
    assert "\n" not in str(refused.value)


def test_hub_without_a_connection_fails_at_once(load, monkeypatch):
    import huggingface_hub

    def unreachable(self, repo, timeout):
        raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    with pytest.raises(InputError, match=r"data 'c4' needs the Hugging Face hub.*: no route; "):
        load("c4")


INFO = SimpleNamespace(sha="c" * 40)  # of any data set, as the hub tells it


@pytest.fixture
def online(monkeypatch):
    """Stand in for the hub: a data set of 300 rows, and what was asked of `datasets`."""
    import datasets
    import huggingface_hub

    asked = []
    rows = [
        {"text": text_of(30, seed), "article": f"article {seed}", "n": 1} for seed in range(300)
    ]

    def load_dataset(repo, streaming, **settings):
        asked.append((repo, streaming, settings))
        found = datasets.Dataset.from_list(rows)
        return found.to_iterable_dataset() if streaming else found

    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, repo, timeout: INFO)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


@pytest.mark.parametrize("part", ["calibration", "evaluation"])
def test_hub_sets_are_streamed_when_read_in_order(load, model, online, part):
    found = load("wikitext2", part=part, nsamples=2, seq_len=50)
    assert decode(model, found.ids[0]) == (text_of(30, 0) + "\n\n" + text_of(30, 1))[:50]
    assert found.meta["source"] == f"wikitext2:{part}"
    split = {"calibration": "train", "evaluation": "test"}[part]
    settings = {"split": split, "name": "wikitext-2-raw-v1", "revision": INFO.sha}
    assert found.meta["hub"] == f"Salesforce/wikitext@{INFO.sha}"
    assert online == [("Salesforce/wikitext", True, settings)]


def test_hub_sets_are_fetched_when_read_at_random(load, model, online):
    streamed = load("hf:org/name", nsamples=2, seq_len=50)
    found = load("hf:org/name", nsamples=2, seq_len=50, sampler="docs")
    assert [asked[1] for asked in online] == [True, False]
    assert online[0][2] == {"split": "train", "revision": INFO.sha}
    assert streamed.meta["source"] == "hf:org/name:train"
    expected = samplers.docs(
        [text_of(30, seed) for seed in range(300)],
        windows.Tokenizer(str(model)).encode,
        2,
        50,
        0,
    )
    assert np.array_equal(found.ids.numpy(), np.stack(expected.rows))


def test_hub_columns(load, model, online):
    found = load("hf:org/name:validation:article", nsamples=1, seq_len=9)
    assert decode(model, found.ids[0]) == "article 0"
    assert found.meta["source"] == "hf:org/name:validation:article"
    assert online[0][2] == {"split": "validation", "revision": INFO.sha}
    with pytest.raises(InputError, match="has no column 'body': text, article, n"):
        load("hf:org/name:train:body")
    with pytest.raises(InputError, match="name:train:n' has no string in 'n': it holds int64"):
        load("hf:org/name:train:n")
    assert load("cnn_dailymail", nsamples=1, seq_len=9).ids.shape == (1, 9)


def test_one_file_of_a_huge_set(load, online):
    load("c4", nsamples=1, seq_len=9)
    load("c4", nsamples=1, seq_len=9, part="evaluation")
    files = [settings["data_files"]["train"] for _, _, settings in online]
    assert files == list(hub.SETS["c4"].parts)
    assert {settings["verification_mode"] for _, _, settings in online} == {"no_checks"}


def test_errors_of_the_stream_are_one_line(load, online, monkeypatch):
    import datasets

    def broken(repo, streaming, **settings):
        def rows():
            yield {"text": "fine"}
            raise RuntimeError("connection lost\nwith details")

        return datasets.IterableDataset.from_generator(rows)

    monkeypatch.setattr(datasets, "load_dataset", broken)
    with pytest.raises(InputError, match="connection lost; download") as refused:
        load("c4")
    assert "\n" not in str(refused.value)


def test_odd_sources_end_in_one_of_our_errors(load, tmp_path, offline, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("broken.safetensors").write_bytes(b"12345678")
    for source in ["", ":", "hf:", "c4:", "broken.safetensors:x", "a.safetensors", ".", "model"]:
        with pytest.raises(PruneError):
            load(source)
