"""Where and how urgently a live process is run: on one core, on fewer CPUs, after everybody else.

Mechanisms: sched_setaffinity(2) and sched_setscheduler(2), for every thread from /proc/PID/task.
Proof: what the kernel reports afterwards.  Leases on one process add up, and the last one out gives
each thread back what it had; threads and processes that were started meanwhile have inherited the
fault, and get what their process had.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar
from weakref import WeakKeyDictionary

from hypothesis import strategies as st

from colos.chaos.fault import EVERYTHING, Fault, Lease, Site, count_of
from colos.chaos.mechanisms import threads
from colos.chaos.sandbox.processes import read_process
from colos.chaos.signalling import name_of
from colos.errors import InvalidSpecification

if TYPE_CHECKING:
    from colos.chaos.sandbox.handle import Sandbox, Target
    from colos.chaos.sandbox.processes import Process
    from colos.chaos.sandbox.session import Session

__all__ = ["CpuFewer", "CpuPin", "CpuPriority"]

Value = TypeVar("Value")
_Key = tuple[int, int]
#: What a lease wants of a process, given what that has and what all its targets have.
_Wants = Callable[[Value, list[Value]], Value | None]
_PASSES = 50
_GONE = (*threads.GONE, PermissionError)  # a process that ends belongs to root meanwhile


# --- the kinds ---------------------------------------------------------------------------


class _Placed(Fault):
    family = "cpu"
    uses = "sched-setaffinity"

    @classmethod
    def unavailable(cls, session: Session) -> tuple[str, str] | None:
        """No privilege is needed on processes of the same user."""
        del session
        reason = threads.probe()
        return None if reason is None else (reason, "CPython on Linux")

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """Nothing beside the target."""
        return st.just({})


def _several_cpus() -> tuple[str, str] | None:
    if len(os.sched_getaffinity(0)) > 1:
        return None
    return "there is one CPU only that could be used", "a machine, a container or a cpuset with two CPUs or more"


class CpuPin(_Placed):
    """All threads of all processes that match share one core: the lowest that the first of them may use."""

    kind = "cpu-pin"
    summary = "all processes that match, with all their threads, share one core"
    sees = "sched_getaffinity says one CPU; nothing runs at the same time any more"
    proof = "the CPUs that the kernel reports for each thread"

    @classmethod
    def unavailable(cls, session: Session) -> tuple[str, str] | None:
        """It takes a second core to be kept from."""
        return super().unavailable(session) or _several_cpus()

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Pin everything that matches and is alive."""
        del arguments
        return _Placing(
            site, site.reach.targets(target or EVERYTHING), _Cpus(), lambda _, all_: frozenset({min(all_[0])})
        )


class CpuFewer(_Placed):
    """The process may use `fewer` CPUs less than before, the highest-numbered ones; one is always left."""

    kind = "cpu-fewer"
    summary = "the live process may use fewer CPUs than it had, as when some were taken offline"
    sees = "sched_getaffinity, os.process_cpu_count and the like say fewer; its threads share what is left"
    proof = "the CPUs that the kernel reports for each thread"
    parameters: ClassVar[Mapping[str, object]] = {"fewer": 1}

    def __init__(self, target: str = EVERYTHING, *, fewer: Sequence[int] = (1, 2), at_most: int | None = None) -> None:
        super().__init__(target, at_most=at_most)
        self.fewer = tuple(_fewer(value) for value in fewer)

    @classmethod
    def unavailable(cls, session: Session) -> tuple[str, str] | None:
        """It takes a second core to be lost."""
        return super().unavailable(session) or _several_cpus()

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """One of the declared numbers."""
        return st.fixed_dictionaries({"fewer": st.sampled_from(self.fewer)})

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Take them from everything that matches and is alive."""
        fewer = _fewer(cls.complete(arguments)["fewer"])

        def left(has: frozenset[int], _: list[frozenset[int]]) -> frozenset[int]:
            return frozenset(sorted(has)[: max(1, len(has) - fewer)])

        return _Placing(site, site.reach.targets(target or EVERYTHING), _Cpus(), left)


def _fewer(value: object) -> int:
    count = count_of(value, "how many CPUs are lost")
    if count < 1:
        raise InvalidSpecification("how many CPUs are lost is 1 or more; 0 would be no fault")
    return count


class CpuPriority(_Placed):
    """The process is run after everybody else: SCHED_IDLE, lower than nice 19 (sched(7)).

    Where this user could not take that back (neither CAP_SYS_NICE nor RLIMIT_NICE, see
    setrlimit(2)), SCHED_BATCH: it preempts nobody when it wakes up.  The proof says which.
    """

    kind = "cpu-priority"
    uses = "sched-setscheduler"
    summary = "the live process gets the lowest scheduling policy that can be taken back again"
    sees = "sched_getscheduler says SCHED_IDLE or SCHED_BATCH; it waits while others run"
    proof = "the policy that the kernel reports for each thread"

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Lower everything that matches and is alive."""
        del arguments
        setting = _Policy()
        return _Placing(site, site.reach.targets(target or EVERYTHING), setting, lambda *_: setting.lowest)


