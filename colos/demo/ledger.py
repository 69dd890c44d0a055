"""A job ledger of three actors: a front that clients talk to, a writer that keeps the file, a counter.

`BuggyLedgerSupervisor` has one honest bug, the kind that passes every review and every test on a
good day: its writer leaves the bytes in the file object's buffer when it acknowledges.  A clean
shutdown flushes them.  A SIGKILL does not.  `RepairedLedgerSupervisor` has the writer done right.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from colos.errors import RuntimeFailure
from colos.runtime import Actor, ChildSpec, Supervisor

__all__ = ["BuggyLedgerSupervisor", "BuggyWriter", "Counter", "Front", "RepairedLedgerSupervisor", "RepairedWriter"]

#: Relative to the data directory, where a system starts.
JOURNAL = Path("jobs.jsonl")


class Front(Actor):
    """What clients talk to: takes a job, has it written, has it counted, acknowledges."""

    expected = (OSError, RuntimeFailure)

    async def submit(self, job: str) -> int:
        """Keep a job; its number is the acknowledgement.  Raises `OSError` when it could not be kept."""
        number: int = await (await self.whereis("writer")).append(job)
        # The count is a convenience: a job that is written is accepted even if nobody counts it.
        try:
            await (await self.whereis("counter")).cast("count")
        except (OSError, RuntimeFailure):
            pass
        return number

    async def jobs(self) -> list[str]:
        """Every job that is kept."""
        kept: list[str] = await (await self.whereis("writer")).jobs()
        return kept


class Counter(Actor):
    """How many jobs were accepted since it started."""

    def __init__(self) -> None:
        self._accepted = 0

    async def count(self) -> None:
        """One more."""
        self._accepted += 1

    async def accepted(self) -> int:
        """How many so far."""
        return self._accepted


class BuggyWriter(Actor):
    """Keeps the jobs in a file, and forgets that `write` is not `flush`."""

    expected = (OSError,)

    async def init(self) -> None:
        """Read what is there."""
        self._jobs: list[str] = _read(JOURNAL)
        self._file = open(JOURNAL, "a", encoding="utf-8")  # noqa: SIM115, ASYNC230 - it lives as long as the actor

    async def append(self, job: str) -> int:
        """Keep a job; returns its number."""
        self._file.write(json.dumps(job) + "\n")
        self._jobs.append(job)
        return len(self._jobs)

    async def jobs(self) -> list[str]:
        """Every job."""
        return self._jobs

    async def terminate(self, reason: object) -> None:
        """A clean shutdown loses nothing."""
        self._file.close()


class RepairedWriter(Actor):
    """Acknowledges what is on the disk, and takes back what could not be written whole."""

    expected = (OSError,)

    async def init(self) -> None:
        """Read what is there; cut off a line that a crash left half written."""
        self._fd = os.open(JOURNAL, os.O_RDWR | os.O_CREAT, 0o600)
        kept = Path(JOURNAL).read_bytes()  # noqa: ASYNC240 - one message at a time is the actor's point
        whole = kept[: kept.rfind(b"\n") + 1]
        os.ftruncate(self._fd, len(whole))
        self._size = len(whole)
        self._jobs: list[str] = [json.loads(line) for line in whole.splitlines()]

    async def append(self, job: str) -> int:
        """Keep a job: written whole and synced, or not at all."""
        line = memoryview(json.dumps(job).encode() + b"\n")
        try:
            written = 0
            while written < len(line):  # a disk that fills up takes part of it first
                written += os.pwrite(self._fd, line[written:], self._size + written)
            os.fsync(self._fd)
        except OSError:
            os.ftruncate(self._fd, self._size)
            raise
        self._size += len(line)
        self._jobs.append(job)
        return len(self._jobs)

    async def jobs(self) -> list[str]:
        """Every job."""
        return self._jobs


def _read(path: Path) -> list[str]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class _LedgerSupervisor(Supervisor):
    """The three actors; a test kills more often than production does, so the intensity is generous."""

    name = "ledger"
    intensity = 20
    writer: type[Actor]

    def children(self) -> Sequence[ChildSpec]:
        return (
            ChildSpec("counter", Counter, name="counter"),
            ChildSpec("writer", self.writer, name="writer"),
            ChildSpec("front", Front, name="front"),
        )


class BuggyLedgerSupervisor(_LedgerSupervisor):
    """The ledger as it was shipped."""

    writer = BuggyWriter


class RepairedLedgerSupervisor(_LedgerSupervisor):
    """The ledger as it should be."""

    writer = RepairedWriter


def acknowledged_but_missing(acknowledged: Sequence[str], kept: Any) -> list[str]:
    """Which acknowledged jobs a ledger does not have."""
    have = set(kept)
    return [job for job in acknowledged if job not in have]
