"""What an OOM kill looks like, where no cgroup serves: the largest process is killed.

Mechanism: SIGKILL by pidfd_send_signal(2), to whichever of the matching processes has the most memory,
as the kernel would choose; it is named for what it is, since memory was not short.  Proof: the exit seen
on the pidfd.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from colos.chaos.fault import EVERYTHING, Fault, Lease, Site, matches
from colos.chaos.sandbox.processes import resident_bytes

if TYPE_CHECKING:
    from colos.chaos.sandbox.handle import Target
    from colos.chaos.sandbox.session import Session

__all__ = ["OomKillLookalike"]

_PROOF_S = 2.0
_NEVER = -1000  # OOM_SCORE_ADJ_MIN: such a process the kernel spares


class OomKillLookalike(Fault):
    """SIGKILL to the one process with the most resident memory among those that match.

    Those that are exempt from the OOM killer (oom_score_adj -1000) are spared.  Nothing else of an OOM
    kill is there: memory is not short, the kernel logs and counts nothing.  proc(5) oom_score_adj.
    """

    kind = "oom-kill-lookalike"
    uses = "pidfd_send_signal"
    family = "memory"
    summary = "SIGKILL to the largest of the processes that match, as the OOM killer would; memory is not short"
    sees = "SIGKILL"
    proof = "the exit on the pidfd of the one with the most resident memory"

    @classmethod
    def unavailable(cls, session: Session) -> tuple[str, str] | None:
        """Signals by pidfd are in every kernel that this package supports."""
        del session
        return None

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """Nothing varies but the target."""
        return st.just({})

    def deaths(self, target: str | None, topology: Sequence[str]) -> int:
        """One, if any matches."""
        return int(any(matches(path, target or EVERYTHING) for path in topology))

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Kill the largest that matches and is alive."""
        del arguments
        return _Killed(site.reach.targets(target or EVERYTHING))


class _Killed(Lease):
    mechanism = "pidfd_send_signal"
    lasting = False

    def __init__(self, targets: list[Target]) -> None:
        self._proof: str | None = None
        try:
            sizes = {target: size for target in targets if (size := _size(target)) is not None}
            if sizes:
                self._kill(min(sizes, key=lambda target: (-sizes[target], target.process.inner_pid)), sizes)
        finally:
            for target in targets:
                target.close()

    def _kill(self, victim: Target, sizes: Mapping[Target, int]) -> None:
        if victim.signal(signal.SIGKILL) and victim.wait(_PROOF_S):
            name = f"{victim.process.command}[{victim.process.inner_pid}]"
            self._proof = f"SIGKILL to {name}, the largest of {len(sizes)} with {sizes[victim] >> 10} KiB"

    def fired(self) -> str | None:
        return self._proof

    def heal(self) -> None:
        """Nothing: it is over at once."""

    def is_healed(self) -> bool:
        return True


def _size(target: Target) -> int | None:
    """Its resident memory; None for one that is gone or exempt."""
    try:
        with open(f"/proc/{target.pid}/oom_score_adj", encoding="ascii") as file:
            if int(file.read()) <= _NEVER:
                return None
        return resident_bytes(target.pid)
    except (FileNotFoundError, ProcessLookupError):
        return None
