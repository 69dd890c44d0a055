"""What the tests of sandboxes and of faults share: tiers, an agent inside, and looking at the kernel's tables."""

from __future__ import annotations

import ast
import functools
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from colos.chaos import CommandSystem, unix_socket
from colos.chaos.fault import Lease, Site
from colos.chaos.faults import fault_kinds
from colos.chaos.sandbox.handle import Sandbox
from colos.chaos.sandbox.processes import Process, read_process
from colos.chaos.sandbox.session import Session
from colos.chaos.sandbox.spec import TIERS, SandboxSpec, kept_paths
from colos.errors import HarnessBroken

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
AGENT = str(HERE / "sandbox_agent.py")
PYTHON = (sys.executable, "-I", "-S")
DEADLINE_S = 10.0
MIB = 1 << 20


def eventually(holds: Callable[[], Any], what: str, timeout_s: float = DEADLINE_S) -> Any:
    """Poll until `holds` gives something true, and return it."""
    deadline = time.monotonic() + timeout_s
    while not (value := holds()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.002)
    return value


@functools.cache
def _environment(session: Session) -> tuple[tuple[str, str], ...]:
    """What the kinds that this machine has need in the system's environment, as if all were declared."""
    kinds = [kind for kind in fault_kinds().values() if kind.unavailable(session) is None]
    return tuple(sorted({item for kind in kinds for item in kind.environment().items()}))


def spec(**changes: Any) -> SandboxSpec:
    return SandboxSpec(**{"kept": kept_paths(), **changes})


def agents_spec(session: Session, **changes: Any) -> SandboxSpec:
    """One in which every kind can act that this machine has."""
    return spec(**{"environment": _environment(session), **changes})


class Sessions:
    """One session a tier for all tests, made when it is first asked for."""

    def __init__(self) -> None:
        self._made: dict[str, Session] = {}
        self._refused: dict[str, str] = {}
        self.agents: dict[str, Agent] = {}

    def __getitem__(self, tier: str) -> Session:
        """The session; skips the test with the reason where this machine refuses the tier."""
        if tier not in self._made and tier not in self._refused:
            session = Session(tier)
            try:
                assert session.tier == tier
                self._made[tier] = session
            except HarnessBroken as error:
                session.close()
                self._refused[tier] = str(error)
        if tier in self._refused:
            pytest.skip(self._refused[tier])
        return self._made[tier]

    def close(self) -> None:
        for agent in self.agents.values():
            agent.end()
        for session in self._made.values():
            session.close()


@pytest.fixture(scope="session")
def sessions() -> Iterator[Sessions]:
    sessions = Sessions()
    yield sessions
    sessions.close()


# Not a parameter of a session-wide fixture: pytest keeps one value of it, and would begin anew at each change.
@pytest.fixture(params=TIERS)
def session(request: pytest.FixtureRequest, sessions: Sessions) -> Session:
    return sessions[request.param]


@pytest.fixture
def namespaces(sessions: Sessions) -> Session:
    return sessions["namespaces"]


@pytest.fixture
def bare(sessions: Sessions) -> Session:
    session = sessions["bare"]
    reason = session.probe_syscalls()
    if reason:
        pytest.skip(reason)
    return session


