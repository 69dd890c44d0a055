"""Whole nodes: their hearts, roots and all their processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
from runtime_helpers import DEADLINE_S, line_of
from tools_helpers import root_of, until

from colos.errors import RuntimeFailure
from colos.runtime import connect

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def everyone(run_dir: str) -> list[int]:
    """The pids of a node's heart and root, its actors and zygotes."""
    root = root_of(run_dir)
    return [parent_of(root), root, *children_of(root)]


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "colos", "run", *map(str, args)]


@contextmanager
def begin(*args: object, prefix: tuple[str, ...] = (), **env: str) -> Iterator[subprocess.Popen[str]]:
    """`colos run` with the tests' actors as a service manager would start it; whatever is left of it is killed."""
    started = subprocess.Popen(
        [*prefix, *command(*args)],
        cwd=HERE,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with started:
        try:
            yield started
        finally:
            if started.poll() is None:
                _kill_session(started.pid)


def _kill_session(leader: int) -> None:
    # The heart last: whoever it guards has no time to be restarted, and its namespace ends with it.
    for pid in (*children_of(leader), leader):
        os.kill(pid, signal.SIGKILL)


def run_dir_of(node: subprocess.Popen[str]) -> str:
    """Where a node that `begin` started says it is, as soon as it is ready."""
    assert node.stderr is not None
    node.stdout, kept = node.stderr, node.stdout
    try:
        line = line_of(node)
    finally:
        node.stdout = kept
    said, _, run_dir = line.rpartition(" runs in ")
    assert said, line
    return run_dir


async def another_root(run_dir: str, before: int) -> int:
    """Wait until another root answers; its pid."""
    await until(lambda: _root(run_dir) not in (0, before), "another root")
    with anyio.fail_after(DEADLINE_S):
        while True:
            try:
                async with connect(run_dir) as node:
                    assert await node.quiet(DEADLINE_S)
                    return root_of(run_dir)
            except RuntimeFailure:  # it is not ready yet
                await anyio.sleep(0.005)


def _root(run_dir: str) -> int:
    try:
        return root_of(run_dir)
    except (FileNotFoundError, ValueError):
        return 0
