"""Who speaks to a process: over real sockets, into its mailbox, and signals in their place among the messages."""

from __future__ import annotations

import itertools
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colos.runtime import message, transport
from colos.runtime.callers import Callers
from colos.runtime.mailbox import Letter, Mailbox, Overflow
from colos.runtime.message import CALL, CAST, IDENT, SEND, encode
from colos.runtime.trace import Tracer
from colos.runtime.transport import Connection

pytestmark = pytest.mark.anyio
DEADLINE_S = 5.0
BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])
NODE = "/run/colos/node"
BAD = [
    pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="no frame"),
    pytest.param(encode(message.RESULT, 1), id="a kind that callers do not send"),
    pytest.param(encode(message.RESULT, 1) + encode(message.EXIT, 1), id="two of them"),
    pytest.param(encode(IDENT, 9, b"\xff\xfe"), id="an ident that is no text"),
]


class Process:
    """The receiving side: a mailbox, its callers, and clients that connect."""

    def __init__(self, directory: str, tasks: anyio.abc.TaskGroup, limit: int, overflow: Overflow) -> None:
        self.directory = directory
        self.tasks = tasks
        self.mailbox = Mailbox(limit, overflow)
        self.tracer = Tracer()
        self.listening = transport.listen(directory)
        self.callers = Callers(self.listening, tasks.start_soon, self.mailbox, self.tracer)
        self.clients: list[socket.socket] = []
        self.begun = False

    def client(self, id_: int | None = None) -> socket.socket:
        """Somebody who connects, and says who it is."""
        client = transport.connect(self.directory)
        self.clients.append(client)
        if id_ is not None:
            client.sendall(encode(IDENT, id_, NODE.encode()))
        return client

    def begin(self) -> None:
        """Accept and read from now on; before, only what `after` takes in is taken in."""
        if not self.begun:
            self.begun = True
            self.tasks.start_soon(self.callers.run)

    def signal(self, id_: int, mark: int) -> list[int]:
        """A signal that comes after so many of a process's messages; what lay in the mailbox when it came, and -1."""
        seen: list[int] = []

        def act() -> None:
            assert seen == []  # once
            seen.extend(self.numbers())
            seen.append(-1)

        self.callers.after((NODE, id_), mark, act)
        return seen

    def close(self) -> None:
        """Also what nobody came to serve."""
        self.listening.close()
        for client in self.clients:
            client.close()
        for caller in self.callers.connections():
            caller.connection.close()

    def numbers(self) -> list[int]:
        """What lies in the mailbox."""
        return [frame_of(letter).request for letter in self.mailbox.items]

    async def until(self, count: int) -> None:
        """Take that much out, at once."""
        for _ in range(count):
            while self.mailbox.take() is None:
                await self.mailbox.wait()


def frame_of(letter: Letter) -> message.Frame:
    assert letter.frame is not None
    return letter.frame


@asynccontextmanager
async def process(limit: int = 1000, overflow: Overflow = "wait") -> AsyncIterator[Process]:
    with tempfile.TemporaryDirectory(prefix="colos-test-") as directory, ExitStack() as stack:
        with anyio.fail_after(DEADLINE_S):
            async with anyio.create_task_group() as tasks:
                made = Process(directory, tasks, limit, overflow)
                stack.callback(made.close)
                try:
                    yield made
                finally:
                    tasks.cancel_scope.cancel()


def casts(numbers: range) -> bytes:
    return b"".join(encode(CAST, number) for number in numbers)


async def all_quiet() -> None:
    """Wait until what is in the sockets has been taken in as far as it will be."""
    for _ in range(50):  # a turn of the loop each, which reads from every socket that has something
        await anyio.lowlevel.checkpoint()
    await anyio.wait_all_tasks_blocked()


# --- messages ----------------------------------------------------------------------------


