"""An actor process from its first breath to its last words."""

from __future__ import annotations

import faulthandler
import io
import os
import pickle
import socket
import sys
import traceback
from typing import Any, Final, NoReturn

import anyio

from colos.errors import NoSuchMethod, RuntimeFailure
from colos.runtime import actor as actor_module
from colos.runtime import message, process, rundir, transport
from colos.runtime.actor import Actor, ActorRef, Here, Switchboard
from colos.runtime.message import Frame
from colos.runtime.supervisor import ChildSpec
from colos.runtime.transport import BrokenConnectionError, Connection, Listener, Mailbox

_FAREWELL_S: Final = 1.0
"""How long answers and goodbyes may take to leave at the end: a client that does not read loses them."""
_TEXT_MAX: Final = 64 << 10


def describe(error: BaseException) -> str:
    """An exit reason: `error: ValueError: no such account`, in one line."""
    text = " ".join(str(error).split())
    return f"error: {type(error).__name__}{': ' if text else ''}{text[:1000]}"


def last_words(reason: str, trace: str) -> bytes:
    """The EXIT frame."""
    return message.encode(message.EXIT, 0, pickle.dumps((reason, trace[-_TEXT_MAX:]), 5))


def say_last_words(control: socket.socket, reason: str, trace: str) -> None:
    """Tell the supervisor, outside an event loop, why this process ends."""
    try:
        control.setblocking(True)
        control.settimeout(_FAREWELL_S)
        control.sendall(last_words(reason, trace))
    except OSError:  # it is gone, or does not listen; the wait status must do
        pass


def run(spec: ChildSpec, path: str, id_: int, run_dir: str, control: socket.socket, backend: str) -> NoReturn:
    """Be this actor until its end; `control` is the socket to its supervisor, and its lifeline."""
    directory = f"{run_dir}/actors/{id_}"
    _open_log(f"{directory}/log")
    listening = transport.listen(directory)
    worker = _Worker(spec, path, id_, run_dir, control, listening)
    anyio.run(worker.main, backend=backend)
    raise AssertionError("an actor's main loop ends only with its process")


class _LogWriter(io.RawIOBase):
    """Unbuffered standard output.  What a full disk does not take is lost: a print must not end an actor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def write(self, data: object, /) -> int:
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        try:
            os.write(self._descriptor, view)
        except OSError:  # see the class
            pass
        return len(view)


class _NoInput(io.RawIOBase):
    """An actor's standard input, which is /dev/null: always at its end."""

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 0

    def readinto(self, buffer: object, /) -> int:
        return 0


_streams: list[Any] = []
"""An actor's stdin, stdout and stderr, made before it is forked."""
_inherited: list[object] = []
"""The streams of the process this was forked from: kept, so that what they hold is not written twice."""


def prepare_streams() -> None:
    """Make the objects that will be every actor's standard streams; they open nothing."""
    faulthandler.enable(file=2)  # SIGSEGV and the like leave a traceback in whatever is stderr then
    if not _streams:
        # TextIOWrapper takes a raw stream, as `python -u` does, but is not typed so.
        raw: tuple[Any, Any] = (_LogWriter(1), _LogWriter(2))
        _streams.append(io.TextIOWrapper(io.BufferedReader(_NoInput()), "utf-8"))
        _streams.extend(io.TextIOWrapper(stream, "utf-8", "backslashreplace", write_through=True) for stream in raw)


def _open_log(path: str) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    try:
        log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError:  # no room for a log: the actor can do without
        log = null
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for descriptor in {null, log}:
        if descriptor > 2:
            os.close(descriptor)
    _inherited.extend((sys.stdin, sys.stdout, sys.stderr, sys.__stdin__, sys.__stdout__, sys.__stderr__))
    sys.stdin, sys.stdout, sys.stderr = _streams
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = _streams  # type: ignore[misc]


