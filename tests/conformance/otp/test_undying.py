"""What others' users complain about: a process that does not die of SIGKILL holds up whoever waits for its end."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from otp_drive import DEADLINE_S, descendants, end_all, line_of, wait_until
from otp_hung import HungSupervisor

from colos.errors import InvalidSpecification
from colos.runtime import Node, NodeClient

Program = Callable[..., subprocess.Popen[str]]

STOP_S = 1.0
SHORT_S = 0.2
KILL_S = 5.0
"""What a SIGKILLed process has to be gone in; see docs/runtime.md, who dies, or hangs."""


@dataclass
class FileServer:
    """Never answers; when it ends, whoever waits for it goes on, or dies."""

    path: str
    process: subprocess.Popen[str]

    async def was_asked(self) -> None:
        assert await anyio.to_thread.run_sync(line_of, self.process) == "asked"

    def end(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_S)


@pytest.fixture
def server(program: Program, tmp_path: Path) -> FileServer:
    process = program("unanswered", tmp_path)
    said = line_of(process)
    if said.startswith("cannot: "):
        pytest.skip(f"this machine lets nobody here be a file server, and nothing else resists SIGKILL: {said[8:]}")
    return FileServer(said, process)


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch, server: FileServer) -> Iterator[str]:
    """Whoever is started here is found by it."""
    token = f"{server.process.token}-node"  # type: ignore[attr-defined] - see `program`
    monkeypatch.setenv("COLOS_TEST_TOKEN", token)
    yield token
    server.end()
    end_all(token)


def state(pid: int) -> str:
    """Its state in the kernel's letters."""
    found = re.search(r"^State:\t(\w)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


@asynccontextmanager
async def hanging(server: FileServer, backend: str) -> AsyncIterator[tuple[NodeClient, int]]:
    """A node of which one child hangs; that one's pid."""
    async with Node(HungSupervisor, backend=backend, stop_s=STOP_S) as node:
        hung = await node.whereis("hung")
        pid = await hung.pid()
        await hung.cast("look", server.path)
        await server.was_asked()
        yield node, pid


def test_a_supervisor_waits_only_so_long_for_a_child_that_does_not_die(
    server: FileServer, anyio_backend: str, token: str
) -> None:
    """anyio #757, a task that cannot be cancelled because its child is in state D: who stops such a child can give up
    at any moment, its supervisor does after `shutdown_s` and 5 s, and it has a successor when it could die."""

    async def play() -> None:
        async with hanging(server, anyio_backend) as (node, pid):
            with anyio.move_on_after(SHORT_S) as patience:
                await node.terminate_child("hung", "hung")
            assert patience.cancelled_caught
            began = anyio.current_time()
            with pytest.raises(InvalidSpecification, match="is running"):
                await node.restart_child("hung", "hung")  # after what is being done: the first request's stop
            assert anyio.current_time() - began < SHORT_S + KILL_S + DEADLINE_S
            assert state(pid) == "D"
            assert await (await node.whereis("last")).pid() != pid
            watch = await node.monitor("hung/hung")
            server.end()
            assert (await node.down(watch, DEADLINE_S)).reason == "killed"
            new = await node.restart_child("hung", "hung")
            assert await new.pid() != pid

    anyio.run(play, backend=anyio_backend)
    assert wait_until(lambda: not descendants(token)), descendants(token)


@pytest.mark.parametrize("cancelled", [False, True], ids=["left", "cancelled"])
def test_a_node_is_left_in_time_though_a_child_does_not_die(
    server: FileServer, anyio_backend: str, token: str, cancelled: bool
) -> None:
    """anyio #757: leaving a node takes its `stop_s` and some seconds at most, cancelled or not; all but the undying
    are gone then, and that one as soon as it can."""
    pids = []

    async def play() -> float:
        with anyio.CancelScope() as scope:
            async with hanging(server, anyio_backend) as (node, pid):
                pids.append(pid)
                with anyio.move_on_after(SHORT_S) as patience:
                    await node.stop()
                assert patience.cancelled_caught
                began = anyio.current_time()
                if cancelled:
                    scope.cancel()
                    await anyio.sleep_forever()
        assert scope.cancelled_caught == cancelled
        return anyio.current_time() - began

    assert anyio.run(play, backend=anyio_backend) < STOP_S + 3 * KILL_S + 1.0
    assert set(descendants(token)) == set(pids)
    assert state(pids[0]) == "D"
    server.end()
    assert wait_until(lambda: not os.path.exists(f"/proc/{pids[0]}") or state(pids[0]) == "Z")
