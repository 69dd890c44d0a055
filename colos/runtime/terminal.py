"""A terminal into a live process: what `colos attach` speaks to.

Somebody who attaches is served from a thread of its own, which exists for only so long.  A read-only
terminal evaluates in a *copy*: the thread forks the process, while its event loop stands still for
that moment, and the copy answers and is gone.  A writing terminal evaluates on the event loop itself,
between two steps of what else runs there.

The client and the thread exchange packets: a length (4 bytes, network order), and so much JSON.  The
process greets first, and the client sends nothing before.  Requests: `{"do": "run", "text": source}`,
`{"do": "complete", "text": word}`, `{"do": "interrupt"}`; each but the last has one answer, `{"text": …}`
or `{"words": […]}`.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import queue
import select
import socket
import struct
import threading
import warnings
from collections.abc import Iterator
from typing import Any, Final

import anyio
import anyio.abc

from colos.runtime import evaluation, here
from colos.runtime.evaluation import LIFE_S, Copy, Evaluation

LENGTH: Final = struct.Struct("!I")
PACKET_BYTES_MAX: Final = 16 << 20
_STUCK_S: Final = 1.0
"""How long the event loop may take to turn before it is taken to be stuck."""
_PARKED_S: Final = 5.0
"""How long the event loop stands still at most, for a fork that does not come to its end."""
_STUCK: Final = "(the event loop does not turn: this was done beside it)\n"


# --- packets -----------------------------------------------------------------------------


def send_packet(connection: socket.socket, packet: dict[str, Any]) -> None:
    """Say something on a blocking socket.  Raises OSError when nobody is there."""
    data = json.dumps(packet).encode()
    connection.sendall(LENGTH.pack(len(data)) + data)


def receive_packet(connection: socket.socket) -> dict[str, Any] | None:
    """What the other side said, or None at the end.  Raises OSError, and ValueError on what is no packet."""
    head = _receive_exactly(connection, LENGTH.size)
    if head is None:
        return None
    (length,) = LENGTH.unpack(head)
    if length > PACKET_BYTES_MAX:
        raise ValueError(f"a packet of {length} bytes")
    data = _receive_exactly(connection, length)
    packet = None if data is None else json.loads(data)
    if packet is not None and not isinstance(packet, dict):
        raise ValueError("a packet that is no object")
    return packet


def _receive_exactly(connection: socket.socket, count: int) -> bytes | None:
    data = bytearray()
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            return None
        data += more
    return bytes(data)


# --- on the event loop -------------------------------------------------------------------


class _Job:
    """Something to be done on the event loop, by whoever claims it first."""

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation
        self.begun = threading.Event()
        self.done = threading.Event()
        self.scope: anyio.CancelScope | None = None
        self._claim = threading.Lock()

    def claim(self) -> bool:
        """True for the first."""
        return self._claim.acquire(blocking=False)

    async def perform(self, bell: socket.socket) -> None:
        """Do it here."""
        if not self.claim():
            return
        self.begun.set()
        ended = False
        try:
            with anyio.CancelScope() as self.scope:
                await self.evaluation.run()
                ended = True
        finally:
            if not ended:
                self.evaluation.out.write("interrupted\n")
            self.done.set()
            with contextlib.suppress(OSError):  # the thread is gone
                bell.send(b"d")


class _Halt:
    """The event loop stands still from `parked` until `released`."""

    def __init__(self) -> None:
        self.parked = threading.Event()
        self.released = threading.Event()

    async def perform(self, bell: socket.socket) -> None:
        """Stand still."""
        del bell
        self.parked.set()
        self.released.wait(_PARKED_S)


class _Cancel:
    """Give up a job."""

    def __init__(self, job: _Job) -> None:
        self._job = job

    async def perform(self, bell: socket.socket) -> None:
        """Cancel it, if it runs."""
        del bell
        if self._job.scope is not None:
            self._job.scope.cancel()


_Task = _Job | _Halt | _Cancel


async def serve(client: socket.socket, write: bool) -> None:
    """Serve somebody who attached, until they leave.  Raises OSError or RuntimeError where there is no room for it."""
    ours, theirs = socket.socketpair()
    try:
        ours.setblocking(False)
        client.setblocking(True)
        terminal = _Terminal(client, theirs, write)
        threading.Thread(target=terminal.run, name="colos terminal", daemon=True).start()
    except BaseException:
        ours.close()
        theirs.close()
        raise
    try:
        async with anyio.create_task_group() as tasks:
            while True:
                await anyio.wait_readable(ours)
                if not ours.recv(64):
                    break
                while not terminal.tasks.empty():
                    tasks.start_soon(terminal.tasks.get_nowait().perform, ours)
            tasks.cancel_scope.cancel()
    finally:
        anyio.notify_closing(ours)
        ours.close()


# --- in the thread -----------------------------------------------------------------------


class _Terminal:
    """One client's.  `tasks` is what the event loop is to do, each announced by a byte on `bell`."""

    def __init__(self, client: socket.socket, bell: socket.socket, write: bool) -> None:
        self.tasks: queue.SimpleQueue[_Task] = queue.SimpleQueue()
        self._client = client
        self._bell = bell
        self._write = write
        self._here = here.here()
        self._backend = evaluation.backend_of_this_loop()
        self._kept: list[str] = []
        """What the copies are told first: the assignments of this session."""
        self._names: dict[str, Any] = {
            "__name__": "__prompt__",
            "actor": None,
            "here": self._here,
            "me": self._here.ref,
        }

    def run(self) -> None:
        """Serve until the client leaves."""
        try:
            send_packet(self._client, {"text": self._banner()})
            while (request := receive_packet(self._client)) is not None:
                if request.get("do") == "interrupt":  # it came after the answer
                    continue
                send_packet(self._client, self._answer(str(request.get("do")), str(request.get("text"))))
        except (OSError, ValueError):  # the client is gone, or never was one
            pass
        finally:
            self._bell.close()

    def _banner(self) -> str:
        ref = self._here.ref
        lines = [f"{ref.path} #{ref.id}, pid {os.getpid()}; names: actor, here, me; `await` works; Ctrl-D leaves"]
        if self._write:
            lines.append("you WRITE: every command runs in the live process itself, on its event loop")
        else:
            lines.append(
                "read-only: every command runs in a forked copy of the process, which changes nothing here, speaks to "
                f"nobody and lives {LIFE_S} s; `name = …`, imports and definitions are repeated in each copy"
            )
        return "\n".join(lines) + "\n"

    def _answer(self, what: str, text: str) -> dict[str, Any]:
        self._names["actor"] = self._names["actor"] or self._here.author
        try:
            if what == "run":
                return {"text": self._run_here(text) if self._write else self._run_in_copy(text)}
            if what == "complete":
                return {"words": self._complete(text)}
        except OSError as error:  # no descriptor, no process: the next command may find one
            return {"text": f"{type(error).__name__}: {error}\n", "words": []}
        return {"text": f"a terminal knows no {what!r}\n"}

    def _hand(self, task: _Task) -> None:
        self.tasks.put(task)
        self._bell.send(b"x")

    # --- writing

    def _run_here(self, source: str) -> str:
        job = _Job(Evaluation(source, self._names))
        if not job.evaluation.compile():
            return job.evaluation.text()
        self._hand(job)
        if not job.begun.wait(_STUCK_S) and job.claim():
            if job.evaluation.needs_loop:
                return "the event loop does not turn, so nothing can be awaited; see `colos stack`\n"
            job.evaluation.run_without_loop()
            return _STUCK + job.evaluation.text()
        while not job.done.is_set():
            if self._bell in self._wait_for(self._bell):
                self._bell.recv(64)
            elif self._interrupted():
                self._hand(_Cancel(job))
        return job.evaluation.text()

    def _wait_for(self, *others: Any, timeout_s: float | None = None) -> list[Any]:
        """Wait for the client to speak, or others; who did."""
        poll = select.poll()
        known = {each if isinstance(each, int) else each.fileno(): each for each in (self._client, *others)}
        for number in known:
            poll.register(number, select.POLLIN)
        return [known[number] for number, _ in poll.poll(None if timeout_s is None else timeout_s * 1000)]

    def _interrupted(self) -> bool:
        """Read what the client says meanwhile.  Raises OSError when it is gone."""
        request = receive_packet(self._client)
        if request is None:
            raise ConnectionResetError
        return request.get("do") == "interrupt"

    # --- reading

    def _run_in_copy(self, source: str) -> str:
        command = Evaluation(source, self._names)
        if not command.compile():
            return command.text()
        text, fine = self._in_copy(command)
        if fine and _is_kept(source):
            self._kept.append(source)
        return text

    def _in_copy(self, command: Evaluation) -> tuple[str, bool]:
        """What a copy says, and whether it came to its end."""
        copy = Copy()
        stuck = ""
        with self._standing_still() as halted, warnings.catch_warnings():
            if not halted:
                stuck = _STUCK
            warnings.simplefilter("ignore")  # a fork beside another thread: it stands still, and holds no lock
            copy.fork()
            if copy.pid == 0:  # at once: here no lock of another thread may be touched
                copy.be(command, self._kept, self._backend)
        try:
            while not copy.ended:
                spoke = self._wait_for(copy.reading, timeout_s=LIFE_S + 1)
                if copy.reading in spoke:
                    copy.read()
                elif not spoke or self._interrupted():
                    break
        finally:
            text, fine = copy.finish()
        return stuck + text, fine

    @contextlib.contextmanager
    def _standing_still(self) -> Iterator[bool]:
        """The event loop stands still within; False if it does not turn anyway."""
        halt = _Halt()
        self._hand(halt)
        try:
            yield halt.parked.wait(_STUCK_S)
        finally:
            halt.released.set()

    # --- both

    def _complete(self, text: str) -> list[str]:
        source = f"__complete__({text!r})"
        completion = Evaluation(source, {**self._names, "__complete__": None})
        completion.names["__complete__"] = lambda word: evaluation.complete(word, completion.names)
        if not completion.compile():
            return []
        if self._write:
            completion.run_without_loop()
            said = completion.text()
        else:
            said, _ = self._in_copy(completion)
        try:
            words = ast.literal_eval((said.splitlines() or ["[]"])[-1])
        except (ValueError, SyntaxError):  # what it said was no list: an error
            return []
        return [str(word) for word in words] if isinstance(words, list) else []


def _is_kept(source: str) -> bool:
    """Whether a command only gives names: these are repeated in every later copy."""
    kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return all(
        isinstance(each, kinds)
        or (isinstance(each, ast.Assign) and all(isinstance(target, ast.Name) for target in each.targets))
        for each in ast.parse(source).body
    )
