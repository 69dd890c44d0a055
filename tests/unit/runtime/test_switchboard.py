"""Speaking to others: calls, deadlines and ends, against a small server on real sockets."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from time import monotonic
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colos.errors import (
    ActorExited,
    CallTimeout,
    ConnectionLost,
    MailboxFull,
    MessageTooLarge,
    NoSuchActor,
    NoSuchNode,
    NotPicklable,
    RuntimeFailure,
)
from colos.runtime import message, rundir, transport
from colos.runtime.callers import Callers
from colos.runtime.mailbox import Mailbox
from colos.runtime.message import FRAME_BYTES_MAX, IDENT, SEND, Frame, encode
from colos.runtime.refs import ActorRef
from colos.runtime.switchboard import Switchboard
from colos.runtime.trace import Tracer
from colos.runtime.transport import Connection, Listener

pytestmark = pytest.mark.anyio
DEADLINE_S = 10.0
LONG_S = 3600.0
BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError("no words")


class Server:
    """A root or an actor: answers `echo` and `fail` at once, keeps `hold` for the test to answer."""

    def __init__(self, directory: str, spawn: Callable[..., object]) -> None:
        os.makedirs(directory, exist_ok=True)
        self.directory = directory
        self.listening = transport.listen(directory)
        self.held: list[tuple[Connection, Frame]] = []
        self.frames: list[Frame] = []
        self.connections: list[Connection] = []
        self.asked: list[str] = []
        self.answers: dict[str, Any] = {}
        self.reads = True
        self._listener = Listener(self.listening, spawn, self._serve, self.connections.append)
        spawn(self._listener.run)

    async def _serve(self, connection: Connection) -> None:
        while not self.reads:
            await anyio.lowlevel.checkpoint()
        while True:
            for frame in await connection.receive():
                self.frames.append(frame)
                if frame.kind == message.CALL:
                    self._answer(connection, frame)

    def _answer(self, connection: Connection, frame: Frame) -> None:
        method, args, _ = message.decode(frame)
        self.asked.append(method)
        if method == "hold":
            self.held.append((connection, frame))
        elif method == "fail":
            connection.post(message.encode_failure(frame.request, ValueError(*args), "Traceback: there"))
        else:
            value = self.answers.get(method, args[0] if args else None)
            if isinstance(value, Exception):
                connection.post(message.encode_failure(frame.request, value, ""))
            else:
                connection.post(message.encode_result(frame.request, "a/b", method, value))

    async def holds(self, count: int) -> list[tuple[Connection, Frame]]:
        """Wait until so many calls are here."""
        while len(self.held) < count:
            await anyio.lowlevel.checkpoint()
        return self.held

    def gone(self) -> None:
        """Nobody can be found here any more."""
        os.unlink(f"{self.directory}/{transport.SOCKET_NAME}")

    def close(self) -> None:
        self.listening.close()
        for connection in self.connections:
            connection.close()


def hang_up(board: Switchboard) -> None:
    for peer in [*board._peers.values()]:
        peer.connection.close()


class Scene:
    """A switchboard, its root, and the actor #7."""

    def __init__(self, directory: str, tasks: anyio.abc.TaskGroup) -> None:
        self.run_dir = directory
        self.tasks = tasks
        self.root = Server(directory, tasks.start_soon)
        self.actor = Server(f"{directory}/actors/7", tasks.start_soon)
        self.board = Switchboard(directory, tasks.start_soon)
        self.ref = self.board.ref("a/b", 7)

    def close(self) -> None:
        self.root.close()
        self.actor.close()
        hang_up(self.board)


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    with tempfile.TemporaryDirectory(prefix="colos-test-") as directory, ExitStack() as stack:
        with anyio.fail_after(DEADLINE_S):
            async with anyio.create_task_group() as tasks:
                made = Scene(directory, tasks)
                stack.callback(made.close)
                try:
                    yield made
                finally:
                    tasks.cancel_scope.cancel()


