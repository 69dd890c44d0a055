"""Calls from Hypothesis's thread to the event loop, and what comes back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import event, note
from hypothesis import strategies as st

from colos.chaos.bridge import BACKENDS, OpDeadline, OpStuck, Outlet, _Task, in_test_case
from colos.errors import HarnessBroken

DEADLINE_S = 10.0


@pytest.fixture(params=BACKENDS)
def outlet(request: pytest.FixtureRequest) -> Iterator[Outlet]:
    outlet = Outlet(request.param)
    yield outlet
    outlet.close()


async def where(value: object) -> tuple[object, int]:
    await anyio.lowlevel.checkpoint()
    return value, threading.get_ident()


def test_a_coroutine_runs_on_the_loop_and_anything_else_right_here(outlet: Outlet) -> None:
    value, thread = outlet.call(where, 7)
    assert value == 7
    assert thread != threading.get_ident()
    assert outlet.call(threading.get_ident) == threading.get_ident()


@pytest.mark.parametrize("error", [ValueError("no"), BaseExceptionGroup("g", [KeyError("k")]), SystemExit(3)])
def test_what_it_raises_is_raised_here_and_the_loop_lives(outlet: Outlet, error: BaseException) -> None:
    async def fail() -> None:
        raise error

    unwrapped = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error
    with pytest.raises(type(unwrapped)) as caught:
        outlet.call(fail)
    assert caught.value is unwrapped
    assert outlet.call(where, 1)[0] == 1


def test_a_coroutine_that_still_waits_at_its_deadline_is_cancelled(outlet: Outlet) -> None:
    ended = threading.Event()

    async def wait() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    with pytest.raises(OpDeadline):
        outlet.call(wait, timeout_s=0.01)
    assert ended.wait(DEADLINE_S)
    assert outlet.call(where, 1)[0] == 1


def in_a_thread(function: Callable[[], object]) -> object:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(DEADLINE_S)


def test_a_plain_function_outside_the_main_thread_has_a_deadline_too(outlet: Outlet) -> None:
    """No alarm reaches it there; it is left alone, and tells when it ends after all."""
    release = threading.Event()
    with pytest.raises(OpStuck, match=r"still waiting after 0\.05 s") as stuck:
        in_a_thread(lambda: outlet.call(release.wait, timeout_s=0.05))
    assert not stuck.value.ends(0)
    release.set()
    assert stuck.value.ends(DEADLINE_S)
    assert in_a_thread(lambda: outlet.call(lambda: 7, timeout_s=DEADLINE_S)) == 7
    with pytest.raises(KeyError, match="k"):
        in_a_thread(lambda: outlet.call({}.__getitem__, "k", timeout_s=DEADLINE_S))


def test_hypothesis_own_functions_work_there() -> None:
    def noting(data: Any) -> Any:
        note("said")
        event("happened")
        return data.draw(st.integers(3, 3))

    outlet = Outlet("asyncio")
    try:
        drawn = in_a_thread(lambda: in_test_case(lambda data: outlet.call(noting, data, timeout_s=DEADLINE_S)))
    finally:
        outlet.close()
    assert drawn == 3


def test_a_call_that_is_not_wanted_any_more_does_not_begin(outlet: Outlet) -> None:
    begun: list[str] = []

    async def begin() -> None:
        begun.append("begun")

    task = _Task(begin, (), {}, None)
    outlet._order(lambda _: task.cancel())
    outlet._order(lambda group: group.start_soon(task.run))
    assert task.ended.wait(DEADLINE_S)
    assert not begun


def test_a_call_that_is_not_wanted_any_more_ends(outlet: Outlet) -> None:
    task = _Task(anyio.sleep_forever, (), {}, None)
    outlet._order(lambda group: group.start_soon(task.run))
    outlet.call(where, 0)  # it has begun
    outlet._order(lambda _: task.cancel())
    assert task.ended.wait(DEADLINE_S)


def test_a_loop_that_has_ended_is_said_and_not_waited_for() -> None:
    outlet = Outlet("asyncio")
    try:
        outlet._order(lambda group: group.cancel_scope.cancel())
        with pytest.raises(HarnessBroken, match="the event loop of rules and properties"):
            outlet.call(where, 1)
    finally:
        outlet.close()
