"""Taking turns on a machine that the sandboxes of several runs share: in `bare`, under pytest-xdist above all.

A sandbox of `namespaces` has a network and processes of its own and waits for nobody.  In `bare` two systems may
want one port, and some faults act on the whole host.  Who may meet or disturb others is a writer and runs alone;
the others are readers and run beside each other.  The lock is the user's, and every run on the machine takes it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from colos.chaos.environment import MEMORY_CGROUP
from colos.chaos.fault import Fault
from colos.chaos.mechanisms.filelock import locked
from colos.chaos.sandbox.spec import BARE
from colos.chaos.terms import Setting
from colos.errors import HarnessBroken
from colos.runtime.rundir import base_directory

__all__ = ["WAIT_S", "acts_on_host", "turn"]

WAIT_S = 3600.0
"""How long a run waits for the others: they may have many examples to go through, or a failure to minimise."""


def acts_on_host(kinds: Iterable[type[Fault]]) -> bool:
    """Whether one of these reaches beyond its sandbox: by taking cores away, or by having the kernel count
    OOM kills, which it does for the whole machine."""
    return any(kind.family == "cpu" or kind.uses == MEMORY_CGROUP for kind in kinds)


@contextmanager
def turn(
    setting: Setting, faults: Iterable[str], progress: Callable[[str], None], within_s: float = WAIT_S
) -> Iterator[None]:
    """Hold what runs with faults of these kinds need of the host; nothing in `namespaces`.

    Raises `HarnessBroken` when it cannot be had within so many seconds.
    """
    if setting.session.tier != BARE:
        yield
        return
    alone = setting.system.is_host_bound() or acts_on_host(setting.kinds[kind] for kind in faults)
    base = Path(base_directory())
    host, gate = base / "host.lock", base / "host.gate"
    wanted = "to itself" if alone else "beside other readers"

    def waiting() -> None:
        progress(f"waiting for the machine ({wanted}): another run's bare sandbox holds {host}")

    with ExitStack() as held:
        try:
            for path in (host, gate):
                os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
            # Who waits for the host stands in the gate: a stream of readers could keep a writer waiting for ever.
            with locked(gate, within_s, waiting=waiting) as first:
                has = first and held.enter_context(locked(host, within_s, shared=not alone, waiting=waiting))
        except OSError as error:
            raise _broken(host, str(error)) from error
        if not has:
            raise _broken(host, f"was not to be had {wanted} within {within_s:g} s, or its file system has no locks")
        yield


def _broken(path: Path, why: str) -> HarnessBroken:
    return HarnessBroken(
        f"the lock on the machine, which bare sandboxes share ({path})",
        f"{why}; see who holds it (`fuser {path}`), or set COLOS_RUN to another folder",
    )
