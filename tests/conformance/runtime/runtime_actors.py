"""Actors and supervisors for the tests, in a module that a node's own interpreter can import."""

# ruff: noqa: ASYNC251, ASYNC110, ASYNC222, ASYNC230, ASYNC240 - tests poll and touch files with a deadline; an answer is no error
from __future__ import annotations

import os
import resource
import signal
import sys
import time

import anyio

from colos.runtime import (
    Actor,
    ActorRef,
    ChildSpec,
    StateMachine,
    Supervisor,
    exit_signal,
    link,
    monitor,
    send,
    trap_exit,
    unlink,
    whereis,
)


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


class ThoughtfulSupervisor(LedgerSupervisor):
    def children(self):
        time.sleep(1.0)  # an author's code takes what it takes
        return super().children()


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


# --- for the tests of nodes, hearts, watchdogs and state machines ------------------------


class Stuck(Actor):
    """Can block its event loop in several ways."""

    async def spin(self) -> None:
        while True:
            pass

    async def sleep_hard(self) -> None:
        time.sleep(1000)

    async def stop_itself(self) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    async def busy(self, seconds: float) -> str:
        """Many short awaits, and all the CPU between them."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            turn = time.monotonic() + 0.01
            while time.monotonic() < turn:
                pass
            await anyio.lowlevel.checkpoint()
        return "done"

    async def pid(self) -> int:
        return os.getpid()


class WatchedSupervisor(Supervisor):
    def children(self):
        return [ChildSpec("stuck", Stuck, name="stuck", heartbeat_s=1.0)]


async def crash_soon(record: str) -> None:
    with open(record, "a") as file:
        file.write("begun\n")
    await anyio.sleep(0.3)  # so that its node has begun
    raise ValueError("as always")


class GivesUpSupervisor(Supervisor):
    intensity = 1

    def children(self):
        return [ChildSpec("crasher", crash_soon, (os.environ["COLOS_TEST_RECORD"],))]


class Door(StateMachine):
    """A door with a lock that needs its code within a time."""

    states = ("closed", "open", "locked", "ajar")
    expected = (Refused,)

    def __init__(self) -> None:
        self.log: list[str] = []

    async def enter_closed(self) -> None:
        self.log.append("enter closed")

    async def leave_closed(self) -> None:
        self.log.append("leave closed")

    async def closed_push(self, timeout_s: float | None = None) -> str:
        self.next_state("open", timeout_s)
        return f"{self.state} yet"

    async def closed_lock(self) -> None:
        self.next_state("locked")

    async def closed_knock(self) -> str:
        return "come in"

    async def event_knock(self) -> str:
        return f"it is {self.state}"

    async def timeout_closed(self) -> None:
        self.log.append("timeout closed")  # never: nothing gives it a time

    async def enter_open(self) -> None:
        self.log.append("enter open")

    async def timeout_open(self) -> None:
        self.log.append("timeout open")
        self.next_state("closed")

    async def open_close(self) -> None:
        self.next_state("closed")

    async def open_dawdle(self, seconds: float) -> None:
        await anyio.sleep(seconds)
        self.next_state("closed")

    async def open_hold(self, timeout_s: float) -> None:
        self.next_state("open", timeout_s)

    async def open_slam(self) -> None:
        self.next_state("closed")
        raise Refused("not so loud")

    async def locked_push(self) -> None:
        self.postpone()

    async def locked_knock(self) -> None:
        self.log.append("knock later")
        self.postpone()

    async def locked_unlock(self) -> None:
        self.next_state("closed")

    async def locked_rattle(self) -> None:
        self.next_state("locked")

    async def closed_blow(self) -> None:
        self.next_state("ajar")

    async def enter_ajar(self) -> None:
        self.log.append("enter ajar")
        self.next_state("closed")

    async def read(self) -> tuple[str, list[str]]:
        """In every state: not an event, but a method."""
        return self.state, self.log

    async def info(self, message: object) -> None:
        if message == "poke":
            self.log.append("poked")
        else:
            await super().info(message)


class DoorSupervisor(Supervisor):
    def children(self):
        return [ChildSpec("door", Door, name="door"), ChildSpec("stuck", Stuck)]


class Observer(Actor):
    """Does to processes of other nodes what an actor can do, and keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[object] = []
        self.kept: ActorRef | None = None

    async def trap(self) -> None:
        trap_exit(True)

    async def find(self, name: str, node: str) -> ActorRef:
        return await whereis(name, node=node)

    async def add_there(self, name: str, node: str, amount: int) -> int:
        return await (await whereis(name, node=node)).add(amount)

    async def send_there(self, name: str, node: str, message: object) -> None:
        await send(await whereis(name, node=node), message)

    async def keep(self, ref: ActorRef) -> None:
        self.kept = ref

    async def give(self) -> ActorRef | None:
        return self.kept

    async def ask_kept(self, method: str, *args: object) -> object:
        assert self.kept is not None
        return await self.kept.call(method, *args)

    async def hand_on(self, other: ActorRef) -> None:
        await other.keep(self.kept)

    async def monitor(self, ref: ActorRef) -> None:
        await monitor(ref)

    async def link(self, ref: ActorRef) -> None:
        await link(ref)

    async def unlink(self, ref: ActorRef) -> None:
        await unlink(ref)

    async def kill_off(self, ref: ActorRef, reason: object) -> None:
        await exit_signal(ref, reason)

    async def crash(self, text: str) -> None:
        raise ValueError(text)

    async def end(self, reason: object) -> None:
        self.stop(reason)

    async def heard_so_far(self) -> list[object]:
        return self.heard

    async def pid(self) -> int:
        return os.getpid()

    async def info(self, message: object) -> None:
        self.heard.append(message)


