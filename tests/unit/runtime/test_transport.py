"""Connections over a socket pair, and listeners on a real path."""

# ruff: noqa: PT012 - it matters which of many posts is refused only in that one is
from __future__ import annotations

import pickle
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from colos.runtime import message, transport
from colos.runtime.message import CALL, LARGE_BYTES, Frame, ProtocolError, encode
from colos.runtime.transport import OUTBOX_BYTES_MAX, BrokenConnectionError, Changes, Connection, Listener

pytestmark = pytest.mark.anyio
DEADLINE_S = 10.0


@asynccontextmanager
async def pair(outbox_bytes_max: int | None = None) -> AsyncIterator[tuple[Connection, Connection]]:
    """Two ends of a connection."""
    limits = () if outbox_bytes_max is None else (outbox_bytes_max,)
    left, right = socket.socketpair()
    with anyio.fail_after(DEADLINE_S):
        async with anyio.create_task_group() as tasks:
            ends = Connection(left, tasks.start_soon, *limits), Connection(right, tasks.start_soon)
            try:
                yield ends
            finally:
                for end in ends:
                    end.close()


async def receive(connection: Connection, count: int) -> list[Frame]:
    got: list[Frame] = []
    while len(got) < count:
        got += await connection.receive()
    return got


async def test_frames_larger_than_the_kernels_buffer_arrive_whole_though_their_sender_is_cancelled() -> None:
    async with pair() as (sender, receiver):
        bodies = [bytes([number]) * 1_000_000 for number in range(3)]
        with anyio.CancelScope() as scope:
            for number, body in enumerate(bodies):
                sender.post(encode(CALL, number, body))
            scope.cancel()
            await sender.flushed()
        assert [frame.body for frame in await receive(receiver, 3)] == bodies
        sender.close()
        with pytest.raises(EOFError):
            await receiver.receive()


@pytest.mark.parametrize("sizes", [[LARGE_BYTES], [1_000_000, 10, 500_000], [LARGE_BYTES] * 20])
async def test_frames_of_many_parts_arrive_whole_between_others(sizes: list[int]) -> None:
    async with pair() as (sender, receiver):
        args = tuple(bytes([number]) * size for number, size in enumerate(sizes))
        frame = message.encode_request(CALL, 1, "a/b", "add", args, {})
        for _ in range(3):
            sender.post(frame)
            sender.post(encode(CALL, 2, b"small"))
        got = await receive(receiver, 6)
        assert [one.request for one in got] == [1, 2] * 3
        for one in got[::2]:
            assert message.decode(one) == ("add", args, {})
        assert sender.posted == 6


class Buffer:
    def __init__(self, data: object) -> None:
        self.data = data

    def __reduce_ex__(self, protocol: object) -> tuple[object, ...]:
        return (bytes, (pickle.PickleBuffer(self.data),))


async def test_a_frame_of_more_buffers_than_one_system_call_takes_arrives() -> None:
    async with pair() as (sender, receiver):
        sender.post(message.encode_message("a/b", [Buffer(b"%d" % number) for number in range(2000)]))
        [frame] = await receive(receiver, 1)
        assert message.decode(frame) == [b"%d" % number for number in range(2000)]


async def test_a_frame_is_sent_as_it_was_when_it_was_posted() -> None:
    async with pair() as (sender, receiver):
        theirs = bytearray(b"a" * 2_000_000)
        sender.post(message.encode_message("a/b", Buffer(theirs)))
        theirs[:] = b"z" * len(theirs)  # its author goes on with it, as after any cast or send
        [frame] = await receive(receiver, 1)
        assert message.decode(frame) == b"a" * len(theirs)


async def test_post_now_refuses_when_the_kernel_is_full_and_loses_nothing_it_took() -> None:
    async with pair() as (sender, receiver):
        taken = 0
        while sender.post_now(message.encode_request(CALL, taken, "a/b", "add", (bytes(LARGE_BYTES), taken), {})):
            taken += 1
        assert taken == sender.posted
        assert not sender.post_now(encode(CALL))
        assert taken == sender.posted
        got = await receive(receiver, taken)
        assert [frame.request for frame in got] == list(range(taken))
        assert [message.decode(frame)[1][1] for frame in got] == list(range(taken))