class Agent:
    """The agent program in a sandbox, as a system under test, and a line to it."""

    def __init__(self, sandbox: Sandbox, **changes: Any) -> None:
        self.sandbox = sandbox
        self.declared = CommandSystem(
            [*PYTHON, AGENT, "{run}/agent.sock"], ready=unix_socket("{run}/agent.sock"), name="agent", **changes
        )
        self.running = self.declared.boot(sandbox)
        self.running.wait_ready(DEADLINE_S)
        self.site = Site(sandbox, self.running)
        self._line = self.running.connect_blocking("{run}/agent.sock")
        self._line.settimeout(DEADLINE_S)
        self._stream = self._line.makefile("rwb")
        self._unheard = 0
        self.ask("None")  # it has accepted: from here on it needs no descriptor to answer
        self._first = snapshot(sandbox)

    def tell(self, source: str) -> None:
        """Have it run a program; the answer is `hear`d later."""
        self._stream.write(repr(source).encode() + b"\n")
        self._stream.flush()
        self._unheard += 1

    def hear(self) -> Any:
        line = self._stream.readline()
        if not line:
            raise ConnectionResetError("the agent is gone")
        self._unheard -= 1
        how, value = ast.literal_eval(line.decode())
        if how == "OSError":
            raise OSError(value, os.strerror(value))
        assert how == "done", value
        return value

    def do(self, source: str) -> Any:
        """Run a program inside; returns its `result`, raises its OSError."""
        self.tell(source)
        return self.hear()

    def ask(self, expression: str) -> Any:
        return self.do(f"result = {expression}")

    def refused(self, source: str) -> int:
        """The errno that a program inside meets, or 0."""
        try:
            self.do(source)
        except OSError as error:
            return error.errno or 0
        return 0

    def inject(self, kind: str, target: str | None = None, **arguments: Any) -> Lease:
        return fault_kinds()[kind].inject(self.site, target, arguments)

    def process(self, command: str | None = None) -> Process:
        """The program itself, or its one child of that name."""
        main = self.sandbox.main_pid
        found = [p for p in self.sandbox.processes() if (p.command == command if command else p.inner_pid == main)]
        assert len(found) == 1, found
        return found[0]

    def hang_up(self) -> None:
        try:
            self._stream.close()
        finally:
            self._line.close()

    def end(self) -> None:
        try:
            self.hang_up()
        except OSError:
            pass  # what it was told last may be unsaid still
        self.sandbox.destroy()

    def renew(self) -> bool:
        """Bring it back to how it began, for the next test; False when something stands in the way."""
        main = self.sandbox.main_pid
        try:
            self.sandbox.catch_up()
            if self.sandbox.main_pid != main or main == 0 or self.sandbox.stopped:
                return False
            for process in self.sandbox.processes():
                if process.inner_pid != main:
                    os.kill(process.pid, signal.SIGKILL)
            while self._unheard:
                try:
                    self.hear()
                except OSError as error:
                    if not self._unheard:
                        break
                    if isinstance(error, ConnectionError | TimeoutError):
                        raise
            self.do("reset()")
            self.site = Site(self.sandbox, self.running)
            eventually(lambda: len(self.sandbox.processes()) == 1, "only the agent is left")
            first, self._first = self._first, snapshot(self.sandbox)
        except (OSError, HarnessBroken, AssertionError):
            return False
        return first == self._first


@contextmanager
def agent_in(session: Session, *, restarts: Any = None, **changes: Any) -> Iterator[Agent]:
    sandbox = session.sandbox(agents_spec(session, **changes))
    agent = None
    try:
        agent = Agent(sandbox, restarts=restarts)
        yield agent
    finally:
        if agent is not None:
            agent.end()
        sandbox.destroy()


@pytest.fixture
def agent(session: Session, sessions: Sessions) -> Agent:
    """An agent in an otherwise empty sandbox: the last test's, where it left no trace, else a new one."""
    agent = sessions.agents.pop(session.tier, None)
    if agent is not None and not agent.renew():
        agent.end()
        agent = None
    if agent is None:
        sandbox = session.sandbox(agents_spec(session))
        try:
            agent = Agent(sandbox)
        except BaseException:
            sandbox.destroy()
            raise
    sessions.agents[session.tier] = agent
    return agent


@pytest.fixture
def sandbox(session: Session) -> Iterator[Sandbox]:
    sandbox = session.sandbox(spec())
    yield sandbox
    sandbox.destroy()


def heal(lease: Lease) -> None:
    """As the executor does it: twice is once."""
    lease.heal()
    lease.heal()
    eventually(lease.is_healed, f"{lease!r} is healed")
    assert lease.is_healed()


def gone(process: Process) -> bool:
    now = read_process(process.pid)
    return now is None or now.start_time != process.start_time


def state_of(process: Process) -> str:
    now = read_process(process.pid)
    return now.state if now is not None and now.start_time == process.start_time else "gone"


_LIMITS = [number for name, number in vars(resource).items() if name.startswith("RLIMIT_")]


def limits_of(pid: int) -> dict[int, tuple[int, int]] | None:
    try:
        return {number: resource.prlimit(pid, number) for number in _LIMITS}
    except ProcessLookupError:
        return None


def snapshot(sandbox: Sandbox) -> dict[str, Any]:
    """Everything that a fault might change and a heal must put back."""
    shown: dict[str, Any] = {}
    for process in sandbox.processes():
        if process.state != "Z":
            shown[f"{process.command}[{process.pid}]"] = (
                limits_of(process.pid),
                process.state == "T",
                os.getpriority(os.PRIO_PROCESS, process.pid),
                os.sched_getaffinity(process.pid),
            )
    for place in ("data", "run", "tmp"):
        state = os.statvfs(sandbox.outside("{" + place + "}"))
        if sandbox.tier == "namespaces":
            shown[place] = (state.f_blocks, state.f_files, state.f_flag)
    with open(f"/proc/{sandbox.keeper}/mountinfo") as file:
        mounts = file.read()
    shown["mounts"] = [line.split(" - ")[0] for line in mounts.splitlines()]
    return shown


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
