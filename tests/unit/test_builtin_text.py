"""The text inside Python: lazy, deterministic, and its two parts share nothing."""

import ast
import itertools
import sys

import pytest

from prunecli.data import builtin_text
from prunecli.data.builtin_text import documents
from prunecli.errors import InputError


@pytest.fixture(scope="module")
def parts() -> dict[str, list[tuple[str, str]]]:
    return {part: list(documents(part)) for part in builtin_text.PARTS}


def test_sizes(parts):
    chars = {part: sum(len(text) for _, text in found) for part, found in parts.items()}
    total = sum(chars.values())
    assert total > 1_000_000
    assert 0.65 < chars["calibration"] / total < 0.85
    assert all(len(text) >= builtin_text.MIN_CHARS for found in parts.values() for _, text in found)


def test_parts_share_no_document_and_no_long_stretch(parts):
    names = {part: {name for name, _ in found} for part, found in parts.items()}
    assert names["calibration"].isdisjoint(names["evaluation"])
    # 512 tokens of English are some 2000 characters; nothing half as long is in both
    size, step = 1000, 10
    calibration = {
        text[start : start + size]
        for _, text in parts["calibration"]
        for start in range(0, len(text) - size + 1, step)
    }
    for name, text in parts["evaluation"]:
        for start in range(len(text) - size + 1):
            assert text[start : start + size] not in calibration, (name, start)


def test_parts_mix_subjects_and_leave_out_what_is_not_prose(parts):
    first = [name for name, _ in parts["calibration"][:40]]
    assert any(name.startswith("topics/") for name in first)
    assert len({name.split(".")[0] for name in first}) > 20
    for found in parts.values():
        for name, text in found:
            assert not builtin_text.LEFT_OUT.intersection(name.split("."))
            assert "\t" not in text and " \n" not in text


def test_same_text_each_time(parts):
    again = list(itertools.islice(documents("evaluation"), 10))
    assert again == parts["evaluation"][:10]


def test_modules_are_parsed_when_reached_and_never_imported(monkeypatch):
    parsed, parse = [], ast.parse
    monkeypatch.setattr(ast, "parse", lambda source: parsed.append(1) or parse(source))
    before = set(sys.modules)
    found = list(itertools.islice(documents("calibration"), 5))
    assert len(found) == 5
    assert len(parsed) < 30
    assert set(sys.modules) - before <= {"pydoc_data", "pydoc_data.topics"}


def test_without_sources_topics_are_left(monkeypatch, tmp_path):
    monkeypatch.setattr(builtin_text.sysconfig, "get_path", lambda name: str(tmp_path / "none"))
    names = [name for name, _ in documents("calibration")]
    assert names
    assert all(name.startswith("topics/") for name in names)


def test_without_topics_modules_are_left(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    names = [name for name, _ in itertools.islice(documents("evaluation"), 5)]
    assert len(names) == 5
    assert not any(name.startswith("topics/") for name in names)


def test_with_neither_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(builtin_text.sysconfig, "get_path", lambda name: str(tmp_path / "none"))
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(InputError, match="neither pydoc_data nor the sources"):
        next(documents("calibration"))


def test_docstrings_come_in_order_and_a_broken_source_is_skipped(tmp_path):
    source = tmp_path / "module.py"
    source.write_text(
        '"""One.\n\n    Indented.   \n"""\n'
        'def f():\n    """Two."""\n'
        'class A:\n    """Three."""\n    async def g(self):\n        """Four \\d."""\n'
    )
    assert builtin_text._docstrings(source) == "One.\n\nIndented.\n\nTwo.\n\nThree.\n\nFour \\d."
    source.write_text("def :")
    assert builtin_text._docstrings(source) == ""
