"""Waiting for other processes, with a deadline."""

from __future__ import annotations

import os
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
    left = []
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            if not select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
                left.append(pid)
        finally:
            os.close(descriptor)
    return left
