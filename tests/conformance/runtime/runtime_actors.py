"""Actors and supervisors for the tests, in a module that a node's own interpreter can import."""

# ruff: noqa: ASYNC251, ASYNC110, ASYNC230, ASYNC240 - tests poll and touch files with a deadline; an answer is no error
from __future__ import annotations

import os
import resource
import signal
import sys
import time

import anyio

from colos.runtime import Actor, ActorRef, ChildSpec, Supervisor


class Refused(Exception):
    """An answer, not a crash."""


class Unpicklable(Exception):
    """Pickles, but cannot be rebuilt: its constructor takes what pickle does not give it."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")


class Writer(Actor):
    expected = (Refused,)

    def __init__(self, start: int = 0) -> None:
        self.total = start
        self.seen: list[int] = []

    async def add(self, amount: int) -> int:
        if amount < 0:
            raise Refused(f"{amount} is negative")
        self.total += amount
        return self.total

    async def note(self, number: int) -> None:
        self.seen.append(number)

    async def notes(self) -> list[int]:
        return self.seen

    async def crash(self, text: str) -> None:
        print("about to fail", file=sys.stderr)
        raise ValueError(text)

    async def crash_unpicklable(self) -> None:
        raise Unpicklable(code=7)

    async def nap(self, seconds: float) -> str:
        await anyio.sleep(seconds)
        return "late"

    async def block(self, path: str) -> str:
        """Occupies the actor until a file appears."""
        while not os.path.exists(path):
            await anyio.sleep(0.005)
        return "unblocked"

    async def hog(self) -> None:
        """Block the whole process, event loop and all."""
        time.sleep(60)

    async def pid(self) -> int:
        return os.getpid()

    async def who(self) -> tuple[ActorRef, str]:
        return self.ref, self.path

    async def unpicklable_result(self) -> object:
        return lambda: None

    async def end(self) -> None:
        self.stop()

    async def leave(self, code: int) -> None:
        os._exit(code)

    async def kill_self(self, number: int) -> None:
        os.kill(os.getpid(), number)
        await anyio.sleep(5)

    async def echo(self, value: object, timeout: object = None) -> object:
        return (value, timeout)

    async def lower_descriptor_limit(self) -> int:
        used = max(int(name) for name in os.listdir("/proc/self/fd"))
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        limit = next(number for number in range(used + 2) if not os.path.exists(f"/proc/self/fd/{number}"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        return limit

    async def restore_descriptor_limit(self) -> None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    async def cpu_s(self) -> float:
        return time.process_time()

    async def daemonise(self) -> int:
        """Leave a grandchild of the node behind."""
        pid = os.fork()
        if pid == 0:
            os.setsid()
            signal.pause()
            os._exit(0)
        return pid

    def not_async(self) -> None: ...

    async def _private(self) -> None: ...


class Front(Actor):
    async def forward(self, amount: int) -> int:
        writer = await self.whereis("writer")
        return await writer.add(amount)

    async def call_self(self) -> None:
        await self.ref.nothing()

    async def nothing(self) -> None: ...


class Stubborn(Actor):
    async def terminate(self, reason: str) -> None:
        await anyio.sleep(60)


class Recorder(Actor):
    """Writes down its starts and stops, in the file it is given."""

    def __init__(self, path: str, label: str) -> None:
        self.file = path
        self.label = label

    def record(self, what: str) -> None:
        with open(self.file, "a") as file:
            file.write(f"{what} {self.label}\n")

    async def init(self) -> None:
        self.record("init")

    async def terminate(self, reason: str) -> None:
        self.record(f"terminate({reason})")


class Small(Actor):
    mailbox_limit = 2

    async def block(self, path: str) -> None:
        while not os.path.exists(path):
            await anyio.sleep(0.005)

    async def take(self, data: bytes) -> None: ...


class BadInit(Actor):
    async def init(self) -> None:
        print("no database", file=sys.stderr)
        raise RuntimeError("cannot begin")


class FailsLater(Actor):
    """Starts once; every later start fails."""

    def __init__(self, flag: str) -> None:
        self.flag = flag

    async def init(self) -> None:
        if os.path.exists(self.flag):
            raise RuntimeError("not again")
        open(self.flag, "w").close()


class LedgerSupervisor(Supervisor):
    def children(self):
        return [ChildSpec("writer", Writer, (100,), name="writer"), ChildSpec("front", Front)]


class KindsSupervisor(Supervisor):
    intensity = 10

    def children(self):
        return [
            ChildSpec("permanent", Writer),
            ChildSpec("transient", Writer, restart="transient"),
            ChildSpec("temporary", Writer, restart="temporary"),
        ]


class BadSupervisor(Supervisor):
    def children(self):
        return [ChildSpec("good", Writer), ChildSpec("bad", BadInit)]


class OnlyBadSupervisor(Supervisor):
    def children(self):
        return [ChildSpec("bad", BadInit)]


class StubbornSupervisor(Supervisor):
    def children(self):
        return [ChildSpec("stubborn", Stubborn, shutdown_s=0.3), ChildSpec("brutal", Stubborn, shutdown_s=0)]


class OrderSupervisor(Supervisor):
    def children(self):
        path = os.environ["COLOS_TEST_RECORD"]
        return [ChildSpec(label, Recorder, (path, label)) for label in ("a", "b", "c")]


class SmallSupervisor(Supervisor):
    def children(self):
        return [ChildSpec("small", Small)]


class FailsLaterSupervisor(Supervisor):
    intensity = 2

    def children(self):
        return [ChildSpec("flaky", FailsLater, (os.environ["COLOS_TEST_RECORD"],)), ChildSpec("writer", Writer)]