class FirstSupervisor(Supervisor):
    intensity = 20

    def children(self):
        return [
            ChildSpec("observer", Observer, name="observer"),
            ChildSpec("second", Observer, name="second"),
            ChildSpec("writer", Writer, name="writer"),
        ]


class OtherSupervisor(FirstSupervisor):
    pass


class Relay(Actor):
    """One of three that call each other."""

    def __init__(self, next_name: str) -> None:
        self.next_name = next_name

    async def pass_on(self, hops: int) -> int:
        if hops == 0:
            return os.getpid()
        following = await self.whereis(self.next_name)
        if following == self.ref:
            return -1
        return await following.pass_on(hops - 1)

    async def pid(self) -> int:
        return os.getpid()

    async def orphan(self) -> int:
        """Leave a process behind whose parent dies at once; its pid."""
        reading, writing = os.pipe()
        between = os.fork()
        if between == 0:
            pid = os.fork()
            if pid == 0:
                os.setsid()
                signal.pause()
            os.write(writing, str(pid).encode())
            os._exit(0)
        os.waitpid(between, 0)
        return int(os.read(reading, 100))

    async def facts(self) -> dict[str, object]:
        """What its machine is like."""
        return {
            "descriptors": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            "address_space": resource.getrlimit(resource.RLIMIT_AS)[0],
            "data": resource.getrlimit(resource.RLIMIT_DATA)[0],
            "shm": os.path.isdir("/dev/shm") and os.access("/dev/shm", os.W_OK),
            "pidfd": hasattr(os, "pidfd_open"),
            "writable": [place for place in ("/", "/tmp", "/var/tmp", "/usr", "/work") if _takes_a_file(place)],
        }


def _takes_a_file(directory: str) -> bool:
    path = f"{directory}/colos-test-{os.getpid()}"
    try:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        os.unlink(path)
    except OSError:
        return False
    return True


class RingSupervisor(Supervisor):
    def children(self):
        following = {"a": "b", "b": "c", "c": "a"}
        return [ChildSpec(name, Relay, (after,), name=name) for name, after in following.items()]


class NarrowDoor(Door):
    mailbox_limit = 2


class NarrowSupervisor(Supervisor):
    def children(self):
        return [ChildSpec("door", NarrowDoor, name="door")]
