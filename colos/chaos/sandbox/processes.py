"""Who runs in a sandbox, read from /proc as the host sees it.  Source: proc(5)."""

from __future__ import annotations

import os
from dataclasses import dataclass

__all__ = ["Process", "descendants", "mapped_bytes", "read_process", "resident_bytes"]

_PAGE = os.sysconf("SC_PAGE_SIZE")
_MOST = 4096  # a bound on the walk, far above what a sandbox holds


@dataclass(frozen=True)
class Process:
    """One process: its pid here, its pid in its own namespace, and enough to know it again."""

    pid: int
    inner_pid: int
    parent: int
    state: str
    start_time: int
    command: str


def read_process(pid: int) -> Process | None:
    """Read one process, or None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
        with open(f"/proc/{pid}/status", "rb") as file:
            status = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    command = stat[stat.index(b"(") + 1 : stat.rindex(b")")]
    fields = stat[stat.rindex(b")") + 2 :].split()
    at = status.find(b"\nNSpid:")
    inner = int(status[at + 7 : status.index(b"\n", at + 1)].split()[-1]) if at >= 0 else pid
    return Process(pid, inner, int(fields[1]), fields[0].decode(), int(fields[19]), command.decode(errors="replace"))


def mapped_bytes(pid: int) -> int:
    """Its address space, which RLIMIT_AS bounds.  Raises `OSError` when it is gone."""
    return _pages(pid, 0)


def resident_bytes(pid: int) -> int:
    """What it has in memory.  Raises `OSError` when it is gone."""
    return _pages(pid, 1)


def _pages(pid: int, field: int) -> int:
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[field]) * _PAGE


def descendants(ancestor: int) -> list[Process]:
    """Every process below `ancestor`, parents before children, without `ancestor` itself."""
    found: list[Process] = []
    waiting = [ancestor]
    while waiting and len(found) < _MOST:
        for child in _children(waiting.pop()):
            process = read_process(child)
            if process is not None:
                found.append(process)
                waiting.append(child)
    return found


def _children(pid: int) -> list[int]:
    children: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", "rb") as file:
                children += map(int, file.read().split())
    except (FileNotFoundError, ProcessLookupError):
        pass  # it has just ended: whom it left is found below its subreaper
    return children
