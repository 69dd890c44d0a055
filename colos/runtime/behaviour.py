"""What a process does between its first breath and its last words: serve an actor, run a function, do a task.

Each returns the reason of its end and a traceback.  Source: gen_server(3), Elixir's Task.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import anyio

from colos.errors import NoSuchMethod, RuntimeFailure
from colos.runtime import message, process, reasons
from colos.runtime.actor import Actor, public_methods
from colos.runtime.here import ExitSignal
from colos.runtime.mailbox import Letter
from colos.runtime.reasons import NORMAL, Exit

if TYPE_CHECKING:
    from colos.runtime.worker import Worker


class Postponed(Exception):
    """Raised by an actor's method: this message is not handled yet, and waits among `letters`."""

    def __init__(self, letters: list[Letter]) -> None:
        self.letters = letters


Words = tuple[object, str]
_BREATH: Final = 32
"""After so many messages in a row others get a turn: the root's signals, above all."""
_LINGER_S: Final = 5.0
"""How long a finished task waits for who wants its result."""


def reason_of(error: BaseException) -> Words:
    """The reason that an exception ends a process with, and its traceback."""
    if isinstance(error, Exit):
        return error.reason, ""
    return reasons.describe(error), trace_of(error)


def trace_of(error: BaseException) -> str:
    """The author's traceback, without this file's own frame on top."""
    frames = error.__traceback__
    if frames is not None and frames.tb_next is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames))


# --- actors ------------------------------------------------------------------------------


async def _run_actor(worker: Worker, target: type[Actor], args: Any, kwargs: Mapping[str, Any]) -> Words:
    actor = target(*args, **kwargs)
    worker.author = actor
    await actor.init()
    worker.ready()
    ended = await _ActorLoop(worker, actor).run()
    if ended is not None:
        return ended
    worker.show("stopping")
    worker.stats.idle()
    reason = worker.stop_reason
    # When the supervisor asked, it keeps the time; who stops by itself has only this.
    own_time = None if reason == reasons.SHUTDOWN else worker.plan.shutdown_s
    with anyio.move_on_after(own_time) as deadline:
        await actor.terminate(reason)
    if deadline.cancelled_caught:
        return f"error: terminate() took longer than {worker.plan.shutdown_s:g} s", ""
    return reason, ""


class _ActorLoop:
    """Messages, one at a time, until it is to stop (None) or has crashed."""

    def __init__(self, worker: Worker, actor: Actor) -> None:
        self._worker = worker
        self._actor = actor
        self._methods = {name: getattr(actor, name) for name in public_methods(type(actor))}

    async def run(self) -> Words | None:
        worker = self._worker
        mailbox, stats, latest = worker.mailbox, worker.stats, worker.latest
        since_breath = 0
        while not mailbox.closed:
            letter = mailbox.take()
            if letter is None:
                stats.idle()
                stats.waiting(0)
                await mailbox.wait()
                since_breath = 0
                continue
            since_breath += 1
            waiting = len(mailbox.items)
            if waiting < _BREATH:
                stats.waiting(waiting)
            if since_breath >= _BREATH:
                since_breath = 0
                stats.waiting(waiting)
                await anyio.lowlevel.checkpoint()
            latest.append(letter)
            frame = letter.frame
            if frame is None or frame.kind == message.SEND:
                ended = await self._inform(letter)
            else:
                ended = await self._handle(letter, frame)
            if ended is not None:
                return ended
        return None

    async def _inform(self, letter: Letter) -> Words | None:
        worker = self._worker
        worker.stats.busy("info")
        try:
            value = letter.open()
        except Exception as error:  # none of the actor's code ran
            process.complain(f"a message cannot be read:\n{trace_of(error)}")
            return None
        if isinstance(value, ExitSignal) and letter.frame is None and value.sender in worker.ancestors[:1]:
            worker.ask_to_stop(value.reason)
            return None
        try:
            await self._actor.info(value)
        except SystemExit as error:
            if error.code:
                return reason_of(error)
            worker.stop(NORMAL)
        except Exception as error:
            return reason_of(error)
        return None

    async def _handle(self, letter: Letter, frame: message.Frame) -> Words | None:
        """Run one call or cast; the reason if the actor is to end."""
        worker, caller = self._worker, letter.caller
        assert caller is not None
        if frame.request > caller.taken:
            caller.taken = frame.request
        method = "?"
        try:
            method, args, kwargs = message.decode(frame)
            function = self._methods.get(method)
            if function is None:
                raise self._no_such_method(method)
            running = function(*args, **kwargs)
        except Exception as error:  # unreadable, unknown or with wrong arguments: none of the actor's code ran
            self._fail(letter, frame, method, error)
            return None
        worker.stats.busy(method)
        try:
            value = await running
        except Postponed as later:
            later.letters.append(letter)
            return None
        except self._actor.expected as error:
            self._fail(letter, frame, method, error)
            return None
        except (Exception, SystemExit) as error:
            return self._crash(letter, frame, method, error)
        if frame.kind == message.CALL:
            self._succeed(letter, frame, method, value)
        return None

    def _succeed(self, letter: Letter, frame: message.Frame, method: str, value: object) -> None:
        worker, caller = self._worker, letter.caller
        assert caller is not None
        mark = worker.board.posted_to(caller.key)
        try:
            answer = message.encode_result(frame.request, worker.ref.path, method, value, mark)
        except RuntimeFailure as error:  # the method has run; only its value cannot travel
            self._fail(letter, frame, method, error)
            return
        if worker.tracer.watchers:
            worker.tracer.tell("out", message.RESULT, caller.name, value)
        worker.answer(caller.connection, answer)

    def _crash(self, letter: Letter, frame: message.Frame, method: str, error: BaseException) -> Words | None:
        worker = self._worker
        if isinstance(error, SystemExit) and not error.code:
            worker.stop(NORMAL)  # sys.exit() is a clean end; who called sees the connection end
            return None
        words = reason_of(error)
        # The root first: nobody may learn of this end and still find the name taken.
        worker.tell_root(message.encode_last_words(*words, worker.report(words[0])))
        if frame.kind == message.CALL and not isinstance(error, Exit):
            self._fail(letter, frame, method, error)
        return words

    def _fail(self, letter: Letter, frame: message.Frame, method: str, error: BaseException) -> None:
        worker, caller = self._worker, letter.caller
        assert caller is not None
        trace = trace_of(error)
        if frame.kind == message.CALL:
            if worker.tracer.watchers:
                worker.tracer.tell("out", message.FAILURE, caller.name, error)
            mark = worker.board.posted_to(caller.key)
            worker.answer(caller.connection, message.encode_failure(frame.request, error, trace, mark))
        else:
            process.complain(f"the cast of {method!r} failed:\n{trace}")

    def _no_such_method(self, method: object) -> NoSuchMethod:
        import difflib  # only a mistaken caller needs it

        allowed = tuple(sorted(self._methods))
        close = difflib.get_close_matches(str(method), allowed, 1)
        return NoSuchMethod(self._worker.ref.path, str(method), allowed, close[0] if close else "")