class _Worker:
    def __init__(
        self, spec: ChildSpec, path: str, id_: int, run_dir: str, control: socket.socket, listening: socket.socket
    ) -> None:
        self._spec = spec
        self._path = path
        self._id = id_
        self._run_dir = run_dir
        self._control_socket = control
        self._listening = listening
        self._allowed = actor_module.public_methods(spec.actor)
        self._mailbox: Mailbox[tuple[Connection, Frame]] = Mailbox(spec.actor.mailbox_limit)
        self._connections: set[Connection] = set()
        self._stop_reason = ""
        self._words = ("normal", "")

    async def main(self) -> None:
        async with anyio.create_task_group() as tasks:
            self._spawn = spawn = tasks.start_soon
            self._go = anyio.Event()
            self._control = Connection(self._control_socket, spawn)
            self._board = Switchboard(self._run_dir, spawn, self._id)
            ref = ActorRef(self._path, self._id, self._board)
            actor_module.be_here(Here(ref, self._board, self._stop_by_itself))
            os.register_at_fork(after_in_child=self._close_after_fork)
            spawn(self._obey)
            self._control.post(message.encode(message.HELLO, 0, b"%d" % os.getpid()))
            await self._go.wait()
            spawn(Listener(self._listening, spawn, self._attend).run)
            await self._live()
            await self._farewell()

    # --- the supervisor

    async def _obey(self) -> None:
        try:
            while True:
                for frame in await self._control.receive():
                    if frame.kind == message.GO:
                        self._go.set()
                    elif frame.kind == message.STOP:
                        self._ask_to_stop("shutdown")
        except EOFError:
            os._exit(1)  # the lifeline: nobody is left who could restart, stop or reap this process

    def _ask_to_stop(self, reason: str) -> None:
        self._stop_reason = self._stop_reason or reason
        self._mailbox.close()

    def _stop_by_itself(self) -> None:
        self._answer(self._control, message.encode(message.STOP))
        self._ask_to_stop("normal")

    def _show(self, state: str) -> None:
        rundir.write(f"{self._run_dir}/actors/{self._id}/state", f"{state}\n")

    # --- the mailbox

    async def _attend(self, connection: Connection) -> None:
        self._connections.add(connection)
        try:
            while True:
                for frame in await connection.receive():
                    if frame.kind not in (message.CALL, message.CAST):
                        raise message.ProtocolError(f"a client sent a frame of kind {frame.kind}")
                    await self._mailbox.put((connection, frame))
        finally:
            self._connections.discard(connection)

    async def _live(self) -> None:
        """Construct, init, handle messages, terminate; leaves the reason in `_words`."""
        try:
            actor = self._spec.actor(*self._spec.args, **self._spec.kwargs)
            await actor.init()
        except (Exception, SystemExit) as error:
            self._words = (describe(error), _trace(error))
            return
        self._show("running")
        self._control.post(message.encode(message.READY))
        while (letter := await self._mailbox.get()) is not None:
            if not await self._handle(actor, *letter):
                return
        self._words = (self._stop_reason, "")
        self._show("stopping")
        try:
            # When the supervisor asked, it keeps the time; who stops by himself has only this.
            with anyio.move_on_after(self._spec.shutdown_s if self._stop_reason == "normal" else None) as deadline:
                await actor.terminate(self._stop_reason)
            if deadline.cancelled_caught:
                self._words = (f"error: terminate() took longer than {self._spec.shutdown_s:g} s", "")
        except (Exception, SystemExit) as error:
            self._words = (describe(error), _trace(error))

    async def _handle(self, actor: Actor, connection: Connection, frame: Frame) -> bool:
        """Run one message; False if the actor is to end, for the reason in `_words`."""
        connection.taken = frame.request
        method = "?"
        try:
            method, args, kwargs = message.decode(frame.body)
            if method not in self._allowed:
                raise self._no_such_method(method)
            running = getattr(actor, method)(*args, **kwargs)
        except Exception as error:  # unreadable, unknown or with wrong arguments: none of the actor's code ran
            self._answer_failure(connection, frame, method, error)
            return True
        try:
            value = await running
        except actor.expected as error:
            self._answer_failure(connection, frame, method, error)
            return True
        except (Exception, SystemExit) as error:
            return self._crash(connection, frame, method, error)
        if frame.kind == message.CALL:
            try:
                self._answer(connection, message.encode_result(frame.request, self._path, method, value))
            except RuntimeFailure as error:  # the method has run; only its value cannot travel
                self._answer_failure(connection, frame, method, error)
        return True

    def _crash(self, connection: Connection, frame: Frame, method: str, error: BaseException) -> bool:
        if isinstance(error, SystemExit) and not error.code:
            self._stop_by_itself()  # sys.exit() is a clean end; who called sees the connection end
            return True
        self._words = (describe(error), _trace(error))
        # The supervisor first: nobody may learn of this end and still find the name taken.
        self._answer(self._control, last_words(*self._words))
        if frame.kind == message.CALL:
            self._answer_failure(connection, frame, method, error)
        return False

    def _no_such_method(self, method: object) -> NoSuchMethod:
        import difflib  # only a mistaken caller needs it

        allowed = tuple(sorted(self._allowed))
        close = difflib.get_close_matches(str(method), allowed, 1)
        return NoSuchMethod(self._path, str(method), allowed, close[0] if close else "")

    def _answer(self, connection: Connection, frame: bytes) -> None:
        try:
            connection.post(frame)
        except BrokenConnectionError:  # who asked is gone, or was cut off for not reading
            pass

    def _answer_failure(self, connection: Connection, frame: Frame, method: str, error: BaseException) -> None:
        trace = _trace(error)
        if frame.kind == message.CALL:
            self._answer(connection, message.encode_failure(frame.request, error, trace))
        else:
            process.complain(f"the cast of {method!r} failed:\n{trace}")

    # --- the end

    async def _farewell(self) -> NoReturn:
        reason, trace = self._words
        farewells = [(self._control, last_words(reason, trace))]
        farewells += [
            (connection, message.encode(message.GOODBYE, connection.taken, reason.encode(errors="replace")))
            for connection in (*self._connections, *self._refuse_newcomers())
        ]
        for connection, frame in farewells:
            self._answer(connection, frame)
        with anyio.move_on_after(_FAREWELL_S):
            for connection, _ in farewells:
                await connection.flushed()
        # No interpreter shutdown: what was inherited (atexit hooks, buffers) is not this process's to run.
        os._exit(0 if reason in ("normal", "shutdown") else 1)

    def _refuse_newcomers(self) -> list[Connection]:
        """Stop listening; who is connected but not yet attended learns that nothing of his was taken."""
        rundir.remove_file(f"{self._run_dir}/actors/{self._id}/{transport.SOCKET_NAME}")
        waiting = []
        try:
            while True:
                waiting.append(Connection(self._listening.accept()[0], self._spawn))
        except OSError:  # nobody else waits, or no descriptor is left to answer with: then his call ends unknown
            pass
        return waiting

    def _close_after_fork(self) -> None:
        # A process that the actor forks must not keep its sockets open after its death.
        self._listening.close()
        for connection in (self._control, *self._connections, *self._board.connections()):
            connection.close_after_fork()


def _trace(error: BaseException) -> str:
    """The author's traceback, without this file's own frame on top."""
    frames = error.__traceback__
    if frames is not None and frames.tb_next is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames))
