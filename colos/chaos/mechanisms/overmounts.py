"""Files and directories of the harness's making, bound over others inside a sandbox's own mount namespace.

What lies beneath is untouched: whoever opens the path sees what was bound there, until it is unmounted.
A descriptor that was open before goes on showing what it showed.  `namespaces` only: elsewhere the
mount would be the host's.

Sources: mount(2) (MS_BIND), umount2(2) (MNT_DETACH), proc_pid_mountinfo(5).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from colos.chaos.mechanisms import kernel

if TYPE_CHECKING:
    from colos.chaos.sandbox.handle import Sandbox

__all__ = ["Content", "Cover", "Overmounts", "Uncover", "overmounts"]

#: A file's bytes; or a directory's, which has these files (relative paths) and nothing else.
Content = bytes | Mapping[str, bytes]

_OWN = kernel.MS_NOSUID | kernel.MS_NODEV


@dataclass(frozen=True)
class Cover:
    """Show `content` at `path`, which exists and is a file (for bytes) or a directory.

    Passes out a descriptor of what is seen there now.  `scratch` is a directory of the sandbox's own.
    """

    path: str
    content: Content
    scratch: str

    def __call__(self) -> tuple[Any, tuple[int, ...]]:
        """Mount, inside."""
        if isinstance(self.content, bytes):
            self._bind(self.content)
        else:
            self._fill(self.content)
        try:
            kernel.set_read_only(self.path)  # the system, being the same user, could write there else
            return None, (os.open(self.path, os.O_PATH),)
        except BaseException:
            kernel.unmount(self.path)
            raise

    def _bind(self, data: bytes) -> None:
        """Bind a file of a tmpfs of its own, which nobody else sees.

        An unlinked file or a descriptor will not do: nothing could be mounted over it in its turn.
        """
        place = tempfile.mkdtemp(prefix=".colos-", dir=self.scratch)
        try:
            kernel.mount("tmpfs", place, "tmpfs", _OWN, "mode=755")
            try:
                _write(f"{place}/content", data)
                kernel.mount(f"{place}/content", self.path, None, kernel.MS_BIND, None)
            finally:
                kernel.unmount(place)
        finally:
            os.rmdir(place)

    def _fill(self, files: Mapping[str, bytes]) -> None:
        kernel.mount("tmpfs", self.path, "tmpfs", _OWN, "mode=755")
        try:
            for name, data in files.items():
                inside = os.path.join(self.path, name)
                os.makedirs(os.path.dirname(inside), exist_ok=True)
                _write(inside, data)
        except BaseException:
            kernel.unmount(self.path)
            raise


@dataclass(frozen=True)
class Uncover:
    """Unmount what is seen at `path`, `depth` times."""

    path: str
    depth: int

    def __call__(self) -> tuple[Any, tuple[int, ...]]:
        """Unmount, inside."""
        for _ in range(self.depth):
            kernel.unmount(self.path)
        return None, ()


def _write(path: str, data: bytes) -> None:
    with open(path, "wb") as file:
        os.fchmod(file.fileno(), 0o444)
        file.write(data)


def _mount_id(descriptor: int) -> int:
    """The mount that an open file belongs to.  proc_pid_fdinfo(5)."""
    with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("mnt_id:"))


class Overmounts:
    """What is bound over what in one sandbox.  Several at one path: the last one in shows.

    They end in any order: one that ends beneath another stays there, unseen, until that one ends too.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._made: list[tuple[str, int]] = []  # by ticket: path, mount id
        self._held: dict[int, int] = {}  # mount id -> ticket
        self._stacks: dict[str, list[int]] = {}  # path -> mount ids, from the bottom up

    def over(self, path: str, content: Content) -> int:
        """Show `content` at `path`; the ticket that ends it.  Raises `OSError` (ENOENT: nothing is at the path)."""
        _, (descriptor,) = self._sandbox.join(Cover(path, content, self._sandbox.place.tmp))
        try:
            mount = _mount_id(descriptor)
        finally:
            os.close(descriptor)
        ticket = len(self._made)
        self._made.append((path, mount))
        self._held[mount] = ticket
        self._stacks.setdefault(path, []).append(mount)
        return ticket

    def off(self, ticket: int) -> None:
        """End what `over` began.  May be called twice, and when the sandbox is gone.  Raises `OSError`."""
        path, mount = self._made[ticket]
        if self._held.get(mount) != ticket:
            return
        stack = self._stacks[path]
        others = self._held.keys() - {mount}
        kept = next((depth for depth in range(len(stack), 0, -1) if stack[depth - 1] in others), 0)
        depth = len(self._mounts().keys() & set(stack[kept:]))
        if depth:
            self._sandbox.join(Uncover(path, depth))
        del self._held[mount]
        del stack[kept:]
        if not stack:
            del self._stacks[path]

    def is_over(self, path: str) -> bool:
        """Whether anything of ours is mounted at `path`, as the kernel's own table of mounts shows it."""
        return not self._mounts().keys().isdisjoint(self._stacks.get(path, ()))

    def is_shown(self, ticket: int) -> bool:
        """Whether this one is what the sandbox sees at its path now, as the kernel's own table of mounts shows it."""
        _, mount = self._made[ticket]
        mounts = self._mounts()
        if mount not in mounts or self._held.get(mount, ticket) != ticket:  # ended; its number may mean another
            return False
        return not any(above == (mount, mounts[mount][1]) for above in mounts.values())

    def is_mounted(self, ticket: int) -> bool:
        """Whether this one is mounted, seen or not."""
        _, mount = self._made[ticket]
        return mount in self._mounts() and self._held.get(mount, ticket) == ticket

    def _mounts(self) -> dict[int, tuple[int, bytes]]:
        """All mounts in there now, by id: the parent's id and where.  None when the sandbox is gone."""
        try:
            with open(f"/proc/{self._sandbox.keeper}/mountinfo", "rb") as file:
                fields = [line.split(None, 5) for line in file]
        except OSError:  # its keeper is dead (EINVAL: and not reaped), and so are its mounts
            return {}
        return {int(field[0]): (int(field[1]), field[4]) for field in fields}


_OF: WeakKeyDictionary[Sandbox, Overmounts] = WeakKeyDictionary()


def overmounts(sandbox: Sandbox) -> Overmounts:
    """The one register of a sandbox's overmounts, which all faults share."""
    if sandbox not in _OF:
        _OF[sandbox] = Overmounts(sandbox)
    return _OF[sandbox]