async def test_senders_wait_for_room_while_much_is_on_its_way() -> None:
    async with pair() as (sender, receiver):
        passed: list[str] = []

        async def wait(for_what: Callable[[], object], name: str) -> None:
            await for_what()  # type: ignore[misc]
            passed.append(name)

        async with anyio.create_task_group() as tasks:
            assert not sender.full
            await sender.room()
            await sender.flushed()
            while not sender.full:
                sender.post(encode(CALL, 0, bytes(100_000)))
            tasks.start_soon(wait, sender.room, "room")
            tasks.start_soon(wait, sender.flushed, "flushed")
            await anyio.wait_all_tasks_blocked()
            assert passed == []
            await receive(receiver, sender.posted)
        assert sorted(passed) == ["flushed", "room"]


@pytest.mark.parametrize("who", ["this side", "the other side"])
async def test_those_who_wait_for_room_are_told_of_the_end(who: str) -> None:
    async with pair() as (sender, receiver), anyio.create_task_group() as tasks:
        while sender._outbox_bytes <= 2 * OUTBOX_BYTES_MAX:
            sender.post(encode(CALL, 0, bytes(100_000)))
        tasks.start_soon(sender.room)
        tasks.start_soon(sender.flushed)
        await anyio.wait_all_tasks_blocked()
        (sender if who == "this side" else receiver).close()


async def test_a_receiver_is_told_of_its_own_closing() -> None:
    async with pair() as (_, receiver):

        async def until_the_end() -> None:
            with pytest.raises(EOFError):
                await receiver.receive()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(until_the_end)
            await anyio.wait_all_tasks_blocked()
            receiver.close()


@pytest.mark.parametrize("how", ["closed", "cut off for not reading", "the other side closed"])
async def test_who_listens_is_told_once_of_every_end(how: str) -> None:
    async with pair(outbox_bytes_max=1000) as (listening, other):
        told: list[ProtocolError | None] = []
        listening.listen(lambda frames: None, told.append)
        if how == "closed":
            listening.close()
        elif how == "the other side closed":
            other.close()
        else:
            with pytest.raises(BrokenConnectionError):
                while True:
                    listening.post(encode(CALL, 0, bytes(100_000)))
        assert told == []  # not in the middle of what closed it
        while not told:
            await anyio.lowlevel.checkpoint()
        listening.close()
        await anyio.wait_all_tasks_blocked()
        assert told == [None]


async def test_what_was_said_before_death_is_heard_though_our_words_went_unread() -> None:
    async with pair() as (ours, theirs):
        ours.post(encode(CALL, 1))
        theirs.post(encode(CALL, 2))
        theirs.close()  # with our message unread: the kernel says ECONNRESET
        assert await ours.receive() == [Frame(CALL, 2, 0, b"")]
        with pytest.raises(EOFError):
            await ours.receive()


async def test_a_large_frame_cut_off_by_death_is_an_end_not_a_frame() -> None:
    async with pair() as (ours, theirs):
        theirs.post(encode(CALL, 1))
        theirs.post(encode(CALL, 2, bytes(5_000_000)))
        theirs.close()
        assert await receive(ours, 1) == [Frame(CALL, 1, 0, b"")]
        with pytest.raises(EOFError):
            await ours.receive()


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
                connection.post(encode(CALL))
            with pytest.raises(BrokenConnectionError):
                connection.post_now(encode(CALL))


async def test_a_peer_that_never_reads_is_cut_off() -> None:
    async with pair(1_000_000) as (connection, _):
        with pytest.raises(BrokenConnectionError):
            for _ in range(100):
                connection.post(encode(CALL, 0, bytes(100_000)))
        assert connection.closed


async def test_receiving_now_never_waits() -> None:
    async with pair() as (sender, receiver):
        with pytest.raises(BlockingIOError):
            receiver.receive_now()
        frame = encode(CALL, 1, bytes(100))
        sender._socket.sendall(frame[:30])
        assert receiver.receive_now() == []
        with pytest.raises(BlockingIOError):
            receiver.receive_now()
        sender._socket.sendall(frame[30:])
        assert receiver.receive_now() == [Frame(CALL, 1, 0, bytes(100))]
        sender._socket.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(ProtocolError):
            receiver.receive_now()
        sender.close()
        with pytest.raises(EOFError):
            receiver.receive_now()


FLOOD = """
import socket, sys
from colos.runtime.message import SEND, encode
flood = socket.socket(fileno=int(sys.argv[1]))
many = encode(SEND, 0, bytes(4000)) * 250
for _ in range(int(sys.argv[2])):
    flood.sendall(many)
"""


