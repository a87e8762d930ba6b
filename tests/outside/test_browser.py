"""The report in a real browser, without a network. Run by `make outside`; needs chromium."""

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from prunecli.tables import html
from prunecli.tables.collect import Models
from prunecli.tables.runs import Runs
from prunecli.tables.table import build_table

pytestmark = pytest.mark.outside
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


def browse(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    # any host that a page would ask for is not there
    flags += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={path.parent / 'profile'}"]
    return subprocess.run(
        [BROWSER, *flags, *arguments, path.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=path.parent,
    )


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_the_report_is_shown(tmp_path):
    path = tmp_path / "report.html"
    runs = Runs(Models())
    html.write(str(path), runs, build_table(runs, "table16", "paper"), "paper")
    shown = browse(path, "--dump-dom").stdout
    assert shown.count("<tr>") == 1 + 24 + 16
    assert shown.count("<svg") == 4
    assert re.search(r'<td class="number grey">\+0\.6', shown)
    assert "Where the paper disagrees with itself" in shown

    browse(path, f"--screenshot={tmp_path / 'page.png'}", "--window-size=1400,2600")
    image = (tmp_path / "page.png").read_bytes()
    assert struct.unpack(">II", image[16:24]) == (1400, 2600)
    # a blank page of this size compresses to a few kilobytes
    assert len(image) > 100_000
