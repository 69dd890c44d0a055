"""Actors that get stuck, for the tests of the commands that look into them."""

# ruff: noqa: ASYNC251 - getting stuck is what these are for
from __future__ import annotations

import ctypes
import os
import sys
import time

import anyio

from colos.runtime import Actor, ChildSpec, Supervisor, monitor, whereis


class Account(Actor):
    """Has something to look at, and ways to get stuck."""

    def __init__(self) -> None:
        self.total = 100
        self.spinning = True
        self.reading, self.writing = os.pipe()

    async def add(self, amount: int) -> int:
        self.total += amount
        return self.total

    async def slowly(self) -> str:
        await anyio.sleep(0.01)
        return "slow"

    async def modules(self) -> list[str]:
        return [name for name in sys.modules if name.startswith("colos.runtime")]

    async def watch(self, name: str) -> None:
        await monitor(await whereis(name))

    async def wait_long(self) -> None:
        await anyio.sleep(1000)

    async def spin(self) -> None:
        while self.spinning:
            pass

    async def doze(self) -> None:
        time.sleep(1000)

    async def block_in_c(self) -> None:
        """A lock that waits for itself, whatever signals come: no Python code runs here any more."""
        lock = ctypes.create_string_buffer(64)  # as PTHREAD_MUTEX_INITIALIZER is
        for _ in range(2):
            ctypes.CDLL(None).pthread_mutex_lock(lock)

    async def fail(self) -> None:
        raise ValueError("no such account")


async def idle() -> None:
    """A plain process."""
    await anyio.sleep_forever()


class Pool(Supervisor):
    def children(self):
        return [ChildSpec("one", Account, shutdown_s=0.2), ChildSpec("two", Account, name="second", shutdown_s=0.2)]


class Bank(Supervisor):
    intensity = 10

    def children(self):
        return [ChildSpec("account", Account, name="account", shutdown_s=0.2), ChildSpec("pool", Pool)]
