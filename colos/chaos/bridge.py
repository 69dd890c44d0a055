"""From Hypothesis's thread to the event loop and back.

Hypothesis drives a state machine from the main thread; rules may be coroutines.  One event loop
runs beside it in a thread, with one task group an example.  An exception crosses back as a
*value* and is raised on the main thread: raised through the portal, a `BaseException` would kill
the portal, and healing needs it (measured; DESIGN 5).
"""

from __future__ import annotations

import functools
import inspect
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager
from typing import Any

import anyio
from anyio.abc import TaskGroup
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

# Hypothesis keeps the running test case in a thread-local variable and offers no public way to
# carry it to another thread; `note`, `event`, `target` and `assume` in a coroutine need it there.
from hypothesis.control import _current_build_context
from hypothesis.reporting import reporter

from colos.chaos.alarm import OpDeadline, call_within
from colos.errors import HarnessBroken

__all__ = ["BACKENDS", "OpDeadline", "OpStuck", "Outlet", "in_test_case"]

BACKENDS = ("asyncio", "trio")
#: How long a cancelled coroutine may take to end.
_CANCEL_S = 1.0
_CLOSE_S = 5.0
#: How often a call that waits looks whether there is still a loop.
_LOOK_S = 0.5


class OpStuck(OpDeadline):
    """What could not be ended: a coroutine that blocks the event loop or will not be cancelled, or a plain function
    outside the main thread."""

    def __init__(self, said: str, ended: threading.Event) -> None:
        super().__init__(said)
        self._ended = ended

    def ends(self, timeout_s: float) -> bool:
        """Wait for it; False at the deadline."""
        return self._ended.wait(timeout_s)


