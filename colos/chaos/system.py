"""The system under test: what is declared, and what runs in a sandbox.

A declaration (`ActorSystem`, `CommandSystem`) is plain data on a machine's class.  `boot` turns it
into a running system, which the machine's rules see as ``self.system``.  The executor and the
faults know no more of either than the protocols here.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Protocol, Self, overload, runtime_checkable

import anyio.to_thread

from colos.chaos.fault import matches
from colos.chaos.sandbox.handle import Sandbox, Target
from colos.chaos.sandbox.spec import Place, Program, Restarts
from colos.errors import InvalidSpecification, StartFailed
from colos.runtime import ActorRef, NodeClient, Supervisor, connect, serve, topology
from colos.runtime.rehearsal import rehearse
from colos.runtime.rundir import incarnations, read_actors, read_text

__all__ = ["ActorSystem", "CommandSystem", "RunningActors", "RunningCommand", "RunningSystem", "System"]

_POLL_S = 0.002
_REHEARSALS = 20


class RunningSystem(Protocol):
    """A system in its sandbox, as the executor and the faults use it."""

    sandbox: Sandbox

    def targets(self, pattern: str) -> list[Target]:
        """Every live process that a path or pattern means; the caller closes them."""
        ...

    def client(self) -> AbstractAsyncContextManager[Any] | None:
        """What the executor enters on the event loop once the system is ready, if anything."""
        ...

    def attach(self, client: Any) -> None:
        """Take what entering `client()` gave."""
        ...

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until the system serves.  Raises `StartFailed` with its stderr."""
        ...

    async def quiet(self, timeout_s: float) -> bool:
        """Wait until nothing is being restarted; False at the deadline."""
        ...

    def births(self) -> int:
        """A number that grows whenever its supervisor starts a process."""
        ...

    def deaths(self, since: int) -> dict[str, tuple[int, str]]:
        """Whom its supervisor has had to start again since `births` was that: how often at least, and why last."""
        ...

    def stop(self, timeout_s: float) -> bool:
        """Ask it to end, and wait; False at the deadline."""
        ...


@runtime_checkable
class System(Protocol):
    """A declaration of a system under test."""

    def topology(self) -> tuple[str, ...]:
        """The paths of the processes that it declares: what faults may name."""
        ...

    def modules(self) -> tuple[ModuleType, ...]:
        """What the template must have imported before it forks."""
        ...

    def rehearsal(self) -> Callable[[], None] | None:
        """What the template runs once, so that its forks start faster; picklable, and harmless there."""
        ...

    def tolerance(self) -> int | None:
        """How many deaths it promises to survive in one run; None for no bound."""
        ...

    def program(self) -> Program:
        """What starts in the sandbox."""
        ...

    def boot(self, sandbox: Sandbox) -> RunningSystem:
        """Start it in a sandbox."""
        ...


# --- actors ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _NodeProgram:
    """A node, by the name of its root supervisor (imported in the template already)."""

    module: str
    qualname: str
    backend: str
    restarts: Restarts | None = None

    def run(self, place: Place, ready: Callable[[], None]) -> int:
        supervisor: Any = importlib.import_module(self.module)
        for part in self.qualname.split("."):
            supervisor = getattr(supervisor, part)
        return serve(supervisor, place.run, backend=self.backend, ready=ready)


class _Declaration:
    """A system on a machine's class: there it is itself; on an instance, the running one.

    The executor puts the running system into the instance, where Python finds it first.
    """

    def _not_running(self) -> RuntimeError:
        return RuntimeError("self.system runs from the first step on; in __init__ there is none yet")


