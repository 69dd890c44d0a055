"""What the tests of sandboxes and of faults share: tiers, an agent inside, and looking at the kernel's tables."""

from __future__ import annotations

import ast
import functools
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from colos.chaos import CommandSystem, unix_socket
from colos.chaos.fault import Lease, Site
from colos.chaos.faults import fault_kinds
from colos.chaos.faults.diskio import IoError
from colos.chaos.mechanisms.syscalls import Trap, merged
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


def every_trap() -> tuple[Trap, ...]:
    """What every kind together needs, so that one agent serves the tests of all."""
    of_files = IoError(operations=("read", "write", "fsync", "open", "rename"))
    return merged(trap for fault in (of_files, *(kind() for kind in fault_kinds().values())) for trap in fault.needed())


def agents_spec(session: Session, **changes: Any) -> SandboxSpec:
    """One in which every kind can act that this machine has."""
    return spec(**{"environment": _environment(session), "traps": every_trap(), **changes})


class Sessions:
    """One session a tier for all tests, made when it is first asked for."""

    def __init__(self) -> None:
        self._made: dict[str, Session] = {}
        self._refused: dict[str, str] = {}
        self.agents: dict[str, Agent] = {}
        self._neighbours: dict[str, Agent] = {}
        self._stack = ExitStack()

    def __getitem__(self, tier: str) -> Session:
        """The session; skips the test with the reason where this machine refuses the tier."""
        if tier not in self._made and tier not in self._refused:
            session = Session(tier)
            try:
                assert session.tier == tier
                session.probe_syscalls()  # its template is there from now on, not from some test's first sandbox on
                self._made[tier] = session
            except HarnessBroken as error:
                session.close()
                self._refused[tier] = str(error)
        if tier in self._refused:
            pytest.skip(self._refused[tier])
        return self._made[tier]

    def neighbour(self, tier: str) -> Agent:
        """An agent in a sandbox of its own that no test does anything to: whoever finds it changed has leaked."""
        if tier not in self._neighbours:
            self._neighbours[tier] = self._stack.enter_context(agent_in(self[tier]))
        return self._neighbours[tier]

    def close(self) -> None:
        self._stack.close()
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
        self._leases: list[Lease] = []
        self.ask("None")  # it has accepted: from here on it needs no descriptor to answer
        self._first = snapshot(sandbox)

    def tell(self, source: str) -> None:
        """Have it run a program; the answer is `hear`d later."""
        self._stream.write(repr(source).encode() + b"\n")
        self._stream.flush()
        self._unheard += 1

    def answers(self, timeout_s: float) -> bool:
        """Whether an answer comes in that time; it is not heard yet."""
        return bool(select.select([self._line], [], [], timeout_s)[0])

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
        lease = fault_kinds()[kind].inject(self.site, target, arguments)
        self._leases.append(lease)
        return lease

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
            if not all(lease.is_healed() for lease in self._leases):  # a test has failed before it healed
                return False
            self._leases.clear()
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
    return lent_agent(session, sessions)


@pytest.fixture
def inside(namespaces: Session, sessions: Sessions) -> Agent:
    """The same, with a network and a file system view of its own."""
    return lent_agent(namespaces, sessions)


def lent_agent(session: Session, sessions: Sessions) -> Agent:
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


#: Signals 32 and 33, which the C library takes for itself when the first thread begins.  nptl(7)
_THREADS_OWN = 0b11 << 31
_LIMITS = [number for name, number in vars(resource).items() if name.startswith("RLIMIT_")]


def limits_of(pid: int) -> dict[int, tuple[int, int]] | None:
    try:
        return {number: resource.prlimit(pid, number) for number in _LIMITS}
    except ProcessLookupError:
        return None


def snapshot(sandbox: Sandbox) -> dict[str, Any]:
    """Everything inside that a fault might change and a heal must put back."""
    shown: dict[str, Any] = {
        f"{process.command}[{process.pid}]": _traits(process.pid, process.state)
        for process in sandbox.processes()
        if process.state != "Z"
    }
    for place in ("data", "run", "tmp"):
        state = os.statvfs(sandbox.outside("{" + place + "}"))
        if sandbox.tier == "namespaces":
            shown[place] = (state.f_blocks, state.f_files, state.f_flag)
    if sandbox.tier == "namespaces":  # in `bare` the network is the host's
        shown["network"] = {name: _read(f"/proc/{sandbox.keeper}/net/{name}") for name in ("fib_trie", "if_inet6")}
    shown["mounts"] = _mounts(sandbox.keeper)
    shown["keeper"] = _traits(sandbox.keeper, "S")
    return shown


def harness() -> dict[str, Any]:
    """Everything of this process and its surroundings that a fault might leave something in."""
    return {
        "descriptors": sorted(os.readlink(f"/proc/self/fd/{number}").split(":")[0] for number in _own_descriptors()),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "children": sorted(map(str, _children())),
        "mounts": _mounts(os.getpid()),
        "traits": _traits(os.getpid(), "R"),
        "cgroups": cgroups(),
    }


def differences(before: Any, after: Any, where: str = "") -> list[str]:
    """What two snapshots say differently, one line each."""
    if isinstance(before, dict) and isinstance(after, dict):
        names = sorted({*before, *after}, key=str)
        return [line for name in names for line in differences(before.get(name), after.get(name), f"{where}/{name}")]
    return [] if before == after else [f"{where}: {before!r} became {after!r}"]


def _traits(pid: int, state: str) -> dict[str, Any] | None:
    """What a process is allowed, how it is scheduled, and which signals it takes; None when it is gone."""
    try:
        status = dict(line.split(":", 1) for line in _read(f"/proc/{pid}/status").splitlines())
        return {
            "limits": limits_of(pid),
            "stopped": state == "T",
            "nice": os.getpriority(os.PRIO_PROCESS, pid),
            "policy": os.sched_getscheduler(pid),
            "affinity": os.sched_getaffinity(pid),
            "signals": {name: int(status[name], 16) & ~_THREADS_OWN for name in ("SigIgn", "SigCgt")},
            "tracer": status["TracerPid"].strip(),
            "cgroup": _read(f"/proc/{pid}/cgroup"),
            "oom": _read(f"/proc/{pid}/oom_score_adj"),
        }
    except (FileNotFoundError, ProcessLookupError):
        return None


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


def _mounts(pid: int) -> list[str]:
    return [line.split(" - ")[0] for line in _read(f"/proc/{pid}/mountinfo").splitlines()]


def _own_descriptors() -> list[str]:
    """The names of those that are still open after the listing, whose own is not."""
    return [number for number in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{number}")]


def _children() -> list[str]:
    return _read(f"/proc/self/task/{threading.get_native_id()}/children").split()


def cgroups() -> set[str]:
    """The control groups that somebody made for ColOS, below wherever this process is."""
    return {
        os.path.join(folder, name)
        for folder, names, _ in os.walk("/sys/fs/cgroup")
        for name in names
        if "colos" in name
    }


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
