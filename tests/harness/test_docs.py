"""The pages under docs/ against the tables in the code that they describe."""

import re
from pathlib import Path

import pytest

from harness.devices.emulator.lint import RULES
from harness.devices.emulator.variance import FREEDOMS

PAGE = (Path(__file__).parents[2] / "docs" / "emulator.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| ")]


def table(header: str) -> list[list[str]]:
    """The rows of the table whose first column is called `header`."""
    start = next(i for i, row in enumerate(ROWS) if row[0] == header)
    width = len(ROWS[start])
    rows = []
    for row in ROWS[start + 1 :]:
        if len(row) != width:
            break
        rows.append(row)
    return rows


def test_the_page_lists_every_code_with_an_example_and_no_other():
    rows = table("code")
    assert [row[:4] for row in rows] == [[r.code, r.severity, r.section, r.title] for r in RULES.values()]
    assert all(row[4] for row in rows)


def test_the_page_names_no_code_that_there_is_not():
    assert set(re.findall(r"GG\d{3}", PAGE)) == set(RULES)


def test_the_page_lists_every_freedom_and_no_other():
    expected = [[f.name, ", ".join(f.options), f.section, f.spread, f.reason] for f in FREEDOMS]
    assert table("freedom") == expected


def test_the_open_points_name_freedoms_that_exist():
    named = {name for row in table("point") for name in re.findall(r"`(\w+)`", row[1]) if "freedom" in row[1]}
    assert named == {"max_nan", "sort_ties", "transcendental", "rsqrt", "row_sum", "cube"}
    assert named <= {f.name for f in FREEDOMS}


@pytest.mark.parametrize("option", ["--schedule", "--lint=warn", "--checks=off", "run-file"])
def test_the_page_shows_the_options(option):
    assert option in PAGE