class Outcome:
    """How something that runs in a task of its own ended; None while it runs."""

    def __init__(self, spawn: Callable[..., object], function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self.value: Any = None
        self.lasted_s = 0.0
        self._done = anyio.Event()
        spawn(self._run, function, args, kwargs)

    async def _run(self, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
        begun = monotonic()
        try:
            self.value = await function(*args, **kwargs)
        except Exception as error:
            self.value = error
        self.lasted_s = monotonic() - begun
        self._done.set()

    @property
    def ended(self) -> bool:
        return self._done.is_set()

    async def wait(self) -> Any:
        await self._done.wait()
        return self.value


# --- calls -------------------------------------------------------------------------------


async def test_a_call_gives_what_the_method_returned_or_raises_what_it_raised() -> None:
    async with scene() as on:
        assert await on.ref.echo(5) == 5
        assert await on.ref.call("echo", [1, "x"], timeout=None) == [1, "x"]
        with pytest.raises(ValueError, match="no such account") as caught:
            await on.ref.fail("no such account")
        assert "in actor 'a/b'" in caught.value.__notes__[0]
        assert len(on.actor.connections) == 1


async def test_what_cannot_be_sent_is_refused_and_harms_nothing() -> None:
    async with scene() as on:
        with pytest.raises(NotPicklable):
            await on.ref.echo(lambda: None)
        with pytest.raises(MessageTooLarge):
            await on.ref.echo(bytes(FRAME_BYTES_MAX))
        assert on.actor.connections == []
        assert await on.ref.echo(5) == 5


async def test_answers_find_their_calls_in_whatever_order_they_come() -> None:
    async with scene() as on:
        calls = [Outcome(on.tasks.start_soon, on.ref.hold, number) for number in range(20)]
        for connection, frame in reversed(await on.actor.holds(20)):
            connection.post(message.encode_result(frame.request, "a/b", "hold", message.decode(frame)[1][0]))
        assert [await call.wait() for call in calls] == list(range(20))


async def test_a_large_answer_arrives_while_large_calls_are_on_their_way() -> None:
    async with scene() as on:
        bodies = [bytes([number]) * 1_000_000 for number in range(8)]
        calls = [Outcome(on.tasks.start_soon, on.ref.echo, body) for body in bodies]
        assert [await call.wait() for call in calls] == bodies


async def test_references_that_arrive_speak_through_who_got_them() -> None:
    async with scene() as on:
        there = await on.ref.echo(ActorRef("a/b", 7, on.run_dir))
        assert there == on.ref
        assert await there.echo(5) == 5


async def test_who_calls_itself_is_told_instead_of_waiting() -> None:
    async with scene() as on:
        own = Switchboard(on.run_dir, on.tasks.start_soon, own=ActorRef("a/b", 7, on.run_dir))
        with pytest.raises(RuntimeFailure, match="it would wait for itself"):
            await own.ref("a/b", 7).echo(5)


async def test_being_watched_changes_no_call() -> None:
    async with scene() as on:
        watcher = Connection(transport.connect(on.root.directory), on.tasks.start_soon)
        on.board.tracer.watch(watcher)
        await on.ref.cast("echo", Unspeakable())
        assert await on.ref.echo(5) == 5
        while not any(frame.kind == message.TRACE for frame in on.root.frames):
            await anyio.lowlevel.checkpoint()
        watcher.close()


async def speak(ref: ActorRef, how: str) -> None:
    if how == "cast_nowait":
        ref.cast_nowait("echo", 1)
    else:
        await getattr(ref, how)("echo", 1)


@pytest.mark.parametrize("how", ["call", "cast", "cast_nowait"])
async def test_who_dies_while_a_connection_is_made_is_known_to_be_dead(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The kernel connects us to whoever listens; that one may be gone before the first frame."""
    connect = transport.connect

    def too_late(directory: str) -> Any:
        connected = connect(directory)
        if directory == place:
            listening.close()
        return connected

    async with scene() as made:
        place = f"{made.run_dir}/actors/8"
        os.makedirs(place)
        listening = transport.listen(place)
        board = Switchboard(made.run_dir, made.tasks.start_soon, own=ActorRef("x/y", 9, made.run_dir))
        made.root.answers["reason"] = "killed"
        with monkeypatch.context() as patched:
            patched.setattr(transport, "connect", too_late)
            with pytest.raises(NoSuchActor):
                await speak(board.ref("a/b", 8), how)
        assert 8 not in board._peers
        hang_up(board)


# --- deadlines ---------------------------------------------------------------------------


async def test_a_shorter_deadline_that_comes_later_is_kept() -> None:
    async with scene() as on:
        long = Outcome(on.tasks.start_soon, on.ref.call, "hold", timeout=LONG_S)
        await on.actor.holds(1)
        middle = Outcome(on.tasks.start_soon, on.ref.call, "hold", timeout=LONG_S / 2)
        await on.actor.holds(2)
        short = Outcome(on.tasks.start_soon, on.ref.call, "hold", timeout=0.01)
        error = await short.wait()
        assert isinstance(error, CallTimeout)
        assert error.timeout_s == 0.01
        assert not long.ended
        assert not middle.ended


@BACKENDS
@settings(max_examples=15)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=10), st.data())
def test_every_call_has_its_own_deadline(backend: str, hundredths: list[int], data: st.DataObject) -> None:
    """Not one before its time, and none never; those that are answered are none of them."""
    answered = data.draw(st.sets(st.integers(0, len(hundredths) - 1)))

    async def play() -> None:
        async with scene() as on:
            await on.ref.echo(0)
            limits = [LONG_S if number in answered else late / 100 for number, late in enumerate(hundredths)]
            calls = [
                Outcome(on.tasks.start_soon, on.ref.call, "hold", number, timeout=limit)
                for number, limit in enumerate(limits)
            ]
            for number, call in enumerate(calls):
                if number not in answered:
                    assert isinstance(await call.wait(), CallTimeout)
                    assert call.lasted_s >= limits[number]
            for connection, frame in await on.actor.holds(len(calls)):
                connection.post(message.encode_result(frame.request, "a/b", "hold", "an answer"))
            for number in answered:
                assert await calls[number].wait() == "an answer"

    anyio.run(play, backend=backend)


async def test_deadlines_are_kept_after_all_before_were_met() -> None:
    async with scene() as on:
        for _ in range(3):
            with pytest.raises(CallTimeout):
                await on.ref.call("hold", timeout=0.01)
            assert await on.ref.call("echo", 5, timeout=0.5) == 5
        assert await on.ref.call("echo", 5, timeout=float("inf")) == 5


async def test_many_answered_calls_neither_pile_up_nor_hide_one_that_is_not() -> None:
    async with scene() as on:
        long = Outcome(on.tasks.start_soon, on.ref.call, "hold", timeout=LONG_S)
        await on.actor.holds(1)
        for number in range(2000):
            assert await on.ref.call("echo", number, timeout=LONG_S / 2) == number
        assert len(on.board._deadlines._heap) <= 1024
        assert isinstance(await Outcome(on.tasks.start_soon, on.ref.call, "hold", timeout=0.01).wait(), CallTimeout)
        assert not long.ended


async def test_a_late_answer_is_nobodys() -> None:
    async with scene() as on:
        with pytest.raises(CallTimeout):
            await on.ref.call("hold", timeout=0.01)
        [(connection, late)] = await on.actor.holds(1)
        second = Outcome(on.tasks.start_soon, on.ref.hold)
        await on.actor.holds(2)
        connection.post(message.encode_result(late.request, "a/b", "hold", "the first answer"))
        connection.post(message.encode_failure(late.request, ValueError("twice"), ""))
        assert await on.ref.echo("between") == "between"
        assert not second.ended
        connection.post(message.encode_result(on.actor.held[1][1].request, "a/b", "hold", "the second"))
        assert await second.wait() == "the second"


async def test_a_cancelled_call_leaves_nothing_behind() -> None:
    async with scene() as on:
        await on.ref.echo(0)
        with anyio.CancelScope() as scope:
            on.tasks.start_soon(on.actor.holds, 1)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(on.ref.hold)
                await on.actor.holds(1)
                scope.cancel()
        assert not on.board._peers[7].pending
        assert await on.ref.echo(5) == 5


# --- ends --------------------------------------------------------------------------------


async def test_nobody_there_is_said_with_the_reason_that_the_root_knows() -> None:
    async with scene() as on:
        on.actor.gone()
        on.root.answers["reason"] = ("shutdown", "idle")
        for speak in (on.ref.echo, on.ref.cast):
            with pytest.raises(NoSuchActor, match=r"'a/b' is alive: \('shutdown', 'idle'\)"):
                await speak("echo")
        with pytest.raises(NoSuchActor):
            on.ref.cast_nowait("echo")


async def test_without_a_root_the_exit_file_must_do() -> None:
    async with scene() as on:
        on.actor.gone()
        on.root.gone()
        assert rundir.write(f"{on.run_dir}/actors/7/exit", "killed\nand more\n")
        with pytest.raises(NoSuchActor, match=r"is alive: killed$"):
            await on.ref.echo(5)
        with pytest.raises(NoSuchNode):
            await on.board.whereis("a")


async def test_a_node_that_gave_up_says_why() -> None:
    async with scene() as on:
        on.root.gone()
        assert rundir.write(f"{on.run_dir}/crash", "too many restarts\n")
        with pytest.raises(NoSuchNode, match="too many restarts"):
            await on.board.ask_root("whereis", "a")


@pytest.mark.parametrize("goodbye", [False, True])
async def test_an_end_says_of_each_call_whether_it_may_have_happened(goodbye: bool) -> None:
    async with scene() as on:
        on.root.answers["reason"] = "killed"
        calls = [Outcome(on.tasks.start_soon, on.ref.hold, number) for number in range(3)]
        held = await on.actor.holds(3)
        requests = [frame.request for _, frame in held]
        assert requests == sorted(requests)
        [connection] = on.actor.connections
        if goodbye:
            connection.post(message.encode_plain(message.GOODBYE, ("shutdown", 1), requests[0]))
        on.actor.gone()
        connection.close()
        ended = [await call.wait() for call in calls]
        first, *others = [ended[message.decode(frame)[1][0]] for _, frame in held]
        assert isinstance(first, ConnectionLost)
        assert first.reason == (("shutdown", 1) if goodbye else "killed")
        for error in others:
            assert isinstance(error, ActorExited if goodbye else ConnectionLost)
            assert error.reason == first.reason
        with pytest.raises(NoSuchActor):
            await on.ref.echo(5)


async def test_garbage_from_the_other_side_ends_that_connection_alone() -> None:
    async with scene() as on:
        on.root.answers["reason"] = ""
        call = Outcome(on.tasks.start_soon, on.ref.hold)
        [(connection, _)] = await on.actor.holds(1)
        connection.post(b"GET / HTTP/1.1\r\n\r\n")
        assert isinstance(await call.wait(), ConnectionLost)
        assert await on.ref.echo(5) == 5
        assert len(on.actor.connections) == 2


# --- names -------------------------------------------------------------------------------


async def test_a_name_is_asked_for_once_while_its_holder_is_spoken_to() -> None:
    async with scene() as on:
        on.root.answers["whereis"] = ("a/b", 7)
        ref = await on.board.whereis("db")
        assert ref == on.ref
        await ref.echo(5)
        for _ in range(3):
            await on.board.whereis("db")
        assert on.root.asked == ["whereis"] * 1


@pytest.mark.parametrize("what", ["a death", "a failure", "another question", "the end of the connection"])
async def test_whoever_may_know_of_a_death_asks_anew(what: str) -> None:
    async with scene() as on:
        on.root.answers["whereis"] = ("a/b", 7)
        await (await on.board.whereis("db")).echo(5)
        await on.board.whereis("db")
        assert on.root.asked.count("whereis") == 1
        if what == "a death":
            on.board.forget_names()
        elif what == "a failure":
            with pytest.raises(ValueError):
                await on.ref.fail()
        elif what == "another question":
            await on.board.ask_root("anything")
        else:
            on.actor.connections[0].close()
            while 7 in on.board._peers:
                await anyio.lowlevel.checkpoint()
        await on.board.whereis("db")
        assert on.root.asked.count("whereis") == 2


async def test_the_roots_own_answer_that_nobody_is_there_is_raised_as_it_is() -> None:
    async with scene() as on:
        on.root.answers["whereis"] = NoSuchActor("db", "known now: cache")
        with pytest.raises(NoSuchActor, match="known now: cache"):
            await on.board.whereis("db")


async def test_each_node_has_its_own_switchboard_and_they_know_each_other() -> None:
    async with scene() as on, scene() as there:
        other = on.board.other(there.run_dir)
        assert other is on.board.other(there.run_dir)
        assert on.board.other("") is on.board.other(on.run_dir) is other.other(on.run_dir) is on.board
        assert await other.ref("a/b", 7).echo(5) == 5
        assert len(there.actor.connections) == 1
        assert on.actor.connections == []
        hang_up(other)


# --- casts and order ---------------------------------------------------------------------


async def test_casts_arrive_in_order_and_a_full_receiver_refuses_only_what_it_did_not_take() -> None:
    async with scene() as on:
        on.actor.reads = False
        sent = 0
        with pytest.raises(MailboxFull):  # noqa: PT012 - it matters only that one of them is refused
            while True:
                await on.ref.cast("note", sent, bytes(50_000), timeout=0.05)
                sent += 1
        with pytest.raises(MailboxFull):
            on.ref.cast_nowait("note", -1)
        with pytest.raises(CallTimeout):
            await on.ref.call("echo", -1, timeout=0.01)
        on.actor.reads = True
        assert await on.ref.echo("last") == "last"
        numbers = [message.decode(frame)[1][0] for frame in on.actor.frames]
        assert numbers == [*range(sent), "last"]


async def test_who_speaks_says_who_it_is_first_and_counts_what_it_sent() -> None:
    async with scene() as on:
        own = Switchboard(on.run_dir, on.tasks.start_soon, own=ActorRef("c", 9, on.run_dir))
        key = (on.run_dir, 7)
        assert own.posted_to(None) == own.posted_to(key) == 0
        await own.ref("a/b", 7).echo(1)
        await own.ref("a/b", 7).cast("note", 2)
        assert own.posted_to(key) == 2
        while len(on.actor.frames) < 3:
            await anyio.lowlevel.checkpoint()
        first = on.actor.frames[0]
        assert (first.kind, first.request, bytes(first.body)) == (IDENT, 9, on.run_dir.encode())
        hang_up(own)


@pytest.mark.parametrize("early", [True, False], ids=["messages first", "answer first"])
async def test_an_answer_comes_after_what_its_sender_sent_before_it(early: bool) -> None:
    async with scene() as on:
        mailbox = Mailbox(1)
        directory = f"{on.run_dir}/actors/9"
        os.makedirs(directory)
        with transport.listen(directory) as listening:
            callers = Callers(listening, on.tasks.start_soon, mailbox, Tracer())
            on.board.callers = callers
            on.tasks.start_soon(callers.run)
            call = Outcome(on.tasks.start_soon, on.ref.hold)
            [(connection, frame)] = await on.actor.holds(1)
            answer = message.encode_result(frame.request, "a/b", "hold", "the answer", 3)
            sends = b"".join(encode(SEND, number) for number in range(3))
            if not early:
                connection.post(answer)
                await anyio.wait_all_tasks_blocked()
                assert not call.ended
            with transport.connect(directory) as theirs:
                theirs.sendall(encode(IDENT, 7, on.run_dir.encode()) + sends)
                if early:
                    connection.post(answer)
                assert await call.wait() == "the answer"
                assert [letter.frame and letter.frame.request for letter in mailbox.items] == [0, 1, 2]
                for caller in callers.connections():
                    caller.connection.close()
