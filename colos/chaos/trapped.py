"""Leases made of rules for trapped system calls: what the kinds have in common that act call by call."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from colos.chaos.fault import EVERYTHING, Fault, Lease, Site
from colos.chaos.mechanisms.rules import Rule, traps_for
from colos.chaos.mechanisms.syscalls import Trap
from colos.errors import FaultUnavailable, HarnessBroken

if TYPE_CHECKING:
    from colos.chaos.sandbox.handle import Target
    from colos.chaos.sandbox.session import Session

__all__ = ["MECHANISM", "TrappedFault", "TrappedLease", "expand", "one_or_more", "unavailable"]

MECHANISM = "seccomp-notify"
_NAMES = itertools.count(1)  # of rules, as the keeper knows them


def unavailable(session: Session) -> tuple[str, str] | None:
    """Why system calls cannot be trapped here, and the cure; None where they can."""
    reason = session.probe_syscalls()
    if reason is None:
        return None
    return (
        f"seccomp user notification does not work here: {reason}",
        "Linux 5.9 or newer on x86_64 or aarch64; in Docker: docker run --security-opt seccomp=unconfined",
    )


def expand(site: Site, pattern: str) -> str:
    """A file pattern as the rules match it: ``{data}`` and the like replaced; a relative one is below the data disk."""
    if not pattern:
        return ""
    place = site.sandbox.place
    expanded = place.expand(pattern)
    return expanded if expanded.startswith(("/", "*")) else f"{place.data}/{expanded}"


def one_or_more(value: str | Sequence[str]) -> tuple[str, ...]:
    """An author's name, or several."""
    return (value,) if isinstance(value, str) else tuple(value)


class TrappedFault(Fault):
    """A kind whose steps are rules for trapped calls."""

    uses = MECHANISM

    @classmethod
    @abstractmethod
    def calls(cls, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        """The system calls that a step with these (complete) arguments acts on."""

    @classmethod
    @abstractmethod
    def rules(cls, site: Site, arguments: Mapping[str, Any]) -> tuple[Rule, ...]:
        """What becomes of them.  Raises `InvalidSpecification` for arguments that mean nothing."""

    @classmethod
    def traps(cls, arguments: Mapping[str, Any]) -> tuple[Trap, ...]:
        """See Fault."""
        return traps_for(cls.calls(cls.complete(arguments)))

    @classmethod
    def unavailable(cls, session: Session) -> tuple[str, str] | None:
        """Wherever system calls can be trapped, in both tiers, by any user."""
        return unavailable(session)

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Arm the rules for everything that matches and is alive, and its descendants."""
        pattern = (target or EVERYTHING) if cls.targeted else None
        return TrappedLease(site, cls.kind, pattern, cls.rules(site, cls.complete(arguments)))


class TrappedLease(Lease):
    """Arms rules for the calls of everything that matches and is alive, and of its descendants."""

    mechanism = MECHANISM

    def __init__(self, site: Site, kind: str, pattern: str | None, rules: Sequence[Rule]) -> None:
        """`pattern` names the targets; None: every process of the system, also those to come.

        Raises `FaultUnavailable` where this sandbox does not trap the calls.
        """
        self._site = site
        self._names: list[int] = []
        self._calls: dict[str, int] = {}
        pids = None if pattern is None else self._pids(site.reach.targets(pattern))
        if pids == ():
            return  # nobody is there: a miss
        if not site.sandbox.trapping:
            raise FaultUnavailable(kind, "this sandbox traps no system calls", "see `colos doctor`")
        try:
            for rule in rules:
                self._arm(kind, replace(rule, pids=pids))
        except BaseException:
            self.heal()
            raise

    @staticmethod
    def _pids(targets: list[Target]) -> tuple[tuple[int, int], ...]:
        found = tuple((target.process.inner_pid, target.process.start_time) for target in targets if target.alive())
        for target in targets:
            target.close()
        return found

    def _arm(self, kind: str, rule: Rule) -> None:
        name = next(_NAMES)
        trouble = self._site.sandbox.trap("arm", name, rule)
        if trouble is not None:
            raise FaultUnavailable(
                kind,
                str(trouble),
                "what is trapped is chosen when the system starts: declare this fault among the machine's `faults`",
            )
        self._names.append(name)

    def fired(self) -> str | None:
        """How many calls of each name were acted on."""
        for name in self._names:
            hits: dict[str, int] | None = self._site.sandbox.trap("rule-hits", name)
            self._calls.update({f"{call}#{name}": count for call, count in (hits or {}).items()})
        totals: dict[str, int] = {}
        for call, count in self._calls.items():
            plain = call.partition("#")[0]
            totals[plain] = totals.get(plain, 0) + count
        return ", ".join(f"{call} ×{count}" for call, count in sorted(totals.items())) or None

    def heal(self) -> None:
        """Disarm; the calls that are being delayed go on at once."""
        try:
            self.fired()  # what it did stays the proof
            for name in self._names:
                self._site.sandbox.trap("disarm", name)
        except HarnessBroken as error:
            raise OSError(f"the keeper of the sandbox does not answer: {error}") from None

    def is_healed(self) -> bool:
        """Whether the keeper has none of the rules any more."""
        return all(self._site.sandbox.trap("rule-hits", name) is None for name in self._names)
