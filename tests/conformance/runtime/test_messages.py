"""Calls and casts between real processes: answers, failures, order, backpressure."""

# ruff: noqa: ASYNC240, PT012 - tests poll and touch files with a deadline; an answer is no error
from __future__ import annotations

import os
import pickle
import socket
from pathlib import Path

import anyio
import pytest
import runtime_actors as actors

from colos.errors import (
    ActorExited,
    CallTimeout,
    ConnectionLost,
    MailboxFull,
    NoSuchActor,
    NoSuchMethod,
    NotPicklable,
    RemoteError,
    RuntimeFailure,
)
from colos.runtime import Node

pytestmark = pytest.mark.anyio


async def test_answers_and_failures(anyio_backend: str) -> None:
    async with Node(actors.LedgerSupervisor, backend=anyio_backend) as node:
        writer = await node.whereis("writer")
        front = await node.whereis("ledger/front")
        assert await writer.add(5) == 105
        assert await front.forward(3) == 108
        assert await writer.who() == (writer, "ledger/writer")
        assert await (await writer.who())[0].add(0) == 108  # a reference that came in a message speaks
        assert await writer.echo(1, timeout=3) == (1, 3)  # every keyword of this form is the method's
        assert await writer.echo(b"x" * 3_000_000) == (b"x" * 3_000_000, None)

        with pytest.raises(actors.Refused, match="-1 is negative") as refused:
            await writer.add(-1)
        assert "runtime_actors.py" in "".join(refused.value.__notes__)
        with pytest.raises(NoSuchMethod, match=r"did you mean 'notes'") as unknown:
            await writer.notess()
        assert "add" in unknown.value.allowed
        for name in ("not_async", "init", "terminate", "stop", "whereis", "_private"):
            assert name not in unknown.value.allowed
            with pytest.raises(NoSuchMethod):
                await writer.call(name)
        with pytest.raises(TypeError, match="takes 2 positional arguments but 3 were given"):
            await writer.add(1, 2)
        with pytest.raises(NotPicklable, match="the arguments of 'add'"):
            await writer.add(lambda: None)
        with pytest.raises(NotPicklable, match="the result of 'unpicklable_result'"):
            await writer.unpicklable_result()
        with pytest.raises(RuntimeFailure, match="on itself"):
            await front.call_self()
        assert (await node.processes())[0].restarts == 0  # and through all that, the writer lived

        with pytest.raises(NoSuchActor, match="known now: writer"):
            await node.whereis("nobody")
        assert isinstance(pickle.loads(pickle.dumps(writer)), type(writer))
        with pytest.raises(RuntimeFailure, match="outside a node"):
            await pickle.loads(pickle.dumps(writer)).add(1)


async def test_messages_of_one_pair_stay_in_order(anyio_backend: str) -> None:
    async with Node(actors.LedgerSupervisor, backend=anyio_backend) as node:
        writer = await node.whereis("writer")
        for number in range(3000):  # more than the mailbox holds
            await writer.cast("note", number)
        assert await writer.notes() == list(range(3000))


async def test_a_late_answer_reaches_no_later_call(anyio_backend: str) -> None:
    async with Node(actors.LedgerSupervisor, backend=anyio_backend) as node:
        writer = await node.whereis("writer")
        with pytest.raises(CallTimeout, match=r"within 0\.05 s"):
            await writer.call("nap", 0.2, timeout=0.05)
        assert [await writer.add(0) for _ in range(3)] == [100, 100, 100]


async def test_a_crash_answers_its_caller_and_refuses_the_rest(anyio_backend: str, tmp_path: Path) -> None:
    async with Node(actors.LedgerSupervisor, backend=anyio_backend) as node:
        writer = await node.whereis("writer")
        outcomes: dict[str, BaseException] = {}

        async def attempt(label: str, method: str, *args: object) -> None:
            try:
                await writer.call(method, *args)
            except Exception as error:
                outcomes[label] = error

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(attempt, "crash", "crash", "boom")
            await anyio.lowlevel.checkpoint()
            tasks.start_soon(attempt, "behind", "add", 1)
        assert isinstance(outcomes["crash"], ValueError)
        assert "in crash" in "".join(outcomes["crash"].__notes__)
        assert isinstance(outcomes["behind"], ActorExited | NoSuchActor), outcomes  # certainly not done
        with pytest.raises(NoSuchActor, match="error: ValueError: boom"):
            await writer.add(1)
        assert await node.quiet(10)
        new = await node.whereis("writer")
        assert new != writer
        with pytest.raises(RemoteError, match="Unpicklable: code 7"):
            await new.crash_unpicklable()


async def test_a_killed_actor_leaves_its_call_unknown(anyio_backend: str) -> None:
    async with Node(actors.LedgerSupervisor, backend=anyio_backend) as node:
        writer = await node.whereis("writer")
        with pytest.raises(ConnectionLost, match=r"'kill_self'.*\(killed\)"):
            await writer.kill_self(9)
        assert await node.quiet(10)
        assert (await node.whereis("writer")) != writer
        with pytest.raises(NoSuchActor, match="killed"):
            await writer.cast("note", 1)


async def test_a_full_mailbox_holds_senders_back(anyio_backend: str, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with Node(actors.SmallSupervisor, backend=anyio_backend) as node:
        small = await node.whereis("small/small")
        await small.cast("block", str(gate))
        with pytest.raises(MailboxFull):
            for _ in range(10_000):
                small.cast_nowait("take", b"x" * 10_000)
        with pytest.raises(MailboxFull):
            for _ in range(10_000):
                await small.cast("take", b"x" * 100_000, timeout=0.05)
        gate.touch()
        await small.call("take", b"", timeout=10.0)


async def test_strangers_cannot_hurt_an_actor(anyio_backend: str) -> None:
    async with Node(actors.LedgerSupervisor, backend=anyio_backend) as node:
        writer = await node.whereis("writer")
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"Co\x01\x00\xff\xff\xff\xff" + bytes(8), b"Co\x14\x00" + bytes(20)):
            for address in (f"{node.run_dir}/actors/{writer.id}/sock", f"{node.run_dir}/sock"):
                with socket.socket(socket.AF_UNIX) as stranger:
                    stranger.settimeout(10)
                    stranger.connect(address)
                    stranger.sendall(garbage)
                    try:
                        assert stranger.recv(1) == b""
                    except ConnectionResetError:
                        pass
        assert await writer.add(1) == 101
        assert (await node.processes())[0].restarts == 0
        assert "closed a connection" in Path(f"{node.run_dir}/actors/{writer.id}/log").read_text()


async def test_descriptor_exhaustion_makes_new_connections_wait(anyio_backend: str) -> None:
    async with Node(actors.LedgerSupervisor, backend=anyio_backend) as node:
        writer = await node.whereis("writer")
        front = await node.whereis("ledger/front")
        await writer.lower_descriptor_limit()
        before_s = await writer.cpu_s()
        with pytest.raises(CallTimeout):
            await front.call("forward", 1, timeout=0.6)  # the front has no connection to the writer yet
        assert await writer.add(1) == 101  # an old connection works all the while
        assert await writer.cpu_s() - before_s < 0.3, "it spins on accept"
        await writer.restore_descriptor_limit()
        with anyio.fail_after(10):
            while (await node.processes())[0].restarts == 0:
                try:
                    assert await front.call("forward", 1, timeout=5) >= 102
                    break
                except CallTimeout:
                    continue
        assert (await node.processes())[0].restarts == 0
        assert os.path.exists(f"{node.run_dir}/actors/{writer.id}/sock")
