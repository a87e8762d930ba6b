"""The matrix of methods and families, in the report of every run that tried some of it."""

from prunecli.methods import registry as methods
from prunecli.model.families import registry as families

CELL = "cell of the matrix"


def pytest_terminal_summary(terminalreporter):
    """Print a cell per pair that ran: + passed, r refused with the reason, F failed."""
    cells = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, (method, family, mark) in getattr(report, "user_properties", ()):
                if name == CELL:
                    cells[method, family] = mark if outcome == "passed" else "F"
    if not cells:
        return
    terminalreporter.section("methods and families")
    names = families.names()
    wide = max(map(len, methods.names()))
    terminalreporter.write_line(" ".join([" " * wide, *names]))
    for method in methods.names():
        marks = (cells.get((method, name), ".").ljust(len(name)) for name in names)
        terminalreporter.write_line(" ".join([method.ljust(wide), *marks]).rstrip())
    terminalreporter.write_line("+ holds  r refused, with the reason  F failed  . not in this run")
