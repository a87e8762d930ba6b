"""The library verb `table`: from any set of sidecars to the tables and figures of the paper."""

from prunecli.tables.render import FORMATS, Table, aligned
from prunecli.tables.verb import LAYOUT_NAMES, table

__all__ = ["FORMATS", "LAYOUT_NAMES", "Table", "aligned", "table"]
