"""`speed`: counts that follow from the shape alone, and times that are ratios from one run."""

import json
import subprocess
import sys

import pytest
import torch

import tiny
from prunecli import prune, speed, table
from prunecli.errors import InputError, UsageError
from prunecli.measuring import timing as clock
from prunecli.measuring.costs import SizedModel
from prunecli.settings import Amount, Compute, Data, Output, Timing
from prunecli.tables import reference

QUICK = Timing(rounds=6, decode_tokens=4)


@pytest.fixture
def paper(tmp_path):
    """The paper's parent as a bare config.json."""
    (tmp_path / "config.json").write_text(json.dumps(reference.parent().config))
    return str(tmp_path)


def test_table_9_from_bare_configs(tmp_path):
    """Each dense row to the printed decimal, from nothing but a config.json."""
    for entry in reference.shapes():
        config = dict(reference.parent().config)
        keys = {
            "layers": "num_hidden_layers",
            "hidden": "hidden_size",
            "heads": "num_attention_heads",
            "kv_heads": "num_key_value_heads",
            "ffn": "intermediate_size",
        }
        config |= {key: entry.shape[axis] for axis, key in keys.items()}
        (tmp_path / "config.json").write_text(json.dumps(config))
        dense = entry.shape["params"] == entry.shape["nonzero"]
        pattern = None if dense else "2:4"
        told = speed(str(tmp_path), flops_only=True, sparsity=pattern).results
        printed = float(entry.shape["tflops"])
        if dense:
            assert abs(told["flops"] / 1e12 - printed) <= 0.0501, entry.name
        else:
            assert told["flops"] / 1e12 == pytest.approx(18.646, abs=5e-4)
            official = speed(str(tmp_path), flops_only=True, sparsity="0.5", official=True)
            assert official.results["flops"] / 1e12 == pytest.approx(16.470, abs=5e-4)
        assert told["flops_train"] == 3 * told["flops"]


def test_counts_of_the_papers_parent(paper):
    told = speed(paper, flops_only=True, seq_len=2048).results
    assert told["params"] == sum(told["params_by_group"].values()) == 8_030_261_248
    # 32 layers, 8 KV heads of 128, keys and values, two bytes each
    assert told["kv_bytes_per_token"] == 32 * 8 * 128 * 2 * 2
    assert told["flops_tokens"] == 2048


def test_flops_equal_torchs_counter(llama):
    """What torch counts in eager attention, but for the vectors, which Table 9 counts too."""
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(llama, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 32, dtype=torch.long), use_cache=False)
    told = speed(str(llama), flops_only=True, seq_len=32).results
    vectors = 2 * told["params_by_group"]["norms"] * 32
    # angles of positions, which older transformers computes by a product of matrices
    by_module = counter.get_flop_counts()
    angles = sum(sum(by_module[name].values()) for name in by_module if name.endswith("rotary_emb"))
    assert told["flops"] - vectors == counter.get_total_flops() - angles


