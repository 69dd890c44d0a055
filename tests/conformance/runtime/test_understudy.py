"""The process that is forked ahead of the next start: used, replaced, passed over when unfit, and never missed."""

# ruff: noqa: ASYNC110, ASYNC240 - tests poll with a deadline and read files of /proc
from __future__ import annotations

import os
import signal
from pathlib import Path

import anyio
import pytest
import runtime_actors as actors
from runtime_helpers import DEADLINE_S, wait_gone

from colos.runtime import Node, NodeClient

pytestmark = pytest.mark.anyio


async def nobodies(node: NodeClient) -> set[int]:
    """The root's children that are no process of the node: zygote, spare, and perhaps an understudy."""
    root = Path(f"{node.run_dir}/root.pid").read_text().strip()
    known = {details["pid"] for details in await node.tree()}
    return {int(pid) for pid in Path(f"/proc/{root}/task/{root}/children").read_text().split()} - known


async def pid_of(node: NodeClient, path: str) -> int:
    pid = (await node.info(path))["pid"]
    assert isinstance(pid, int)
    return pid


def waits(pid: int) -> bool:
    """Whether a process sleeps, in an event loop or, as zygotes do, without one: what it had to say it has said."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


async def until_there_are(node: NodeClient, count: int) -> set[int]:
    with anyio.fail_after(DEADLINE_S):
        while len(found := await nobodies(node)) != count or not all(map(waits, found)):
            await anyio.sleep(0.002)
    return found


async def restart(node: NodeClient) -> int:
    """Kill a permanent process; the pid of the next one."""
    before = await pid_of(node, "kinds/permanent")
    os.kill(before, signal.SIGKILL)
    assert await node.quiet(DEADLINE_S)
    after = await pid_of(node, "kinds/permanent")
    assert after != before
    return after


async def test_a_node_that_never_starts_anything_more_has_none(anyio_backend: str) -> None:
    async with Node(actors.KindsSupervisor, backend=anyio_backend) as node:
        await until_there_are(node, 2)
        assert await node.quiet(DEADLINE_S)
        assert len(await nobodies(node)) == 2


async def test_the_next_start_is_the_understudy_and_then_there_is_another(anyio_backend: str) -> None:
    async with Node(actors.KindsSupervisor, backend=anyio_backend) as node:
        await until_there_are(node, 2)
        await restart(node)
        for _ in range(3):
            waiting = await until_there_are(node, 3)
            chosen = await restart(node)
            assert chosen in waiting
            assert (await node.exits("kinds/permanent"))[-1].reason == "killed"
    assert wait_gone([*waiting, chosen]) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_one_that_is_dead_or_stopped_is_passed_over(anyio_backend: str, number: signal.Signals) -> None:
    async with Node(actors.KindsSupervisor, backend=anyio_backend) as node:
        both = await until_there_are(node, 2)
        await restart(node)
        (understudy,) = await until_there_are(node, 3) - both
        os.kill(understudy, number)
        assert await restart(node) != understudy
        assert [end.reason for end in await node.exits("kinds/permanent")] == ["killed"] * 2
        assert understudy not in await until_there_are(node, 3)
        assert await restart(node) in await until_there_are(node, 3) | {await pid_of(node, "kinds/permanent")}
    assert wait_gone([understudy]) == []
