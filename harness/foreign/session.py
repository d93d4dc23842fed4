"""What one `run-file` knows while its script runs: how findings count, and the results that the script obtained."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass
class RunResult:
    """What `golden.run` and `golden.run_jit` return (contracts/reference_harness.md 4.1). Times in seconds."""

    passed: bool
    error: str | None = None
    execution_time: float | None = None
    work_dir: str | None = None
    bench: object = None

    def __str__(self) -> str:
        text = "PASS" if self.passed else "FAIL"
        if not self.passed and self.error is not None:
            text += f": {self.error}"
        return text if self.execution_time is None else f"{text} ({self.execution_time:.2f}s)"


@dataclass
class Session:
    """`strict`: findings of severity error fail a run. `results`: those of every run, in order."""

    strict: bool = True
    results: list[RunResult] = field(default_factory=list)


SESSION: ContextVar[Session | None] = ContextVar("session", default=None)


def is_strict() -> bool:
    """Whether findings of severity error fail a run; True outside a session."""
    session = SESSION.get()
    return session is None or session.strict


def record(result: RunResult) -> RunResult:
    """Keep `result` with the session, if there is one, and hand it back."""
    session = SESSION.get()
    if session is not None:
        session.results.append(result)
    return result


def note(text: str) -> None:
    """Say in one line what Goldengate would not have let pass."""
    print(f"note: {text}")
