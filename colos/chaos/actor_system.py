"""A node of actors as the system under test."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from colos.chaos.fault import matches
from colos.chaos.sandbox.handle import Sandbox, Target
from colos.chaos.sandbox.spec import Place, Program, Restarts
from colos.chaos.system import Declaration, Running
from colos.errors import InvalidSpecification
from colos.runtime import ActorRef, NodeClient, Supervisor, connect, serve, topology
from colos.runtime.rehearsal import rehearse
from colos.runtime.rundir import incarnations, read_actors, read_text

__all__ = ["ActorSystem", "RunningActors"]

_REHEARSALS = 20


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


class ActorSystem(Declaration["RunningActors"]):
    """A node of actors under one supervisor.  `backend` is what the actors' loops run on.

    `host_bound` is for actors that listen on a port: where sandboxes share the host's network, such a
    system runs alone.
    """

    def __init__(self, supervisor: type[Supervisor], *, backend: str = "asyncio", host_bound: bool = False) -> None:
        if not (isinstance(supervisor, type) and issubclass(supervisor, Supervisor)):
            raise InvalidSpecification(f"ActorSystem takes a subclass of colos.runtime.Supervisor, not {supervisor!r}")
        if "<locals>" in supervisor.__qualname__:
            raise InvalidSpecification(
                f"{supervisor.__qualname__} is defined inside a function, where no other process can import it; "
                "move it to the top of its module"
            )
        super().__init__(host_bound=host_bound)
        self.supervisor = supervisor
        self.backend = backend

    def __repr__(self) -> str:
        return f"ActorSystem({self.supervisor.__qualname__})"

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


class RunningActors(Running):
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
        if not self.wait_until(lambda: self.sandbox.ready, timeout_s):
            raise self.failure("the node", timeout_s)

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
