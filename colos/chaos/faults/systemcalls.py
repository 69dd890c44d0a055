"""The general faults: any system call that can be trapped fails, or is late, or is interrupted.

Mechanism: seccomp user notification, see `mechanisms.syscalls`.  Proof: the keeper's own count of the calls
it has answered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from hypothesis import strategies as st

from colos.chaos.fault import EVERYTHING, Site
from colos.chaos.mechanisms.rules import DELAY_MAX_S, Delay, Fail, Rule, errno_of, traps_for
from colos.chaos.mechanisms.syscalls import Trap
from colos.chaos.trapped import TrappedFault, expand, one_or_more

__all__ = ["InterruptedCalls", "SyscallDelay", "SyscallError"]

_INTERRUPTIBLE: Final = ("read", "write", "recvfrom", "sendto", "accept4", "connect", "wait4")
"""Calls that signal(7) lists as failing with EINTR when a handler ran."""


class _AnyCall(TrappedFault):
    """What the general kinds have in common: the call, and which of its occurrences."""

    def __init__(
        self, call: str | Sequence[str], target: str, path: str, nth: int, probability: float, at_most: int | None
    ) -> None:
        super().__init__(target, at_most=at_most)
        self.named = one_or_more(call)
        self.path = path
        self.nth = nth
        self.probability = probability
        Rule(self.named, Delay(0, 0), nth=nth, probability=probability)  # raises for what means nothing

    def needed(self) -> tuple[Trap, ...]:
        """The calls that were declared."""
        return traps_for(self.named)

    def which(self) -> dict[str, st.SearchStrategy[Any]]:
        """The arguments that say which occurrences are meant."""
        seeds = st.just(0) if self.probability == 1 else st.integers(0, 255)
        return {
            "call": st.sampled_from(self.named),
            "path": st.just(self.path),
            "nth": st.just(self.nth),
            "probability": st.just(self.probability),
            "seed": seeds,
        }

    @classmethod
    def calls(cls, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        """The one that is named."""
        return (str(arguments["call"]),)

    @classmethod
    def rule(cls, site: Site, arguments: Mapping[str, Any], action: Fail | Delay) -> tuple[Rule, ...]:
        """One rule, as the arguments say."""
        which = {name: arguments[name] for name in ("nth", "probability", "seed")}
        return (Rule(cls.calls(arguments), action, expand(site, str(arguments["path"])), **which),)


_WHICH: Final[Mapping[str, object]] = {"call": "write", "path": "", "nth": 0, "probability": 1.0, "seed": 0}


class SyscallError(_AnyCall):
    """A system call fails: `call` returns -1 with `errno`, and is not carried out.

    Of the target and its children those calls whose file or address matches the pattern `path` (relative: below the
    data disk; "unix:/…" and "inet:HOST:PORT" for connect; empty: all); of these the `nth` only (0: each), and of
    these each with `probability`, decided by `seed`.  The call and the errno are names: "fsync", "EIO".
    """

    kind = "syscall-error"
    family = "system calls"
    summary = "a chosen system call fails with a chosen errno, by path, by number or by chance"
    sees = "the errno"
    proof = "the keeper's count of the calls it has refused"
    parameters: ClassVar[Mapping[str, object]] = {**_WHICH, "errno": "EIO"}

    def __init__(
        self,
        call: str | Sequence[str] = "write",
        errno: str | Sequence[str] = "EIO",
        target: str = EVERYTHING,
        *,
        path: str = "",
        nth: int = 0,
        probability: float = 1.0,
        at_most: int | None = None,
    ) -> None:
        super().__init__(call, target, path, nth, probability, at_most)
        self.errnos = one_or_more(errno)
        for name in self.errnos:
            errno_of(name)

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """One of the declared calls with one of the declared errnos."""
        return st.fixed_dictionaries({**self.which(), "errno": st.sampled_from(self.errnos)})

    @classmethod
    def rules(cls, site: Site, arguments: Mapping[str, Any]) -> tuple[Rule, ...]:
        """The call fails."""
        return cls.rule(site, arguments, Fail(errno_of(arguments["errno"])))


class SyscallDelay(_AnyCall):
    """A system call is late: `call` waits `seconds` before it is carried out.  The rest as of `SyscallError`:

    `path`, `nth`, `probability` and `seed` say which calls of the target and its children are meant.
    """

    kind = "syscall-delay"
    family = "system calls"
    summary = "a chosen system call takes so much longer, by path, by number or by chance"
    sees = "nothing but the time that passes"
    proof = "the keeper's count of the calls it has kept waiting"
    parameters: ClassVar[Mapping[str, object]] = {**_WHICH, "seconds": 0.05}

    def __init__(
        self,
        call: str | Sequence[str] = "write",
        seconds: float = 0.05,
        target: str = EVERYTHING,
        *,
        path: str = "",
        nth: int = 0,
        probability: float = 1.0,
        at_most: int | None = None,
    ) -> None:
        super().__init__(call, target, path, nth, probability, at_most)
        self.seconds = Delay(seconds, seconds).most_s

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """One of the declared calls."""
        return st.fixed_dictionaries({**self.which(), "seconds": st.just(self.seconds)})

    @classmethod
    def rules(cls, site: Site, arguments: Mapping[str, Any]) -> tuple[Rule, ...]:
        """The call waits; `DELAY_MAX_S` at most."""
        seconds = min(arguments["seconds"], DELAY_MAX_S + 1)
        return cls.rule(site, arguments, Delay(seconds, seconds))


class InterruptedCalls(TrappedFault):
    """Calls are interrupted: those that signal(7) says may be fail with EINTR, each with `probability` by `seed`.

    Python repeats such a call by itself (PEP 475), C programs often forget to.
    """

    kind = "interrupted-calls"
    family = "system calls"
    summary = "reads, writes, accepts, connects and waits fail with EINTR, by chance"
    sees = "EINTR where it does not repeat such calls; a share of its calls takes two attempts"
    proof = "the keeper's count of the calls it has interrupted"
    parameters: ClassVar[Mapping[str, object]] = {"probability": 0.3, "seed": 0}

    def __init__(self, target: str = EVERYTHING, *, probability: float = 0.3, at_most: int | None = None) -> None:
        super().__init__(target, at_most=at_most)
        self.probability = probability
        Rule(_INTERRUPTIBLE, Delay(0, 0), probability=probability)

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """Which of them, by chance."""
        return st.fixed_dictionaries({"probability": st.just(self.probability), "seed": st.integers(0, 255)})

    @classmethod
    def calls(cls, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        """Those that can be interrupted."""
        del arguments
        return _INTERRUPTIBLE

    @classmethod
    def rules(cls, site: Site, arguments: Mapping[str, Any]) -> tuple[Rule, ...]:
        """EINTR, by chance: never for certain, or a caller that repeats would repeat for ever."""
        del site
        probability = min(arguments["probability"], 0.9)
        return (Rule(_INTERRUPTIBLE, Fail(errno_of("EINTR")), probability=probability, seed=arguments["seed"]),)
