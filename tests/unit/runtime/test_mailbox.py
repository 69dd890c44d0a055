"""The mailbox against a plain list, and those who wait at it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from colos.runtime import message
from colos.runtime.mailbox import Letter, Mailbox, Overflow
from colos.runtime.message import Frame

DEADLINE_S = 10.0
BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])


class Poison(Exception):
    """What some predicates raise."""


@dataclass(frozen=True)
class Held:
    """One letter, in the model: a call, a cast, a sent message, an unreadable one, or the runtime's own."""

    kind: str
    value: object
    letter: Letter

    @property
    def is_message(self) -> bool:
        return self.kind in ("send", "unreadable", "own")

    @property
    def droppable(self) -> bool:
        return self.kind in ("cast", "send", "unreadable")


FRAME_KINDS = {"call": message.CALL, "cast": message.CAST, "send": message.SEND, "unreadable": message.SEND}


def held(kind: str, value: object) -> Held:
    if kind == "own":
        return Held(kind, value, Letter(None, None, value))
    body = b"no pickle" if kind == "unreadable" else pickle.dumps(value if kind == "send" else ("m", (value,), {}))
    return Held(kind, value, Letter(Frame(FRAME_KINDS[kind], 1, 0, body), None))


def even(value: object) -> bool:
    return isinstance(value, int) and value % 2 == 0


def poisoned(value: object) -> bool:
    if value == 3:
        raise Poison
    return isinstance(value, str)


MATCHES: list[tuple[Any, Callable[[object], bool]]] = [
    (None, lambda value: True),
    (str, lambda value: isinstance(value, str)),
    ((str, bytes), lambda value: isinstance(value, str | bytes)),
    (even, even),
    (poisoned, poisoned),
    (lambda value: False, lambda value: False),
]
VALUES = st.integers(0, 5) | st.sampled_from(["a", b"b"])


