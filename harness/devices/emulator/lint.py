"""Codes of findings and faults: what the toolchain enforces or makes unsafe (contracts/pypto_dsl.md 3.12, section 7).

A finding is recorded and the run goes on; a fault (severity "fault") stops it, and its message starts with the code.
GG1xx sizes, GG2xx types and casts, GG3xx language, GG4xx order, GG5xx memory.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """One code. `severity` is "error" (the compiler or the device would refuse or corrupt), "warning", or "fault" (the
    run cannot go on)."""

    code: str
    title: str
    section: str
    severity: str


_RULES = (
    Rule("GG101", "a Vec tile row is not a multiple of 32 bytes", "3.12", "error"),
    Rule("GG102", "tiles exceed the usable Vec capacity (184 KB); a single one that does is a fault", "3.12", "error"),
    Rule("GG103", "a cube operand has rows that are no multiple of 16 or columns that are no multiple of 32 bytes",
         "3.12", "error"),
    Rule("GG104", "an on-chip buffer exceeds its memory space", "3.12", "error"),
    Rule("GG105", "a cube extent exceeds 4095", "3.12", "error"),
    Rule("GG106", "a view of a tile starts at a column that is no multiple of 32 bytes", "3.3", "warning"),
    Rule("GG107", "the L0C to GM store is limited to 4095 columns and 8192 rows", "3.12", "error"),
    Rule("GG201", "operands of one instruction have different dtypes", "3.1", "error"),
    Rule("GG202", "the vector unit has no arithmetic for this dtype", "3.1", "error"),
    Rule("GG203", "cast between a pair that has no native conversion; one without a chain of casts is a fault", "3.6",
         "error"),
    Rule("GG204", "float cast without a rounding mode: ties go away from zero", "3.6", "warning"),
    Rule("GG205", "matmul without out_dtype", "3.7", "warning"),
    Rule("GG206", "low-precision rsqrt", "3.5", "warning"),
    Rule("GG207", "an INT32 compare ignores cmp_type on A2/A3", "3.5", "error"),
    Rule("GG208", "valid regions of the operands differ", "3.1", "error"),
    Rule("GG209", "the stored dtype differs from the target's", "3.3", "error"),
    Rule("GG210", "operand shapes differ, or an implicit broadcast that the device gets wrong", "3.2", "fault"),
    Rule("GG211", "a float scalar meets an integer tile: nothing promotes it", "3.1", "fault"),
    Rule("GG301", "integer division or remainder of a negative operand truncates", "1.6", "warning"),
    Rule("GG302", "an inline rebinds a parameter below its top level: the caller's variable changes", "1.4",
         "warning"),
    Rule("GG303", "write to a plain input of the entry: the host never sees it", "1.2", "fault"),
    Rule("GG304", "a dispatch is launched with 0 blocks", "2.4", "warning"),
    Rule("GG305", "a hard syncall does not occupy every core: the device dead-locks", "2.4", "error"),
    Rule("GG306", "aiv_shard or aic_gather under SplitMode.NONE: J refuses it, H passes the value through", "2.5",
         "warning"),
    Rule("GG307", "scalar arithmetic mixes integers, floats or Bools", "1.6", "fault"),
    Rule("GG308", "integer division by zero", "1.6", "fault"),
    Rule("GG309", "an extent inside a kernel is not a compile-time constant", "3.12", "fault"),
    Rule("GG310", "a carried name changes its kind, dtype or shape", "1.5", "fault"),
    Rule("GG311", "sync_start with more blocks than cores", "2.4", "error"),
    Rule("GG312", "a misplaced operation: compute in orchestration, or the reverse", "1.7", "fault"),
    Rule("GG401", "blocks or lanes of one dispatch touch the same element", "2.3", "error"),
    Rule("GG402", "two tasks touch the same element and nothing orders them", "2.3", "error"),
    Rule("GG403", "a task overwrites what an unordered earlier task reads", "2.3", "warning"),
    Rule("GG404", "two ranks touch the same element and nothing orders them", "4.4", "error"),
    Rule("GG405", "dead-lock: everybody waits", "2.4, 4.4", "fault"),
    Rule("GG411", "the signal of a collective is used again in one dispatch", "4.2", "warning"),
    Rule("GG501", "an access is out of bounds", "3.3", "fault"),
    Rule("GG502", "an undefined value decides: a scalar read, an index, a branch", "3.4", "fault"),
    Rule("GG503", "memory is used after the end of its scope", "2.2", "fault"),
)  # fmt: skip

RULES = {rule.code: rule for rule in _RULES}


def rule(code: str) -> Rule:
    """The rule of a code; KeyError for an unknown one (a bug of the emulator)."""
    return RULES[code]