class Outlet:
    """An event loop in a thread, for one item; `example` opens a task group for one run."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self._stack = ExitStack()
        self.portal: BlockingPortal = self._stack.enter_context(start_blocking_portal(backend))
        # The portal takes two round trips between the threads for a call; a bell and a queue take one.
        self._orders: deque[Callable[[TaskGroup], object]] = deque()
        self._ear, self._bell = socket.socketpair()
        self._ear.setblocking(False)
        self._served = self.portal.start_task_soon(self._serve)

    def close(self) -> None:
        """End the loop and its thread."""
        try:
            self._order(lambda group: group.cancel_scope.cancel())
            self._served.result(_CLOSE_S)
        finally:
            self._stack.close()
            self._ear.close()
            self._bell.close()

    def abandon(self, held: ExitStack) -> Outlet:
        """Leave a loop that is blocked for ever, its thread, and what is `held` on it; gives another one."""
        # Whoever lets go of the portal waits for its thread; what a daemon thread holds, nobody ever lets go of.
        threading.Thread(target=_hold, args=(self._stack, held), daemon=True, name="colos-abandoned").start()
        return Outlet(self.backend)

    def _order(self, order: Callable[[TaskGroup], object]) -> None:
        """Have the loop carry out an order, soon."""
        self._orders.append(order)
        self._bell.send(b"!")

    async def _serve(self) -> None:
        async with anyio.create_task_group() as group:
            while True:
                await anyio.wait_readable(self._ear)
                self._ear.recv(4096)
                while self._orders:
                    self._orders.popleft()(group)

    @contextmanager
    def example(self) -> Generator[TaskGroup, None, None]:
        """The root task group of one run; what still runs in it at the end is cancelled."""
        with self.portal.wrap_async_context_manager(_root()) as group:
            yield group

    def enter(self, stack: ExitStack, manager: AbstractAsyncContextManager[Any]) -> Any:
        """Enter an asynchronous context manager for as long as `stack` lives."""
        return stack.enter_context(self.portal.wrap_async_context_manager(manager))

    def call(self, function: Callable[..., Any], *args: Any, timeout_s: float | None = None, **kwargs: Any) -> Any:
        """Call the author's function: a coroutine on the loop, anything else right here.

        Raises what it raised; `OpDeadline` when it was still waiting at the deadline, and `OpStuck` when it
        cannot be ended either.
        """
        if not inspect.iscoroutinefunction(function):
            if timeout_s is None or threading.current_thread() is threading.main_thread():
                return call_within(timeout_s, function, *args, **kwargs)
            return _apart(functools.partial(function, *args, **kwargs), timeout_s)
        task = _Task(function, args, kwargs, timeout_s)
        self._order(lambda group: group.start_soon(task.run))
        try:
            return task.result(self._served)
        except BaseException:
            if not task.ended.is_set():  # Ctrl-C while we wait: what runs there must not go on beside the healing
                self._order(lambda _: task.cancel())
                task.ended.wait(_CANCEL_S)  # cancelling only asks; a thread that waits on the sandbox takes our answers
            raise


def _apart(call: Callable[[], Any], timeout_s: float) -> Any:
    """Make a call in a thread of its own, for a caller whom no alarm interrupts.

    Raises what it raises, or `OpStuck`.
    """
    context, report = _current_build_context.value, reporter.value
    ended, outcome = threading.Event(), Future[Any]()

    def run() -> None:
        with _current_build_context.with_value(context), reporter.with_value(report):
            try:
                outcome.set_result(call())
            except BaseException as error:
                outcome.set_exception(error)
            finally:
                ended.set()

    threading.Thread(target=run, daemon=True, name="colos-op").start()
    if not ended.wait(timeout_s):
        raise OpStuck(f"still waiting after {timeout_s:g} s, in a thread of its own", ended)
    return outcome.result()


def _hold(*held: ExitStack) -> None:
    threading.Event().wait()
    del held


class _Task:
    """One call of an author's coroutine, made on the loop and awaited in Hypothesis's thread."""

    def __init__(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], timeout_s: float | None
    ) -> None:
        self._call = functools.partial(function, *args, **kwargs)
        self._timeout_s = timeout_s
        self._context, self._report = _current_build_context.value, reporter.value
        self._scope: anyio.CancelScope | None = None
        self._unwanted = False
        self._value: Any = None
        self._error: BaseException | None = None
        self.ended = threading.Event()

    def result(self, loop: Future[None]) -> Any:
        """Wait for it.  Raises what it raised, and `HarnessBroken` when the loop has ended under it.

        `OpStuck` when neither its deadline nor its cancelling has ended it.
        """
        patience_s = None if self._timeout_s is None else self._timeout_s + _CANCEL_S
        began = time.monotonic()
        while not self.ended.wait(_LOOK_S):
            if loop.done():
                raise HarnessBroken("the event loop of rules and properties", f"has ended: {loop.exception()!r}")
            if patience_s is not None and time.monotonic() - began > patience_s:
                raise OpStuck(
                    f"still waiting after {self._timeout_s:g} s, and it cannot be cancelled: it blocks the event loop "
                    "(a plain function that waits, in a coroutine), or it catches its cancellation",
                    self.ended,
                )
        if self._error is not None:
            raise self._error
        return self._value

    def cancel(self) -> None:
        """On the loop: ask it to end, or never to begin."""
        self._unwanted = True
        if self._scope is not None:
            self._scope.cancel()

    async def run(self) -> None:
        """On the loop: make the call; whatever comes of it is a value here."""
        if self._unwanted:
            self.ended.set()
            return
        with (
            _current_build_context.with_value(self._context),
            reporter.with_value(self._report),
            anyio.CancelScope() as self._scope,
        ):
            try:
                self._value = await self._within_deadline()
            except anyio.get_cancelled_exc_class():
                self._error = HarnessBroken("the event loop of rules and properties", "was closed during a call")
                raise
            except BaseException as error:
                self._error = _unwrapped(error)
            finally:
                self.ended.set()

    async def _within_deadline(self) -> Any:
        if self._timeout_s is None:
            return await self._call()
        where = None
        with anyio.move_on_after(self._timeout_s):
            try:
                return await self._call()
            except anyio.get_cancelled_exc_class() as cancelled:
                where = cancelled.__traceback__
                raise
        raise OpDeadline(f"still waiting after {self._timeout_s:g} s").with_traceback(where)


def _unwrapped(error: BaseException) -> BaseException:
    """The one exception inside nested groups; a group of several stays one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


class _Root:
    """An asynchronous context manager around a task group that is cancelled at its end."""

    async def __aenter__(self) -> TaskGroup:
        self._group = anyio.create_task_group()
        return await self._group.__aenter__()

    async def __aexit__(self, *exc_info: Any) -> bool | None:
        self._group.cancel_scope.cancel()
        return await self._group.__aexit__(*exc_info)


def _root() -> AbstractAsyncContextManager[TaskGroup]:
    return _Root()


def in_test_case(function: Callable[[Any], Any]) -> Any:
    """Run a function as one Hypothesis test case, so that `note`, `event` and `target` work in it.

    The function gets a data object as from ``st.data()``.  What it raises is raised here, as it was.
    """
    result: list[Any] = []
    raised: list[BaseException] = []

    @settings(max_examples=1, database=None, deadline=None, phases=[Phase.generate], backend="colos")
    @given(st.data())
    def once(data: Any) -> None:
        if result or raised:
            return
        try:
            result.append(function(data))
        except BaseException as error:  # crosses Hypothesis as a value: it must not replay live processes
            raised.append(error)

    once()
    if raised:
        raise raised[0]
    return result[0]
