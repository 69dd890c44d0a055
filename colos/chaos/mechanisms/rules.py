"""What is to become of trapped system calls: which calls, whose, on what, and what they get.

Plain data, sent to whoever answers the calls (`sandbox.trap`), and the decision which of it holds
for one call.  Nothing here answers; see `answers`.
"""

from __future__ import annotations

import errno
import fnmatch
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from colos.chaos.mechanisms.chance import chance
from colos.chaos.mechanisms.families import Families
from colos.chaos.mechanisms.rawcalls import NUMBERS
from colos.chaos.mechanisms.subjects import subjects_of
from colos.chaos.mechanisms.syscalls import Notification, Trap
from colos.errors import InvalidSpecification

__all__ = ["Action", "Cut", "Delay", "Fail", "Rule", "Rules", "Tear", "errno_of", "traps_for"]

DELAY_MAX_S: Final = 60.0


# --- the data -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Fail:
    """The call is not carried out and returns -1 with this errno."""

    errno: int


@dataclass(frozen=True)
class Delay:
    """The call waits so long before it is carried out: `least_s` to `most_s`, by chance."""

    least_s: float
    most_s: float

    def __post_init__(self) -> None:
        if not 0 <= self.least_s <= self.most_s <= DELAY_MAX_S:
            raise InvalidSpecification(
                f"a delay is 0 to {DELAY_MAX_S:g} seconds, the least no more than the most; "
                f"not {self.least_s!r} to {self.most_s!r}"
            )


@dataclass(frozen=True)
class Cut:
    """Only a part is carried out, at least one byte: a short write, a short read.  `share` is how much."""

    share: float

    def __post_init__(self) -> None:
        _check_share(self.share)


@dataclass(frozen=True)
class Tear:
    """A part is written, and then the call returns -1 with this errno."""

    share: float
    errno: int

    def __post_init__(self) -> None:
        _check_share(self.share)


def _check_share(share: float) -> None:
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        raise InvalidSpecification(f"a share is a number between 0 and 1, not {share!r}")


Action = Fail | Delay | Cut | Tear


@dataclass(frozen=True)
class Rule:
    """What happens to matching calls.

    `subject` is a pattern (as of fnmatch(3), whose * also matches /) for what the call is about: the path of its
    argument or of its descriptor's file, ``unix:PATH`` or ``inet:HOST:PORT`` of a connect or bind, ``thread`` or
    ``process`` of a clone; empty matches all.  Of the calls that match, only the `nth` is meant (the first is 1; 0:
    each), not the first `spare` of them, and of these each with `probability`, decided by `seed` and its number.
    `pids` are the processes meant, by pid and start time as the answering process sees them, with all that descend
    from them; None: everybody.
    """

    calls: tuple[str, ...]
    action: Action
    subject: str = ""
    nth: int = 0
    spare: int = 0
    probability: float = 1.0
    seed: int = 0
    pids: tuple[tuple[int, int], ...] | None = None

    def __post_init__(self) -> None:
        for name in self.calls:
            if name not in NUMBERS:
                raise InvalidSpecification(_unknown(name))
        if not self.calls:
            raise InvalidSpecification("a rule names at least one system call")
        if isinstance(self.nth, bool) or not isinstance(self.nth, int) or self.nth < 0:
            raise InvalidSpecification(f"nth is a whole number: 1 for the first call, 0 for each; not {self.nth!r}")
        if (
            isinstance(self.probability, bool)
            or not isinstance(self.probability, int | float)
            or not 0 < self.probability <= 1
        ):
            raise InvalidSpecification(f"a probability is a number above 0, and 1 at most; not {self.probability!r}")


def _unknown(name: object) -> str:
    import difflib  # only a mistaken author needs it

    close = difflib.get_close_matches(str(name), NUMBERS, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{name!r} is no system call that can be trapped{hint} (there are: {', '.join(sorted(NUMBERS))})"


def errno_of(name: object) -> int:
    """The number of an errno's name.  Raises `InvalidSpecification`."""
    number = getattr(errno, str(name), None)
    if not isinstance(name, str) or not isinstance(number, int):
        raise InvalidSpecification(f"{name!r} is not the name of an errno; use one such as 'EIO', 'ENOSPC' or 'EINTR'")
    return number


def traps_for(calls: Iterable[str]) -> tuple[Trap, ...]:
    """The traps that calls of these names need."""
    names = tuple(calls)
    for name in names:
        if name not in NUMBERS:
            raise InvalidSpecification(_unknown(name))
    return tuple(Trap(name) for name in names)


# --- the decision -------------------------------------------------------------------------


@dataclass
class _Armed:
    name: int
    rule: Rule
    matched: int = 0
    hits: dict[str, int] = field(default_factory=dict)


class Rules:
    """The rules that are armed now, and how often each was hit.  Of several that match, the oldest acts."""

    def __init__(self, start_time: Callable[[int], int]) -> None:
        """`start_time` tells when a process started, 0 if it is gone."""
        self._families = Families(start_time)
        self._armed: dict[int, _Armed] = {}
        self._by_call: dict[str, list[_Armed]] = {}

    def arm(self, name: int, rule: Rule) -> None:
        """From now on."""
        armed = self._armed[name] = _Armed(name, rule)
        for each in rule.calls:
            self._by_call.setdefault(each, []).append(armed)

    def disarm(self, name: int) -> None:
        """Not any more; what it counted is gone with it."""
        armed = self._armed.pop(name, None)
        if armed is not None:
            for each in armed.rule.calls:
                of_call = self._by_call[each]
                of_call.remove(armed)
                if not of_call:
                    del self._by_call[each]

    def hits(self, name: int) -> dict[str, int] | None:
        """How many calls of each name it acted on; None if it is not armed."""
        armed = self._armed.get(name)
        return dict(armed.hits) if armed is not None else None

    def judge(self, notification: Notification) -> tuple[int, Action, float] | None:
        """The rule that acts on a call, its action, and a number by chance for it; None to let it go.

        Raises OSError where the caller vanished meanwhile.
        """
        candidates = self._by_call.get(notification.call)
        if candidates is None:
            return None
        subjects: list[str] | None = None
        for armed in candidates:
            rule = armed.rule
            if rule.subject:
                if subjects is None:
                    subjects = subjects_of(notification)
                if not any(fnmatch.fnmatchcase(subject, rule.subject) for subject in subjects):
                    continue
            if rule.pids is not None and not self._families.holds(notification.pid, rule.pids):
                continue
            armed.matched += 1
            if armed.matched <= rule.spare or (rule.nth and armed.matched != rule.nth):
                continue
            if rule.probability == 1 and not isinstance(rule.action, Delay):
                return armed.name, rule.action, 0.0
            luck = chance(rule.seed, "call", armed.matched)
            if luck < rule.probability:
                return armed.name, rule.action, luck / rule.probability
        return None

    def hit(self, name: int, call: str) -> None:
        """The action was really carried out."""
        armed = self._armed.get(name)
        if armed is not None:
            armed.hits[call] = armed.hits.get(call, 0) + 1
