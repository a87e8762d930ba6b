"""Every option of every method changes what comes out, or is refused."""

import pytest
import torch

import tiny
from prunecli import calibrate, prune, score, search_arch
from prunecli.errors import UsageError
from prunecli.methods import registry
from prunecli.pruning.recipe import with_recipe
from prunecli.settings import Amount, Data

HALF = Amount(ratio=0.5)
FEW = {"tokens": 5 * 4 * 32, "batch_size": 4}
# four layers are fewer than are protected by default
ON_TINY = {"shortened-llama": {"protect": "0,0"}, "sheared-llama": FEW}
# what cannot be told by the weights: memory that is saved; under N:M, where sums are cut in two
MEMORY, ROUNDING = "activation_checkpointing", ("block_size", Amount(sparsity="2:4"))
AMOUNTS = {
    "magnitude": [HALF, Amount(sparsity="2:4")],
    "wanda": [HALF, Amount(sparsity="2:4")],
    "sparsegpt": [HALF, Amount(sparsity="2:4")],
    "flap": [HALF, Amount(heads=3, ffn=40), Amount(ffn=40)],
    "llm-pruner": [HALF, Amount(heads=3), Amount(ffn=40)],
    "minitron-width": [HALF, Amount(hidden=36), Amount(ffn=40)],
    "sheared-llama": [Amount(hidden=36, ffn=40)],
    "shortened-llama": [Amount(layers=3)],
}
# of options that have no choices; of several values one must make a difference
VALUES = {
    "tokens": [4 * 4 * 32],
    "batch_size": [2],
    "lr": [1e-2],
    "mask_lr": [10.0],
    "domains": ["OTHER"],
    "domain_weights": ["1,9"],
    "domain_every": [1],
    "freeze_weights": [True],
    "activation_checkpointing": [True],
    "block_size": [16],
    "damping": [0.5],
    "protect": ["1,0"],
    "draw": [1],
}
OF_LAYERS = {"protect": ["3,0", "0,3"]}  # one layer goes: each says which


def values_of(method, option):
    if method.unit == "layers" and option.name in OF_LAYERS:
        return OF_LAYERS[option.name]
    return [v for v in option.choices if v != option.default] or VALUES[option.name]


class Runs:
    """Runs of one method; each once. A result is the bytes of the weights, None for a refusal."""

    def __init__(self, method, model, data, other, folder):
        self.method, self.model, self.data, self.other = method, model, data, other
        self.folder, self.found = folder, {}

    def result(self, amount, options, compat):
        key = repr((amount, sorted(options.items()), compat))
        if key not in self.found:
            out = self.folder / f"o{len(self.found)}"
            given = {k: self.other if v == "OTHER" else v for k, v in options.items()}
            try:
                prune(
                    str(self.model), str(out), method=self.method, amount=amount, options=given,
                    data=Data(self.data), compat=compat,
                )  # fmt: skip
                self.found[key] = (out / "model.safetensors").read_bytes()
            except UsageError as error:
                assert "changes nothing" in str(error), error
                self.found[key] = None
        return self.found[key]


@pytest.fixture
def other(tmp_path):
    return tiny.tokens(tmp_path / "other.safetensors", rows=20, seed=11)


@pytest.mark.parametrize("name", registry.names())
def test_what_is_given_makes_a_difference(name, llama, calibration, other, tmp_path):
    """Beside every amount and every other option."""
    method = registry.get(name)
    model = tiny.subject(llama, name)
    runs, base = Runs(name, model, calibration, other, tmp_path), ON_TINY.get(name, {})
    options = [option for option in method.options if option.name != MEMORY]
    beside = [({}, False), ({}, True)]
    beside += [
        ({option.name: value}, False)
        for option in options
        for value in values_of(method, option)
        if option.choices or option.type is bool or option.name == "domains"
    ]
    for amount in AMOUNTS.get(name, [HALF]):
        for more, compat in beside:
            before = runs.result(amount, {**base, **more}, compat)
            if before is None:
                continue
            for option in options:
                if option.name in more:
                    continue
                after = [
                    runs.result(amount, {**base, **more, option.name: value}, compat)
                    for value in values_of(method, option)
                ]
                told = (amount, more, compat, option.name)
                assert None in after or any(found != before for found in after), told
            if not compat:
                after = runs.result(amount, {**base, **more}, True)
                assert after != before, (amount, more, "compat")
    done = [key for key, found in runs.found.items() if found is not None]
    assert all(any(f"'{option.name}'" in key for key in done) for option in options)


