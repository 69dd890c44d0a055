"""Conditions that tell when a program serves; each is true or false now, and never waits long."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from colos.chaos.command_system import RunningCommand

__all__ = ["file_exists", "output_contains", "tcp", "unix_socket"]

Ready = Callable[["RunningCommand"], bool]


@dataclass(frozen=True)
class _Unix:
    path: str

    def __call__(self, system: RunningCommand) -> bool:
        return _accepts(system, self.path)


@dataclass(frozen=True)
class _Tcp:
    port: int
    host: str

    def __call__(self, system: RunningCommand) -> bool:
        return _accepts(system, (self.host, self.port))


@dataclass(frozen=True)
class _File:
    path: str

    def __call__(self, system: RunningCommand) -> bool:
        return os.path.exists(system.path(self.path))


@dataclass(frozen=True)
class _Output:
    text: str

    def __call__(self, system: RunningCommand) -> bool:
        return self.text in system.sandbox.output_since_start()


def _accepts(system: RunningCommand, address: str | tuple[str, int]) -> bool:
    try:
        system.connect_blocking(address).close()
    except OSError:
        return False
    return True


def unix_socket(path: str) -> Ready:
    """Something accepts on a Unix socket, such as ``unix_socket("{run}/q.sock")``."""
    return _Unix(path)


def tcp(port: int, host: str = "127.0.0.1") -> Ready:
    """Something accepts on a TCP port of the sandbox's own loopback."""
    return _Tcp(port, host)


def file_exists(path: str) -> Ready:
    """A file is there, such as ``file_exists("{run}/ready")``."""
    return _File(path)


def output_contains(text: str) -> Ready:
    """The program has written a text to its standard output or error since it was last started."""
    return _Output(text)