# --- the leases --------------------------------------------------------------------------


class _Setting(ABC, Generic[Value]):
    """What every thread has one of: its CPUs, its policy."""

    mechanism: str

    @abstractmethod
    def read(self, thread: int) -> Value | None:
        """What a thread has; None where it is to be left alone.  Raises `OSError`."""

    @abstractmethod
    def write(self, thread: int, value: Value) -> None:
        """Give it.  Raises `OSError`."""

    @abstractmethod
    def under(self, before: Value, wanted: list[Value]) -> Value:
        """What a thread gets that had `before`, while leases want these."""

    @abstractmethod
    def says(self, value: Value) -> str:
        """It, for a person."""

    def get(self, thread: int) -> Value | None:
        """`read`, and None where the thread has ended."""
        try:
            return self.read(thread)
        except _GONE:
            return None

    def put(self, thread: int, value: Value) -> None:
        """`write`, where the thread is still there."""
        try:
            self.write(thread, value)
        except _GONE:
            return


@dataclass
class _Held(Generic[Value]):
    """A process under leases: what its threads had before the first, and what each lease wants."""

    process: Process
    first: Value
    before: dict[int, Value] = field(default_factory=dict)
    wanted: dict[int, Value] = field(default_factory=dict)

    @property
    def key(self) -> _Key:
        """Which process it is, whatever its number may mean later."""
        return self.process.pid, self.process.start_time


class _Ledger(Generic[Value]):
    """One setting in one sandbox: who had what, who wants what, and making it so.

    A process stays in here until no lease wants anything of anybody.
    """

    def __init__(self, setting: _Setting[Value]) -> None:
        self.setting = setting
        self.held: dict[_Key, _Held[Value]] = {}
        #: A value that a lease has given to a process, and what that had: its heirs get it back.
        self._given: dict[Value, Value] = {}

    def idle(self) -> bool:
        """Whether no lease wants anything."""
        return not any(held.wanted for held in self.held.values())

    def forget(self) -> None:
        """All is as it was: what a process does with itself from here on is its own doing."""
        self.held.clear()
        self._given.clear()

    def impose(self, target: Target, lease: Lease, value: Value) -> _Held[Value] | None:
        """Add what a lease wants of a process; None when that is gone."""
        key = (target.pid, target.process.start_time)
        held = self.held.get(key)
        if held is None:
            first = self.setting.get(target.pid)
            if first is None:
                return None
            held = self.held[key] = _Held(target.process, first)
        held.wanted[id(lease)] = value
        self.settle(held)
        return held

    def settle(self, held: _Held[Value]) -> None:
        """Give every thread what it should have, until a look finds none that has not."""
        for _ in range(_PASSES):
            wrong = self.wrong(held)
            if not wrong:
                return
            for thread, value in wrong.items():
                self._given.setdefault(value, held.first)
                self.setting.put(thread, value)

    def wrong(self, held: _Held[Value]) -> dict[int, Value]:
        """The threads that have not what they should, with what that is; none once the process is gone."""
        found: dict[int, Value] = {}
        now = read_process(held.process.pid)
        if now is None or now.start_time != held.process.start_time or now.state in "ZX":
            return found  # its number may mean another by now
        wanted = list(held.wanted.values())
        for thread in threads.threads_of(held.process.pid):
            has = self.setting.get(thread)
            if has is None:
                continue
            if thread not in held.before:  # born under a lease, it has inherited what that gave
                held.before[thread] = self._given.get(has, has) if held.before else has
            value = self.setting.under(held.before[thread], wanted)
            if has != value:
                found[thread] = value
        return found

    def heirs(self, sandbox: Sandbox) -> list[tuple[int, Value]]:
        """Threads of what was forked meanwhile, orphans included, that have inherited it; with what is theirs."""
        since = min((held.process.start_time for held in self.held.values()), default=0)
        return [
            (thread, self._given[has])
            for process in sandbox.processes()
            if process.start_time >= since and (process.pid, process.start_time) not in self.held
            for thread in threads.threads_of(process.pid)
            if (has := self.setting.get(thread)) is not None and self._given.get(has, has) != has
        ]


