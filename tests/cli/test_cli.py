"""The shell around the library, which is stubbed: what is passed on, printed, and ended with."""

import errno
import json
import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from prunecli import errors, interruption
from prunecli.settings import Amount, Compute, Data, Result, RunContext

PRUNE = ("prune", "--method", "flap", "--ratio", "0.5")


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stub the verbs; return what the last of them was called with, and take `raises`."""
    seen: dict[str, Any] = {}

    def stub(verb: str):
        def act(request: Any, run: RunContext) -> Result:
            model = getattr(request, "model", None)
            paths = [*seen.get("paths", []), model]
            seen.update(vars(request) | vars(run) | {"model": model, "verb": verb, "paths": paths})
            if seen.get("raises") is not None:
                seen["raises"]()
            results = {"ratio": 0.5, "data": [DATA]}
            return Result(run.output.path or str(model), {"kind": verb}, results)

        return act

    monkeypatch.setattr("prunecli.pruning.prune.prune", stub("prune"))
    monkeypatch.setattr("prunecli.pruning.calibrate.calibrate", stub("calibrate"))
    monkeypatch.setattr("prunecli.pruning.score.score", stub("score"))
    monkeypatch.setattr("prunecli.training.init.init", stub("init"))
    monkeypatch.setattr("prunecli.measuring.eval.evaluate", stub("evaluate"))
    return seen


DATA = {"source": "builtin:evaluation", "tokens": 1234, "loss": 2.5, "perplexity": 12.18}


def raising(error: BaseException):
    def act() -> None:
        raise error

    return act


# -- results --------------------------------------------------------------------------------------


def test_the_path_as_typed(run, called) -> None:
    ended = run(*PRUNE, "in/", "./out//")
    assert (ended.code, ended.out, ended.err) == (0, "./out//\n", "")
    assert called["model"] == "in/"
    assert called["amount"] == Amount(ratio=0.5)
    assert called["data"] == Data()
    assert called["compute"] == Compute()
    assert called["options"] == {}
    assert called["compat"] is False
    assert called["output"].argv[-3:] == ("0.5", "in/", "./out//")


def test_json(run, called) -> None:
    made = json.loads(run(*PRUNE, "--json", "in", "out").out)
    assert made == {"path": "out", "sidecar": {"kind": "prune"}, "results": called_results()}


def called_results() -> dict[str, Any]:
    return {"ratio": 0.5, "data": [DATA]}


def test_dry_run_tells_what_would_be(run, called) -> None:
    ended = run(*PRUNE, "--dry-run", "in", "out")
    assert called["output"].dry_run
    assert "0.5" in ended.out
    assert ended.code == 0


def test_eval_prints_plain_columns(run, called) -> None:
    ended = run("eval", "a", "b")
    lines = [line.split() for line in ended.out.splitlines()]
    assert [line[0] for line in lines] == ["model", "-----", "a", "b"]
    assert "1234" in lines[2]
    assert any(cell.startswith("2.5") for cell in lines[2])


def test_eval_of_several_as_json(run, called) -> None:
    made = json.loads(run("eval", "--json", "--data", "x.txt", "--data", "y.txt", "a", "b").out)
    assert [one["path"] for one in made["results"]] == ["a", "b"]
    assert [data.source for data in called["data"]] == ["x.txt", "y.txt"]


def test_out_takes_one_model(run, called) -> None:
    assert run("eval", "--out", "x.json", "a", "b").code == 2


def test_everything_is_passed_on(run, called) -> None:
    run(
        *(*PRUNE, "--structure", "AL-AM", "--compat", "official", "--recipe", "paper"),
        *("--data", "c4", "--sampler", "docs", "--nsamples", "3", "--seq-len", "64"),
        *("--seed", "7", "--tokenizer", "t", "--device", "cpu", "--dtype", "bfloat16"),
        *("--buffer", "disk", "--keep", "k", "--force", "--skip-existing", "in", "out"),
    )
    assert called["options"] == {"structure": "AL-AM"}
    assert called["compat"] is True
    assert called["recipe"] == "paper"
    assert called["data"] == Data("c4", "docs", 3, 64, 7, "t")
    assert called["compute"] == Compute("cpu", "bfloat16", "disk")
    assert called["keep"] == "k"
    assert called["output"].force and called["output"].skip_existing


STATS, FIXED = ("--stats", "s"), ("--data", "t.safetensors:x")


@pytest.mark.parametrize(
    ("flag", "why", "command"),
    [
        ("--data c4", "cannot be combined with --stats", (*PRUNE, *STATS, "in", "out")),
        (
            "--nsamples 3",
            "cannot be combined with --scores",
            (*PRUNE, "--scores", "s", "in", "out"),
        ),
        (
            "--seq-len 8",
            "cannot be combined with --plan",
            ("prune", "--plan", "p.json", "in", "out"),
        ),
        (
            "--tokenizer t",
            "cannot be combined with --stats",
            ("score", "--method", "flap", *STATS, "in", "out"),
        ),
        ("--tokenizer t", "token ids already", (*PRUNE, *FIXED, "in", "out")),
        ("--tokenizer t", "token ids already", ("calibrate", "--for", "flap", *FIXED, "in", "o")),
        ("--tokenizer t", "token ids already", ("score", "--method", "flap", *FIXED, "in", "o")),
        ("--tokenizer t", "token ids already", ("eval", *FIXED, "in")),
        ("--masks drop", "needs --like", ("init", "--config", "c.json", "out")),
        ("--allow-code", "--include-path", ("eval", "--tasks", "piqa", "in")),
        ("--nsamples 3", "not tasks", ("eval", "--tasks", "piqa", "in")),
        ("--buffer disk", "not tasks", ("eval", "--tasks", "piqa", "in")),
        ("--seq-len 8", "--suite decides", ("eval", "--suite", "paper", "in")),
        ("--text-column t", "not of a suite", ("eval", "--suite", "paper", "in")),
        ("--skip-bad 3", "not of a suite", ("eval", "--suite", "paper", "in")),
        ("--force", "file of --out", ("eval", "in")),
        ("--skip-existing", "file of --out", ("eval", "in")),
        ("--restart", "file of --out", ("eval", "in")),
        ("--skip-existing", "file of --out", ("speed", "in")),
        ("--rounds 3", "--flops-only leaves out", ("speed", "--flops-only", "in")),
        ("--device cpu", "--flops-only leaves out", ("speed", "--flops-only", "in")),
        ("--decode-tokens 9", "--measure leaves out", ("speed", "--measure", "prefill", "in")),
        ("--format md", "--paper prints", ("search-arch", "--method", "flap", "in", "o.json")),
        ("--data c4", "needs no model", ("search-arch", "--paper")),
    ],
)
def test_what_nothing_would_read_is_refused(run, called, monkeypatch, flag, why, command) -> None:
    monkeypatch.setattr("prunecli.measuring.speed.speed", lambda *_, **__: Result("in"))
    ended = run(command[0], *flag.split(), *command[1:])
    assert ended.code == 2 and why in ended.err and ended.err.count("\n") == 1
    assert not called


def test_what_is_meant_for_other_commands_is_not(run, called, monkeypatch) -> None:
    monkeypatch.setenv("PRUNECLI_DATA", "c4")
    monkeypatch.setenv("PRUNECLI_TOKENIZER", "t")
    monkeypatch.setenv("PRUNECLI_SKIP_EXISTING", "1")
    assert run(*PRUNE, *STATS, "in", "out").code == 0
    assert run(*PRUNE, *FIXED, "in", "out").code == 0
    assert run("eval", "in").code == 0
    # tasks read a tokenizer where ids need none
    assert run("eval", *FIXED, "--tasks", "piqa", "--tokenizer", "t", "in").code == 0


# -- how it ends ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.PruneError, 1),
        (errors.UsageError, 2),
        (errors.CheckFailed, 3),
        (errors.InputError, 4),
        (errors.OutputExists, 5),
        (errors.Stopped, 75),
    ],
)
def test_errors_are_a_line_and_a_status(run, called, kind, code: int) -> None:
    called["raises"] = raising(kind("it\nbroke", "mend it"))
    ended = run(*PRUNE, "in", "out")
    assert (ended.code, ended.out) == (code, "")
    assert ended.err == "prunecli: error: it broke; mend it\n"


@pytest.mark.parametrize(
    "error",
    [ValueError("odd\nvalue"), MemoryError(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))],
)
def test_the_unforeseen_is_a_line(run, called, error: Exception) -> None:
    called["raises"] = raising(error)
    ended = run(*PRUNE, "in", "out")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("prunecli: error: ")
    assert ended.err.count("\n") == 1
    assert "Traceback" in run(*PRUNE, "--verbose", "in", "out").err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("std::bad_alloc"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        RuntimeError("unable to mmap 9 bytes from file <a>: Cannot allocate memory (12)"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
        ImportError("torch.so: failed to map segment from shared object"),
    ],
)
def test_want_of_memory_is_no_internal_error(run, called, error: Exception) -> None:
    called["raises"] = raising(error)
    ended = run(*PRUNE, "in", "out")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("prunecli: error: too little memory: ")
    assert "raise the limit on it (ulimit -v)" in ended.err and ended.err.count("\n") == 1


def test_interrupted(run, called) -> None:
    called["raises"] = raising(KeyboardInterrupt())
    ended = run(*PRUNE, "in", "out")
    assert (ended.code, ended.out) == (130, "")
    assert "Traceback" not in ended.err


def test_terminated_cleans_up(run, called) -> None:
    cleaned = []

    def terminate() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            interruption.safe_point()
        finally:
            cleaned.append(True)

    called["raises"] = terminate
    assert run(*PRUNE, "in", "out").code == 143
    assert cleaned


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_left_is_no_complaint(unbuffered) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [Path(sys.executable).with_name("prunecli"), "methods"],
        stdout=writer,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    os.close(writer)
    assert ended.stderr == b""
    assert ended.returncode == 1


# -- usage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("prnue", "in", "out"), "prune"),
        (("prune", "--method", "wnda", "in", "out"), "did you mean 'wanda'?"),
        (("prune", "--methd", "wanda", "in", "out"), "unknown option --methd: did you mean"),
        (("prune", "--method", "wanda", "in"), "missing argument OUT; see `prunecli prune --help`"),
        (("tokenize", "in", "out"), "missing option --seq-len; see `prunecli tokenize --help`"),
        (("prune", "in", "out", "--ratio"), "requires an argument; see `prunecli prune --help`"),
        (("prune", "--method", "wanda", "--ratio", "half", "in", "out"), "--ratio"),
        (("prune", "--method", "wanda", "--structure", "UL-MM", "in", "out"), "flap"),
        (("prune", "--method", "flap", "--structure", "UL-NN", "in", "out"), "UL-"),
        (("prune", "--device", "gpu", "in", "out"), "--device"),
        (("prune", "--compat", "yes", "in", "out"), "--compat"),
        (("table", "--format", "html", "x"), "--format"),
        (("calibrate", "--for", "wnda", "in", "o.safetensors"), "wanda"),
    ],
)
def test_wrong_usage(run, arguments: tuple[str, ...], hint: str) -> None:
    ended = run(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert hint in ended.err
    assert len(ended.err.splitlines()) <= 4
    assert not set(ended.err) & set("╭╮╰╯│─")


def test_a_misspelt_method_is_one_line(run) -> None:
    ended = run("prune", "--method", "wnda", "--ratio", "0.5", "in/", "out/")
    assert ended.err == "prunecli: error: unknown method 'wnda': did you mean 'wanda'?\n"


# -- stdin ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stdin", ["made/\n", '{"path": "made/", "sidecar": {}, "results": {}}\n'])
def test_a_path_from_stdin(run, called, stdin: str) -> None:
    assert run(*PRUNE, "-", "out", stdin=stdin).code == 0
    assert called["model"] == "made/"
    for option in ("stats", "scores", "plan"):
        run("prune", "--method", "flap", f"--{option}", "-", "in", "out", stdin=stdin)
        assert called[option] == "made/"
        assert called["model"] == "in"
    run("prune", "--method", "flap", "--arch", "-", "in", "out", stdin=stdin)
    assert called["amount"].arch == "made/"


def test_paths_from_stdin(run, called) -> None:
    run("eval", "-", stdin="a\n\nb\n")
    assert called["paths"] == ["a", "b"]
    called.clear()
    run("eval", "-", stdin='{"results": [{"path": "a"}, {"path": "b"}]}')
    assert called["paths"] == ["a", "b"]


@pytest.mark.parametrize("command", [("eval", "-"), ("table", "-"), (*PRUNE, "-", "out")])
def test_empty_stdin_is_wrong_usage(run, called, command: tuple[str, ...]) -> None:
    ended = run(*command, stdin=" \n")
    assert (ended.code, ended.out) == (2, "")
    assert "stdin" in ended.err


def test_stdin_stands_for_one_path(run, called) -> None:
    assert run(*PRUNE, "--stats", "-", "-", "out", stdin="a\n").code == 2
    assert run(*PRUNE, "-", "out", stdin="a\nb\n").code == 2
    assert "model" not in called


def test_a_value_that_is_of_no_use(run, called, monkeypatch) -> None:
    told = "--ratio 'abc' should be a valid number"
    assert told in run("prune", "--method", "wanda", "--ratio=abc", "in", "out").err
    monkeypatch.setenv("PRUNECLI_RATIO", "abc")
    ended = run("prune", "--method", "wanda", "in", "out")
    assert ended.code == 2 and "--ratio 'abc' (from PRUNECLI_RATIO) should be" in ended.err
    assert not called


@pytest.mark.parametrize("seed", ["-1", "4294967296", "9" * 30])
def test_seeds_that_no_generator_takes(seed, run, called) -> None:
    ended = run(*PRUNE, "--seed", seed, "in", "out")
    assert ended.code == 2 and "--seed" in ended.err
    assert ended.err.count("\n") == 1
    assert not called


# -- configuration --------------------------------------------------------------------------------


def test_who_wins(run, called, tmp_path, monkeypatch) -> None:
    """Flags > environment > file > defaults."""
    file = tmp_path / "p.toml"
    file.write_text(
        'nsamples = 5\nseed = 5\nseq-len = 5\n[prune]\ndevice = "cpu"\nmetric = "IFV"\n'
    )
    monkeypatch.setenv("PRUNECLI_SEED", "6")
    monkeypatch.setenv("PRUNECLI_SEQ_LEN", "6")
    ended = run(*PRUNE, "--config", str(file), "--seq-len", "7", "in", "out")
    assert ended.code == 0, ended.err
    assert called["data"] == Data(nsamples=5, seed=6, seq_len=7)
    assert called["compute"] == Compute(device="cpu")
    assert called["options"] == {"metric": "IFV"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.toml", 'ratio = 0.25\n[eval]\nout = "x"\n[prune]\nplan_only = true'),
        ("c.yaml", "ratio: 0.25\nprune:\n  plan-only: true\n"),
        ("c.json", '{"ratio": 0.25, "prune": {"plan-only": true}}'),
    ],
)
def test_kinds_of_files(run, called, tmp_path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    ended = run("prune", "--method", "flap", "--config", str(tmp_path / name), "in", "o.json")
    assert ended.code == 0, ended.err
    assert called["amount"] == Amount(ratio=0.25)
    assert called["plan_only"] is True


@pytest.mark.parametrize(
    ("text", "hint"), [("rtio = 0.5", "ratio"), ("= 3", "valid"), ("[prune]\nratoi = 1", "ratio")]
)
def test_wrong_files(run, called, tmp_path, text: str, hint: str) -> None:
    (tmp_path / "c.toml").write_text(text)
    ended = run(*PRUNE, "--config", str(tmp_path / "c.toml"), "in", "out")
    assert (ended.code, ended.out) == (2, "")
    assert hint in ended.err
    assert run(*PRUNE, "--config", str(tmp_path / "none.toml"), "in", "out").code == 2


def test_print_config_is_read_back(run, called, tmp_path) -> None:
    given = (*PRUNE, "--structure", "AL-MM", "--nsamples", "3", "--force")
    ended = run(*given, "--print-config", "in", "out")
    assert ended.code == 0
    assert "model" not in called
    (tmp_path / "c.json").write_text(ended.out)
    run(*given, "in", "out")
    first = {**called, "output": called["output"].force}
    run("prune", "--config", str(tmp_path / "c.json"), "in", "out")
    again = {**called, "output": called["output"].force}
    for seen in (first, again):
        del seen["report"], seen["paths"], seen["stop"]
    assert first == again


def test_equal_runs_have_one_command_line(run, called, monkeypatch) -> None:
    line = "prunecli prune --method flap --ratio 0.5 --data text.txt --structure UL-UM IN OUT"
    given = ("--ratio", "0.5", "--structure", "UL-UM", "--data", "/home/me/text.txt")
    assert run("prune", "--method", "flap", *given, "in", "out").code == 0
    assert called["output"].command == line
    monkeypatch.setenv("PRUNECLI_STRUCTURE", "UL-UM")
    monkeypatch.setenv("PRUNECLI_LR", "1")  # of other methods
    for name, value in zip(given[::2], given[1::2], strict=True):
        monkeypatch.setenv("PRUNECLI_" + name[2:].upper(), value)
    assert (
        run("prune", "--quiet", "--force", "--seed", "0", "/a/in/", "b/", "--method", "flap").code
        == 0
    )
    assert called["output"].command == line
    assert run(*PRUNE, "hf:org/name@main", "out").code == 0
    assert called["output"].command.endswith(" hf:org/name@main OUT")


# -- commands that need no stub -------------------------------------------------------------------


def test_variables_of_other_methods_are_ignored(run, called, monkeypatch) -> None:
    monkeypatch.setenv("PRUNECLI_BATCH_SIZE", "4")
    monkeypatch.setenv("PRUNECLI_STRUCTURE", "UL-UM")
    assert run("prune", "--method", "flap", "--ratio", "0.5", "in", "out").code == 0
    assert called["options"] == {"structure": "UL-UM"}
    assert run("prune", "--plan", "p.json", "in", "out").code == 0
    assert called["options"] == {}
    ended = run("prune", "--method", "flap", "--lr", "1", "--ratio", "0.5", "in", "out")
    assert ended.code == 2 and "it belongs to sheared-llama" in ended.err


def test_a_default_that_was_typed_stands_against_a_recipe(run, called) -> None:
    run(*PRUNE, "--data", "builtin", "--seed", "0", "--recipe", "paper", "in", "out")
    assert called["data"].asked == {"source", "seed"}
    run(*PRUNE, "--recipe", "paper", "in", "out")
    assert called["data"].asked == frozenset()


def test_variables_that_change_nothing_here_are_ignored(run, called, monkeypatch) -> None:
    """Typed they are passed on, for the library to refuse."""
    monkeypatch.setenv("PRUNECLI_COMPAT", "official")
    monkeypatch.setenv("PRUNECLI_BIAS", "drop")
    of_wanda = ("prune", "--method", "wanda", "--ratio", "0.5")
    for line, followed in (
        ((*PRUNE, "in", "out"), True),
        ((*of_wanda, "in", "out"), False),
        ((*of_wanda, "--compat", "official", "in", "out"), True),
        (("prune", "--plan", "p.json", "in", "out"), False),
        (("prune", "--plan", "p.json", "--method", "flap", "in", "out"), False),
        (("score", "--method", "flap", "in", "c.safetensors"), True),
        (("score", "--method", "shortgpt", "in", "c.safetensors"), False),
        (("calibrate", "--for", "flap,wanda", "in", "s.safetensors"), True),
        (("calibrate", "--for", "llm-pruner", "in", "s.safetensors"), False),
    ):
        assert run(*line).code == 0
        assert called["compat"] is followed, line
    run("score", "--method", "flap", "in", "c.safetensors")
    assert called["options"] == {}
    run("score", "--method", "flap", "--bias", "drop", "in", "c.safetensors")
    assert called["options"] == {"bias": "drop"}


def test_check_tells_what_is_wrong(run, monkeypatch) -> None:
    found = {"good": [], "bad": ["torn", "bent"]}
    # by its module: the package offers the verb under the same name
    monkeypatch.setattr(
        import_module("prunecli.measuring.check"), "check", lambda path, **_: found[path]
    )
    ended = run("check", "good", "bad")
    assert ended.out.splitlines() == ["good: ok", "bad: torn", "bad: bent"]
    assert ended.code == 3
    assert run("check", "good").code == 0


def test_check_reports_all_paths(run, llama, tmp_path) -> None:
    """One that cannot be read is a problem of its own, wherever it stands."""
    (tmp_path / "bad.json").write_bytes(b"\xff\x00")
    (tmp_path / "folder").mkdir()
    bad = ["", "null\0", "x" * 300, str(tmp_path / "bad.json"), str(tmp_path / "folder")]
    ended = run("check", *bad, str(llama))
    assert ended.code == 3 and "5 of 6 paths" in ended.err
    *lines, last = ended.out.splitlines()
    assert len(lines) == 5 and last == f"{llama}: ok" and not any("ok" in line for line in lines)


def test_methods_and_families(run) -> None:
    from prunecli.methods import registry as methods
    from prunecli.model.families import registry as families

    for command, registry in (("methods", methods), ("families", families)):
        lines = run(command).out.splitlines()
        assert [line.split()[0] for line in lines[2:]] == registry.names()
        records = json.loads(run(command, "--json").out)
        records = records["results"] if isinstance(records, dict) else records
        assert [record["name"] for record in records] == registry.names()


def test_notes_go_to_stderr(run, monkeypatch) -> None:
    def noisy(request: Any, run: RunContext) -> Result:
        report = run.report
        report.info("a note")
        report.debug("a detail")
        assert list(report.progress(range(3), "counting")) == [0, 1, 2]
        return Result(run.output.path)

    monkeypatch.setattr("prunecli.training.init.init", noisy)
    init = ("init", "--config", "c.json", "out")
    assert run(*init).err == "prunecli: a note\n"
    assert run(*init, "--quiet").err == ""
    assert run(*init, "--verbose").err == "prunecli: a note\nprunecli: a detail\n"
    assert run(*init, "--verbose").out == "out\n"


def test_bad_lines_are_passed_over_if_asked(run, tmp_path) -> None:
    lines = ['{"body": "words and more words"}', "{", '{"body": null}', '{"body": "the end of it"}']
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    out = str(tmp_path / "rows")
    command = ["tokenize", "--train-tokenizer", "258", "--seq-len", "8", "--text-column", "body"]
    ended = run(*command, str(tmp_path / "x.jsonl"), out)
    assert ended.code == 4
    assert "line 2 of" in ended.err
    assert "--skip-bad N" in ended.err
    ended = run(*command, "--restart", "--skip-bad", "2", str(tmp_path / "x.jsonl"), out)
    assert (ended.code, ended.out) == (0, f"{out}\n")
    assert "2 bad lines skipped, the first: line 2 of" in ended.err
    record = json.loads((tmp_path / "rows" / "prunecli.json").read_text())
    assert (record["options"]["text_column"], record["options"]["skip_bad"]) == ("body", 2)
    assert record["results"]["skipped"] == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda one: one.name)
@pytest.mark.parametrize("command", ["prune", "calibrate", "score", "eval"])
def test_a_signal_between_layers_can_be_resumed_from(
    command, number, run, llama, calibration, tmp_path, monkeypatch
) -> None:
    """The layer under way is finished and kept, status 75; the rerun does the others."""
    from prunecli.model.stream import LayerStream

    def line(out: Path) -> list[str]:
        given = ["--data", calibration, str(llama)]
        if command == "eval":
            return ["eval", "--out", f"{out}.json", *given]
        how = {"prune": ["--method", "wanda", "--ratio", "0.5"], "calibrate": ["--for", "flap"]}
        how["score"] = ["--method", "flap"]
        suffix = "" if command == "prune" else ".safetensors"
        return [command, *how[command], *given, f"{out}{suffix}"]

    layers: list[int] = []
    real, at = LayerStream.layer, [0]

    def layer(self, i):
        layers.append(i)
        if len(layers) == at[0]:
            signal.raise_signal(number)
        return real(self, i)

    monkeypatch.setattr(LayerStream, "layer", layer)
    assert run(*line(tmp_path / "whole")).code == 0
    layers.clear()
    at[0] = 2
    ended = run(*line(tmp_path / "o"))
    assert (ended.code, ended.out) == (75, "")
    assert ended.err.splitlines()[-1].endswith("2 of 4 layers; rerun the same command to resume")
    assert [path.name.rpartition(".")[2] for path in tmp_path.glob("o*")] == ["partial"]
    layers.clear()
    at[0] = 0
    ended = run(*line(tmp_path / "o"))
    assert ended.code == 0 and layers == [2, 3] and "resuming" in ended.err
    found = {path.name.replace("whole", "o") for path in tmp_path.glob("whole*")}
    assert {path.name for path in tmp_path.glob("o*")} == found


def test_probe_prints_a_family_or_what_failed(run, tmp_path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    ended = run("families", "--probe", str(tmp_path))
    assert (ended.code, ended.out) == (4, "")
    assert "'qwen3' is read already" in ended.err and ended.err.count("\n") == 1
    (tmp_path / "config.json").write_text('{"model_type": "ministral"}')
    ended = run("families", "--probe", str(tmp_path))
    names: dict[str, Any] = {}
    exec(ended.out, names)
    assert ended.code == 0 and names["FAMILY"].model_types == ("ministral",)
    assert "'ministral' on a tiny random model: streamed losses are those of" in ended.err
