"""Scheduling perturbed: delays by chance at the calls where processes meet, so that races between them show.

Mechanism: seccomp user notification.  Which call waits, and for how long, follows from the seed and the call's
number alone.  Proof: the keeper's count.  After the idea of rr's chaos mode, and of Coyote's and Antithesis's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from hypothesis import strategies as st

from colos.chaos.fault import EVERYTHING, Site
from colos.chaos.mechanisms.rules import Delay, Rule, traps_for
from colos.chaos.mechanisms.syscalls import Trap
from colos.chaos.trapped import TrappedFault, one_or_more

__all__ = ["SchedulingDelays"]

_MEETING: Final = ("sendto", "sendmsg", "write", "recvfrom", "accept4", "rename", "fsync", "flock")


class SchedulingDelays(TrappedFault):
    """Some of the calls where processes meet wait up to `seconds`: each with `probability`, by `seed`.

    `calls` names them, where the default (sending, receiving, accepting, writing, renaming, syncing, locking) is not
    what a system's races hang on.
    """

    kind = "scheduling-delays"
    family = "scheduling"
    summary = "calls where processes meet wait for a short time, by chance, so that races show"
    sees = "nothing but another order of events"
    proof = "the keeper's count of the calls it has kept waiting"
    parameters: ClassVar[Mapping[str, object]] = {
        "seconds": 0.01,
        "probability": 0.1,
        "seed": 0,
        "calls": list(_MEETING),
    }

    def __init__(
        self,
        target: str = EVERYTHING,
        *,
        calls: str | Sequence[str] = _MEETING,
        seconds: float = 0.01,
        probability: float = 0.1,
        at_most: int | None = None,
    ) -> None:
        super().__init__(target, at_most=at_most)
        self.named = one_or_more(calls)
        self.seconds = seconds
        self.probability = probability
        Rule(self.named, Delay(0, seconds), probability=probability)  # raises for what means nothing

    def needed(self) -> tuple[Trap, ...]:
        """The calls that were declared."""
        return traps_for(self.named)

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """The declared ones, with another chance."""
        return st.fixed_dictionaries(
            {
                "seconds": st.just(self.seconds),
                "probability": st.just(self.probability),
                "seed": st.integers(0, 255),
                "calls": st.just(list(self.named)),
            }
        )

    @classmethod
    def calls(cls, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        """Those that are named."""
        return tuple(arguments["calls"])

    @classmethod
    def rules(cls, site: Site, arguments: Mapping[str, Any]) -> tuple[Rule, ...]:
        """Late, by chance."""
        del site
        return (
            Rule(
                cls.calls(arguments),
                Delay(0, arguments["seconds"]),
                probability=arguments["probability"],
                seed=arguments["seed"],
            ),
        )