async def test_messages_of_each_sender_keep_their_order_and_their_sender() -> None:
    async with process() as one:
        one.begin()
        known, other, outside = one.client(7), one.client(8), one.client()
        for number in range(0, 300, 3):
            known.sendall(encode(CALL, number))
            other.sendall(encode(SEND, number + 1))
            outside.sendall(encode(CAST, number + 2))
        while len(one.mailbox) < 300:
            await one.mailbox.wait()
        for name, start in (("#7", 0), ("#8", 1), ("a client", 2)):
            theirs = [
                letter for letter in one.mailbox.items if letter.caller is not None and letter.caller.name == name
            ]
            assert [frame_of(letter).request for letter in theirs] == list(range(start, 300, 3))
        assert {caller.key for caller in one.callers.connections()} == {(NODE, 7), (NODE, 8), None}


async def test_a_full_mailbox_holds_its_senders_back_until_there_is_room() -> None:
    async with process(limit=5) as one:
        one.begin()
        left = itertools.count()
        client = Connection(one.client(7), one.tasks.start_soon)
        for _ in range(5):  # what nobody takes fills the kernel, and so the sender learns of it
            while not client.full:
                client.post(encode(CAST, next(left), bytes(10_000)))
            await all_quiet()
        assert client.full
        assert one.numbers() == [0, 1, 2, 3, 4]
        for number in range(next(left)):
            while (letter := one.mailbox.take()) is None:
                await one.mailbox.wait()
            assert frame_of(letter).request == number
            assert len(one.mailbox) <= 5
        client.close()


async def test_drop_oldest_never_holds_anybody_back_and_never_drops_a_call() -> None:
    async with process(limit=3, overflow="drop_oldest") as one:
        one.begin()
        client = one.client(7)
        client.sendall(encode(CALL, 0) + casts(range(1, 9)) + encode(CALL, 9) + encode(SEND, 10))
        while one.numbers()[-1:] != [10]:
            await one.mailbox.wait()
        assert one.numbers() == [0, 9, 10]
        assert one.mailbox.dropped == 8
        client.sendall(b"".join(encode(CALL, number) for number in range(11, 20)))
        while one.numbers()[-1:] != [19]:
            await one.mailbox.wait()
        assert one.numbers() == [0, 9, *range(11, 20)]


async def test_what_the_dead_sent_is_taken_in_though_the_mailbox_was_full() -> None:
    async with process(limit=2) as one:
        one.begin()
        client = one.client(7)
        client.sendall(casts(range(10)))
        await all_quiet()
        assert one.numbers() == [0, 1]
        client.close()
        await one.until(10)
        await all_quiet()
        assert one.callers.connections() == []


async def test_a_watcher_is_told_of_what_comes_in() -> None:
    async with process() as one:
        one.begin()
        watcher = Connection(one.client(), one.tasks.start_soon)
        watcher.post(encode(message.WATCH))
        while not one.tracer.watchers:
            await anyio.lowlevel.checkpoint()
        one.client(7).sendall(b"".join(message.encode_request(CALL, 1, "a/b", "add", (1,), {})))
        [frame] = await watcher.receive()
        assert message.decode(frame)[1:] == ("in", "call", "#7", "add(1)")
        watcher.close()


# --- signals in their place --------------------------------------------------------------


@BACKENDS
@settings(max_examples=60)
@given(
    sent=st.integers(0, 12),
    mark=st.integers(0, 12),
    limit=st.integers(1, 4),
    overflow=st.sampled_from(["wait", "drop_oldest"]),
    accepted=st.booleans(),
    cut=st.integers(1, 200),
)
def test_a_signal_comes_after_what_was_sent_before_it_and_before_the_rest(
    backend: str, sent: int, mark: int, limit: int, overflow: Overflow, accepted: bool, cut: int
) -> None:
    """Whether its connection was accepted, its IDENT read, its mailbox full, or its last frame cut."""

    async def scene() -> None:
        async with process(limit, overflow) as one:
            taken: list[int] = []
            if overflow == "drop_oldest":  # then nothing stays in the mailbox, so nothing is dropped
                one.mailbox.on_call = lambda letter: taken.append(frame_of(letter).request)
            stream = encode(IDENT, 7, NODE.encode()) + casts(range(sent))
            client = one.client()
            client.sendall(stream[:cut] if accepted else stream)
            if accepted:
                one.begin()
                await all_quiet()
                client.sendall(stream[cut:])  # this much its own task has not seen yet
            before = [*taken, *one.numbers()]
            at_act: list[int] = []
            one.callers.after((NODE, 7), mark, lambda: at_act.extend([*taken, *one.numbers(), -1]))
            if mark > sent:
                assert at_act == []
                client.sendall(casts(range(sent, mark + 2)))
            one.begin()
            while not at_act:
                await anyio.lowlevel.checkpoint()
            assert at_act == ([*range(mark), -1] if mark >= len(before) else [*before, -1])
            for number in range(sent if mark <= sent else mark + 2):  # and the rest, behind it
                while number >= len(taken) and (letter := one.mailbox.take()) is None:
                    await anyio.lowlevel.checkpoint()
                assert number == (taken[number] if taken else frame_of(letter).request)

    anyio.run(scene, backend=backend)