class ActorSystem(_Declaration):
    """A node of actors under one supervisor.  `backend` is what the actors' loops run on."""

    def __init__(self, supervisor: type[Supervisor], *, backend: str = "asyncio") -> None:
        if not (isinstance(supervisor, type) and issubclass(supervisor, Supervisor)):
            raise InvalidSpecification(f"ActorSystem takes a subclass of colos.runtime.Supervisor, not {supervisor!r}")
        if "<locals>" in supervisor.__qualname__:
            raise InvalidSpecification(
                f"{supervisor.__qualname__} is defined inside a function, where no other process can import it; "
                "move it to the top of its module"
            )
        self.supervisor = supervisor
        self.backend = backend

    def __repr__(self) -> str:
        return f"ActorSystem({self.supervisor.__qualname__})"

    @overload
    def __get__(self, machine: None, owner: type) -> Self: ...
    @overload
    def __get__(self, machine: object, owner: type) -> RunningActors: ...
    def __get__(self, machine: object, owner: type) -> Self | RunningActors:
        if machine is None:
            return self
        raise self._not_running()

    def topology(self) -> tuple[str, ...]:
        """The supervisor's children."""
        return topology(self.supervisor)

    def modules(self) -> tuple[ModuleType, ...]:
        """Where the supervisor is defined, and what every actor's loop would import by itself."""
        loop = importlib.import_module(f"anyio._backends._{self.backend}")
        return (sys.modules[self.supervisor.__module__], loop)

    def rehearsal(self) -> Callable[[], None]:
        """An event loop like every actor's."""
        return functools.partial(rehearse, self.backend, _REHEARSALS)

    def tolerance(self) -> int | None:
        """The supervisor's restart intensity: more deaths than that, and giving up is right."""
        return self.supervisor.intensity

    def program(self) -> Program:
        """The node, under its root supervisor."""
        return _NodeProgram(self.supervisor.__module__, self.supervisor.__qualname__, self.backend)

    def boot(self, sandbox: Sandbox) -> RunningActors:
        """Start the node."""
        sandbox.start(self.program())
        return RunningActors(sandbox)


class _Running:
    """What both kinds of running system share: waiting on the keeper's events."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox

    def _await(self, holds: Callable[[], bool], timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while not holds():
            left = deadline - time.monotonic()
            if left <= 0 or (self.sandbox.stopped and not holds()):
                return holds()
            self.sandbox.pump(left)
        return True

    def stop(self, timeout_s: float) -> bool:
        """SIGTERM, and wait for the exit."""
        self.sandbox.catch_up()
        if not self.sandbox.stopped:
            self.sandbox.ask_to_stop()
            self._await(lambda: self.sandbox.stopped, timeout_s)
        return self.sandbox.stopped

    def _failure(self, what: str, timeout_s: float) -> StartFailed:
        if self.sandbox.exits:
            reason = f"it exited with {_exit_text(self.sandbox.exits[-1][0])} before it was ready"
        else:
            reason = f"it was not ready within {timeout_s:g} s"
        return StartFailed(what, reason, self.sandbox.output())


def _exit_text(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"


class RunningActors(_Running):
    """A node in its sandbox.  Rules call its actors through `whereis`."""

    def __init__(self, sandbox: Sandbox) -> None:
        super().__init__(sandbox)
        self._node: NodeClient | None = None

    @property
    def run_directory(self) -> str:
        """The node's run directory, as this process can open it."""
        return self.sandbox.outside("{run}")

    @property
    def node(self) -> NodeClient:
        """The connection to the node's root."""
        assert self._node is not None
        return self._node

    async def whereis(self, name: str) -> ActorRef:
        """The living actor behind a registered name or a path.  Raises `NoSuchActor`."""
        return await self.node.whereis(name)

    def path(self, text: str) -> str:
        """A file of the sandbox as this process can open it: ``self.system.path("{data}/ledger")``."""
        return self.sandbox.outside(text)

    def targets(self, pattern: str) -> list[Target]:
        """The live actors whose path matches."""
        wanted = [actor.pid for actor in read_actors(self.run_directory) if actor.pid and matches(actor.path, pattern)]
        found = [self.sandbox.target(pid) for pid in wanted]
        return [target for target in found if target is not None]

    def client(self) -> AbstractAsyncContextManager[NodeClient]:
        """A connection to the node."""
        return connect(self.run_directory)

    def attach(self, client: NodeClient) -> None:
        """Use this connection."""
        self._node = client

    def wait_ready(self, timeout_s: float) -> None:
        """Until every actor's `init` has returned."""
        if not self._await(lambda: self.sandbox.ready, timeout_s):
            raise self._failure("the node", timeout_s)

    async def quiet(self, timeout_s: float) -> bool:
        """Until every actor that should run is ready again."""
        return await self.node.quiet(timeout_s)

    def births(self) -> int:
        """The newest incarnation's number."""
        return max((number for number, _ in incarnations(self.run_directory)), default=0)

    def deaths(self, since: int) -> dict[str, tuple[int, str]]:
        """By path: the incarnations that took a dead one's place, and the last if it is dead itself.

        At least so many: the run directory keeps only the latest dead of each path.
        """
        found: dict[str, tuple[int, str]] = {}
        for number, directory in incarnations(self.run_directory):
            path, exited = read_text(f"{directory}/path"), read_text(f"{directory}/exit").partition("\n")[0]
            times, reason = found.get(path, (0, ""))
            if number > since and read_text(f"{directory}/restarts") not in ("", "0"):
                times += 1
            found[path] = (times, exited or reason)
        newest = {actor.path: actor.state for actor in read_actors(self.run_directory)}
        return {
            path: (times + (newest.get(path) == "exited"), reason)
            for path, (times, reason) in found.items()
            if times and path in newest
        }


