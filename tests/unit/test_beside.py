"""What lies beside weights: one list for fetching, reading, checking and copying."""

import json
import shutil
from pathlib import Path

import pytest

import tiny
from prunecli import prune
from prunecli.data import tokenizer
from prunecli.data.tokenizer import Tokenizer
from prunecli.errors import InputError
from prunecli.files import sidecar
from prunecli.model import companions
from prunecli.model.checkpoint import Checkpoint, locate
from prunecli.settings import Amount

CARRIED = [
    "tokenizer.json", "tokenizer.model", "tokenizer.model.v3", "tekken.json", "vocab.json",
    "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "additional_chat_templates/tool.jinja", "chat_templates/tool.jinja",
    "generation_config.json", "LICENSE", "LICENSE.txt", "NOTICE", "license.md",
]  # fmt: skip
LEFT = [
    "README.md", "consolidated.safetensors", "original/tokenizer.model", "pytorch_model.bin",
    "onnx/model.onnx", "adapter.safetensors", "model-Q4.gguf", "preprocessor_config.json",
    "modeling_own.py", "training_args.bin",
]  # fmt: skip


@pytest.fixture
def repository(llama, tmp_path):
    """A model with everything that may lie beside it."""
    folder = shutil.copytree(llama, tmp_path / "repository")
    for name in CARRIED + LEFT:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps({"of": name}))
    return folder


def listing(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_what_goes_with_a_model_is_copied_byte_for_byte(repository, tmp_path):
    prune(str(repository), str(tmp_path / "out"), method="magnitude", amount=Amount(ratio=0.5))
    written = {"config.json", "model.safetensors", "prunecli.json", "README.md"}
    assert listing(tmp_path / "out") == {*CARRIED, *written}
    for name in CARRIED:
        assert (tmp_path / "out" / name).read_bytes() == (repository / name).read_bytes()


@pytest.fixture
def hub(repository, tmp_path, monkeypatch):
    """Make a hub that has the repository; return the revisions that it is asked for."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    revisions = []

    def fetch(repo, revision=None, allow_patterns=None):
        target = tmp_path / "snapshots" / ("c" * 40)
        revisions.append(revision)
        for name in filter_repo_objects(listing(repository), allow_patterns=allow_patterns):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(repository / name, target / name)
        return str(target)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    return revisions


def test_what_prepares_images_is_fetched_of_a_multimodal_model(repository, hub):
    (repository / "config.json").write_text('{"model_type": "gemma3"}')
    fetched = listing(locate("hf:org/name"))
    assert fetched & set(companions.PROCESSOR) == set(LEFT) & set(companions.PROCESSOR) != set()


@pytest.mark.parametrize("shard", [None, "60KB"])
def test_what_is_fetched_is_what_is_read(shard, repository, hub):
    if shard:
        (repository / "model.safetensors").unlink()
        tiny.make(repository, "llama", shard=shard)
    folder = locate("hf:org/name@main")
    # the card is read, and not copied
    assert listing(folder) == listing(repository) - set(LEFT) | {"README.md"}
    # weights come from the very commit whose config was read
    assert hub == ["main", "c" * 40]
    fetched, local = Checkpoint("hf:org/name@main"), Checkpoint(str(repository))
    assert fetched.digest() == local.digest()
    # the record names the commit, of which no id is made: equal weights are equal inputs
    of_hub, of_folder = fetched.as_input("d"), local.as_input("d")
    assert of_hub.model_extra == {"hub": "org/name@" + "c" * 40} and of_folder.model_extra == {}
    ids = [sidecar.content_id("checkpoint", {}, [entry]) for entry in (of_hub, of_folder)]
    assert ids[0] == ids[1]


def test_a_link_brings_nothing_from_elsewhere(llama, tmp_path):
    """A hub's cache is made of links too, which stay within the repository."""
    cache = tmp_path / "cache"
    folder = shutil.copytree(llama, cache / "snapshots" / "c0ffee")
    (cache / "blobs").mkdir()
    (cache / "blobs" / "1").write_text("terms")
    (folder / "LICENSE").symlink_to("../../blobs/1")
    assert companions.contents(folder)["LICENSE"] == b"terms"
    (tmp_path / "secret").write_text("secret")
    (folder / "LICENSE-x").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="LICENSE-x' is a link to a file outside its folder"):
        prune(str(folder), str(tmp_path / "o"), method="magnitude", amount=Amount(ratio=0.5))
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("name", ["tekken.json", "tokenizer.model.v3", "tiktoken.model"])
def test_every_vocabulary_counts_as_a_tokenizer(name, tmp_path):
    assert not tokenizer.present(str(tmp_path))
    (tmp_path / name).write_text("{}")
    assert tokenizer.present(str(tmp_path))
    assert [path.name for path in companions.vocabulary(tmp_path)] == [name]
    assert list(companions.contents(tmp_path)) == [name]


def test_a_vocabulary_that_needs_a_library_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.model").write_bytes(b"\n")
    monkeypatch.setattr(tokenizer, "_installed", lambda name: name != "sentencepiece")
    with pytest.raises(InputError, match=r"needs sentencepiece; pip install 'prunecli\[sentence"):
        Tokenizer(str(tmp_path))
    declared = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert "\nsentencepiece = [" in declared
