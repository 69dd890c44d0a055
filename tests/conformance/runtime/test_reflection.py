"""A node seen from outside: info, tree, subscribe, and a client's own monitors and processes."""

# ruff: noqa: ASYNC110, PERF401 - tests poll with a deadline; a list that is filled while others look
from __future__ import annotations

import anyio
import pytest
import runtime_actors as actors
from runtime_helpers import DEADLINE_S

from colos.errors import ActorExited, NameTaken, NoSuchActor
from colos.runtime import Down, Exit, Node, link, me, monitor, receive, spawn

pytestmark = pytest.mark.anyio


async def idle() -> None:
    await receive(lambda message: message == "end")


async def knot() -> None:
    """Linked to one process, monitoring another."""
    one, other = await spawn(idle), await spawn(idle)
    await link(one)
    await monitor(other)
    await receive()


async def leaves(reason: object) -> None:
    raise Exit(reason)


async def adds(one: int, other: int) -> int:
    assert me().path
    return one + other


async def test_info_and_tree_tell_who_is_related_to_whom(anyio_backend: str) -> None:
    async with Node(actors.LedgerSupervisor, backend=anyio_backend) as node:
        tied = await node.spawn(knot, name="tied")
        with anyio.fail_after(DEADLINE_S):
            while not (await node.info("tied"))["monitors"]:
                await anyio.sleep(0.002)
        details = await node.info(tied)
        assert details["path"] == tied.path
        assert (details["kind"], details["name"], details["state"]) == ("process", "tied", "running")
        [linked], [monitored] = details["links"], details["monitors"]
        assert linked.startswith(f"{tied.path}/idle-")
        tree = {entry["path"]: entry for entry in await node.tree()}
        assert list(tree)[:3] == ["ledger", "ledger/writer", "ledger/front"]
        assert tree["ledger/writer"]["parent"] == "ledger"
        assert tree[linked.split(" #")[0]]["links"] == [f"{tied.path} #{tied.id}"]
        assert tree[monitored.split(" #")[0]]["watched_by"] == [f"{tied.path} #{tied.id}"]
        assert tree[linked.split(" #")[0]]["parent"] == tied.path


async def test_a_subscriber_sees_messages_in_and_out_until_the_end(anyio_backend: str) -> None:
    async with Node(actors.LedgerSupervisor, backend=anyio_backend) as node:
        front = await node.whereis("ledger/front")
        seen = []
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                async for event in node.subscribe(front):
                    seen.append((event.direction, event.kind, event.what))

            tasks.start_soon(watch)
            with anyio.fail_after(DEADLINE_S):
                while ("in", "call", "forward(1)") not in seen:  # the first may be under way when it begins
                    await front.forward(1)
                total = await front.forward(1)
                while ("out", "result", str(total)) not in seen:
                    await anyio.sleep(0.002)
            await node.exit_signal(front, "kill")  # which ends the stream
        assert ("out", "call", "add(1)") in seen
        assert {direction for direction, _, _ in seen} == {"in", "out"}


async def test_a_client_monitors_and_runs_processes(anyio_backend: str) -> None:
    async with Node(actors.LedgerSupervisor, backend=anyio_backend) as node:
        assert await (await node.start_task(adds, 2, 3)).result(DEADLINE_S) == 5
        task = await node.start_task(idle)
        watch = await node.monitor(task.ref)
        await task.cancel()
        with pytest.raises(ActorExited, match="killed"):
            await task.result(DEADLINE_S)
        assert await node.down(watch, DEADLINE_S) == Down(watch, task.ref, "killed")
        await node.spawn(idle, name="only")
        with pytest.raises(NameTaken):
            await node.spawn(idle, name="only")
        watch = await node.monitor("only")
        await node.send("only", "something else")
        await node.send("only", "end")
        assert (await node.down(watch, DEADLINE_S)).reason == "normal"
        with pytest.raises(NoSuchActor):
            await node.send("only", "end")
        gone = await node.spawn(leaves, ("shutdown", 7))
        assert (await node.down(await node.monitor(gone), DEADLINE_S)).reason in [("shutdown", 7), "noproc"]