def test_counting_needs_no_torch(paper):
    code = (
        "import sys; from prunecli import speed; "
        f"speed({paper!r}, flops_only=True); "
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_sparse_checkpoint_tells_its_density(llama, calibration, tmp_path):
    out = str(tmp_path / "p")
    prune(
        str(llama),
        out,
        method="wanda",
        amount=Amount(sparsity="2:4"),
        data=Data(calibration),
    )
    told = speed(out, flops_only=True, base=str(llama)).results
    assert told["density"] == pytest.approx(0.5)
    halved = told["base"]["flops"] - told["flops"]
    arch = SizedModel.open(out, counted=True).arch
    assert halved == 2 * round(0.5 * arch.block_params) * 2048
    assert told["flops_ratio"] == told["base"]["flops"] / told["flops"]


@pytest.fixture(scope="module")
def against_itself(models):
    model = str(models("llama"))
    return speed(model, base=model, timing=QUICK, compute=Compute(device="cpu")).results


def test_a_model_against_itself(against_itself):
    """1.00 lies within the stated spread (a tenth wider: tests share their processors)."""
    measured = against_itself["measured"]
    for quantity in QUICK.quantities:
        low, high = measured[quantity]["speedup_spread"]
        assert 0.9 * low <= 1.0 <= 1.1 * high, (quantity, low, high)
        assert low <= measured[quantity]["speedup"] <= high
    assert against_itself["flops_ratio"] == 1.0


def test_what_is_measured(against_itself):
    measured = against_itself["measured"]
    for quantity in QUICK.quantities:
        found = measured[quantity]
        low, high = found["seconds_spread"]
        assert 0 < low <= found["seconds"] <= high
    length = measured["seq_len"]
    rate = measured["prefill"]["tokens_per_second"] * measured["prefill"]["seconds"]
    assert rate == pytest.approx(length) and length == 64 - QUICK.decode_tokens
    rate = measured["decode"]["tokens_per_second"] * measured["decode"]["seconds"]
    assert rate == pytest.approx(QUICK.decode_tokens)
    # a pass of a tiny model fits into memory that the process has already
    assert measured["peak_bytes"] >= 4 * against_itself["params"]
    assert measured["semi_structured"].startswith("not used: the model is dense")


def test_turns_rotate(llama, monkeypatch):
    """Base and model take turns to be first, in either order of loading."""
    calls: list[str] = []
    real = clock.TimedModel.seconds

    def noted(self, quantity):
        calls.append(self.name)
        return real(self, quantity)

    made = clock.TimedModel.__init__

    def named(self, model, *rest):
        made(self, model, *rest)
        self.name = model.path.rpartition("/")[2]

    monkeypatch.setattr(clock.TimedModel, "__init__", named)
    monkeypatch.setattr(clock.TimedModel, "seconds", noted)
    timing = Timing(("prefill",), warmup=0, rounds=2)
    speed(str(llama), base=f"{llama}/../llama/.", timing=timing)
    assert calls == [".", "llama", "llama", ".", "llama", ".", ".", "llama"]


def test_zeros_survive_the_training_step(llama, calibration, tmp_path, monkeypatch):
    """Timing a step changes no weight, so 2:4 weights can be compressed after it."""
    out = str(tmp_path / "p")
    prune(str(llama), out, method="magnitude", amount=Amount(sparsity="2:4"))
    subject = clock.TimedModel(SizedModel.open(out, counted=False), QUICK, 16, Compute())
    before = {name: p.clone() for name, p in subject.model.named_parameters()}
    subject.seconds("train")
    assert all(torch.equal(p, before[name]) for name, p in subject.model.named_parameters())


@pytest.mark.parametrize(
    ("pattern", "said"),
    [("2:4", "not used: 2:4 kernels need a CUDA device"), ("unstructured", "dense kernels")],
)
def test_why_zeros_save_no_time(llama, tmp_path, pattern, said):
    out = str(tmp_path / "p")
    amount = Amount(sparsity=pattern, ratio=None if ":" in pattern else 0.5)
    prune(str(llama), out, method="magnitude", amount=amount)
    timing = Timing(("prefill",), rounds=1)
    assert said in speed(out, timing=timing).results["measured"]["semi_structured"]


@pytest.mark.parametrize(("capability", "used"), [((8, 0), True), ((7, 5), False)])
def test_2_4_kernels_where_the_gpu_has_them(llama, tmp_path, monkeypatch, capability, used):
    out = str(tmp_path / "p")
    prune(str(llama), out, method="magnitude", amount=Amount(sparsity="2:4"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    found = clock._kernels(SizedModel.open(out, counted=True), torch.device("cuda"))
    assert (found == clock.USED) is used


def test_2_4_weights_are_compressed_once(llama, tmp_path, monkeypatch):
    """Every block linear, after training, before both inference quantities."""
    out = str(tmp_path / "p")
    prune(str(llama), out, method="magnitude", amount=Amount(sparsity="2:4"))
    given: list[torch.Tensor] = []

    def compressed(weight):
        given.append(weight)
        return weight.clone()

    monkeypatch.setattr("torch.sparse.to_sparse_semi_structured", compressed)
    monkeypatch.setattr(clock, "_kernels", lambda *_: clock.USED)
    speed(out, timing=Timing(rounds=1, decode_tokens=2))
    assert len(given) == 4 * 7
    for weight in given:
        assert (weight.reshape(-1, 4).count_nonzero(1) <= 2).all()


def test_sidecar_and_table(llama, calibration, tmp_path):
    out = str(tmp_path / "p")
    prune(
        str(llama),
        out,
        method="wanda",
        amount=Amount(sparsity="2:4"),
        data=Data(calibration),
    )
    timing = Timing(("prefill",), rounds=1)
    made = speed(out, base=str(llama), timing=timing, out=str(tmp_path / "s.json"))
    kept = json.loads((tmp_path / "s.json").read_text())
    assert kept["kind"] == "speed" and kept["results"] == made.results
    again = speed(
        out,
        base=str(llama),
        timing=timing,
        out=str(tmp_path / "s.json"),
        output=Output(skip_existing=True),
    )
    assert again.sidecar == kept
    rows = table([str(tmp_path)], "table9").objects()
    (row,) = [row for row in rows if row["name"] == "p"]
    assert row["prefill_speedup"] == made.results["measured"]["prefill"]["speedup"]


def test_bad_requests(llama, paper, tmp_path):
    with pytest.raises(UsageError, match="unknown quantity 'decod': did you mean 'decode'"):
        speed(str(llama), timing=Timing(("decod",)))
    with pytest.raises(InputError, match="--seq-len 65 is too long: a model here has 64"):
        speed(str(llama), seq_len=65)
    with pytest.raises(UsageError, match="--sparsity '4:2'"):
        speed(paper, flops_only=True, sparsity="4:2")
    with pytest.raises(UsageError, match="--sparsity 'half'"):
        speed(paper, flops_only=True, sparsity="half")
    with pytest.raises(InputError, match="it has no config"):
        speed(str(tmp_path / "none"), flops_only=True)
    with pytest.raises(InputError):
        speed(paper)
    assert speed(paper, flops_only=True, seq_len=10**6).results["flops_tokens"] == 10**6


def test_every_family_is_counted(models, family):
    arch = SizedModel.open(str(models(family)), counted=True).arch
    told = speed(str(models(family)), flops_only=True).results
    assert told["params"] == arch.total_params == sum(told["params_by_group"].values())
    numbers = [2 * arch.kv_heads * arch.head_dim] * len(arch.with_units("kv_heads"))
    if arch.family.by_head:  # latent attention keeps what both are made of
        numbers = [arch.get("kv_lora_rank") + arch.get("qk_rope_head_dim")] * len(numbers)
    if family == "gemma4":  # of two types; the last layer takes those of the first
        numbers = [2 * 1 * 16, 2 * 2 * 8, 2 * 2 * 8]
    assert told["kv_bytes_per_token"] == sum(numbers) * 4


def test_only_decoding_takes_positions_from_the_prompt(tmp_path):
    """A model of 24 positions, fewer than the 32 tokens that decoding takes by default."""
    model = str(tiny.make(tmp_path / "m", max_position_embeddings=24))
    made = speed(model, timing=Timing(("prefill",), warmup=0, rounds=1))
    assert made.results["measured"]["seq_len"] == 24
    with pytest.raises(InputError, match="--decode-tokens 32 is more than the model has positions"):
        speed(model, timing=Timing(("decode",), warmup=0, rounds=1))
