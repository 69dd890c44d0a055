"""A node whose actor dies again and again once a file says so."""

from __future__ import annotations

import os

from colos.runtime import Actor, ChildSpec, Supervisor


class Fragile(Actor):
    """Does not come up while there is a file ``poison``."""

    async def init(self) -> None:
        if os.path.exists(f"{os.environ['COLOS_DATA']}/poison"):  # noqa: ASYNC240 - on a tmpfs
            raise RuntimeError("poisoned")

    async def die(self) -> None:
        os._exit(7)


class Planted(Supervisor):
    def children(self) -> list[ChildSpec]:
        return [ChildSpec("fragile", Fragile), ChildSpec("other", Fragile)]


class Patient(Planted):
    intensity = 100_000
