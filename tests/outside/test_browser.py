"""The report in a real browser, without a network. Run by `make outside`; needs chromium."""

import json
import re
import shutil
import struct
import subprocess
from html import unescape
from pathlib import Path

import pytest

import prunecli
from prunecli.tables import html
from prunecli.tables.collect import collect
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


# reads the page in a frame of each width, sorts its first table twice, and says what it saw
READER = """<body><script>
const told = [];
const next = (widths) => {
  if (!widths.length) { document.body.textContent = "told " + JSON.stringify(told); return; }
  const frame = document.createElement("iframe");
  frame.style.cssText = `width:${widths[0]}px;height:900px;border:0`;
  frame.src = "report.html";
  frame.onload = () => {
    const page = frame.contentDocument, all = [...page.querySelectorAll("*")];
    const buttons = [...page.querySelectorAll("th button")];
    const button = buttons.find((one) => /better/.test(one.textContent));
    const order = () => [...button.closest("table").tBodies[0].rows].map(
      (row) => Number(row.cells[button.parentNode.cellIndex].dataset.value));
    button.click(); const up = order(); button.click(); const down = order();
    told.push({width: widths[0], scroll: page.documentElement.scrollWidth, up, down,
      inner: all.filter((e) => e.scrollWidth > e.clientWidth + 1 && /auto|scroll/.test(
        frame.contentWindow.getComputedStyle(e).overflowX)).length});
    frame.remove(); next(widths.slice(1));
  };
  document.body.append(frame);
};
onload = () => next([400, 800, 1280]);
</script></body>"""


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
@pytest.mark.parametrize("layout", ["table16", "models"])
def test_the_report_is_shown(tmp_path, layout, llama, calibration):
    """At every width nothing scrolls sideways, tables sort, and the console stays empty."""
    for ratio in (0.25, 0.5):
        prunecli.prune(llama, tmp_path / f"m{ratio}", method="magnitude", ratio=ratio)
        prunecli.evaluate(tmp_path / f"m{ratio}", tmp_path / f"e{ratio}.json", data=calibration)
    path = tmp_path / "report.html"
    runs = Runs(collect([str(tmp_path)]))
    paper = "paper" if layout == "table16" else None
    html.write(str(path), runs, build_table(runs, layout, paper), "paper")
    reader = tmp_path / "reader.html"
    reader.write_text(READER)
    flags = ["--allow-file-access-from-files", "--enable-logging=stderr", "--dump-dom"]
    read = browse(reader, *flags, "--virtual-time-budget=20000")
    assert "CONSOLE" not in read.stderr, read.stderr
    told = json.loads(unescape(re.search(r"told (\[.*\])", read.stdout)[1]))
    assert [one["width"] for one in told] == [400, 800, 1280]
    for one in told:
        assert one["scroll"] <= one["width"] and not one["inner"], one
        assert one["up"] == sorted(one["up"]) and one["down"] == one["up"][::-1]
        assert len(set(one["up"])) > 4

    shown = browse(path, "--dump-dom").stdout
    assert shown.count("<svg") > 10 and "Pruned is better than scratch in" in shown
    assert "Where the paper disagrees with itself" in shown
    browse(path, f"--screenshot={tmp_path / 'page.png'}", "--window-size=1280,2600")
    image = (tmp_path / "page.png").read_bytes()
    assert struct.unpack(">II", image[16:24]) == (1280, 2600)
    # a blank page of this size compresses to a few kilobytes
    assert len(image) > 100_000
