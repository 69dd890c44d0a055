"""The tests' side: playing scenes in a node, finding descendants, what reasons can be, reading observed.txt."""

from __future__ import annotations

import ast
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from anyio.from_thread import BlockingPortal
from hypothesis import settings
from hypothesis import strategies as st
from otp_cast import DEADLINE_S, scene

from colos.runtime import NodeClient

__all__ = [
    "DEADLINE_S",
    "FEW",
    "REASONS",
    "Otp",
    "descendants",
    "end_all",
    "erlang",
    "line_of",
    "picture",
    "wait_until",
]

FEW = settings(max_examples=6, deadline=None)
"""Each example is real processes."""


class Otp:
    """A node in a thread of its own, so that Hypothesis, which is synchronous, can use it."""

    def __init__(self, portal: BlockingPortal, node: NodeClient) -> None:
        self.portal = portal
        self.node = node

    def run(self, function: Callable[..., Any], *args: object) -> Any:
        """Play a scene of one of the otp_* modules in a new process of the node; what it returns."""
        return self.portal.call(self._play, function, args)

    async def _play(self, function: Callable[..., Any], args: tuple[object, ...]) -> Any:
        task = await self.node.start_task(scene, function, *args)
        return await task.result(timeout=4 * DEADLINE_S)


# --- reasons -----------------------------------------------------------------------------

_SIMPLE = (
    st.none()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.booleans()
)
REASONS: st.SearchStrategy[object] = st.sampled_from(
    ["normal", "kill", "killed", "shutdown", ("shutdown", "x"), "foo", "noproc", "timeout"]
) | st.recursive(_SIMPLE, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=5)
"""Plain data, as docs/runtime.md says under Reasons; the words that mean something come often."""


def erlang(term: str) -> Any:
    """An Erlang term as observed.txt prints it, in Python: atoms are strings, tuples tuples, lists lists."""
    words = re.sub(r"\b[a-z]\w*", r"'\g<0>'", term.replace("'", ""), flags=re.IGNORECASE)
    return ast.literal_eval(words.replace("{", "(").replace("}", ")"))


# --- other processes ---------------------------------------------------------------------


def wait_until(condition: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
    """Wait until it gives something true; what it gives at the deadline otherwise."""
    deadline = time.monotonic() + deadline_s
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.002)  # between two looks
    return found


def line_of(process: subprocess.Popen[str]) -> str:
    """The next line of a program's output, within the deadline; its stderr if it said none."""
    assert process.stdout is not None
    assert process.stderr is not None
    assert select.select([process.stdout], [], [], 2 * DEADLINE_S)[0], "the program said nothing in time"
    line = process.stdout.readline()
    assert line, f"the program ended: {process.stderr.read()}"
    return line.strip()


def descendants(token: str) -> dict[int, str]:
    """Every living process that was started, however indirectly, with this token: pid -> command line.

    A process's first environment cannot be given away: neither a fork, a new session, a new parent
    nor a closed descriptor hides one from here.
    """
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if f"COLOS_TEST_TOKEN={token}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:  # it ended meanwhile, or is a zombie, or is somebody else's
                continue
    return found


def picture(pid: int) -> str:
    """What a process that should be gone is doing: the lines one would ask for, had one been there."""
    told = []
    for name, wanted in (
        ("status", ("Name", "State", "PPid", "SigPnd", "ShdPnd", "SigBlk")),
        ("wchan", None),
        ("syscall", None),
        ("schedstat", None),
        ("stack", None),
        ("cmdline", None),
    ):
        try:
            text = Path(f"/proc/{pid}/{name}").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError as error:  # it ended meanwhile, or this is root's to see
            told.append(f"{name}: {error.strerror}")
            continue
        lines = [line for line in text.splitlines() if wanted is None or line.startswith(wanted)]
        told.append(f"{name}: {'; '.join(' '.join(line.split()) for line in lines)}")
    return "\n".join(told)


def end_all(token: str) -> None:
    """Kill what a test left behind, until nothing is left."""

    def sweep() -> bool:
        left = descendants(token)
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return not left

    wait_until(sweep)
