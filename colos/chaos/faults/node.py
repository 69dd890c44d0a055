"""The end of the whole system at once, of what everything hangs from, and of a node's fork server.

Mechanism: pidfd_send_signal(2).  Proof: the exits seen on the pidfds, the state ``T`` for a stop.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from hypothesis import strategies as st

from colos.chaos.fault import Fault, Lease, Site
from colos.chaos.sandbox.handle import Target
from colos.chaos.sandbox.processes import Process
from colos.chaos.signalling import MECHANISM, Signalled, name_of
from colos.errors import InvalidSpecification
from colos.runtime.rundir import read_actors, read_text

if TYPE_CHECKING:
    from colos.chaos.sandbox.session import Session

__all__ = ["NodeKill", "RootKill", "ZygoteKill"]

ENDS = ("SIGKILL", "SIGSTOP")
_PASSES = 100
_END_S = 5.0
_SPARE_S = 2.0
_LOOK_S = 0.002


class _Untargeted(Fault):
    """What they have in common: the system has one of each, so no step names it."""

    family = "process"
    uses = MECHANISM
    targeted = False

    def __init__(self) -> None:
        super().__init__()

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    @classmethod
    def unavailable(cls, session: Session) -> tuple[str, str] | None:
        """Signals by pidfd are in every kernel that this package supports."""
        del session
        return None

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """Nothing."""
        return st.just({})


class NodeKill(_Untargeted):
    """Every process of the system is killed at one moment, as when a container or a machine loses power.

    All are stopped first, so that none sees another one die.  What they had written stays: the disk
    is not touched.  It comes back only where the system has a policy that restarts it.
    """

    kind = "node-kill"
    summary = "SIGKILL to every process of the system at one moment"
    sees = "nothing; whoever is started again finds what was written before"
    proof = "their exits on the pidfds"

    def deaths(self, target: str | None, topology: Sequence[str]) -> int:
        """All of them."""
        del target
        return len(topology)

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Kill everything in the sandbox but its keeper."""
        del target, arguments
        return _AllKilled(site)


class _AllKilled(Lease):
    mechanism = MECHANISM
    lasting = False

    def __init__(self, site: Site) -> None:
        held: dict[tuple[int, int], Target] = {}
        with site.sandbox.stopping:  # nobody continues what is stopped here
            for _ in range(_PASSES):
                new = [process for process in site.sandbox.processes() if _key(process) not in held]
                found = [target for process in new if (target := site.sandbox.target(process.inner_pid)) is not None]
                if not found:
                    break
                for target in found:
                    held[_key(target.process)] = target
                    target.signal(signal.SIGSTOP)
            # No new look from here on: what the keeper starts again is not this moment's.
            for target in held.values():
                target.signal(signal.SIGKILL)
        deadline = time.monotonic() + _END_S
        self._killed = [target for target in held.values() if target.wait(max(0.0, deadline - time.monotonic()))]
        self._left = [target for target in held.values() if target not in self._killed]
        for target in self._killed:
            target.close()

    def fired(self) -> str | None:
        if not self._killed:
            return None
        return f"SIGKILL to all {len(self._killed)}: {', '.join(map(name_of, self._killed))}"

    def heal(self) -> None:
        """It is over already."""

    def is_healed(self) -> bool:
        """Whether all that were to be killed have ended."""
        for target in self._left:
            if target.pidfd >= 0 and target.wait(0):
                target.close()
        return all(target.pidfd < 0 for target in self._left)


def _key(process: Process) -> tuple[int, int]:
    return process.pid, process.start_time


class RootKill(_Untargeted):
    """What everything else hangs from is killed: a node's root process, or a command's main process.

    A node's other processes then end by themselves; what a command has forked may live on as orphans.
    It comes back only where the system has a policy that restarts it.
    """

    kind = "root-kill"
    summary = "SIGKILL to the node's root, which carries its supervisors, or to the command's main process"
    sees = "the end of its parent"
    proof = "the exit on the pidfd"

    def deaths(self, target: str | None, topology: Sequence[str]) -> int:
        """All of them: a node's processes end with its root."""
        del target
        return len(topology)

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Kill it."""
        del target, arguments
        root = _root(site)
        return Signalled(site, [root] if root is not None else [], signal.SIGKILL)


def _root(site: Site) -> Target | None:
    """The node's root, by its run directory; else the main process.  None when it is not alive."""
    site.sandbox.catch_up()
    said = read_text(site.sandbox.outside("{run}/root.pid"))
    pid = int(said) if said.isdigit() else site.sandbox.main_pid
    return site.sandbox.target(pid) if pid else None


class ZygoteKill(_Untargeted):
    """The node's fork server is killed, or with ``signal="SIGSTOP"`` hangs; a program that is no node has none.

    Its spare takes its place.  Where the spare has not come up within 2 s, nobody is hit: a node that
    loses both must stop, and that is `root-kill`'s question.
    """

    kind = "zygote-kill"
    summary = "the node's zygote, which forks its actors, is killed or stopped"
    sees = "nothing; the next start is the spare's work"
    proof = "the exit on the pidfd, state T for a stop"
    parameters: ClassVar[Mapping[str, object]] = {"signal": "SIGKILL"}

    def __init__(self, *, signals: Sequence[str] = ("SIGKILL",)) -> None:
        super().__init__()
        self.signals = tuple(_end(name).name for name in signals)

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """One of the declared signals."""
        return st.fixed_dictionaries({"signal": st.sampled_from(self.signals)})

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Kill or stop it."""
        del target
        number = _end(cls.complete(arguments)["signal"])
        zygote = _zygote(site)
        return Signalled(site, [zygote] if zygote is not None else [], number)


def _end(name: object) -> signal.Signals:
    if name not in ENDS:
        raise InvalidSpecification(f"a zygote ends by {' or '.join(ENDS)}, not {name!r}")
    return signal.Signals[str(name)]


def _zygote(site: Site) -> Target | None:
    """The older of the root's zygotes: the younger is its spare."""
    root = _root(site)
    if root is None:
        return None
    run = site.sandbox.outside("{run}")
    try:
        if not os.path.exists(f"{run}/actors"):
            return None
        found = _until(lambda: _fork_servers(site, root, run), _SPARE_S)
    finally:
        root.close()
    return site.sandbox.target(found[0].inner_pid) if found else None


def _until(look: Callable[[], list[Process]], timeout_s: float) -> list[Process]:
    """Two or more processes, within the time; else none."""
    deadline = time.monotonic() + timeout_s
    while len(found := look()) < 2:
        if time.monotonic() >= deadline:
            return []
        time.sleep(_LOOK_S)  # the kernel tells nobody when a stranger forks
    return found


def _fork_servers(site: Site, root: Target, run: str) -> list[Process]:
    """The root's children that are no actors and leave their own children unreaped, oldest first."""
    actors = {actor.pid for actor in read_actors(run)}
    found = [
        process
        for process in site.sandbox.processes()
        if process.parent == root.pid
        and process.state != "Z"
        and process.inner_pid not in actors
        and _ignores(process.pid, signal.SIGCHLD)
    ]
    return sorted(found, key=lambda process: (process.start_time, process.inner_pid))


def _ignores(pid: int, number: signal.Signals) -> bool:
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            masks = [int(line.split()[1], 16) for line in file if line.startswith("SigIgn")]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return any(mask >> (number - 1) & 1 for mask in masks)
