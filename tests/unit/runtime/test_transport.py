"""Connections over a socket pair, and mailboxes."""

# ruff: noqa: PT012 - it matters which of many posts is refused only in that one is
from __future__ import annotations

import socket

import anyio
import anyio.lowlevel
import pytest

from colos.runtime.message import CALL, Frame, encode
from colos.runtime.transport import BrokenConnectionError, Connection, Mailbox

pytestmark = pytest.mark.anyio
DEADLINE_S = 10.0


async def test_a_mailbox_is_bounded_and_in_order() -> None:
    mailbox: Mailbox[int] = Mailbox(3)
    put: list[int] = []

    async def fill() -> None:
        for number in range(10):
            await mailbox.put(number)
            put.append(number)

    with anyio.fail_after(DEADLINE_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fill)
            await anyio.wait_all_tasks_blocked()
            assert put == [0, 1, 2]
            got = [await mailbox.get() for _ in range(10)]
    assert got == list(range(10))


async def test_a_closed_mailbox_gives_out_nothing() -> None:
    mailbox: Mailbox[int] = Mailbox(3)
    got: list[int | None] = []

    async def take() -> None:
        got.append(await mailbox.get())

    with anyio.fail_after(DEADLINE_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(take)
            await anyio.wait_all_tasks_blocked()
            mailbox.close()
        await mailbox.put(1)
        assert await mailbox.get() is None
    assert got == [None]


async def test_frames_larger_than_the_kernels_buffer_arrive_whole_though_their_sender_is_cancelled() -> None:
    left, right = socket.socketpair()
    with anyio.fail_after(DEADLINE_S):
        async with anyio.create_task_group() as tasks:
            sender, receiver = Connection(left, tasks.start_soon), Connection(right, tasks.start_soon)
            bodies = [bytes([number]) * 1_000_000 for number in range(3)]
            with anyio.CancelScope() as scope:
                for number, body in enumerate(bodies):
                    sender.post(encode(CALL, number, body))
                scope.cancel()
                await sender.flushed()
            got: list[Frame] = []
            while len(got) < 3:
                got += await receiver.receive()
            assert [frame.body for frame in got] == bodies
            sender.close()
            with pytest.raises(EOFError):
                await receiver.receive()
            receiver.close()


async def test_post_now_refuses_when_the_kernel_is_full_and_loses_nothing_it_took() -> None:
    left, right = socket.socketpair()
    with anyio.fail_after(DEADLINE_S):
        async with anyio.create_task_group() as tasks:
            sender, receiver = Connection(left, tasks.start_soon), Connection(right, tasks.start_soon)
            taken = 0
            while sender.post_now(encode(CALL, taken, bytes(5000))):
                taken += 1
            got: list[Frame] = []
            while len(got) < taken:
                got += await receiver.receive()
            assert [frame.request for frame in got] == list(range(taken))
            sender.close()
            receiver.close()


async def test_what_was_said_before_death_is_heard_though_our_words_went_unread() -> None:
    left, right = socket.socketpair()
    with anyio.fail_after(DEADLINE_S):
        async with anyio.create_task_group() as tasks:
            ours, theirs = Connection(left, tasks.start_soon), Connection(right, tasks.start_soon)
            ours.post(encode(CALL, 1))
            theirs.post(encode(CALL, 2))
            theirs.close()  # with our message unread: the kernel says ECONNRESET
            assert await ours.receive() == [Frame(CALL, 2, b"")]
            with pytest.raises(EOFError):
                await ours.receive()
            ours.close()


async def test_posting_to_nobody_says_so() -> None:
    left, right = socket.socketpair()
    right.close()
    with anyio.fail_after(DEADLINE_S):
        async with anyio.create_task_group() as tasks:
            connection = Connection(left, tasks.start_soon)
            with pytest.raises(BrokenConnectionError):
                connection.post(encode(CALL))
            connection.close()
            with pytest.raises(BrokenConnectionError):
                connection.post_now(encode(CALL))


async def test_a_peer_that_never_reads_is_cut_off() -> None:
    left, right = socket.socketpair()
    with anyio.fail_after(DEADLINE_S):
        async with anyio.create_task_group() as tasks:
            connection = Connection(left, tasks.start_soon, outbox_bytes_max=1_000_000)
            with pytest.raises(BrokenConnectionError):
                for _ in range(100):
                    connection.post(encode(CALL, 0, bytes(100_000)))
            assert connection.closed
            right.close()
