"""What a sandbox is asked to be, and where things are in it.  Plain data, sent between processes."""

from __future__ import annotations

import os
import site
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from colos.chaos.mechanisms.syscalls import Trap

__all__ = ["BARE", "NAMESPACES", "TIERS", "Place", "Program", "Restarts", "SandboxSpec", "kept_paths"]

NAMESPACES = "namespaces"
BARE = "bare"
TIERS = (NAMESPACES, BARE)

MIB = 1 << 20

#: What a sandbox of namespaces covers with a file system of its own.
COVERED = ("/tmp", "/var/tmp", "/dev/shm")


@dataclass(frozen=True)
class SandboxSpec:
    """The size of a throwaway machine.  Bytes and inodes bound what `data` may hold."""

    data_bytes: int = 64 * MIB
    data_inodes: int = 16384
    run_bytes: int = 64 * MIB
    tmp_bytes: int = 64 * MIB
    writable: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    #: The system calls that faults may want to answer; trapped from the program's start.
    traps: tuple[Trap, ...] = ()
    #: What programs find in their environment besides; the values may use ``{data}``, ``{run}`` and the like.
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Place:
    """Where a system finds its directories, as it sees them from inside."""

    data: str
    run: str
    home: str
    tmp: str
    extra: tuple[tuple[str, str], ...] = ()

    def expand(self, text: str) -> str:
        """Replace ``{data}``, ``{run}``, ``{home}`` and ``{tmp}``; any other brace stays as it is."""
        for name in ("data", "run", "home", "tmp"):
            text = text.replace("{" + name + "}", getattr(self, name))
        return text

    def environment(self) -> dict[str, str]:
        """The environment of a program inside: ours, with the sandbox's own directories."""
        scripts = os.path.dirname(sys.executable)
        path = os.environ.get("PATH", os.defpath)
        return {
            **os.environ,
            "PATH": path if scripts in path.split(os.pathsep) else scripts + os.pathsep + path,
            "HOME": self.home,
            "TMPDIR": self.tmp,
            "XDG_RUNTIME_DIR": self.run,
            # Python looks for a user's own packages in HOME, which is another one in here.
            "PYTHONUSERBASE": os.environ.get("PYTHONUSERBASE") or site.getuserbase(),
            "COLOS_DATA": self.data,
            "COLOS_RUN": self.run,
            **{name: self.expand(value) for name, value in self.extra},
        }


@dataclass(frozen=True)
class Restarts:
    """Start a program again when it has exited, at most `limit` times in `period_s` seconds.

    `when` is ``"failure"`` (a signal or a status other than 0) or ``"always"``.
    """

    limit: int = 3
    period_s: float = 5.0
    when: str = "failure"

    def __post_init__(self) -> None:
        if self.when not in ("failure", "always"):
            raise ValueError(f"Restarts(when={self.when!r}): allowed are 'failure' and 'always'")
        if self.limit < 0 or self.period_s <= 0:
            raise ValueError(f"Restarts(limit={self.limit}, period_s={self.period_s}): both must be positive")


class Program(Protocol):
    """What runs in a sandbox.  Picklable; `run` is called in a freshly forked process."""

    @property
    def restarts(self) -> Restarts | None:
        """The policy for starting it again."""
        ...

    def run(self, place: Place, ready: Callable[[], None]) -> int:
        """Become the program: exec it, or serve until told to stop and return an exit status."""
        ...


def kept_paths(extra: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The directories under a covered one that Python and the project need to stay in sight."""
    wanted = {*sys.path, sys.prefix, sys.base_prefix, os.getcwd(), *extra}
    real = sorted({os.path.realpath(path) for path in wanted if path and os.path.isdir(path)})
    under = [path for path in real if any(path == cover or path.startswith(cover + "/") for cover in COVERED)]
    return tuple(path for path in under if not any(path != other and path.startswith(other + "/") for other in under))
