"""What this machine can do, as a table for a person: the tiers, the faults, the reasons why not."""

from __future__ import annotations

from colos.chaos.faults import fault_kinds
from colos.chaos.sandbox.session import Session
from colos.chaos.sandbox.spec import BARE, NAMESPACES
from colos.errors import HarnessBroken

__all__ = ["examine"]


def examine(forced: str | None) -> int:
    """Print the table; returns 1 when a tier that was asked for cannot be had, or no fault is available."""
    session = Session(forced)
    try:
        try:
            tier = session.tier
        except HarnessBroken as error:
            print(error)
            return 1
        refused = f"refused here: {session.refusal}" if tier == BARE and forced is None else ""
        print(f"sandbox   {tier}{'  (chosen by you)' if forced else ''}")
        if refused:
            print(f"          {NAMESPACES} {refused}")
        available = 0
        for name, kind in sorted(fault_kinds().items()):
            reason = kind.unavailable(session)
            available += reason is None
            print(f"fault     {name:<22} {'available' if reason is None else 'UNAVAILABLE'}   {kind.summary}")
            if reason is not None:
                print(f"          {'':<22} because {reason[0]}")
                print(f"          {'':<22} cure: {reason[1]}")
        return 0 if available else 1
    finally:
        session.close()
