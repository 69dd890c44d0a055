"""From Hypothesis's thread to the event loop and back.

Hypothesis drives a state machine from the main thread; rules may be coroutines.  One event loop
runs beside it in a thread, with one task group an example.  An exception crosses back as a
*value* and is raised on the main thread: raised through the portal, a `BaseException` would kill
the portal, and healing needs it (measured; DESIGN 5).
"""

from __future__ import annotations

import inspect
import threading
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

__all__ = ["BACKENDS", "OpDeadline", "Outlet", "in_test_case"]

BACKENDS = ("asyncio", "trio")
#: How long a cancelled coroutine may take to end.
_CANCEL_S = 1.0


class OpDeadline(TimeoutError):
    """A coroutine of the author's was still waiting at the step's deadline, and was cancelled."""


class Outlet:
    """An event loop in a thread, for one item; `example` opens a task group for one run."""

    def __init__(self, backend: str) -> None:
        self._stack = ExitStack()
        self.portal: BlockingPortal = self._stack.enter_context(start_blocking_portal(backend))

    def close(self) -> None:
        """End the loop and its thread."""
        self._stack.close()

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

        Raises what it raised; `OpDeadline` when a coroutine was still waiting at the deadline.
        """
        if not inspect.iscoroutinefunction(function):
            return function(*args, **kwargs)
        context, report, ended = _current_build_context.value, reporter.value, threading.Event()
        future: Future[tuple[Any, BaseException | None]] = self.portal.start_task_soon(
            _as_value, function, args, kwargs, timeout_s, context, report, ended
        )
        try:
            value, error = future.result()
        except BaseException:  # Ctrl-C while we wait: what runs there must not go on beside the healing
            future.cancel()
            ended.wait(_CANCEL_S)  # cancelling only asks; a thread that waits on the sandbox takes our answers
            raise
        if error is not None:
            raise error
        return value


async def _as_value(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    timeout_s: float | None,
    context: Any,
    report: Any,
    ended: threading.Event,
) -> tuple[Any, BaseException | None]:
    with _current_build_context.with_value(context), reporter.with_value(report):
        try:
            if timeout_s is None:
                return await function(*args, **kwargs), None
            with anyio.move_on_after(timeout_s) as scope:
                return await function(*args, **kwargs), None
            assert scope.cancelled_caught
            return None, OpDeadline(f"still waiting after {timeout_s:g} s")
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:
            return None, _unwrapped(error)
        finally:
            ended.set()


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