async def test_a_flood_does_not_keep_other_tasks_from_their_turn() -> None:
    left, right = socket.socketpair()
    megabytes = 300
    flood = subprocess.Popen(  # noqa: ASYNC220 - it is only begun here
        [sys.executable, "-c", FLOOD, str(right.fileno()), str(megabytes)],
        pass_fds=[right.fileno()],
        env={"PYTHONPATH": str(Path(transport.__file__).parents[2])},
    )
    right.close()
    received = 0
    try:
        with anyio.fail_after(6 * DEADLINE_S):
            async with anyio.create_task_group() as tasks:
                connection = Connection(left, tasks.start_soon)

                async def take_all() -> None:
                    nonlocal received
                    try:
                        while True:
                            received += len(await connection.receive())
                    except EOFError:
                        connection.close()

                tasks.start_soon(take_all)
                longest, before = 0, 0
                while not connection.closed:
                    await anyio.lowlevel.checkpoint()
                    longest, before = max(longest, received - before), received
        assert received == megabytes * 250
        assert longest < received / 10
    finally:
        flood.kill()
        flood.wait(DEADLINE_S)


# --- listeners ---------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [0, 10], ids=["short", "longer than sockaddr_un"])
async def test_who_connects_is_served_and_only_strangers_are_closed(
    depth: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path.joinpath(*["a-directory"] * depth)
    directory.mkdir(parents=True, exist_ok=True)
    served: list[bytes] = []

    async def serve(connection: Connection) -> None:
        while True:
            for frame in await connection.receive():
                served.append(bytes(frame.body))
                connection.post(encode(message.RESULT, frame.request))

    with pytest.raises(FileNotFoundError):
        transport.connect(str(directory))
    with anyio.fail_after(DEADLINE_S):
        async with anyio.create_task_group() as tasks:
            listening = transport.listen(str(directory))
            met: list[Connection] = []
            listener = Listener(listening, tasks.start_soon, serve, met.append)
            tasks.start_soon(listener.run)
            clients = [Connection(transport.connect(str(directory)), tasks.start_soon) for _ in range(3)]
            stranger = transport.connect(str(directory))
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            for number, client in enumerate(clients):
                client.post(encode(CALL, number, b"%d" % number))
                assert [frame.request for frame in await client.receive()] == [number]
            await anyio.wait_readable(stranger)
            assert stranger.recv(10) == b""
            stranger.close()
            clients[0].post(encode(CALL, 9, b"9"))
            assert [frame.request for frame in await clients[0].receive()] == [9]
            clients[0].close()
            while sum(connection.closed for connection in met) < 2:
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
    assert served == [b"0", b"1", b"2", b"9"]
    assert len(met) == 4
    assert "not a ColOS frame" in capfd.readouterr().err
    for client in clients:
        client._socket.close()
    listening.close()
    with pytest.raises(ConnectionRefusedError):
        transport.connect(str(directory))


async def test_who_has_connected_by_now_is_taken_in_at_once(tmp_path: Path) -> None:
    async def serve(connection: Connection) -> None:
        raise EOFError

    with anyio.fail_after(DEADLINE_S):
        async with anyio.create_task_group() as tasks:
            with transport.listen(str(tmp_path)) as listening:
                met: list[Connection] = []
                listener = Listener(listening, tasks.start_soon, serve, met.append)
                listener.accept_now()
                assert met == []
                clients = [transport.connect(str(tmp_path)) for _ in range(3)]
                clients[0].close()
                listener.accept_now()
                assert len(met) == 3
                for client in clients:
                    client.close()


async def test_a_full_backlog_is_said_at_once(tmp_path: Path) -> None:
    with transport.listen(str(tmp_path)):
        clients: list[socket.socket] = []
        with pytest.raises(BlockingIOError):
            for _ in range(10_000):
                clients.append(transport.connect(str(tmp_path)))  # noqa: PERF401 - those before the refusal are closed below
        for client in clients:
            client.close()


async def test_changes_wake_everybody_who_waits_then() -> None:
    changes = Changes()
    woken: list[int] = []

    async def wait(number: int) -> None:
        await changes.wait()
        woken.append(number)

    with anyio.fail_after(DEADLINE_S):
        async with anyio.create_task_group() as tasks:
            changes.notify()  # before anybody waits: nobody is told of it
            for number in range(3):
                tasks.start_soon(wait, number)
            await anyio.wait_all_tasks_blocked()
            assert woken == []
            changes.notify()
    assert sorted(woken) == [0, 1, 2]
