"""No entropy: the kernel has no random numbers to give.

Mechanism: seccomp user notification on getrandom(2).  Proof: the keeper's count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from hypothesis import strategies as st

from colos.chaos.fault import Site
from colos.chaos.mechanisms.rules import Fail, Rule, errno_of
from colos.chaos.trapped import TrappedFault

__all__ = ["NoEntropy"]


class NoEntropy(TrappedFault):
    """Random numbers are not to be had: getrandom(2) gives EAGAIN, as early after a boot.

    os.urandom, uuid4, secrets and TLS handshakes depend on it.
    """

    kind = "no-entropy"
    family = "names and chance"
    summary = "the kernel gives no random numbers: getrandom gives EAGAIN"
    sees = "EAGAIN; BlockingIOError of os.urandom in Python"
    proof = "the keeper's count of the calls it has refused"
    parameters: ClassVar[Mapping[str, object]] = {}

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """There is nothing to choose."""
        return st.just({})

    @classmethod
    def calls(cls, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        """The one call."""
        del arguments
        return ("getrandom",)

    @classmethod
    def rules(cls, site: Site, arguments: Mapping[str, Any]) -> tuple[Rule, ...]:
        """EAGAIN."""
        del site, arguments
        return (Rule(("getrandom",), Fail(errno_of("EAGAIN"))),)
