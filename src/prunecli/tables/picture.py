"""A figure for whoever looks at it: in a terminal, in a file, in a notebook."""

from dataclasses import dataclass
from html import escape

from prunecli.errors import InputError
from prunecli.tables import draw, sketch
from prunecli.tables.panels import Drawing

WIDTH = 100  # characters, where there is no terminal


@dataclass(frozen=True)
class Picture:
    """A figure that shows itself; `drawing` is its data."""

    drawing: Drawing

    @property
    def title(self) -> str:
        """What is seen in it."""
        return self.drawing.title

    def text(self, width: int = WIDTH) -> str:
        """Return it as text of `width` characters; raise InputError for curves without plotext."""
        return sketch.as_text(self.drawing, width)

    def save(self, path: str) -> None:
        """Draw it into a .png, .svg or .pdf file; raise InputError without matplotlib."""
        draw.save(self.drawing, path)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: pictures, or text without matplotlib."""
        try:
            pictures = list(draw.svgs(self.drawing, "notebook"))
        except InputError:
            return f"<pre>{escape(self.text())}</pre>"
        return f"<p><b>{escape(self.title)}</b></p><div>{''.join(pictures)}</div>"
