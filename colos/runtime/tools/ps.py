"""`colos ps`: every node and every process of it, as a tree.

The root is asked for what it knows; where it does not answer, or is dead, the run directory's files tell.
CPU and memory are the kernel's words, by psutil.
"""

from __future__ import annotations

import re
import shutil
import sys
import time
from dataclasses import dataclass, field
from typing import Any, Final

import psutil  # type: ignore[import-untyped,unused-ignore]

from colos.runtime import rundir
from colos.runtime.message import ProtocolError
from colos.runtime.refs import ROOT_ID
from colos.runtime.tools import find

_ROOT_S: Final = 1.0
"""How long a root may take to answer before its files are read instead."""
_REFRESH_S: Final = 1.0
_SAMPLE_S: Final = 0.1
"""Over how long CPU is measured, where there was no refresh before."""
_HEADS: Final = (
    "PATH", "KIND", "PID", "STATE", "NAME", "MBOX", "DOING", "RESTARTS", "CPU%", "RSS",
    "LINKS", "MONITORS", "LAST CRASH",
)  # fmt: skip
_RIGHT: Final = frozenset({"PID", "MBOX", "RESTARTS", "CPU%", "RSS"})
_CRASH_MAX: Final = 60


@dataclass(slots=True)
class _Row:
    """A process or supervisor, from whichever source."""

    path: str
    details: dict[str, Any]
    below: list[_Row] = field(default_factory=list)


def show(node_name: str | None = None, watch: bool = False) -> int:
    """Print the nodes, once or until Ctrl-C; 0 unless the node asked for is not there."""
    usage = _Usage()
    try:
        while True:
            text = "\n\n".join(_picture(node, usage) for node in _asked(node_name))
            print(_on_screen(text) if watch else text or _nobody(), flush=True)
            if not watch:
                return 0
            time.sleep(_REFRESH_S)
    except KeyboardInterrupt:
        return 0
    except find.FAILURES as error:
        return find.complain(error)


def _asked(node_name: str | None) -> list[find.Node]:
    return [find.node_named(node_name)] if node_name else find.nodes()


def _nobody() -> str:
    return f"no nodes in {rundir.base_directory()}"


def _on_screen(text: str) -> str:
    text = text or _nobody()
    if not sys.stdout.isatty():
        return text + "\n"
    width, height = shutil.get_terminal_size()
    lines = [line[:width] for line in text.splitlines()]
    return "\x1b[H\x1b[2J" + "\n".join(lines[: height - 1])


# --- one node ----------------------------------------------------------------------------


def _picture(node: find.Node, usage: _Usage) -> str:
    if not node.alive:
        return "\n".join([f"{node.name}: dead ({node.directory})", *_last_words(node), *_table(_from_files(node))])
    head = f"{node.name}: alive, root pid {node.root_pid or '?'} ({node.directory})"
    try:
        tree = find.ask_root(node, "tree", _ROOT_S)
    except (OSError, ProtocolError) as error:
        why = "no answer in time" if isinstance(error, TimeoutError | BlockingIOError) else str(error)
        head += f"\n  its root does not answer ({why}): what follows is from its files"
        rows = _from_files(node)
    else:
        started = {found.id: found for found in find.processes(node)}
        rows = [_Row(details["path"], {**details, "alive": _is_seen(details, started)}) for details in tree]
    for row in rows:
        if row.details["id"] == ROOT_ID:
            row.details |= {"pid": node.root_pid or None, "alive": bool(node.root_pid)}
    usage.measure(rows)
    return "\n".join([head, *_table(rows)])


def _is_seen(details: dict[str, Any], started: dict[int, find.Found]) -> bool:
    """Whether the pid means the same here: this may be another pid namespace."""
    found = started.get(details["id"])
    return found is not None and found.alive and found.pid == details["pid"]


def _last_words(node: find.Node) -> list[str]:
    crash = rundir.read_text(f"{node.directory}/crash")
    return [f"  {line}" for line in crash.splitlines()[:1]]


