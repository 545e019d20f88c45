"""The report in a real browser: no console message, nothing wider than a phone, every picture decoded."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from report_cases import audit_record, leakage_record, people, release, sweep_record, train_record, write

from ppreid_plugin.report.report_command import report_command

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome is installed")
FRAME = """<!doctype html><title>waiting</title><body style="margin:0">
<iframe id="frame" src="{page}" style="width:{width}px;height:3000px;border:0"></iframe>
<script>
document.getElementById("frame").onload = event => {{
  const inside = event.target.contentDocument, root = inside.documentElement, images = [...inside.images];
  const broken = images.filter(image => !image.complete || !image.naturalWidth).length;
  document.title = `wide ${{root.scrollWidth}} of ${{root.clientWidth}}, broken ${{broken}} of ${{images.length}}`;
}};
</script>
"""


def browse(tmp_path, page, *flags):
    """Open a page; return what the browser prints and what it logs."""
    done = subprocess.run(
        [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
         "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr",
         "--virtual-time-budget=4000", *flags, page.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("pages")
    runs = tmp_path / "runs"
    for name, record in (("t", train_record()), ("l", leakage_record()), ("s", sweep_record()), ("a", audit_record())):
        write(runs / f"{name}.json", record)
    release(tmp_path, people())
    report_command(["--runs", str(runs), "--out", str(tmp_path / "out"), "--dpia"])
    return tmp_path / "out"


@pytest.mark.parametrize("name", ["report", "dpia"])
@pytest.mark.parametrize("width", [390, 1280])
def test_pages_fit_and_log_nothing(pages, tmp_path, name, width):
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(page=(pages / f"{name}.html").as_uri(), width=width))
    shown, logged = browse(tmp_path, frame, "--dump-dom", f"--window-size={max(600, width)},3000")
    assert "CONSOLE" not in logged
    found = re.search(r"<title>wide (\d+) of (\d+), broken (\d+) of (\d+)</title>", shown)
    assert found, shown[:500]
    wide, room, broken, pictures = map(int, found.groups())
    assert wide <= room <= width
    assert broken == 0
    assert (pictures > 0) == (name == "report")


def test_the_browser_would_tell(pages, tmp_path):
    """A page with a script, a picture from elsewhere and a wide line fails the checks above."""
    bad = tmp_path / "bad.html"
    text = (pages / "dpia.html").read_text()
    bad.write_text(
        text.replace(
            "</main>", '<img src="http://example.invalid/x.png"><script>1</script><pre>' + "x" * 900 + "</pre></main>"
        )
    )
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(page=bad.as_uri(), width=390))
    shown, logged = browse(tmp_path, frame, "--dump-dom", "--window-size=600,3000")
    assert logged.count("Content Security Policy") >= 2
    found = re.search(r"<title>wide (\d+) of (\d+), broken (\d+) of", shown)
    assert int(found[1]) > int(found[2])
    assert found[3] == "1"


def test_it_can_be_looked_at_and_printed(pages, tmp_path):
    picture, paper = tmp_path / "shot.png", tmp_path / "report.pdf"
    browse(tmp_path, pages / "report.html", f"--screenshot={picture}", "--window-size=1000,1400")
    colors = Image.open(picture).convert("RGB").getcolors(1 << 24)
    assert len(colors) > 20  # not a blank page
    browse(tmp_path, pages / "report.html", f"--print-to-pdf={paper}")
    assert Path(paper).read_bytes().startswith(b"%PDF")
