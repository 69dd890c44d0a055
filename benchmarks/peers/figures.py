"""What every peer's script shares: how much to do, the clocks, and the JSON lines it prints.

Imports little at the top: multiprocessing's *spawn* and ColOS's root import a script again, and must not pay for it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

SMALL = b"x" * 100
BIG = b"x" * (4 << 20)
REST_S = 0.05
IDLE_S = 0.3
"""Seconds an actor idles before its memory is read."""


class Plan:
    """How many samples of each kind to take, and how many seconds one kind may take at most."""

    def __init__(self, quick: bool) -> None:
        self.spawns = 3 if quick else 20
        self.calls = 300 if quick else 3000
        self.messages = 3000 if quick else 60_000
        self.bigs = 10 if quick else 50
        self.kills = 3 if quick else 10
        self.idlers = 2 if quick else 4
        self.seconds = 1.0 if quick else 2.5


def plan_of_argv() -> Plan:
    return Plan("--quick" in sys.argv)


def within(count: int, seconds: float) -> Iterator[int]:
    """Count to `count`, but stop sooner once `seconds` have passed."""
    ends = time.monotonic() + seconds
    for number in range(count):
        yield number
        if time.monotonic() > ends:
            return


def spaced(count: int, seconds: float) -> Iterator[int]:
    """The same with a rest before each, so that the end of the last does not compete with the start of the next."""
    for number in within(count, seconds):
        time.sleep(REST_S)
        yield number


def say(what: str, values: Iterable[float], note: str = "") -> None:
    """Print one raw figure list; the unit is the last part of its name."""
    import json

    line = {"what": what, "values": [round(value, 4) for value in values], "note": note}
    print(json.dumps(line), flush=True)


def say_memory(pids: Iterable[int], note: str = "") -> None:
    """Print what these idle processes hold, in MiB: alone (USS), and with their share of what they share (PSS)."""
    import psutil

    full = [psutil.Process(pid).memory_full_info() for pid in pids]
    say("uss_mib", [info.uss / 2**20 for info in full], note)
    say("pss_mib", [info.pss / 2**20 for info in full], note)


@contextmanager
def pinned(*others: int) -> Iterator[None]:
    """This process, all that it started, and `others`: every thread of them on one core, until the block is left."""
    cores = os.sched_getaffinity(0)
    _move({min(cores)}, others)
    try:
        yield
    finally:
        _move(cores, others)


def _move(cores: set[int], others: Iterable[int]) -> None:
    import psutil

    me = psutil.Process()
    for process in [me, *me.children(recursive=True), *map(psutil.Process, others)]:
        try:
            for thread in process.threads():
                os.sched_setaffinity(thread.id, cores)
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue  # it ended meanwhile, and so needs no core


def ms_since(started: float) -> float:
    """Milliseconds since a time.perf_counter(), which is one clock for all processes on Linux."""
    return (time.perf_counter() - started) * 1e3


def us_since(started: float) -> float:
    return (time.perf_counter() - started) * 1e6


def big_mb_per_s(count: int, took_s: float) -> float:
    """Megabytes (10^6 bytes) a second."""
    return count * len(BIG) / took_s / 1e6
