"""The chaos machine over the demo ledger: what clients do, what may break, what must hold."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis.stateful import rule

from colos.chaos import (
    ActorSystem,
    ChaosMachine,
    CpuStarvation,
    DescriptorExhaustion,
    DiskFull,
    Kill,
    always,
    eventually,
    sometimes,
)
from colos.demo.ledger import BuggyLedgerSupervisor, RepairedLedgerSupervisor, acknowledged_but_missing

__all__ = ["BuggyLedger", "RepairedLedger"]


class BuggyLedger(ChaosMachine):
    """Submit jobs; lose none that was acknowledged."""

    system = ActorSystem(BuggyLedgerSupervisor)
    faults = (Kill("ledger/*"), DiskFull(), DescriptorExhaustion("ledger/*"), CpuStarvation("ledger/*"))
    refusals = (OSError,)  # a client may be told that there is no room; anything else is a violation

    def __init__(self) -> None:
        super().__init__()
        self.acknowledged: list[str] = []
        self.refused = 0

    @rule(words=st.integers(1, 1500))  # type: ignore[arg-type]  # its stubs know no coroutines
    async def submit(self, words: int) -> None:
        """A client hands in a job of some length."""
        job = f"job {len(self.acknowledged)}: " + "work " * words
        front = await self.system.whereis("front")
        self.refused += 1
        await front.submit(job)
        self.refused -= 1
        self.acknowledged.append(job)

    @always
    async def no_acknowledged_job_is_lost(self) -> None:
        """What was acknowledged is there."""
        front = await self.system.whereis("front")
        missing = acknowledged_but_missing(self.acknowledged, await front.jobs())
        assert not missing, f"{len(missing)} of {len(self.acknowledged)} acknowledged jobs are gone"

    @eventually(within=5.0)
    async def a_job_is_accepted_again(self) -> None:
        """Once every fault is healed, the ledger works."""
        front = await self.system.whereis("front")
        await front.submit("after the storm")

    @sometimes
    def a_job_was_refused_or_left_in_doubt(self) -> bool:
        """The faults reach the client."""
        return self.refused > 0


class RepairedLedger(BuggyLedger):
    """The same storm over the repaired ledger."""

    system = ActorSystem(RepairedLedgerSupervisor)
