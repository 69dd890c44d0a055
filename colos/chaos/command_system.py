"""Any program as the system under test, without an actor in it."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import anyio.to_thread

from colos.chaos.fault import matches
from colos.chaos.sandbox.handle import Sandbox, Target
from colos.chaos.sandbox.spec import Place, Program, Restarts
from colos.chaos.system import Declaration, Running, exit_text
from colos.errors import InvalidSpecification

__all__ = ["CommandSystem", "RunningCommand"]

_POLL_S = 0.002


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


class CommandSystem(Declaration["RunningCommand"]):
    """Any program, without an actor in it.

    `argv` and `env` may use ``{data}``, ``{run}``, ``{home}`` and ``{tmp}``; the program starts in
    ``{data}`` unless `cwd` says otherwise.  `ready` is a condition from `colos.chaos.ready`; it
    must come to hold within `start_s` seconds.  `restarts` is a policy, where the author has one.
    `host_bound=False` says that it has no port and no file outside its directories: where sandboxes
    share the host, several of it may run at once.
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
        host_bound: bool = True,
    ) -> None:
        if isinstance(argv, str) or not argv or not all(isinstance(argument, str) for argument in argv):
            raise InvalidSpecification(f"CommandSystem takes a list of words such as ['redis-server'], not {argv!r}")
        if not callable(ready):
            raise InvalidSpecification(
                "CommandSystem needs ready=…: a condition such as unix_socket('{run}/s') or tcp(6379)"
            )
        super().__init__(host_bound=host_bound)
        self.argv = tuple(argv)
        self.ready = ready
        self.env = dict(env or {})
        self.cwd = cwd
        self.restarts = restarts
        self.start_s = start_s
        self.name = name or os.path.basename(self.argv[0])

    def __repr__(self) -> str:
        return f"CommandSystem({' '.join(self.argv)})"

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


class RunningCommand(Running):
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
            raise self.failure(f"the program {self._declared.name!r}", self._declared.start_s)

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
        return {self._declared.name: (len(ended), exit_text(ended[-1][0]))}

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
