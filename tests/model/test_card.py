"""Model cards: what a hub reads of a checkpoint, and that a card is its user's to edit."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

import tiny
from prunecli import evaluate, init, log, prune, tokenize, train
from prunecli.errors import OutputExists, UsageError
from prunecli.files import regular
from prunecli.measuring.check import check
from prunecli.model import card

COMMIT = "c" * 40
LICENCE = "license: other\nlicense_name: own-1\nlicense_link: LICENSE\n"


@pytest.fixture
def hub(llama, tmp_path, monkeypatch):
    """Stand in for the hub: a repository `org/base` whose card has a licence of its own."""
    import huggingface_hub

    folder = shutil.copytree(llama, tmp_path / "hub" / COMMIT)
    (folder / "README.md").write_text(f"---\nlanguage: en\n{LICENCE}---\n# Base\n")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))
    return "hf:org/base"


def of(folder) -> ModelCard:
    return ModelCard((folder / "README.md").read_text("utf-8"))


def test_a_chain_has_cards_of_the_first_model(hub, calibration, tmp_path):
    pruned, trained = tmp_path / "pruned", tmp_path / "trained"
    made = prune(hub, pruned, method="flap", ratio=0.5, data=calibration)
    train(pruned, trained, data=calibration, steps=2, batch_size=2)
    for folder, title in ((pruned, "pruned with flap"), (trained, "pruned with flap, trained")):
        found = of(folder)
        assert found.data.to_dict() == {
            "base_model": "org/base",
            "license": "other",
            "license_name": "own-1",
            "license_link": "LICENSE",
            "library_name": "transformers",
            "pipeline_tag": "text-generation",
            "tags": ["prunecli", "pruning", "flap"],
        }
        assert found.text.strip().startswith(f"# org/base: {title}\n")
        assert f"at commit `{COMMIT}`" in found.text
        before, after = made.results["params_before"], made.results["params"]
        assert f"| parameters | {before} | {after} |" in found.text
        assert f"- {made.results['ratio']:.2%} of the weights in decoder blocks" in found.text
        assert check(str(folder), deep=True) == []
    assert "64 tokens in 2 steps" not in of(pruned).text
    assert "2. train: 2 steps (`" in of(trained).text


def test_before_is_the_parents_own_count(llama, tmp_path):
    made = prune(llama, tmp_path / "o", method="magnitude", ratio=0.5)
    parent = sum(tensor.size for tensor in _arrays(llama))
    assert made.results["params_before"] == made.results["params"] == parent


def _arrays(folder):
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors").values()


def test_equal_runs_have_equal_cards_without_paths(llama, calibration, tmp_path):
    for name in ("one", "another"):
        shutil.copytree(llama, tmp_path / name / "in")
        prune(tmp_path / name / "in", tmp_path / name / name, method="wanda", sparsity="2:4",
              data=calibration)  # fmt: skip
    cards = [(tmp_path / name / name / "README.md").read_text() for name in ("one", "another")]
    assert cards[0] == cards[1] and str(tmp_path) not in cards[0]
    assert of(tmp_path / "one" / "one").data.tags == ["prunecli", "pruning", "wanda", "2:4"]


def test_a_twin_has_no_base_and_no_licence(hub, tmp_path):
    prune(hub, tmp_path / "p", method="magnitude", ratio=0.5)
    init(tmp_path / "twin", like=str(tmp_path / "p"))
    assert set(of(tmp_path / "twin").data.to_dict()) == {"library_name", "pipeline_tag", "tags"}
    assert "initialized at random" in of(tmp_path / "twin").text


def test_an_edited_card_is_no_fault_and_is_kept(llama, tmp_path):
    out = tmp_path / "o"
    prune(llama, out, method="magnitude", ratio=0.5)
    ours = (out / "README.md").read_bytes()
    prune(llama, out, method="magnitude", ratio=0.25, force=True)
    changed = (out / "README.md").read_bytes()
    assert changed != ours and b"25.0" in changed
    edited = changed + b"\nMine.\n"
    (out / "README.md").write_bytes(edited)
    assert check(str(out), deep=True) == []
    for _ in range(2):  # the second time it is still known as edited
        prune(llama, out, method="magnitude", ratio=0.5, force=True)
        assert (out / "README.md").read_bytes() == edited
    (out / "README.md").unlink()
    assert check(str(out), deep=True) == []
    prune(llama, out, method="magnitude", ratio=0.5, force=True)
    assert (out / "README.md").read_bytes() == ours


@pytest.mark.parametrize(
    "put",
    [
        os.mkfifo, lambda path: path.symlink_to("/etc/hostname"), Path.symlink_to,
        lambda path: path.write_bytes(bytes(regular.MAX_BYTES + 1)),
    ],
    ids=["pipe", "link", "circle", "large"],
)  # fmt: skip
def test_what_cannot_be_kept_as_a_card_is_refused_at_once(put, llama, tmp_path):
    out = tmp_path / "o"
    prune(llama, out, method="magnitude", ratio=0.5)
    card_of = out / "README.md"
    card_of.unlink()
    put(*[card_of] * (2 if put is Path.symlink_to else 1))
    with pytest.raises(OutputExists, match=r"holds 'README\.md', which prunecli did not"):
        prune(llama, out, method="magnitude", ratio=0.25, force=True)
    assert os.path.lexists(card_of)


@pytest.mark.parametrize(
    "content",
    [
        b"no metadata", b"---\n- a\n- list\n---\n", b"---\nlicense: [a, b]\n---\n", b"\xff",
        b"---\nlicense: *unknown\n---\n", b"---\nlicense: " + b"x" * 300 + b"\n---\n",
        b"---\n" + b"[" * 5000 + b"\n---\n", b"---\nlicense: \"a\\nb\"\n---\n",
        b"x" * (card.MOST + 1), b"", b"---\nlicense: mit\nx: " + b"y" * card.METADATA + b"\n---\n",
    ],
)  # fmt: skip
def test_a_strangers_card_never_stops_a_run(content, tmp_path):
    (tmp_path / "README.md").write_bytes(content)
    assert card.licence(tmp_path) == {}


@pytest.mark.parametrize(
    "metadata", ["x: 1" + ":1" * 49_000, "x: 2020-99-99", "x: !!python/name:os.system", "<<: 1"]
)
def test_a_strangers_metadata_is_text(metadata, tmp_path, capsys):
    """Numbers of base 60 took minutes, and a date that is none hid the licence."""
    (tmp_path / "README.md").write_text(f"---\nlicense: no\n{metadata}\n---\n# A model\n")
    begun = time.process_time()
    assert card.licence(tmp_path) == {"license": "no"}
    assert time.process_time() - begun < 5
    (tmp_path / "README.md").write_text("no metadata")
    assert card.licence(tmp_path) == {}
    assert capsys.readouterr() == ("", "")


def test_a_card_that_is_a_link_to_elsewhere_is_not_read(tmp_path):
    other, folder = tmp_path / "other.md", tmp_path / "m"
    other.write_text("---\nlicense: mit\n---\n")
    folder.mkdir()
    (folder / "README.md").symlink_to(other)
    assert card.licence(folder) == {}


def test_a_strangers_history_is_text(hub, tmp_path):
    """What a sidecar that came with the model names is shown as a word, or not at all."""
    made = prune(hub, tmp_path / "p", method="magnitude", ratio=0.5)
    path = tmp_path / "p" / "prunecli.json"
    record = json.loads(path.read_text())
    record["history"][0]["options"]["method"] = "[x](http://evil)\n# y"
    record["history"][0]["inputs"][0]["hub"] = "a](http://evil)@c"
    record["results"]["granularity"] = "<script>|"
    record["made_by"]["version"] = "1[x](http://evil)\n# evil\n"
    record["run"]["command"] = "prunecli\n```\n# evil\x1b[31m\u202e"
    path.write_text(json.dumps(record))
    text = log(tmp_path / "p").card()
    assert "\n# evil" not in text and "[x](" not in text
    assert "\n````\nprunecli ``` # evil\ufffd[31m\ufffd\n````\n" in text
    assert text.count("<script") == 1 and "\\<script\\>\\|\n" in text
    assert made.results["params_before"] > 0


def test_measurements_come_into_the_card_of_their_model(hub, calibration, tmp_path):
    out, other = tmp_path / "o", tmp_path / "other"
    prune(hub, out, method="magnitude", ratio=0.5)
    prune(hub, other, method="magnitude", ratio=0.25)
    for folder in (out, other):
        evaluate(folder, data=calibration, out=f"{folder}.json")
    found = ModelCard(log([out, f"{out}.json", f"{other}.json"]).card())
    loss = json.loads((tmp_path / "o.json").read_text())["results"]["data"][0]
    [result] = found.data.eval_results
    assert (result.metric_type, result.metric_value) == ("perplexity", loss["perplexity"])
    assert result.dataset_name == loss["source"]
    assert found.data.license_name == "own-1"  # of the card beside the model
    assert f"| perplexity | {loss['perplexity']:.6g} |" in found.text
    # without measurements it is what was written
    assert log(out).card() == (out / "README.md").read_text()
    with pytest.raises(UsageError, match="one checkpoint, got 2"):
        log([out, other]).card()


def test_rows_have_no_card(tmp_path, llama):
    (tmp_path / "t.txt").write_text("words and words " * 50)
    init(tmp_path / "m", config=json_config(tmp_path), tokenizer="bytes")
    tokenize(tmp_path / "t.txt", tmp_path / "rows", tokenizer=str(tmp_path / "m"), seq_len=16)
    assert not (tmp_path / "rows" / "README.md").exists()
    assert (tmp_path / "m" / "README.md").exists()


def json_config(folder) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps(tiny.config_of("llama")))
    return str(path)
