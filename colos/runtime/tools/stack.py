"""`colos stack ACTOR`: what every thread and every task of a process is doing now, even of one that is stuck.

The process is asked by a signal (see `stacks`).  What it writes into `stack` is the better answer; one
that is stuck in a C call never runs the Python code for that, but the interpreter has written into its `log`.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Final

from colos.runtime import stacks
from colos.runtime.tools import find

_STACK_S: Final = 3.0
"""How long a process that can run Python code may take."""
_POLL_S: Final = 0.01


def show(target: str, node_name: str | None = None) -> int:
    """Print the stacks; 0 if there were any."""
    try:
        _, found = find.living(target, node_name)
        text = _ask(found)
    except find.FAILURES as error:
        return find.complain(error)
    if not text:
        return find.complain(f"{found.path} (pid {found.pid}) wrote nothing within {_STACK_S:g} s{_why(found)}")
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    print(text.rstrip())
    return 0


def _ask(found: find.Found) -> str:
    stack, log = f"{found.directory}/stack", f"{found.directory}/log"
    before, log_bytes = _mark(stack), _size(log)
    assert found.pid is not None
    os.kill(found.pid, stacks.SIGNAL)
    deadline = time.monotonic() + _STACK_S
    while time.monotonic() < deadline:
        if _mark(stack) != before:
            with open(stack, encoding="utf-8", errors="replace") as file:
                return file.read()
        time.sleep(_POLL_S)
    with open(log, "rb") as file:
        file.seek(log_bytes)
        said = file.read().decode(errors="replace")
    if not said:
        return ""
    return f"{found.path} (pid {found.pid}) runs no Python code now; its interpreter wrote:\n\n{said}"


def _mark(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:  # not written yet
        return None
    return status.st_ino, status.st_mtime_ns


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # it could have no log
        return 0


def _why(found: find.Found) -> str:
    try:
        with open(f"/proc/{found.pid}/stat") as file:
            state = file.read().rpartition(")")[2].split()[0]
    except OSError:
        return ": it has ended"
    return {"T": ": it is stopped (SIGSTOP)", "D": ": it is in an uninterruptible system call"}.get(state, "")
