"""The cast: the processes that the scenes are played with, and how the scenes speak to them.

Everything here is importable by the node's own interpreter; nothing here knows pytest.
"""

# ruff: noqa: ASYNC110, ASYNC240 - scenes poll with a deadline
from __future__ import annotations

import inspect
import itertools
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import anyio

from colos.errors import NoSuchActor
from colos.runtime import (
    Actor,
    ActorRef,
    ChildSpec,
    Down,
    Exit,
    ExitSignal,
    Monitor,
    Supervisor,
    exit_signal,
    me,
    monitor,
    parent,
    receive,
    send,
    spawn,
    start_child,
    trap_exit,
    unlink,
    whereis,
)

DEADLINE_S = 15.0
STAGE = "stage"
_numbers = itertools.count(1)
_started: list[ActorRef] = []


class Stage(Supervisor):
    """The root of the tests' nodes: empty, and what is started under it is never restarted by it."""

    name = STAGE

    def children(self) -> list[ChildSpec]:
        return []


# --- scenes ------------------------------------------------------------------------------


async def scene(function: Callable[..., Awaitable[Any]], *args: object) -> Any:
    """Play a scene, then end whom it began."""
    _started.clear()
    try:
        return await function(*args)
    finally:
        trap_exit(True)  # those who are linked to this process end first
        with anyio.CancelScope(shield=True):
            for ref in reversed(_started):
                await exit_signal(ref, "kill")


async def begin(target: Any, *args: object, **options: Any) -> Any:
    """`spawn`, whose process ends with the scene."""
    made = await spawn(target, *args, **options)
    _started.append(made[0] if isinstance(made, tuple) else made)
    return made


async def got(match: Any = None) -> Any:
    """The next message that matches, within the deadline."""
    return await receive(match, timeout=DEADLINE_S)


async def down(watch: Monitor) -> object:
    """The reason in the Down of a monitor."""
    return (await got(lambda message: isinstance(message, Down) and message.monitor == watch)).reason


async def waiting() -> list[Any]:
    """Everything that is in the mailbox now, taken out."""
    found = []
    while True:
        try:
            found.append(await receive(timeout=0))
        except TimeoutError:
            return found


async def found(name: str) -> ActorRef | None:
    """`whereis`, None for nobody."""
    try:
        return await whereis(name)
    except NoSuchActor:
        return None


async def until(condition: Callable[[], Awaitable[Any]]) -> bool:
    """Wait for a condition, with the deadline: whether it came true."""
    with anyio.move_on_after(DEADLINE_S):
        while not await condition():
            await anyio.sleep(0.002)  # between two looks
        return True
    return False


def fresh(stem: str) -> str:
    """A name that nobody else in this node has."""
    return f"{stem}_{me().id}_{next(_numbers)}"


# --- a process that does as it is told, as the oracle's victim does ----------------------


@dataclass(frozen=True)
class Do:
    """Call this function, and say what came of it."""

    function: Callable[..., Any]
    args: tuple[object, ...] = ()


@dataclass(frozen=True)
class Probe:
    """Say that you are alive."""


@dataclass(frozen=True)
class Did:
    by: ActorRef
    value: Any


@dataclass(frozen=True)
class Alive:
    by: ActorRef


@dataclass(frozen=True)
class Got:
    by: ActorRef
    message: Any


async def victim(boss: ActorRef, trap: bool = False) -> None:
    """Does what it is told, and reports every other message."""
    trap_exit(trap)
    while True:
        message = await receive()
        if isinstance(message, Do):
            value = message.function(*message.args)
            await send(boss, Did(me(), await value if inspect.isawaitable(value) else value))
        elif isinstance(message, Probe):
            await send(boss, Alive(me()))
        else:
            await send(boss, Got(me(), message))


async def stand(trap: bool = False) -> ActorRef:
    """A victim that runs, and has set its flag."""
    ref: ActorRef = await begin(victim, me(), trap)
    assert await probe(ref)
    return ref


async def ask(ref: ActorRef, function: Callable[..., Any], *args: object) -> Any:
    """Let a victim call a function; what that returned."""
    await send(ref, Do(function, args))
    return (await got(lambda message: isinstance(message, Did) and message.by == ref)).value


async def tell(ref: ActorRef, function: Callable[..., Any], *args: object) -> None:
    """Let a victim call a function that it may not return from."""
    await send(ref, Do(function, args))


async def probe(ref: ActorRef) -> bool:
    """Whether a victim answers, having heard all that was sent to it from here before."""
    await send(ref, Probe())
    return isinstance(await got(lambda message: isinstance(message, Alive) and message.by == ref), Alive)


async def settle(ref: ActorRef) -> None:
    """Let a victim speak with the node's root and with here a few times: what was on its way to it has come."""
    for _ in range(3):
        await ask(ref, found, "nobody_has_this_name")