async def test_a_signal_of_the_dead_comes_after_everything_they_sent() -> None:
    async with process(limit=2) as one:
        for id_ in (7, 8, 9):
            if id_ == 8:  # until then nobody was accepted
                one.begin()
            client = one.client(id_)
            client.sendall(casts(range(50)))
            if id_ == 9:
                await all_quiet()  # its task waits for room, with frames in hand
            client.close()
            assert one.signal(id_, -1) == [*range(50), -1]
            one.mailbox.items.clear()
            await all_quiet()
            assert len(one.mailbox) == 0


async def test_a_signal_of_somebody_who_never_spoke_comes_at_once() -> None:
    async with process() as one:
        assert one.signal(7, -1) == one.signal(7, 0) == [-1]


@pytest.mark.parametrize("connected", [True, False])
async def test_signals_wait_for_what_is_still_on_its_way(connected: bool) -> None:
    async with process(limit=1) as one:
        one.begin()
        client = one.client(7) if connected else None
        if client is not None:
            client.sendall(casts(range(3)))
        first, second, third = one.signal(7, 6), one.signal(7, 6), one.signal(7, 8)
        await all_quiet()
        assert first == second == third == []
        if client is None:
            client = one.client(7)
            client.sendall(casts(range(3)))
        client.sendall(casts(range(3, 9)))
        while not third:
            await anyio.lowlevel.checkpoint()
        assert first == second == [0, 1, 2, 3, 4, 5, -1]
        assert third == [0, 1, 2, 3, 4, 5, 6, 7, -1]
        assert one.numbers()[:8] == list(range(8))
        await one.until(9)


async def test_a_full_mailbox_does_not_keep_a_signal_back() -> None:
    async with process(limit=2) as one:
        one.begin()
        client = Connection(one.client(7), one.tasks.start_soon)
        for number in range(500):
            client.post(encode(CAST, number, bytes(20_000)))  # more than the kernel takes
        await all_quiet()
        assert one.numbers() == [0, 1]
        seen = one.signal(7, 500)
        assert seen == []
        while not seen:
            await anyio.lowlevel.checkpoint()
        assert seen == [*range(500), -1]
        client.close()


@pytest.mark.parametrize("how", ["alone", "as the next is waited for"])
async def test_a_signal_does_not_wait_for_what_the_dead_can_no_longer_send(how: str) -> None:
    async with process() as one:
        one.begin()
        client = one.client(7)
        client.sendall(casts(range(3)))
        seen = one.signal(7, 6)
        later = [] if how == "alone" else one.signal(7, 9)
        await all_quiet()
        assert seen == later == []
        client.close()
        with anyio.fail_after(3):  # well before it would be given up
            while not seen:
                await anyio.lowlevel.checkpoint()
        assert seen == [0, 1, 2, -1]
        assert how == "alone" or later == seen


async def test_a_signal_of_one_sender_says_nothing_of_the_others() -> None:
    async with process(limit=10) as one:
        one.begin()
        one.client(8).sendall(casts(range(100)))
        await all_quiet()
        assert len(one.mailbox) == 10
        one.client(7).sendall(casts(range(200, 203)))
        assert one.signal(7, 3)[10:] == [200, 201, 202, -1]


