"""Runs a kernel script as `__main__`, the way `python PATH ARGS` would, with PyPTO and `golden` answered here."""

from __future__ import annotations

import sys
import tokenize
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, ModuleType

import torch

from harness.devices.base import KernelFault, KernelRefused, location
from harness.devices.emulator.program import SCHEDULE
from harness.devices.process import user_place, user_process
from harness.errors import UsageError
from harness.foreign import modules
from harness.foreign.session import SESSION, Session, note

PASSED, FAILED, REFUSED = range(3)


def run_script(
    path: Path, arguments: Sequence[str] = (), *, schedule: int = 0, seed: int = 0, strict: bool = True
) -> int:
    """Run `path` with the command line `arguments` and return the exit code.

    0: it ended, and no run of it failed. 1: a run failed, the kernel failed while it ran, or the script raised (with
    its traceback). 2: the front end refuses the kernel, or a file does not parse. A code that the script gives to
    sys.exit is returned as it is. `schedule`: seed of the legal device; `seed`: of torch's generator, which fixtures
    draw from; it is restored. `strict`: findings of severity error fail a run. Raises UsageError for an unreadable
    file.
    """
    session = Session(strict)
    tokens = SESSION.set(session), SCHEDULE.set(schedule)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return _execute(path, arguments, session)
    finally:
        SESSION.reset(tokens[0])
        SCHEDULE.reset(tokens[1])


def _execute(path: Path, arguments: Sequence[str], session: Session) -> int:
    full = path.resolve()
    code = _code(path, full)
    if isinstance(code, int):
        return code
    main = ModuleType("__main__")
    main.__file__ = str(full)
    with user_process(full, [str(path), *arguments], {**modules.build(), "__main__": main}):
        try:
            exec(code, main.__dict__)
        except SystemExit as end:
            return _exit_code(end.code)
        except KernelRefused as error:
            return _complain(str(error), REFUSED)
        except KernelFault as error:
            return _complain(str(error), FAILED)
        except SyntaxError as error:
            return _complain(f"{location(*user_place(error, full))}: syntax error: {error.msg}", REFUSED)
        except Exception as error:
            _print_traceback(error, str(full))
            return FAILED
    if not session.results:
        note(f"{path} ended without a run: nothing was verified")
    if any(not result.passed for result in session.results):
        note(f"{path} ended normally although a run failed")
        return FAILED
    return PASSED


def _code(path: Path, full: Path) -> CodeType | int:
    """The compiled script, or the exit code for one that does not parse."""
    try:
        with tokenize.open(full) as file:
            return compile(file.read(), str(full), "exec", dont_inherit=True)
    except SyntaxError as error:
        return _complain(f"{location(full, error.lineno)}: syntax error: {error.msg}", REFUSED)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _exit_code(code: object) -> int:
    """What Python makes of the argument of sys.exit."""
    if code is None:
        return PASSED
    if isinstance(code, int):
        return code
    print(code, file=sys.stderr)
    return FAILED


def _complain(text: str, code: int) -> int:
    print(f"goldengate: error: {text}", file=sys.stderr)
    return code


def _print_traceback(error: Exception, script: str) -> None:
    """The traceback as Python would print it, without the frames that led to the script."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != script:
        trace = trace.tb_next
    traceback.print_exception(type(error), error, trace or error.__traceback__)
