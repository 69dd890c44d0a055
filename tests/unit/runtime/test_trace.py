"""Trace events: told to whoever watches, at nobody else's expense."""

from __future__ import annotations

import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from colos.runtime import message
from colos.runtime.message import CALL, CAST, SEND, Frame, Parser
from colos.runtime.trace import TraceEvent, Tracer, request_text
from colos.runtime.transport import Connection

pytestmark = pytest.mark.anyio
DEADLINE_S = 10.0


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError("no words")


class Unreadable:
    def __reduce__(self) -> tuple[object, ...]:
        return (int, ("no number",))


def frame_of(parts: bytes | message.Parts) -> Frame:
    [frame] = Parser().feed(parts if isinstance(parts, bytes) else b"".join(parts))
    return frame


@asynccontextmanager
async def watched(tracer: Tracer) -> AsyncIterator[Connection]:
    """Where a watcher reads."""
    left, right = socket.socketpair()
    with anyio.fail_after(DEADLINE_S):
        async with anyio.create_task_group() as tasks:
            ours, theirs = Connection(left, tasks.start_soon), Connection(right, tasks.start_soon)
            tracer.watch(ours)
            try:
                yield theirs
            finally:
                ours.close()
                theirs.close()


async def events(connection: Connection, count: int) -> list[TraceEvent]:
    got: list[TraceEvent] = []
    while len(got) < count:
        for frame in await connection.receive():
            assert frame.kind == message.TRACE
            got.append(TraceEvent(*message.decode(frame)))
    return got


async def test_an_event_says_which_way_what_went_and_with_whom() -> None:
    tracer = Tracer()
    async with watched(tracer) as watcher:
        tracer.tell("out", CALL, "app/db", "add(1)")
        tracer.tell("out", message.RESULT, "#7", [1, 2])
        tracer.tell("in", message.NOTICE, "app/db", "down: killed")
        tracer.tell_frame("in", frame_of(message.encode_request(CAST, 1, "a", "add", (1, "x"), {"k": b"v"})), "#8")
        tracer.tell_frame("in", frame_of(message.encode_message("a", {"some": "thing"})), "a client")
        assert [event[1:] for event in await events(watcher, 5)] == [
            ("out", "call", "app/db", "add(1)"),
            ("out", "result", "#7", "[1, 2]"),
            ("in", "signal", "app/db", "down: killed"),
            ("in", "cast", "#8", "add(1, 'x', k=b'v')"),
            ("in", "message", "a client", "{'some': 'thing'}"),
        ]


async def test_what_the_author_wrote_badly_is_told_all_the_same() -> None:
    tracer = Tracer()
    async with watched(tracer) as watcher:
        tracer.tell("out", message.RESULT, "#7", Unspeakable())
        tracer.tell_frame("in", frame_of(message.encode_message("a", Unreadable())), "#8")
        tracer.tell_frame("in", frame_of(message.encode_request(CALL, 1, "a", "add", (Unspeakable(), 2), {})), "#8")
        tracer.tell("out", message.RESULT, "#7", "x" * 1_000_000)
        told = [event.what for event in await events(watcher, 4)]
    assert told[0] == "<Unspeakable, whose repr raised RuntimeError>"
    assert told[1].startswith("<unreadable: ValueError")
    assert told[2] == "add(<Unspeakable, whose repr raised RuntimeError>, 2)"
    assert len(told[3]) < 1000


async def test_every_watcher_is_told_and_one_that_left_is_forgotten() -> None:
    tracer = Tracer()
    async with watched(tracer) as one, watched(tracer) as other:
        tracer.tell("out", CALL, "a", "x()")
        assert len(await events(one, 1)) == len(await events(other, 1)) == 1
        one.close()
        tracer.tell("out", CALL, "a", "y()")
        tracer.tell("out", CALL, "a", "z()")
        assert [event.what for event in await events(other, 2)] == ["y()", "z()"]
        assert len(tracer.watchers) == 1
    tracer.tell("out", CALL, "a", "x()")
    assert tracer.watchers == []


async def test_who_asks_twice_is_told_once() -> None:
    tracer = Tracer()
    async with watched(tracer) as watcher:
        tracer.watch(tracer.watchers[0])
        tracer.tell("out", CALL, "a", "x()")
        tracer.tell("out", CALL, "a", "y()")
        assert [event.what for event in await events(watcher, 2)] == ["x()", "y()"]


async def test_a_watcher_that_does_not_read_misses_events_and_stops_nobody() -> None:
    tracer = Tracer()
    async with watched(tracer) as watcher:
        for number in range(20_000):
            tracer.tell("out", SEND, "a", f"{number} {'x' * 100}")
        assert not tracer.watchers[0].full
        got = await events(watcher, 1)
        numbers = [int(event.what.split()[0]) for event in got]
        assert numbers[0] == 0
        assert len(numbers) < 20_000
        while tracer.watchers[0]._outbox:
            numbers += [int(event.what.split()[0]) for event in await events(watcher, 1)]
        assert numbers == list(range(len(numbers)))  # what was told is whole, and in order


def test_a_call_is_written_as_it_would_be() -> None:
    assert request_text("deposit", ("a",), {"amount": 5}) == "deposit('a', amount=5)"
    assert request_text("stop", (), {}) == "stop()"
    assert request_text("add", (Unspeakable(),), {"k": Unspeakable()}).startswith("add(<Unspeakable, whose repr")


def test_an_event_reads_as_one_line() -> None:
    line = str(TraceEvent(1_000_000.25, "in", "call", "#7", "add(1)"))
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.250000 <- call     #7  add\(1\)", line)
    assert " -> " in str(TraceEvent(0.0, "out", "call", "#7", "add(1)"))
