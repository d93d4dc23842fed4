"""The page in headless Chromium: it renders from a file, its DOM says what it must, and the console stays empty."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from reporting_stores import add_session, failing, real_verdict, report_of, using

from harness.reporting.html import page

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--enable-logging=stderr", "--v=0",
)  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium: apt-get install -y chromium"),
]


def rendered(path: Path, profile: Path) -> tuple[str, list[str]]:
    """The DOM after loading, and what was written to the console."""
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def test_the_page_renders_without_an_error(tmp_path: Path) -> None:
    verdict = real_verdict()
    add_session(tmp_path, 0, [using(verdict, 0.3)])
    add_session(tmp_path, 1, [failing(verdict, "<script>console.error('from data')</script>")])
    file = tmp_path / "report.html"
    file.write_text(page(report_of(tmp_path)), encoding="utf-8")
    dom, console = rendered(file, tmp_path / "profile")
    assert console == []
    assert "&lt;script&gt;console.error('from data')" in dom
    assert "<script" not in dom
    assert re.search(r'<p class="verdict fail">✕ 1 output fails', dom)
    assert dom.count("<article") == 1
    assert dom.index("<article") < dom.index("<details")
    assert not re.search(r"<details[^>]* open", dom)
    assert "<polyline" in dom


def test_the_console_is_read(tmp_path: Path) -> None:
    """A page that does write to the console is noticed."""
    file = tmp_path / "loud.html"
    file.write_text("<script>console.error('loud')</script>", encoding="utf-8")
    _, console = rendered(file, tmp_path / "profile")
    assert any("loud" in line for line in console)