def _from_files(node: find.Node) -> list[_Row]:
    top = rundir.read_text(f"{node.directory}/supervisor").partition(" ")[0] or "?"
    state = "running" if node.alive else "gone"
    rows = [_Row(top, {"id": ROOT_ID, "path": top, "kind": "supervisor", "state": state, "alive": False})]
    for found in find.processes(node):
        state = found.state
        if state != "exited" and not (found.alive or (found.kind == "supervisor" and node.alive)):
            state = "gone" if found.pid is not None or not node.alive else state
        if state == "exited" and node.alive and found.parent is None:
            continue  # what nobody supervises does not come back
        details = {name: getattr(found, name) for name in found.__slots__} | {"state": state}
        rows.append(_Row(found.path, details))
    return rows


# --- what the kernel says ----------------------------------------------------------------


class _Usage:
    """CPU and memory, measured from refresh to refresh."""

    def __init__(self) -> None:
        self._known: dict[int, psutil.Process] = {}

    def measure(self, rows: list[_Row]) -> None:
        """Add `cpu` and `rss` to whatever has a process."""
        mine = [row.details for row in rows if row.details.get("alive") and row.details.get("pid")]
        fresh = [self._sample(details) for details in mine]
        if None in fresh:
            time.sleep(_SAMPLE_S)
        for details in mine:
            details["cpu"] = self._sample(details)

    def _sample(self, details: dict[str, Any]) -> float | None:
        """The percentage since the last time; None for the first."""
        pid = details["pid"]
        try:
            process = self._known.get(pid)
            if process is None or not process.is_running():
                process = self._known[pid] = psutil.Process(pid)
                process.cpu_percent()
                return None
            details["rss"] = process.memory_info().rss
            return float(process.cpu_percent())
        except psutil.Error:  # it has ended, or is another user's
            self._known.pop(pid, None)
            return 0.0


# --- the table ---------------------------------------------------------------------------


def _table(rows: list[_Row]) -> list[str]:
    lines = [_HEADS, *_cells(_as_tree(rows), "")]
    widths = [max(len(line[at]) for line in lines) for at in range(len(_HEADS))]
    return [
        "  ".join(
            cell.rjust(width) if head in _RIGHT else cell.ljust(width)
            for head, cell, width in zip(_HEADS, line, widths, strict=True)
        ).rstrip()
        for line in lines
    ]


def _as_tree(rows: list[_Row]) -> list[_Row]:
    """Whoever has a parent in sight stands below it; the others at the top."""
    by_path = {row.path: row for row in rows}
    tops = []
    for row in rows:
        above = by_path.get(row.path.rpartition("/")[0]) or by_path.get(str(row.details.get("parent")))
        if above is None or above is row:
            tops.append(row)
        else:
            above.below.append(row)
    for row in rows:
        row.below.sort(key=_in_order)
    return tops


def _in_order(row: _Row) -> list[tuple[int, str]]:
    """By name, and numbers by their size: a restart moves nobody."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", row.path)]


def _cells(rows: list[_Row], indent: str) -> list[tuple[str, ...]]:
    lines = []
    for number, row in enumerate(rows):
        last = number == len(rows) - 1
        is_top = not indent
        branch = "" if is_top else "└─ " if last else "├─ "
        lines.append((indent + branch + (row.path if is_top else _own_name(row.path)), *_values(row.details)))
        lines += _cells(row.below, indent + (" " if is_top else "   " if last else "│  "))
    return lines


def _own_name(path: str) -> str:
    return path.rpartition("/")[2]


def _values(details: dict[str, Any]) -> tuple[str, ...]:
    crash = str(details.get("last_crash") or "-")
    cpu, rss = details.get("cpu"), details.get("rss")
    return (
        str(details["kind"]),
        str(details.get("pid") or "-"),
        str(details["state"]),
        details.get("name") or "-",
        "-" if details.get("mailbox") is None else str(details["mailbox"]),
        details.get("doing") or "-",
        str(details.get("restarts") or 0),
        "-" if cpu is None else f"{cpu:.1f}",
        "-" if rss is None else f"{rss / (1 << 20):.1f}M",
        ", ".join(details.get("links") or ()) or "-",
        ", ".join(details.get("monitors") or ()) or "-",
        crash if len(crash) <= _CRASH_MAX else crash[: _CRASH_MAX - 1] + "…",
    )
