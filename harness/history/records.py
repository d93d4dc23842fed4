"""What is recorded: one row per judged output or stage of a run, and one per run that broke down before that."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import platform
import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from harness.compare import Judgement
from harness.metrics import SWEEP, Metrics
from harness.verify import Verdict

SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # session, run and output: the same row in two files is one row
        ("session", pa.string()),
        ("time", pa.timestamp("us")),  # UTC
        ("revision", pa.string()),  # of the repository in the working directory, "" outside of one
        ("dirty", pa.bool_()),
        ("host", pa.string()),
        ("versions", pa.string()),  # JSON
        ("op", pa.string()),
        ("preset", pa.string()),
        ("deployment", pa.string()),
        ("overrides", pa.string()),  # JSON
        ("case", pa.string()),
        ("seed", pa.int64()),
        ("schedule", pa.int64()),
        ("device", pa.string()),
        ("kernel", pa.string()),  # SHA-256 of the kernel's source, 16 digits
        ("tiles", pa.string()),
        ("run_status", pa.string()),
        ("problems", pa.string()),  # JSON
        ("diverged", pa.string()),
        ("output", pa.string()),  # "" for a run without judgements
        ("stage", pa.bool_()),
        ("status", pa.string()),
        ("rule", pa.string()),
        ("reason", pa.string()),
        ("used", pa.float64()),
        ("elements", pa.int64()),
        ("compared", pa.int64()),
        ("over", pa.int64()),
        ("differing", pa.int64()),
        ("ulp_max", pa.int64()),
        ("ulp_p99", pa.int64()),
        ("rel_l2", pa.float64()),
        ("cosine", pa.float64()),
        ("bias_z", pa.float64()),
        ("max_abs_error", pa.float64()),
        ("max_rel_error", pa.float64()),
        ("sweep", pa.list_(pa.float64())),  # shares beyond the thresholds of harness.metrics.SWEEP
        ("bad", pa.string()),  # JSON: extent and counts per axis
        ("seconds_inputs", pa.float64()),
        ("seconds_golden", pa.float64()),
        ("seconds_device", pa.float64()),
        ("seconds_judge", pa.float64()),
        ("command", pa.string()),
    ]
)


@dataclass(frozen=True)
class About:
    """What all rows of one recording session share."""

    session: str
    revision: str
    dirty: bool
    host: str

    @staticmethod
    def here() -> About:
        """A new session on this machine, with the git revision of the working directory."""
        revision, dirty = _revision(Path.cwd())
        return About(uuid.uuid4().hex[:16], revision, dirty, platform.node())


def _revision(directory: Path) -> tuple[str, bool]:
    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=directory, capture_output=True, text=True, timeout=30, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return "", False


def rows(verdict: Verdict, about: About, time: datetime.datetime, kernel: str = "") -> list[dict[str, Any]]:
    """The rows of one verdict, with the names of SCHEMA. `time` is in UTC, without a zone."""
    run = verdict.run
    shared = {
        **dataclasses.asdict(about),
        "time": time,
        "versions": json.dumps(dict(verdict.versions), sort_keys=True),
        "op": run.op,
        "preset": run.preset,
        "deployment": run.deployment,
        "overrides": json.dumps(run.overrides),
        "case": run.case,
        "seed": run.seed,
        "schedule": run.schedule,
        "device": run.device,
        "kernel": kernel,
        "tiles": run.tiles or "",
        "run_status": verdict.status,
        "problems": json.dumps(verdict.problems),
        "diverged": verdict.diverged or "",
        **{f"seconds_{name}": value for name, value in dataclasses.asdict(verdict.timing).items()},
        "command": verdict.command,
    }
    judged = [(name, False, j) for name, j in verdict.outputs.items()]
    judged += [(name, True, j) for name, j in verdict.stages.items()]
    return [
        {**shared, "id": f"{about.session}/{run.id}/{name}", "output": name, "stage": stage, **_figures(judgement)}
        for name, stage, judgement in judged or [("", False, Judgement(verdict.status, "", None))]
    ]


def _figures(judgement: Judgement) -> dict[str, Any]:
    metrics = judgement.metrics
    return {
        "status": judgement.status,
        "rule": judgement.label,
        "reason": judgement.reason,
        "used": judgement.used,
        "bad": json.dumps([dataclasses.asdict(axis) for axis in judgement.where]),
        **(_no_figures() if metrics is None else _of(metrics)),
    }


def _no_figures() -> dict[str, Any]:
    names = "elements compared over differing ulp_max ulp_p99 rel_l2 cosine bias_z max_abs_error max_rel_error sweep"
    return dict.fromkeys(names.split())


def _of(metrics: Metrics) -> dict[str, Any]:
    return {
        "elements": metrics.elements,
        "compared": metrics.compared,
        "over": metrics.over,
        "differing": metrics.differing,
        "ulp_max": min(metrics.ulp_max, 2**62),
        "ulp_p99": min(metrics.ulp["99"], 2**62),
        "rel_l2": metrics.rel_l2,
        "cosine": metrics.cosine,
        "bias_z": metrics.bias_z,
        "max_abs_error": metrics.max_abs_error,
        "max_rel_error": metrics.max_rel_error,
        "sweep": [metrics.sweep[f"{threshold:g}"] for threshold in SWEEP],
    }


def source_hash(path: Path) -> str:
    """16 hexadecimal digits of the SHA-256 of a file; "" where it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError:
        return ""