# --- commands ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _CommandProgram:
    """Any program: replaces the forked process by exec."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    restarts: Restarts | None = None

    def run(self, place: Place, ready: Callable[[], None]) -> int:
        del ready  # a program knows nothing of us; its readiness is observed from outside
        if self.cwd is not None:
            os.chdir(place.expand(self.cwd))
        argv = [place.expand(argument) for argument in self.argv]
        environment = {**place.environment(), **{name: place.expand(value) for name, value in self.env.items()}}
        try:
            os.execvpe(argv[0], argv, environment)
        except OSError as error:
            print(f"colos: cannot run {argv[0]!r}: {error.strerror}", file=sys.stderr)
            return 127  # as a shell says it


class CommandSystem(_Declaration):
    """Any program, without an actor in it.

    `argv` and `env` may use ``{data}``, ``{run}``, ``{home}`` and ``{tmp}``; the program starts in
    ``{data}`` unless `cwd` says otherwise.  `ready` is a condition from `colos.chaos.ready`; it
    must come to hold within `start_s` seconds.  `restarts` is a policy, where the author has one.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        ready: Ready,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        restarts: Restarts | None = None,
        start_s: float = 10.0,
        name: str | None = None,
    ) -> None:
        if isinstance(argv, str) or not argv or not all(isinstance(argument, str) for argument in argv):
            raise InvalidSpecification(f"CommandSystem takes a list of words such as ['redis-server'], not {argv!r}")
        if not callable(ready):
            raise InvalidSpecification(
                "CommandSystem needs ready=…: a condition such as unix_socket('{run}/s') or tcp(6379)"
            )
        self.argv = tuple(argv)
        self.ready = ready
        self.env = dict(env or {})
        self.cwd = cwd
        self.restarts = restarts
        self.start_s = start_s
        self.name = name or os.path.basename(self.argv[0])

    def __repr__(self) -> str:
        return f"CommandSystem({' '.join(self.argv)})"

    @overload
    def __get__(self, machine: None, owner: type) -> Self: ...
    @overload
    def __get__(self, machine: object, owner: type) -> RunningCommand: ...
    def __get__(self, machine: object, owner: type) -> Self | RunningCommand:
        if machine is None:
            return self
        raise self._not_running()

    def topology(self) -> tuple[str, ...]:
        """The program; the pattern ``NAME/*`` means whatever it has forked."""
        return (self.name,)

    def modules(self) -> tuple[ModuleType, ...]:
        """None: a program is exec'ed."""
        return ()

    def rehearsal(self) -> None:
        """None: a program is exec'ed."""

    def tolerance(self) -> int | None:
        """As many deaths as the policy restarts; none without one."""
        return self.restarts.limit if self.restarts is not None else 0

    def program(self) -> Program:
        """What the keeper starts."""
        return _CommandProgram(self.argv, self.env, self.cwd, self.restarts)

    def boot(self, sandbox: Sandbox) -> RunningCommand:
        """Start it."""
        sandbox.start(self.program())
        return RunningCommand(sandbox, self)


