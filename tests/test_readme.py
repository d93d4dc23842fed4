"""The README keeps its word: the ops it lists, the commands it shows, the pages it links to."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from harness import cli
from specs.registry import all_ops

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text()


def test_the_state_table_lists_every_op() -> None:
    state = README[README.index("## State") :]
    named = set(re.findall(r"`([a-z_0-9]+)`", "\n".join(line for line in state.splitlines() if line.startswith("| `"))))
    assert named == set(all_ops())


def test_every_command_parses() -> None:
    commands = re.findall(r"^(?:\$ )?goldengate ([^\n#]+)", README, flags=re.MULTILINE)
    assert len(commands) >= 3
    for command in commands:
        cli.build_parser().parse_args(shlex.split(command))


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    used = set(re.findall(r"^make ([a-z-]+)", README, flags=re.MULTILINE))
    assert used
    assert used <= targets


def test_links_lead_somewhere() -> None:
    links = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)#]+)\)", page.read_text())]
    assert links
    for page, link in links:
        assert (page.parent / link).exists(), f"{page.name} links to {link}"