@pytest.mark.parametrize("name", [n for n in registry.names() if registry.get(n).quirks is None])
def test_methods_without_quirks(name, llama, calibration, tmp_path):
    """Whatever an option asks of the official code, there is none to follow."""
    message, llama = "--compat official changes nothing", tiny.subject(llama, name)
    with pytest.raises(UsageError, match=message):
        prune(
            str(llama), str(tmp_path / "o"), method=name, amount=HALF, data=Data(calibration),
            options=ON_TINY.get(name, {}), compat=True,
        )  # fmt: skip
    method = registry.get(name)
    if method.needs:
        with pytest.raises(UsageError, match=message):
            calibrate(str(llama), str(tmp_path / "s.safetensors"), methods=[name], compat=True)
    if method.unit == "weights" or method.sequential:
        return
    with pytest.raises(UsageError, match=message):
        score(str(llama), str(tmp_path / "c.safetensors"), method=name, amount=HALF, compat=True)


def test_quirks_that_depend_on_the_model(calibration, tmp_path):
    """Heads without a group, weights that are not rounded: nothing is left of the quirk."""
    single = tiny.make(tmp_path / "m", num_key_value_heads=6)
    asked = {"data": Data(calibration), "compat": True}
    with pytest.raises(UsageError, match="query heads that share a KV head, and here none do"):
        prune(str(single), str(tmp_path / "o"), method="llm-pruner", amount=HALF, **asked)
    with pytest.raises(UsageError, match="and here none do"):
        score(str(single), str(tmp_path / "c.safetensors"), method="llm-pruner", **asked)
    rounded = tiny.make(tmp_path / "r", dtype=torch.bfloat16)
    asked = {
        "method": "sparsegpt",
        "amount": Amount(sparsity="2:4"),
        "data": Data(calibration),
    }
    for compat in (False, True):
        prune(str(rounded), str(tmp_path / f"r{compat}"), compat=compat, **asked)
    assert not tiny.same(tmp_path / "rTrue", tmp_path / "rFalse")


def test_options_that_another_step_reads(llama, tmp_path):
    for name, options in (("flap", {"bias": "drop"}), ("llm-pruner", {"protect": "1,0"})):
        with pytest.raises(UsageError, match="does not affect scores"):
            score(str(llama), str(tmp_path / "c.safetensors"), method=name, options=options)
    with pytest.raises(UsageError, match="the statistics of llm-pruner are the same"):
        calibrate(str(llama), str(tmp_path / "s.safetensors"), methods=["llm-pruner"], compat=True)


def test_a_search_refuses_them_too(llama, tmp_path):
    for options, budget in (({}, {"ratio": 0.5}), ({"structure": "UL-UM"}, {"flops": 1e8})):
        with pytest.raises(UsageError, match="changes nothing"):
            search_arch(
                str(llama), str(tmp_path / "a.json"), options=options, compat=not options,
                method="flap" if options else "wanda-sp", **budget,
            )  # fmt: skip


def test_recipes_yield_to_what_was_asked_for():
    """Whatever its value: a default too, if it was given."""
    method = registry.get("llm-pruner")
    found, _ = with_recipe(method, "official", Data(), {})
    assert (found.source, found.seed) == ("hf:bookcorpus/bookcorpus:train:text", 42)
    found, _ = with_recipe(method, "official", Data(asked=frozenset({"source", "seed"})), {})
    assert (found.source, found.seed, found.nsamples) == ("builtin", 0, 10)


@pytest.mark.parametrize("recipe", ["paper", "official"])
@pytest.mark.parametrize("name", registry.names())
def test_recipes_say_all_that_windows_need(name, recipe):
    """Text, how windows are drawn, how many and how long; masks are learned on a D of one's own."""
    method = registry.get(name)
    if recipe not in method.recipes:
        return
    wanted = {"tokens", "batch_size"} if method.trains_masks else {"source", "sampler", "nsamples"}
    assert wanted | {"seq_len"} <= method.recipes[recipe].keys()
    settings = with_recipe(method, recipe, Data(), {})[1]
    assert method.resolve(settings).keys() >= settings.keys()


def test_a_recipe_of_text_that_is_not_read(llama, calibration, tmp_path):
    stats = str(tmp_path / "s.safetensors")
    calibrate(str(llama), stats, methods=["wanda", "flap"], data=Data(calibration))
    asked = {"amount": HALF, "stats": stats, "recipe": "official"}
    with pytest.raises(UsageError, match="--recipe official changes nothing"):
        prune(str(llama), str(tmp_path / "o"), method="wanda", **asked)
    prune(str(llama), str(tmp_path / "o"), method="flap", **asked)  # AL-AM


def test_a_plan_says_it_already(llama, calibration, tmp_path):
    plan = str(tmp_path / "p.json")
    prune(
        str(llama), plan, method="flap", amount=HALF, data=Data(calibration), plan_only=True,
        options={"bias": "drop"},
    )  # fmt: skip
    for settings in ({}, {"method": "flap"}):
        with pytest.raises(UsageError, match="--compat cannot be combined with --plan"):
            prune(str(llama), str(tmp_path / "o"), plan=plan, compat=True, **settings)