class RunningCommand(_Running):
    """A program in its sandbox.  Rules reach it by `connect` and by `path`."""

    def __init__(self, sandbox: Sandbox, declared: CommandSystem) -> None:
        super().__init__(sandbox)
        self._declared = declared
        self._ready_start = 0

    def path(self, text: str) -> str:
        """A file or socket of the sandbox as this process can open it: ``path("{run}/redis.sock")``."""
        return self.sandbox.outside(text)

    async def connect(self, address: str | tuple[str, int]) -> socket.socket:
        """A connected, blocking stream socket to a Unix path inside, or to a TCP (host, port) inside.

        A TCP socket is made inside and passed out: it keeps the sandbox's own loopback.  Raises
        `OSError` as the kernel says it.
        """
        return await anyio.to_thread.run_sync(self.connect_blocking, address)

    def connect_blocking(self, address: str | tuple[str, int]) -> socket.socket:
        """`connect` for rules that are not coroutines."""
        if isinstance(address, tuple):
            return self.sandbox.connect_tcp(*address)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(self._declared.start_s)
            connection.connect(self.path(address))
            connection.settimeout(None)
        except BaseException:
            connection.close()
            raise
        return connection

    def output(self) -> str:
        """The end of what the program wrote."""
        return self.sandbox.output()

    def targets(self, pattern: str) -> list[Target]:
        """The program itself, or with ``NAME/*`` what it has forked, or with ``*`` both."""
        self.sandbox.catch_up()
        name = self._declared.name
        found = []
        for process in self.sandbox.processes():
            path = name if process.inner_pid == self.sandbox.main_pid else f"{name}/{process.command}"
            if matches(path, pattern):
                found.append(self.sandbox.target(process.inner_pid))
        return [target for target in found if target is not None]

    def client(self) -> None:
        """None: the author brings the client."""

    def attach(self, client: Any) -> None:
        """Nothing to take."""

    def wait_ready(self, timeout_s: float) -> None:
        """Until the declared condition holds."""
        del timeout_s  # the author's own deadline counts
        if not self._poll_ready(self._declared.start_s):
            raise self._failure(f"the program {self._declared.name!r}", self._declared.start_s)

    def _poll_ready(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while True:
            self.sandbox.catch_up()
            if self.sandbox.stopped:
                return False
            start = self.sandbox.starts
            if start and self.sandbox.main_pid and self._declared.ready(self):
                self._ready_start = start
                return True
            if time.monotonic() >= deadline:
                return False
            self.sandbox.pump(_POLL_S)

    def births(self) -> int:
        """How often the keeper has seen it end: the next start is as good as made."""
        return len(self.sandbox.exits)

    def deaths(self, since: int) -> dict[str, tuple[int, str]]:
        """How often the keeper has seen it end, where it started it again."""
        ended = self.sandbox.exits[since:]
        if not any(again for _, again in ended):
            return {}
        return {self._declared.name: (len(ended), _exit_text(ended[-1][0]))}

    async def quiet(self, timeout_s: float) -> bool:
        """Until a program that was restarted is ready again."""
        return await anyio.to_thread.run_sync(self._quiet, timeout_s)

    def _quiet(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        self.sandbox.catch_up()
        # A death that the keeper has not told yet is a death all the same.
        while self.sandbox.main_pid and not self._main_lives() and time.monotonic() < deadline:
            self.sandbox.pump(_POLL_S)
        if self.sandbox.stopped:
            return True  # it is down for good: nothing will change by waiting
        if self._ready_start == self.sandbox.starts and self.sandbox.main_pid:
            return True
        return self._poll_ready(deadline - time.monotonic())

    def _main_lives(self) -> bool:
        main = self.sandbox.main_pid
        return any(process.inner_pid == main and process.state != "Z" for process in self.sandbox.processes())


Ready = Callable[[RunningCommand], bool]
