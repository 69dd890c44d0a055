"""Running the commands that look into nodes, as people run them, and waiting for what they say."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
from runtime_helpers import DEADLINE_S

from colos.runtime import read_actors
from colos.runtime.stats import read_stats

Start = Callable[..., subprocess.Popen[str]]


async def colos(*args: str, stdin: str = "") -> tuple[int, str, str]:
    """Run a command to its end: its status, stdout and stderr."""
    with anyio.fail_after(2 * DEADLINE_S):
        done = await anyio.run_process([sys.executable, "-m", "colos", *args], input=stdin.encode(), check=False)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def line_of(process: subprocess.Popen[str]) -> str:
    """The next line of its output, within the deadline; nothing beyond it is read, so that select sees the rest."""
    assert process.stdout is not None
    line = b""
    while not line.endswith(b"\n"):
        assert select.select([process.stdout], [], [], DEADLINE_S)[0], f"said nothing in time after {line!r}"
        byte = os.read(process.stdout.fileno(), 1)
        assert byte, f"it ended after {line!r}"
        line += byte
    return line.decode().rstrip("\n")


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Ctrl-C; its status and stderr."""
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=DEADLINE_S)
    return process.returncode, errors


async def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        await anyio.sleep(0.005)


def pid_of(run_dir: str, path: str) -> int:
    [pid] = [entry.pid for entry in read_actors(run_dir) if entry.path == path]
    assert pid is not None
    return pid


async def does(run_dir: str, what: str) -> None:
    """Wait until the account is doing something."""
    await until(lambda: read_stats(f"{run_dir}/names/account/stats").get("call") == what, what)


def line_with(text: str, word: str) -> str:
    [line] = [line for line in text.splitlines() if word in line]
    return line


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Within, a process is stopped by a signal."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def root_of(run_dir: str) -> int:
    return int(Path(run_dir, "root.pid").read_text())