async def outcome(ref: ActorRef, watch: Monitor) -> tuple[Any, ...]:
    """What came of a signal to a victim, as the oracle says it: dies, message or ignored (it had been probed)."""

    def about(message: object) -> bool:
        if isinstance(message, Down):
            return message.monitor == watch
        return isinstance(message, Got | Alive) and message.by == ref

    first = await got(about)
    if isinstance(first, Down):
        return ("dies", first.reason)
    if isinstance(first, Alive):
        return ("ignored",)
    if isinstance(first.message, ExitSignal):
        return ("message", first.message.sender, first.message.reason)
    return ("something else", repr(first.message))


async def idle() -> None:
    """Lives until it is ended."""
    await anyio.sleep_forever()


async def nothing() -> None:
    """Ends at once."""


async def die(reason: object) -> None:
    """Ends with a reason; "SIGKILL" is the kernel's."""
    if reason == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)
        await anyio.sleep_forever()
    raise Exit(reason)


async def exit_self(reason: object) -> None:
    """Erlang's exit(self(), Reason)."""
    await exit_signal(me(), reason)


async def dead() -> ActorRef:
    """Somebody who has been."""
    ref, watch = await begin(nothing, monitor=True)
    assert await down(watch) == "normal"
    return ref  # type: ignore[no-any-return]


# --- supervised children -----------------------------------------------------------------


class Ledger(Actor):
    """Writes down, in the order in which it happened, what children say: they wait for its answer."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.failures: dict[str, int] = {}

    async def note(self, *event: object) -> None:
        self.events.append(event)

    async def story(self) -> list[tuple[Any, ...]]:
        return self.events

    async def arm(self, label: str, count: int) -> None:
        """The next `count` starts of a child are to fail."""
        self.failures[label] = count

    async def fails(self, label: str) -> bool:
        self.failures[label] = self.failures.get(label, 0) - 1
        return self.failures[label] >= 0


class Kid(Actor):
    """As the oracle's kid: says start, and stop with the reason when asked to; silent when told to die.

    `habit`: "slow" says init before start; "stubborn" never finishes stopping; "together" stops when
    all its siblings stop too; "gate:PATH" stops when the file is there.
    """

    def __init__(self, ledger: ActorRef, label: str, habit: str = "") -> None:
        self.ledger = ledger
        self.label = label
        self.habit = habit
        self.dying = False

    async def init(self) -> None:
        trap_exit(True)
        if self.habit == "slow":
            await self.ledger.note("init", self.label)
        if await self.ledger.fails(self.label):
            await self.ledger.note("fail", self.label)
            raise RuntimeError(f"{self.label} cannot begin")
        await self.ledger.note("start", self.label)

    async def info(self, message: Any) -> None:
        if isinstance(message, tuple) and message[0] == "die":
            self.dying = True
            await die(message[1])

    async def terminate(self, reason: object) -> None:
        if self.dying:
            return
        await self.ledger.note("stop", self.label, reason)
        if self.habit == "stubborn":
            await anyio.sleep_forever()
        if self.habit.startswith("gate:"):
            while not os.path.exists(self.habit.removeprefix("gate:")):
                await anyio.sleep(0.002)
        if self.habit.startswith("together:"):
            size = int(self.habit.removeprefix("together:"))
            while sum(event[0] == "stop" for event in await self.ledger.story()) < size:
                await anyio.sleep(0.002)
            await self.ledger.note("stopped", self.label)

    async def pid(self) -> int:
        return os.getpid()


async def refuser(ledger: ActorRef, label: str) -> None:
    """A plain function as a child: it unlinks itself from its supervisor, and stops for nobody."""
    trap_exit(True)
    above = parent()
    assert above is not None
    await unlink(above)
    await ledger.note("unlinked", label)
    while True:
        await receive()


class Bench(Supervisor):
    """A supervisor that is all in its arguments."""

    def __init__(
        self,
        strategy: str = "one_for_one",
        intensity: int = 3,
        period_s: float = 60.0,
        specs: tuple[ChildSpec, ...] = (),
        auto_shutdown: str = "never",
    ) -> None:
        self.strategy = strategy
        self.intensity = intensity
        self.period_s = period_s
        self.specs = specs
        self.auto_shutdown = auto_shutdown

    def children(self) -> tuple[ChildSpec, ...]:
        return self.specs


def kid(ledger: ActorRef, label: str, restart: str = "permanent", habit: str = "", **options: Any) -> ChildSpec:
    """The specification of a Kid."""
    return ChildSpec(label, Kid, (ledger, label, habit), restart=restart, **options)  # type: ignore[arg-type]


async def bench(
    *specs: ChildSpec, strategy: str = "one_for_one", intensity: int = 3, period_s: float = 60.0, auto: str = "never"
) -> tuple[ActorRef, str, Monitor]:
    """Start a supervisor under the stage: its reference, its path, and a monitor on it."""
    id_ = fresh("bench")
    spec = ChildSpec(id_, Bench, (strategy, intensity, period_s, specs, auto), restart="temporary")
    ref = await start_child(STAGE, spec)
    _started.append(ref)
    return ref, f"{STAGE}/{id_}", await monitor(ref)
