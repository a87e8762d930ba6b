"""Aligned columns of text: whole, or folded to the width of a terminal."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from textwrap import wrap

from prunecli.report import printable

GAP = "  "
COMFORTABLE, NARROWEST = 12, 6  # characters to which text is narrowed before, and after, folding


def aligned(
    headings: Sequence[str],
    cells: Sequence[Sequence[str]],
    width: int | None = None,
    repeated: int = 1,
) -> str:
    """Return columns aligned by spaces, numbers to the right.

    Without a width no line is wrapped and nothing cut. With one, headings wrap, then text does; and
    columns that still do not fit follow in blocks, each led by the first `repeated` columns.
    """
    headings = [printable(head) for head in headings]
    cells = [[printable(cell) for cell in row] for row in cells]
    columns = [list(column) for column in zip(*cells, strict=True)] or [[] for _ in headings]
    numbers = [all(map(_numeric, column)) for column in columns]
    content = [max(map(len, column), default=0) for column in columns]
    widths = [max(len(head), most) for head, most in zip(headings, content, strict=True)]
    if width is None:
        return _block(headings, cells, widths, numbers)

    def least(to: int) -> list[int]:
        """Return the widths at which numbers are whole and text is wrapped at `to`."""
        words = [max(map(len, head.split()), default=0) for head in headings]
        sizes = zip(content, words, numbers, strict=True)
        return [max(most, word) if n else max(word, min(most, to)) for most, word, n in sizes]

    blocks = []
    for block in _folded(least(COMFORTABLE), width, repeated):
        narrow = [widths[i] for i in block]
        for floor in (least(max(widths)), least(COMFORTABLE), least(NARROWEST)):
            narrow = _narrowed(narrow, [floor[i] for i in block], width)
        rows = [[row[i] for i in block] for row in cells]
        right = [numbers[i] for i in block]
        blocks.append(_block([headings[i] for i in block], rows, narrow, right))
    return "\n\n".join(blocks)


def _folded(least: list[int], width: int, repeated: int) -> Iterator[list[int]]:
    """Yield the columns of every block: the repeated ones, then as many more as fit."""
    block = list(range(repeated))
    for column in range(repeated, len(least)):
        if len(block) > repeated and _total([least[i] for i in [*block, column]]) > width:
            yield block
            block = list(range(repeated))
        block.append(column)
    yield block


def _narrowed(widths: list[int], least: list[int], width: int) -> list[int]:
    """Return widths that fit, or are at their least; those with most to spare give first."""
    widths = list(widths)
    for _ in range(max(0, _total(widths) - width)):
        spare = [own - floor for own, floor in zip(widths, least, strict=True)]
        if max(spare) <= 0:
            break
        widths[spare.index(max(spare))] -= 1
    return widths


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)


def _block(
    headings: Sequence[str],
    cells: Sequence[Sequence[str]],
    widths: list[int],
    numbers: list[bool],
) -> str:
    def lines(row: Sequence[str]) -> Iterator[str]:
        wrapped = [
            [text] if len(text) <= size else wrap(text, size)
            for text, size in zip(row, widths, strict=True)
        ]
        for parts in zip_longest(*wrapped, fillvalue=""):
            padded = (
                part.rjust(size) if right else part.ljust(size)
                for part, size, right in zip(parts, widths, numbers, strict=True)
            )
            yield GAP.join(padded).rstrip()

    rule = GAP.join("-" * size for size in widths)
    return "\n".join([*lines(headings), rule, *(line for row in cells for line in lines(row))])


def _numeric(cell: str) -> bool:
    try:
        float(cell.partition("[")[0].partition(" ±")[0].strip("()") or "0")
    except ValueError:
        return False
    return True


def filled(text: str, width: int | None, indent: str = "    ") -> str:
    """Return a sentence wrapped at `width`, further lines indented; as it is without one."""
    text = printable(text)
    if width is None:
        return text
    lead = text[: len(text) - len(text.lstrip())]
    return "\n".join(wrap(text, width, subsequent_indent=lead + indent)) or text


def count(tokens: float) -> str:
    """Return a count for people: three digits and a letter."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if tokens >= size:
            return f"{tokens / size:.3g}{letter}"
    return f"{tokens:.0f}"


def quantity(key: str, heading: str, lower: bool) -> str:
    """Return the label of an axis of a metric: what it is, its unit, and which way is better."""
    loss = key.startswith("loss_") or key == "dclm_loss"
    # a metric of a task that is less when better has a unit of its own
    unit = "nats per token; " if loss else "" if lower else "%; "
    heading = "mean accuracy" if key == "average" else heading
    return f"{heading} ({unit}{'lower' if lower else 'higher'} is better)"
