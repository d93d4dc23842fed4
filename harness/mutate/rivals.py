"""The gates of others, on the outputs that a mutant left: what each of them would have said.

They see what their users see. The reference repository compares the default case of a fixture, whole buffers, with the
comparator that `tolerances.yaml` records as `provenance.reference`; elements that nobody wrote read as zero, and those
that the contract leaves open are equal on both sides (reference_harness.md 5, 8, 12).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from harness.reference import Outputs, reference_check

GATES = ("reference", "assert_close", "cosine")
COSINE_LIMIT = 1e-3


def assert_close(actual: Tensor, expected: Tensor, _: Outputs) -> bool:
    """`torch.testing.assert_close` with its defaults."""
    try:
        torch.testing.assert_close(actual, expected)
    except AssertionError:
        return False
    return True


def cosine(actual: Tensor, expected: Tensor, _: Outputs) -> bool:
    """1 - 2<a, e> / (<a, a> + <e, e>) <= 1e-3, a common gate of kernel suites; equal zeros pass."""
    a, e = actual.double().flatten(), expected.double().flatten()
    if not bool(torch.isfinite(a).all() and torch.isfinite(e).all()):
        return False
    norms = float(a @ a + e @ e)
    return norms == 0.0 or 1.0 - 2.0 * float(a @ e) / norms <= COSINE_LIMIT


def rejected(
    actual: Outputs,
    expected: Outputs,
    defined: Mapping[str, Tensor | None],
    unwritten: Mapping[str, Tensor | None],
    rules: Mapping[str, str],
) -> dict[str, bool | None]:
    """Per gate of GATES whether it rejects the outputs; None where it has no rule for any of them.

    `defined`: bool masks of what the contract defines, `unwritten`: of what the device never wrote, None for all and
    none. `rules`: the provenance text per output.
    """
    seen = {name: _as_read(tensor, unwritten.get(name)) for name, tensor in actual.items()}
    verdicts: dict[str, list[bool]] = {gate: [] for gate in GATES}
    for name, tensor in expected.items():
        keep = defined.get(name)
        got = seen[name] if keep is None else torch.where(keep, seen[name], tensor)
        checks = {"reference": reference_check(rules.get(name, "")), "assert_close": assert_close, "cosine": cosine}
        for gate, check in checks.items():
            if check is not None:
                verdicts[gate].append(check(got, tensor, seen))
    return {gate: None if not passed else not all(passed) for gate, passed in verdicts.items()}


def _as_read(tensor: Tensor, unwritten: Tensor | None) -> Tensor:
    return tensor if unwritten is None else tensor.masked_fill(unwritten, 0)
