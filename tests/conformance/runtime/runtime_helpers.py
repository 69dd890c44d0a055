"""Waiting for other processes, with a deadline."""

from __future__ import annotations

import select
import subprocess
import time

DEADLINE_S = 15.0


def line_of(process: subprocess.Popen[str]) -> str:
    """The next line of a helper's output, within the deadline; its stderr if it said none."""
    assert process.stdout is not None
    assert process.stderr is not None
    assert select.select([process.stdout], [], [], DEADLINE_S)[0], "the helper said nothing in time"
    line = process.stdout.readline()
    assert line, f"the helper ended: {process.stderr.read()}"
    return line.strip()


def wait_gone(pids: list[int]) -> list[int]:
    """Wait until processes have ended; those which are left at the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    left = pids
    while left and time.monotonic() < deadline:
        left = [pid for pid in left if _runs(pid)]
        time.sleep(0.002)  # PyPy has no pidfd to wait on
    return left


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"  # a dead root is its starter's to reap
    except (FileNotFoundError, ProcessLookupError):
        return False