@pytest.mark.parametrize("id_", [8, None], ids=["a process", "a client"])
async def test_who_is_looked_at_in_search_of_another_is_still_heard(id_: int | None) -> None:
    async with process() as one:
        one.begin()
        other = one.client()
        await all_quiet()  # its task waits for it to speak
        ident = b"" if id_ is None else encode(IDENT, id_, NODE.encode())
        other.sendall(ident + encode(CAST, 1))
        assert one.signal(7, -1)[-1] == -1
        await one.until(1)


async def test_a_search_for_a_sender_lets_nothing_more_of_others_in() -> None:
    async with process(limit=10) as one:
        one.begin()
        client = one.client()
        client.sendall(casts(range(1000)))
        await all_quiet()
        assert one.signal(7, -1) == [*range(10), -1]
        assert one.numbers() == list(range(10))


async def test_a_signal_that_is_late_lets_nothing_more_in() -> None:
    async with process(limit=10) as one:
        one.begin()
        client = one.client(7)
        client.sendall(casts(range(10)))
        await all_quiet()
        for start in range(10, 1000, 10):
            client.sendall(casts(range(start, start + 10)))
            assert one.signal(7, 5) == [*range(10), -1]
        assert one.numbers() == list(range(10))


@pytest.mark.parametrize("dead", [False, True], ids=["alive", "dead by then"])
@pytest.mark.parametrize("limit", [1, 1000])
async def test_what_was_sent_after_an_exit_signal_waits_for_it_and_is_not_lost(dead: bool, limit: int) -> None:
    """The signal goes another way, through the root; a message's mark says how many were sent before it."""
    async with process(limit) as one:
        one.begin()
        client = one.client(7)
        client.sendall(encode(CAST, 0) + encode(CAST, 1, b"", 1) + encode(CAST, 2, b"", 2))
        if dead:
            client.close()
        await all_quiet()
        assert one.numbers() == [0]
        seen: list[int] = []
        for signal in (-1, -2):
            one.callers.after_signal((NODE, 7), -signal, lambda signal=signal: seen.extend([*one.numbers(), signal]))
            while signal not in seen:
                await anyio.lowlevel.checkpoint()
        assert seen == [0, -1, 0, 1, -2]
        await one.until(3)


# --- who does not keep to the rules ------------------------------------------------------


async def closed(client: socket.socket) -> bool:
    """Wait until the other side has closed a connection."""
    while True:
        await anyio.wait_readable(client)
        try:
            if not client.recv(1000):
                return True
        except ConnectionError:
            return True


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("known", [True, False])
async def test_a_stranger_is_closed_and_forgotten_and_nobody_else_is(bad: bytes, known: bool) -> None:
    async with process() as one:
        one.begin()
        stranger, other = one.client(7 if known else None), one.client(8)
        stranger.sendall(encode(CAST, 1))
        other.sendall(encode(CAST, 2))
        await one.until(2)
        stranger.sendall(bad)
        assert await closed(stranger)
        other.sendall(encode(CAST, 3))
        await one.until(1)
        assert [caller.key for caller in one.callers.connections()] == [(NODE, 8)]
        assert one.signal(7, -1) == [-1]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("mark", [-1, 1, 2])
async def test_what_a_signal_reads_first_closes_a_stranger_too(bad: bytes, mark: int) -> None:
    async with process() as one:
        one.begin()
        stranger, other = one.client(7), one.client(8)
        stranger.sendall(encode(CAST, 1))
        other.sendall(encode(CAST, 2))
        await one.until(2)
        stranger.sendall(bad)
        seen = one.signal(7, mark)
        assert mark == 2 or seen == [-1]
        assert one.signal(8, 1) == [-1]
        assert await closed(stranger)
        while not seen:
            await anyio.lowlevel.checkpoint()
        other.sendall(encode(CAST, 3))
        await one.until(1)


async def test_newcomers_at_the_end_are_known_to_have_been_taken_nothing_from() -> None:
    async with process() as one:
        one.client(7).sendall(encode(CALL, 1))
        one.callers.refuse_newcomers()
        assert [caller.taken for caller in one.callers.connections()] == [0]