# --- plain processes and tasks -----------------------------------------------------------


async def _run_process(worker: Worker, target: Callable[..., Awaitable[object]], args: Any, kwargs: Any) -> Words:
    worker.mailbox.on_call = functools.partial(_refuse, worker)
    worker.ready()
    worker.stats.busy(target.__name__)
    await target(*args, **kwargs)
    return NORMAL, ""


def _refuse(worker: Worker, letter: Letter) -> None:
    """Calls mean nothing to a plain process: who calls is told so, instead of waiting."""
    assert letter.frame is not None
    assert letter.caller is not None
    try:
        method = str(message.decode(letter.frame)[0])
    except Exception:  # the author's unpickling; the name is only for the error's text
        method = "?"
    error = NoSuchMethod(worker.ref.path, method, ())
    if letter.frame.kind == message.CALL:
        worker.answer(letter.caller.connection, message.encode_failure(letter.frame.request, error, ""))
    else:
        process.complain(f"a cast of {method!r} came, and this is a plain process: {error}")


async def _run_task(worker: Worker, target: Callable[..., Awaitable[object]], args: Any, kwargs: Any) -> Words:
    asked: list[Letter] = []
    wanted = anyio.Event()

    def ask(letter: Letter) -> None:
        asked.append(letter)
        wanted.set()

    worker.mailbox.on_call = ask
    worker.ready()
    worker.stats.busy(target.__name__)
    words: Words = (NORMAL, "")
    value: object = None
    failure: BaseException | None = None
    try:
        value = await target(*args, **kwargs)
    except Exit as error:
        return error.reason, ""
    except (Exception, SystemExit) as error:
        failure, words = error, reason_of(error)
    with anyio.move_on_after(_LINGER_S):
        await wanted.wait()
    for letter in asked:
        _tell_result(worker, letter, value, failure, words[1])
    return words


def _tell_result(worker: Worker, letter: Letter, value: object, failure: BaseException | None, trace: str) -> None:
    assert letter.frame is not None
    assert letter.caller is not None
    request = letter.caller.taken = letter.frame.request
    mark = worker.board.posted_to(letter.caller.key)
    answer: message.Parts | bytes
    if failure is not None:
        answer = message.encode_failure(request, failure, trace, mark)
    else:
        try:
            answer = message.encode_result(request, worker.ref.path, "result", value, mark)
        except RuntimeFailure as error:
            answer = message.encode_failure(request, error, "", mark)
    worker.answer(letter.caller.connection, answer)


RUN: Final[Mapping[str, Callable[..., Awaitable[Words]]]] = {
    "actor": _run_actor,
    "process": _run_process,
    "task": _run_task,
}
