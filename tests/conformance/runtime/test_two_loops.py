"""A program with several event loops, each in a thread of its own: none takes what is another's."""

from __future__ import annotations

import threading

import anyio
import anyio.to_thread
import pytest
import runtime_actors as actors

from colos.runtime import Node, connect
from colos.runtime.refs import board_of

_CALLS = 1500
_LOOPS = "abc"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_what_one_loop_reads_another_does_not_overwrite(backend: str) -> None:
    """A read lets go of the interpreter.  Answers were lost and mixed when all loops read into one buffer."""
    begin = threading.Barrier(len(_LOOPS))

    async def ask(run_dir: str, mark: str) -> None:
        async with connect(run_dir) as node:
            writer = await node.whereis("writer")
            begin.wait(30)
            for number in range(_CALLS):
                said = f"{mark}{number}" * (1 + number % 40)
                assert await writer.echo(said) == (said, None)
                assert board_of((await writer.who())[0]) is board_of(writer)  # a reference speaks through its own loop

    async def all_at_once() -> None:
        with anyio.fail_after(120):
            async with Node(actors.LedgerSupervisor) as node, anyio.create_task_group() as tasks:
                for mark in _LOOPS:
                    tasks.start_soon(
                        anyio.to_thread.run_sync, lambda mark=mark: anyio.run(ask, node.run_dir, mark, backend=backend)
                    )

    anyio.run(all_at_once)
