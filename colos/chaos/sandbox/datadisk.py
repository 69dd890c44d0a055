"""A sandbox's data disk in the harness's hands: proven to be the sandbox's own, and reached past its faults.

In `namespaces` the harness has a mount of its own on the same tmpfs: what it does there is stopped
by no read-only flag of the system's mount, and keeps nobody from setting one.  In `bare` it is a
directory of the host's.  Everything goes by directory descriptors and never through a symbolic
link, so that no link that the system makes leads the harness out.  Sources: open_tree(2),
openat(2), proc(5).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import TracebackType
from typing import TYPE_CHECKING

from colos.chaos.mechanisms.chance import digest
from colos.chaos.mechanisms.mounts import CloneMount
from colos.chaos.sandbox.bare import PREFIX
from colos.chaos.sandbox.spec import NAMESPACES
from colos.errors import HarnessBroken, InvalidSpecification

if TYPE_CHECKING:
    from colos.chaos.sandbox.handle import Sandbox

__all__ = ["DataDisk", "Entry", "glob_of", "key_of", "set_mode"]

_MOST = 16384  # entries that one walk looks at


@dataclass(frozen=True)
class Entry:
    """A file or directory on the disk, by its path relative to the data directory."""

    path: str
    status: os.stat_result

    @property
    def regular(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.status.st_mode)


def glob_of(value: object) -> str:
    """A step's argument that names files.  Raises `InvalidSpecification` for what could lead off the disk."""
    if not isinstance(value, str) or not value or value.startswith("/") or ".." in value.split("/"):
        raise InvalidSpecification(f"a path is a glob below the data directory, such as 'db/*.log', not {value!r}")
    return value


def key_of(seed: int, *parts: object) -> int:
    """The one source of chance of a fault: 64 bits from its seed and what they are for."""
    return int.from_bytes(digest("\0".join(map(str, (seed, *parts)))), "big")


class DataDisk:
    """Opens the data disk; raises `HarnessBroken` where that is not the sandbox's own."""

    def __init__(self, sandbox: Sandbox) -> None:
        if sandbox.tier == NAMESPACES:
            _, (self.root,) = sandbox.join(CloneMount(sandbox.place.data))
        else:
            self.root = os.open(sandbox.place.data, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            self.device = os.fstat(self.root).st_dev
            trouble = self._foreign(sandbox)
            if trouble:
                raise HarnessBroken("the data disk", f"is not the sandbox's own: {trouble}")
        except BaseException:
            self.close()
            raise

    def _foreign(self, sandbox: Sandbox) -> str | None:
        data = sandbox.place.data
        if sandbox.tier == NAMESPACES:
            if f"{os.major(self.device)}:{os.minor(self.device)}" in _devices_of_host():
                return f"{data} lies on a file system of the host's"
        elif not os.path.basename(os.path.dirname(data)).startswith(PREFIX):
            return f"{data} is no directory of a bare sandbox's"
        if os.fstat(self.root).st_uid != os.getuid():
            return f"{data} belongs to another user"
        return None

    @property
    def path(self) -> str:
        """The data directory as a path that this process can use, while the disk is open."""
        return f"/proc/self/fd/{self.root}"

    def __enter__(self) -> DataDisk:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it.  May be called twice."""
        if self.root >= 0:
            os.close(self.root)
            self.root = -1

    # --- what is on it ------------------------------------------------------------------

    def entries(self, pattern: str) -> list[Entry]:
        """Files and directories whose path below the data directory matches, in the order of their names."""
        found: list[Entry] = []
        seen = 0
        for where, directories, files, fd in os.fwalk(".", dir_fd=self.root, follow_symlinks=False):
            directories.sort()
            for name in (*directories, *files):
                seen += 1
                path = os.path.normpath(os.path.join(where, name))
                status = _status(name, fd) if fnmatchcase(path, pattern) else None
                if status is not None and status.st_dev == self.device and not stat.S_ISLNK(status.st_mode):
                    found.append(Entry(path, status))
            if seen > _MOST:
                break
        return sorted(found, key=lambda entry: entry.path)

    def choose(self, pattern: str, seed: int, count: int, fit: Callable[[Entry], bool]) -> list[Entry]:
        """At most `count` of the entries that match and fit: those whose hash with the seed is least."""
        fitting = [entry for entry in self.entries(pattern) if fit(entry)]
        return sorted(fitting, key=lambda entry: key_of(seed, "choice", entry.path))[:count]

    # --- single files -------------------------------------------------------------------

    def directory_of(self, path: str) -> tuple[int, str]:
        """A descriptor of the directory that holds `path`, for the caller to close, and the name in it.

        Raises `OSError`, also where a part of the way is a symbolic link.
        """
        *parents, name = path.split("/")
        at = os.dup(self.root)
        for part in parents:
            try:
                below = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
            finally:
                os.close(at)
            at = below
        return at, name

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        """Open a file of the disk.  Raises `OSError`."""
        directory, name = self.directory_of(path)
        try:
            return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode, dir_fd=directory)
        finally:
            os.close(directory)

    def status(self, path: str) -> os.stat_result | None:
        """What is at `path` now, or None."""
        try:
            directory, name = self.directory_of(path)
        except OSError:
            return None
        try:
            return _status(name, directory)
        finally:
            os.close(directory)

    def remove(self, path: str) -> None:
        """Unlink a file.  Raises `OSError`."""
        directory, name = self.directory_of(path)
        try:
            os.unlink(name, dir_fd=directory)
        finally:
            os.close(directory)


def set_mode(descriptor: int, mode: int) -> None:
    """chmod by a descriptor that may be of O_PATH, which fchmod(2) refuses.  Raises `OSError`."""
    os.chmod(f"/proc/self/fd/{descriptor}", mode)


def _status(name: str, directory: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return None


def _devices_of_host() -> set[str]:
    """Every file system that is mounted where the harness itself can see it."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        return {line.split(" ", 3)[2] for line in file}