_LEDGERS: WeakKeyDictionary[Site, dict[str, _Ledger[Any]]] = WeakKeyDictionary()


class _Placing(Lease, Generic[Value]):
    """What one lease wants of each of its targets."""

    def __init__(self, site: Site, targets: list[Target], setting: _Setting[Value], wants: _Wants[Value]) -> None:
        self.mechanism = setting.mechanism
        self._sandbox = site.sandbox
        self._targets = targets
        self._ledger: _Ledger[Value] = _LEDGERS.setdefault(site, {}).setdefault(setting.mechanism, _Ledger(setting))
        self._proof: list[str] = []
        self._held: list[_Held[Value]] = []
        firsts = {target: setting.get(target.pid) for target in targets}
        for target, first in firsts.items():
            value = (
                wants(first, [other for other in firsts.values() if other is not None]) if first is not None else None
            )
            held = self._ledger.impose(target, self, value) if value is not None else None
            if held is not None:
                self._held.append(held)
                self._look(target, held)

    def _look(self, target: Target, held: _Held[Value]) -> None:
        """Take as proof what the kernel reports, where that is another than before."""
        setting = self._ledger.setting
        shown = {thread: setting.get(thread) for thread in threads.threads_of(target.pid)}
        changed = [v for thread, v in shown.items() if v is not None and v != held.before.get(thread, v)]
        if changed:
            said = ", ".join(sorted(set(map(setting.says, changed))))
            self._proof.append(f"{name_of(target)}, {len(changed)} of {len(shown)} threads: {said}")

    def fired(self) -> str | None:
        return "; ".join(self._proof) or None

    def heal(self) -> None:
        for held in self._held:
            held.wanted.pop(id(self), None)
            self._ledger.settle(held)
        if self._ledger.idle():
            for thread, value in self._ledger.heirs(self._sandbox):
                self._ledger.setting.put(thread, value)

    def is_healed(self) -> bool:
        ledger = self._ledger
        # One that a later lease found anew is that one's to heal.
        own = [held for held in self._held if ledger.held.get(held.key, held) is held]
        if any(id(self) in held.wanted or ledger.wrong(held) for held in own):
            return False
        if ledger.idle():
            if ledger.heirs(self._sandbox):
                return False
            ledger.forget()
        for target in self._targets:
            target.close()
        return True


class _Cpus(_Setting[frozenset[int]]):
    mechanism = "sched-setaffinity"

    def read(self, thread: int) -> frozenset[int]:
        return threads.cpus_of(thread)

    def write(self, thread: int, value: frozenset[int]) -> None:
        threads.set_cpus(thread, value)

    def under(self, before: frozenset[int], wanted: list[frozenset[int]]) -> frozenset[int]:
        """What all allow; a thread that would be left without any goes where the tightest lease wants it."""
        if not wanted:
            return before
        tightest = min(wanted, key=lambda cpus: (len(cpus), sorted(cpus)))
        return before.intersection(*wanted) or tightest.intersection(*wanted) or tightest

    def says(self, value: frozenset[int]) -> str:
        return f"CPU {', '.join(map(str, sorted(value)))}"


class _Policy(_Setting[int]):
    mechanism = "sched-setscheduler"

    def __init__(self) -> None:
        self.lowest = threads.lowest_policy()

    def read(self, thread: int) -> int | None:
        return threads.policy_of(thread)

    def write(self, thread: int, value: int) -> None:
        threads.set_policy(thread, value)

    def under(self, before: int, wanted: list[int]) -> int:
        """The lowest; of a thread that is there already nothing is asked.  Its SCHED_RESET_ON_FORK stays."""
        if not wanted or before & ~os.SCHED_RESET_ON_FORK == os.SCHED_IDLE:
            return before
        return wanted[0] | before & os.SCHED_RESET_ON_FORK

    def says(self, value: int) -> str:
        return {os.SCHED_IDLE: "SCHED_IDLE", os.SCHED_BATCH: "SCHED_BATCH"}.get(value, f"policy {value}")
