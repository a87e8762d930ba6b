"""Completion as typed in bash, zsh and fish, and the pages as man shows them.

Not part of `make test`: the shells must be there (`make shells`).
"""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from prunecli.cli import app, options
from prunecli.methods import registry

pytestmark = pytest.mark.shells
ROOT = Path(__file__).resolve().parents[2]
BASH = ROOT / "completions" / "prunecli.bash"
FISH = ROOT / "completions" / "prunecli.fish"
PAGES = sorted((ROOT / "man").glob("*.1"))


def script(*command: str, cwd: Path, **variables: str) -> str:
    """Run a shell without anybody's settings; nothing may come on stderr."""
    plain = {"PATH": os.environ["PATH"], "HOME": str(cwd), "LC_ALL": "C.UTF-8", "TERM": "vt100"}
    ended = subprocess.run(
        command, cwd=cwd, env={**plain, **variables}, capture_output=True, text=True, timeout=60
    )
    assert ended.stderr == ""
    return ended.stdout


def bash(line: str, cwd: Path) -> set[str]:
    """Return what bash offers for the last word of `line`."""
    code = """
        source "$SCRIPT"
        read -ra COMP_WORDS <<< "$LINE"
        [[ $LINE == *' ' ]] && COMP_WORDS+=('')
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        _prunecli
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    out = script("bash", "--norc", "-c", code, cwd=cwd, SCRIPT=str(BASH), LINE=line)
    return set(out.split())


def fish(line: str, cwd: Path) -> set[str]:
    """Return what fish offers for the last word of `line`."""
    code = 'source "$SCRIPT"; complete -C "$LINE"'
    out = script("fish", "--no-config", "-c", code, cwd=cwd, SCRIPT=str(FISH), LINE=line)
    return {offer.split("\t")[0] for offer in out.splitlines()}


def zsh(line: str, cwd: Path) -> set[str]:
    """Return what zsh offers for the last word of `line`, typed into a pseudo-terminal.

    The offers are taken where they are added, by a `compadd` of our own.
    """
    code = r"""
        zmodload zsh/zpty
        zpty shell zsh -f -i
        zpty -w shell "PS1= PROMPT= fpath=(${(q)FOLDER} \$fpath) OFFERS=${(q)OFFERS}"
        zpty -w shell 'autoload -Uz compinit && compinit -u -D'
        zpty -w shell 'compadd() {
            local -a found
            builtin compadd -O found "$@"
            print -rl -- $found >> $OFFERS
            builtin compadd "$@"
        }'
        zpty -w shell 'done-completing() { print > $OFFERS.done }; zle -N done-completing'
        zpty -w shell 'bindkey "^X" done-completing; bindkey "^I" complete-word; print > $OFFERS'
        while [[ ! -e $OFFERS ]] sleep 0.05
        zpty -n -w shell "$LINE"$'\t\x18'
        for ((i = 0; i < 200; i++)); do
            [[ -e $OFFERS.done ]] && break
            sleep 0.05
        done
        zpty -d shell
        cat $OFFERS
    """
    offers = cwd / "offers"
    for old in cwd.glob("offers*"):
        old.unlink()
    folder = str(ROOT / "completions")
    out = script("zsh", "-f", "-c", code, cwd=cwd, FOLDER=folder, OFFERS=str(offers), LINE=line)
    return set(out.split())


SHELLS = pytest.mark.parametrize("complete", [bash, zsh, fish])
Complete = Callable[[str, Path], set[str]]


@SHELLS
def test_commands(complete: Complete, tmp_path: Path) -> None:
    assert complete("prunecli ", tmp_path) >= set(app.COMMANDS)
    assert complete("prunecli ca", tmp_path) == {"calibrate"}


@SHELLS
def test_options(complete: Complete, tmp_path: Path) -> None:
    offers = complete("prunecli prune --s", tmp_path)
    assert offers >= {"--sparsity", "--seed", "--stats", "--structure"}
    assert "--deep" not in complete("prunecli prune --", tmp_path)
    assert "--deep" in complete("prunecli check --", tmp_path)


@SHELLS
def test_values(complete: Complete, tmp_path: Path) -> None:
    for option in ("device", "dtype", "sampler", "recipe", "compat"):
        offers = complete(f"prunecli prune --{option} ", tmp_path)
        assert offers == set(options.CHOICES[option]), option
    assert complete("prunecli prune --method ", tmp_path) == set(registry.names())
    assert complete("prunecli prune --method wanda", tmp_path) == {"wanda", "wanda-sp"}
    assert complete("prunecli prune --structure A", tmp_path) == {"AL-MM", "AL-AM"}
    assert complete("prunecli table --format m", tmp_path) == {"md"}


@SHELLS
def test_files(complete: Complete, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "scores.safetensors").touch()
    for line in ("prunecli prune --method flap m", "prunecli prune --tokenizer m"):
        assert {offer.rstrip("/") for offer in complete(line, tmp_path)} == {"model"}
    assert complete("prunecli prune --scores sc", tmp_path) == {"scores.safetensors"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_render_without_warnings(page: Path, tmp_path: Path) -> None:
    shown = script("man", "--warnings", "-P", "cat", "-l", str(page), cwd=tmp_path, MANWIDTH="80")
    assert "EXIT STATUS" in shown
    script("groff", "-ww", "-man", "-Tutf8", "-z", str(page), cwd=tmp_path)