class MailboxAgainstAList(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.model: list[Held] = []
        self.dropped = 0

    @initialize(limit=st.integers(1, 4), overflow=st.sampled_from(["wait", "drop_oldest"]))
    def begin(self, limit: int, overflow: Overflow) -> None:
        self.limit, self.overflow = limit, overflow
        self.mailbox = Mailbox(limit, overflow)

    @rule(kind=st.sampled_from(["call", "cast", "send", "own", "unreadable"]), value=VALUES)
    def put(self, kind: str, value: object) -> None:
        """The runtime puts what it has in a full mailbox too."""
        new = held(kind, value)
        if len(self.model) >= self.limit and self.overflow == "drop_oldest":
            first = next((one for one in self.model if one.droppable), None)
            if first is not None:
                self.model.remove(first)
                self.dropped += 1
        self.model.append(new)
        self.mailbox.put(new.letter)

    @rule()
    def take(self) -> None:
        letter = self.mailbox.take()
        assert letter is (self.model.pop(0).letter if self.model else None)

    @rule(match=st.sampled_from(MATCHES), start=st.integers(0, 3))
    def find(self, match: tuple[Any, Callable[[object], bool]], start: int) -> None:
        given_match, matches = match
        for at, one in enumerate(self.model):
            if at < start or not one.is_message:
                continue
            if one.kind == "unreadable":
                with pytest.raises((pickle.UnpicklingError, KeyError)):  # the latter is PyPy's
                    self.mailbox.find(given_match, start)
                del self.model[at]
                return
            try:
                wanted = matches(one.value)
            except Poison:
                with pytest.raises(Poison):
                    self.mailbox.find(given_match, start)
                return
            if wanted:
                assert self.mailbox.find(given_match, start) == (one.value, True, at)
                del self.model[at]
                return
        assert self.mailbox.find(given_match, start) == (None, False, len(self.model))

    @rule()
    def purge(self) -> None:
        """Only what the runtime itself put: what was sent may look the same."""
        self.model = [one for one in self.model if one.kind != "own" or not even(one.value)]
        self.mailbox.purge(even)

    @rule()
    def grow_hungry(self) -> None:
        self.mailbox.hungry += 1

    @precondition(lambda self: self.mailbox.hungry)
    @rule()
    def be_fed(self) -> None:
        self.mailbox.hungry -= 1

    @invariant()
    def holds_the_same(self) -> None:
        if hasattr(self, "mailbox"):
            assert [*self.mailbox.items] == [one.letter for one in self.model]
            assert len(self.mailbox) == len(self.model)
            assert self.mailbox.dropped == self.dropped
            assert self.mailbox.full == (len(self.model) >= self.limit * (10 if self.mailbox.hungry else 1))


TestMailboxAgainstAList = MailboxAgainstAList.TestCase


def test_where_calls_are_not_served_in_turn_they_never_enter() -> None:
    mailbox = Mailbox(1)
    called: list[Letter] = []
    mailbox.on_call = called.append
    letters = [held(kind, 1).letter for kind in ("call", "send", "cast", "own")]
    for letter in letters:
        mailbox.put(letter)
    assert called == [letters[0], letters[2]]
    assert [*mailbox.items] == [letters[1], letters[3]]


def test_a_message_is_unpickled_once() -> None:
    mailbox = Mailbox(9)
    mailbox.put(held("send", [1]).letter)
    seen: list[object] = []
    mailbox.find(lambda value: seen.append(value))  # type: ignore[arg-type,func-returns-value]
    value, found, _ = mailbox.find(list)
    assert found
    assert value is seen[0]


# --- waiting -----------------------------------------------------------------------------


async def fill(mailbox: Mailbox, count: int) -> None:
    """As callers do it."""
    for number in range(count):
        while mailbox.full:
            await mailbox.turn()
        mailbox.put(held("send", number).letter)


async def receive(mailbox: Mailbox, match: Any) -> object:
    """As primitives.receive does it."""
    while True:
        value, found, _ = mailbox.find(match)
        if found:
            return value
        await mailbox.wait_hungrily()


async def take(mailbox: Mailbox) -> object:
    """As an actor does it."""
    while (letter := mailbox.take()) is None:
        await mailbox.wait()
    return letter.open()


@BACKENDS
def test_a_mailbox_is_bounded_and_in_order(backend: str) -> None:
    async def scene() -> None:
        mailbox = Mailbox(3)
        with anyio.fail_after(DEADLINE_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(fill, mailbox, 10)
                await anyio.wait_all_tasks_blocked()
                assert len(mailbox) == 3
                assert [await take(mailbox) for _ in range(10)] == list(range(10))

    anyio.run(scene, backend=backend)


@BACKENDS
@settings(max_examples=40)
@given(limit=st.integers(1, 4), distances=st.lists(st.integers(-1, 9), max_size=12))
def test_nobody_waits_for_ever_while_readers_pick_and_choose(backend: str, limit: int, distances: list[int]) -> None:
    """A reader takes the next (-1), or waits for one that stands some way behind; a sender waits for room."""

    async def scene() -> None:
        mailbox = Mailbox(limit)
        left = list(range(60))
        with anyio.fail_after(DEADLINE_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(fill, mailbox, len(left))
                for distance in distances:
                    if distance < 0:
                        assert await take(mailbox) == left.pop(0)
                    else:
                        wanted = left.pop(distance)
                        assert await receive(mailbox, lambda value, wanted=wanted: value == wanted) == wanted
                assert mailbox.hungry == 0
                assert [await take(mailbox) for _ in left] == left

    anyio.run(scene, backend=backend)


@BACKENDS
def test_what_is_skipped_is_taken_in_up_to_ten_times_as_much_and_no_more(backend: str) -> None:
    async def scene() -> None:
        mailbox = Mailbox(2)
        with anyio.fail_after(DEADLINE_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(fill, mailbox, 100)
                tasks.start_soon(receive, mailbox, lambda value: value == 99)
                await anyio.wait_all_tasks_blocked()
                assert len(mailbox) == 20
                tasks.cancel_scope.cancel()
            assert mailbox.hungry == 0

    anyio.run(scene, backend=backend)


@BACKENDS
@pytest.mark.parametrize("how", ["take", "find", "purge", "hunger", "let_in"])
def test_who_waits_for_room_is_told_of_it(backend: str, how: str) -> None:
    async def scene() -> None:
        mailbox = Mailbox(1)
        mailbox.put(held("own" if how == "purge" else "send", 2).letter)
        with anyio.fail_after(DEADLINE_S):
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(mailbox.turn)
                await anyio.wait_all_tasks_blocked()
                if how == "take":
                    mailbox.take()
                elif how == "find":
                    mailbox.find(int)
                elif how == "purge":
                    mailbox.purge(even)
                elif how == "let_in":
                    mailbox.let_in()
                else:
                    with anyio.CancelScope() as scope:
                        scope.cancel()
                        await mailbox.wait_hungrily()

    anyio.run(scene, backend=backend)


@BACKENDS
def test_closing_wakes_an_actor_that_waits_and_every_one_after(backend: str) -> None:
    async def scene() -> None:
        mailbox = Mailbox(3)
        with anyio.fail_after(DEADLINE_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(mailbox.wait)
                await anyio.wait_all_tasks_blocked()
                mailbox.close()
            assert mailbox.closed
            await mailbox.wait()

    anyio.run(scene, backend=backend)


@BACKENDS
def test_a_receive_goes_on_waiting_when_its_actor_is_asked_to_stop(backend: str) -> None:
    """It is part of the current message, which is finished first: it must neither end nor spin."""

    async def scene() -> None:
        mailbox = Mailbox(3)
        rounds = 0

        async def hungry_reader() -> None:
            nonlocal rounds
            while not mailbox.find(None)[1]:
                rounds += 1
                assert rounds < 5, "it spins"
                await mailbox.wait_hungrily()

        with anyio.fail_after(DEADLINE_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(hungry_reader)
                await anyio.wait_all_tasks_blocked()
                mailbox.close()
                await anyio.wait_all_tasks_blocked()
                mailbox.put(held("send", 1).letter)
            assert rounds == 2

    anyio.run(scene, backend=backend)
