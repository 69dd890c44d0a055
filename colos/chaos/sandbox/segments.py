"""System V shared memory segments, as the kernel lists them.  Sources: proc(5), sysvipc(7)."""

from __future__ import annotations

import os
from dataclasses import dataclass

__all__ = ["SEGMENTS", "Segment", "read_segments"]

SEGMENTS = "/proc/sysvipc/shm"
_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Segment:
    """One segment.  `maker` is a pid of the namespace that the list was opened in; `changed` since the epoch."""

    key: int
    size: int
    maker: int
    changed: float


def read_segments(table: int) -> dict[int, Segment]:
    """What the open list says now, by the segments' identifiers."""
    os.lseek(table, 0, os.SEEK_SET)
    text = b""
    while len(text) < _MOST_BYTES and (part := os.read(table, 65536)):
        text += part
    names, *rows = (line.split() for line in text.decode().splitlines())
    found = {}
    for row in rows:
        field = dict(zip(names, row, strict=False))
        found[int(field["shmid"])] = Segment(
            int(field["key"]) & 0xFFFFFFFF, int(field["size"]), int(field["cpid"]), float(field["ctime"])
        )
    return found
