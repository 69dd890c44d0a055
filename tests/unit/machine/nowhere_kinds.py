"""Fault kinds that act on nothing, for a sandbox that is nowhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from colos.chaos.fault import EVERYTHING, REGISTRY, Fault, Lease, matches

__all__ = ["KINDS", "Grip", "Hold", "Squeeze", "Strike"]


class Held(Lease):
    """Acts until it is healed, on nothing."""

    mechanism = "nothing"

    def fired(self) -> str:
        return "held"

    def heal(self) -> None:
        pass

    def is_healed(self) -> bool:
        return True


class Blow(Held):
    """Over at once."""

    lasting = False


class Hold(Fault):
    """A lasting fault, as far as the machine can see."""

    kind = "hold"

    @classmethod
    def unavailable(cls, session: object) -> None:
        return None

    def arguments(self) -> Any:
        return st.just({})

    @classmethod
    def inject(cls, site: object, target: str | None, arguments: object) -> Lease:
        return Held()


class Grip(Hold):
    """Another one."""

    kind = "grip"


class Squeeze(Hold):
    """One without a target."""

    kind = "squeeze"
    targeted = False


class Strike(Hold):
    """Ends whom it names."""

    kind = "strike"

    def deaths(self, target: str | None, topology: Sequence[str]) -> int:
        return sum(matches(path, target or EVERYTHING) for path in topology)

    @classmethod
    def inject(cls, site: object, target: str | None, arguments: object) -> Lease:
        return Blow()


KINDS = {kind.kind: REGISTRY.pop(kind.kind) for kind in (Hold, Grip, Squeeze, Strike)}
