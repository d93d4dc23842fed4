"""Seeded fuzzing of kernels against goldens: sizes, token counts, cases, seeds and schedules, until the time is up.

An example is a `Run`: everything that it takes to repeat it, and nothing else. Each op has its own stream of examples,
so that a seed gives the same examples whatever the number of processes. A failing example is shrunk to a neighbour that
still fails in the same place with schedule 0, the default case, fewer tokens, plainer sizes, and is kept in a database
of one file per op; the next session starts with what is kept there and forgets what no longer fails.

`stream` draws the examples, `worker` runs them, `shrinking` makes them plain, `database` keeps them and `tally` counts.
`session` leads from one op to the next; `command` is the sub-command.
"""

from harness.fuzz.database import Database
from harness.fuzz.session import fuzz
from harness.fuzz.shrinking import shrink
from harness.fuzz.stream import DATABASE, Plan, examples
from harness.fuzz.tally import Failure, Tally, table
from harness.fuzz.worker import Worker

__all__ = ["DATABASE", "Database", "Failure", "Plan", "Tally", "Worker", "examples", "fuzz", "shrink", "table"]
