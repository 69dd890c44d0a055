"""The actors whose runtime's promises are held under faults: each writes what it saw into one book.

The book is a file of the data directory, one line an event, appended by write(2): no kill loses what
was written, and the order of its lines is the order in which things happened.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from typing import Any

import anyio

from colos.errors import ActorExited, CallTimeout, ConnectionLost, MailboxFull, NameTaken, NoSuchActor, RuntimeFailure
from colos.runtime import (
    Actor,
    ActorRef,
    ChildSpec,
    Down,
    ExitSignal,
    Monitor,
    Supervisor,
    demonitor,
    exit_signal,
    join,
    leave,
    link,
    monitor,
    receive,
    register,
    send,
    trap_exit,
    unlink,
    unregister,
)

BOOK = "book"
SOON_S = 0.3
"""How long who is stopped or starved is waited for."""


class Scribe(Actor):
    """Writes into the book.  What the runtime or the kernel refuses it is an answer, no crash."""

    expected = (OSError, RuntimeFailure)

    async def init(self) -> None:
        self._book = os.open(BOOK, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.id = self.ref.id

    def note(self, *event: object) -> None:
        # A line that a kill cuts at a page's end is no JSON, and the next one begins a line of its own.
        os.write(self._book, f"\n{json.dumps(event)}\n".encode())

    async def ping(self) -> int:
        return self.id


class Household(Supervisor):
    """Kills are meant to be survived."""

    intensity = 1000
    period_s = 60.0


def child(id_: str, actor: type[Actor], **options: Any) -> ChildSpec:
    """A child of that name; one that is stopped (SIGSTOP) does not hold up the others for long."""
    return ChildSpec(id_, actor, name=id_, shutdown_s=SOON_S, **options)


# --- order -------------------------------------------------------------------------------


class Receiver(Scribe):
    """Writes down what came from whom."""

    async def init(self) -> None:
        await super().init()
        trap_exit(True)

    async def got(self, sender: int, number: int, blob: bytes) -> None:
        self.note("got", sender, self.id, number)

    async def info(self, message: Any) -> None:
        if isinstance(message, ExitSignal):
            self.note("got", message.sender.id, self.id, message.reason)
        else:
            await self.got(*message)


class Sender(Scribe):
    """Numbers what it sends to one receiver: casts, messages and exit signals in turn."""

    async def init(self) -> None:
        await super().init()
        self.sent: dict[int, int] = {}

    async def push(self, count: int, size: int, signal: bool) -> None:
        receiver = await self.whereis("receiver")
        kinds = (self._cast, self._send, *([exit_signal] if signal else []))
        for _ in range(count):
            number = self.sent.get(receiver.id, 0) + 1
            if kinds[number % len(kinds)] is exit_signal:
                await exit_signal(receiver, number)
            else:
                try:
                    await kinds[number % len(kinds)](receiver, number, bytes(size))
                except (MailboxFull, NoSuchActor, ActorExited, OSError) as error:  # nothing was sent
                    self.note("not sent", self.id, receiver.id, number, str(error))
                    return
            self.sent[receiver.id] = number
            self.note("sent", self.id, receiver.id, number)

    async def _cast(self, receiver: ActorRef, number: int, blob: bytes = b"") -> None:
        await receiver.cast("got", self.id, number, blob, timeout=SOON_S)

    async def _send(self, receiver: ActorRef, number: int, blob: bytes = b"") -> None:
        await send(receiver, (self.id, number, blob), timeout=SOON_S)


class Post(Household):
    name = "post"

    def children(self) -> Sequence[ChildSpec]:
        return [child("receiver", Receiver), child("ann", Sender), child("bob", Sender)]


# --- monitors ----------------------------------------------------------------------------


class Watcher(Scribe):
    """Monitors whom it is told to; when a Down comes, looks who has the name by then."""

    async def init(self) -> None:
        await super().init()
        self.watches: list[Monitor] = []

    async def watch(self, name: str) -> None:
        ref = await self.whereis(name)
        made = await monitor(ref)
        self.watches.append(made)
        self.note("watch", self.id, made.number, ref.id, ref.path)

    async def unwatch(self) -> None:
        if self.watches:
            made = self.watches.pop()
            await demonitor(made, flush=True)
            self.note("unwatch", self.id, made.number)

    async def info(self, message: Any) -> None:
        if isinstance(message, Down) and isinstance(message.target, ActorRef):
            dead = message.target
            self.watches = [made for made in self.watches if made != message.monitor]
            self.note("down", self.id, message.monitor.number, dead.id, message.reason)
            try:
                found = (await self.whereis(dead.path)).id
            except NoSuchActor:
                found = 0
            self.note("found", dead.id, found)


class Ward(Household):
    name = "ward"

    def children(self) -> Sequence[ChildSpec]:
        return [child("watcher", Watcher), *(child(f"w{n}", Scribe) for n in range(3))]


# --- links -------------------------------------------------------------------------------


class Tied(Scribe):
    """Links itself to others.  It does not trap: it dies with them."""

    async def init(self) -> None:
        await super().init()
        self.met: set[int] = set()
        self.tied: set[int] = set()

    async def tie(self, name: str) -> None:
        other = await self.whereis(name)
        if other.id not in self.met:
            self.met.add(other.id)
            self.note("tying", self.id, other.id)
            await link(other)
            await link(other)  # one a pair
            self.tied.add(other.id)
            self.note("tied", self.id, other.id, other.path)


class Parent(Tied):
    """Traps: it is told."""

    async def init(self) -> None:
        await super().init()
        trap_exit(True)

    async def untie(self, name: str) -> None:
        other = await self.whereis(name)
        if other.id in self.tied:
            await unlink(other)
            try:  # it may have come before
                await self.info(await receive(lambda m: isinstance(m, ExitSignal) and m.sender == other, timeout=0))
            except TimeoutError:
                pass
            if other.id in self.tied:
                self.tied.discard(other.id)
                self.note("untied", self.id, other.id)

    async def info(self, message: Any) -> None:
        if isinstance(message, ExitSignal):
            self.tied.discard(message.sender.id)
            self.note("exit", self.id, message.sender.id, message.reason)


class Family(Household):
    name = "family"

    def children(self) -> Sequence[ChildSpec]:
        return [child("parent", Parent), *(child(f"t{n}", Tied) for n in range(3))]


# --- names and groups --------------------------------------------------------------------


class Claimant(Watcher):
    """Wants the crown; who has the name holds a lock of the kernel's too, which ends with the process."""

    async def init(self) -> None:
        await super().init()
        self._crown = os.open("crown", os.O_WRONLY | os.O_CREAT, 0o600)
        await join("claimants")

    async def claim(self) -> bool:
        try:
            await register("crown")
        except NameTaken:
            return False
        try:
            fcntl.flock(self._crown, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.note("two kings", self.id)
            return False
        self.note("king", self.id)
        return True

    async def abdicate(self) -> None:
        try:
            mine = (await self.whereis("crown")).id == self.id
        except NoSuchActor:
            return
        if mine:
            fcntl.flock(self._crown, fcntl.LOCK_UN)
            await unregister("crown")

    async def go(self) -> None:
        await leave("claimants")
        await join("claimants")


class Court(Household):
    name = "court"

    def children(self) -> Sequence[ChildSpec]:
        return [ChildSpec(f"c{n}", Claimant, shutdown_s=SOON_S) for n in range(3)]


# --- calls -------------------------------------------------------------------------------


class Echo(Scribe):
    """Gives back what it gets, after a while."""

    async def echo(self, token: str, delay_s: float) -> str:
        self.note("done", token)
        await anyio.sleep(delay_s)
        return token


class Asker(Scribe):
    """Calls Echo several times at once, with deadlines that some of the answers miss."""

    async def ask(self, tokens: list[str], delay_s: float, timeout_s: float) -> None:
        echo = await self.whereis("echo")
        async with anyio.create_task_group() as tasks:
            for token in tokens:
                tasks.start_soon(self._ask, echo, token, delay_s, timeout_s)

    async def _ask(self, echo: ActorRef, token: str, delay_s: float, timeout_s: float) -> None:
        self.note("answer", token, *await answer(echo, token, delay_s, timeout_s))


async def answer(echo: ActorRef, token: str, delay_s: float, timeout_s: float) -> tuple[str, str]:
    """How a call ended: with a value, known not to have happened, unknown, or in a way that it must not."""
    try:
        return "reply", await echo.call("echo", token, delay_s, timeout=timeout_s)
    except (NoSuchActor, ActorExited) as error:
        return "never", str(error)
    except (CallTimeout, ConnectionLost) as error:
        return "unknown", str(error)
    except OSError as error:  # no descriptor to call with: the caller's own trouble
        return "never", str(error)
    except Exception as error:
        return "wrong", repr(error)


class Exchange(Household):
    name = "exchange"

    def children(self) -> Sequence[ChildSpec]:
        return [child("echo", Echo), child("asker", Asker)]


# --- supervision -------------------------------------------------------------------------


class Sibling(Scribe):
    """While it lives it holds a lock of its name.  When it starts, no later sibling may live."""

    later: str = ""

    async def init(self) -> None:
        await super().init()
        label = self.path.rpartition("/")[2]
        self._lock = os.open(f"lock.{label}", os.O_WRONLY | os.O_CREAT, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # else a sibling of the same name lives
        living = [other for other in "abc" if other > label and _is_locked(f"lock.{other}")]
        self.note("start", label, self.id, living)


def _is_locked(path: str) -> bool:
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


class OneForAll(Household):
    name = "team"
    strategy = "one_for_all"

    def children(self) -> Sequence[ChildSpec]:
        return [child(label, Sibling) for label in "abc"]


class RestForOne(OneForAll):
    strategy = "rest_for_one"


class Patient(RestForOne):
    """As many deaths as it tolerates, and not one more."""

    intensity = 3
