"""JUnit XML of a gate: one suite per op, one case per run, failures with the text that `verify` prints."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from harness.compare import EMPTY, FAIL
from harness.gate.judging import Outcome, place_of
from harness.judging import UNVERIFIED
from harness.report import failure_text
from harness.run import Run
from harness.verify import Verdict

_FORBIDDEN = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(outcome: Outcome) -> str:
    """The whole document. Refused runs are errors, unverified ones and those that the budget cut off are skipped."""
    root = ET.Element("testsuites", name="goldengate")
    suites: dict[str, ET.Element] = {}

    def case(run: Run, seconds: float) -> ET.Element:
        suite = suites.get(run.op)
        if suite is None:
            suite = suites[run.op] = ET.SubElement(root, "testsuite", name=run.op)
        place = place_of(run)
        name = run.id.removeprefix(f"{run.op}-")
        return ET.SubElement(
            suite, "testcase", classname=f"goldengate.{run.op}", name=name, time=f"{seconds:.3f}", file=place.file,
            line=str(place.line),
        )  # fmt: skip

    for verdict in outcome.verdicts:
        _judged(case(verdict.run, _seconds(verdict)), verdict)
    for refused in outcome.refused:
        ET.SubElement(case(refused.run, 0.0), "error", message=_clean(refused.text), type="refused")
    for run in outcome.not_run:
        ET.SubElement(case(run, 0.0), "skipped", message="not run: the budget of time was spent")
    for suite in suites.values():
        _count(suite)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _judged(element: ET.Element, verdict: Verdict) -> None:
    if verdict.status == FAIL:
        text = _clean(failure_text(verdict))
        ET.SubElement(element, "failure", message=text.splitlines()[0], type="mismatch").text = text
    elif verdict.status == UNVERIFIED:
        ET.SubElement(element, "skipped", message="unverified: an output has no tolerance")
    elif verdict.status == EMPTY:
        ET.SubElement(element, "skipped", message="nothing to compare: the contract defines no element")


def _count(suite: ET.Element) -> None:
    cases = list(suite)
    for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(name, str(sum(case.find(tag) is not None for case in cases)))
    suite.set("tests", str(len(cases)))
    suite.set("time", f"{sum(float(case.get('time', '0')) for case in cases):.3f}")


def _seconds(verdict: Verdict) -> float:
    timing = verdict.timing
    return timing.inputs + timing.golden + timing.device + timing.judge


def _clean(text: str) -> str:
    """Without the control characters that XML cannot hold."""
    return _FORBIDDEN.sub("?", text)
