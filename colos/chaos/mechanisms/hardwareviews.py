"""Views of failing hardware: which files of /sys and /proc a sandbox sees changed, and for which leases.

Every lease that holds a view of a path changes what the others show there; the last one out takes the view
away.  The kernel and its hardware are as they were: only who reads the files is told otherwise.

A directory that this machine lacks cannot be made in sysfs.  So its parent is shown once more with that
directory beside all that is in there already, bound one by one.

Sources: mount(2) (MS_BIND, MS_MOVE), proc_pid_mountinfo(5).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

from colos.chaos.mechanisms import kernel
from colos.chaos.mechanisms.hardwarefiles import read_tree
from colos.chaos.mechanisms.overmounts import Content, Overmounts, Uncover, overmounts

if TYPE_CHECKING:
    from colos.chaos.sandbox.handle import Sandbox

__all__ = ["Edit", "Plant", "Views", "lacks", "probe", "views"]

_MS_MOVE = 8192
_OWN = kernel.MS_NOSUID | kernel.MS_NODEV
_SOURCE = b"colos-hardware"
#: Directories that failing hardware is shown in and that not every machine has, by parent.
_WANTED = {"/sys/class": ("hwmon", "power_supply", "thermal"), "/sys/devices/system": ("edac",), "/sys/block": ()}


def probe() -> str | None:
    """None where there is something to show a view of, else the reason why not."""
    missing = [path for path in ("/proc/meminfo", *_WANTED) if not os.path.exists(path)]
    return f"this machine does not show {', '.join(missing)}" if missing else None


@dataclass(frozen=True)
class Edit:
    """One lease's change of what is read at a path.  The severest comes last, and so holds."""

    severity: float
    change: Callable[[Any], Content]


@dataclass(frozen=True)
class Plant:
    """Show at `path` all that is there, and empty directories called `names` beside it."""

    path: str
    names: tuple[str, ...]
    scratch: str

    def __call__(self) -> tuple[Any, tuple[int, ...]]:
        """Build it beside, then move it there in one step, inside."""
        place = tempfile.mkdtemp(prefix=".colos-", dir=self.scratch)
        try:
            kernel.mount(_SOURCE.decode(), place, "tmpfs", _OWN, "mode=755")
            try:
                self._fill(place)
                kernel.set_read_only(place)
                kernel.mount(place, self.path, None, _MS_MOVE, None)
            except BaseException:
                kernel.unmount(place)
                raise
        finally:
            os.rmdir(place)
        return None, ()

    def _fill(self, place: str) -> None:
        for entry in os.scandir(self.path):
            copy = os.path.join(place, entry.name)
            if entry.is_symlink():
                os.symlink(os.readlink(entry.path), copy)  # relative ones lead on: it will stand at the same place
                continue
            if entry.is_dir():
                os.mkdir(copy)
            else:
                os.close(os.open(copy, os.O_CREAT | os.O_WRONLY, 0o444))
            kernel.mount(entry.path, copy, None, kernel.MS_BIND | kernel.MS_REC, None)
        for name in self.names:
            os.mkdir(os.path.join(place, name))


def lacks(path: str) -> tuple[str, tuple[str, ...]] | None:
    """The parent that must be shown with more in it before a view at `path` can be, and what is missing there.

    The same for every path below that parent, also for one that exists: a view that was bound before its
    parent was shown anew would come back when that one goes.
    """
    for parent, wanted in _WANTED.items():
        if path.startswith(f"{parent}/"):
            first = path.removeprefix(f"{parent}/").partition("/")[0]
            missing = tuple(name for name in dict.fromkeys((*wanted, first)) if not os.path.isdir(f"{parent}/{name}"))
            return (parent, missing) if missing else None
    return None


def _original(path: str) -> Content:
    """What this machine shows at a path: the sandbox has the same /sys, and the same kernel behind its /proc."""
    if os.path.isfile(path):
        with open(path, "rb") as file:
            return file.read()
    return read_tree(path)


class Views:
    """What is shown in one sandbox, and for whom."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox_ref = ref(sandbox)  # the register below knows us by it, for as long as it lives
        self._originals: dict[str, Content] = {}
        self._edits: dict[str, dict[object, Edit]] = {}
        self._tickets: dict[str, int] = {}
        self._planted: dict[str, set[object]] = {}

    @property
    def _sandbox(self) -> Sandbox:
        sandbox = self._sandbox_ref()
        assert sandbox is not None, "whoever holds a lease holds the sandbox"
        return sandbox

    @property
    def _covers(self) -> Overmounts:
        return overmounts(self._sandbox)

    def show(self, lease: object, edits: Mapping[str, Edit]) -> None:
        """Change what is read at these paths, for as long as the lease holds them.  Raises `OSError`."""
        try:
            for path, edit in edits.items():
                self._plant_for(lease, path)
                if path not in self._originals:
                    self._originals[path] = _original(path)
                self._edits.setdefault(path, {})[lease] = edit
                self._cover(path)
        except BaseException:
            self.hide(lease)
            raise

    def hide(self, lease: object) -> None:
        """Take back what this lease changed.  May be called twice, and when the sandbox is gone.  Raises `OSError`."""
        for path in [path for path, held in self._edits.items() if lease in held]:
            del self._edits[path][lease]
            self._cover(path)
        for parent in [parent for parent, held in self._planted.items() if lease in held]:
            self._planted[parent].discard(lease)
            if not self._planted[parent]:
                del self._planted[parent]
                if self._is_planted(parent):
                    self._sandbox.join(Uncover(parent, 1))

    def expected(self, path: str) -> Content:
        """What all the leases together show at a path."""
        content = self._originals[path]
        for edit in sorted(self._edits[path].values(), key=lambda edit: edit.severity):
            content = edit.change(content)
        return content

    def shows(self, path: str) -> bool:
        """Whether the sandbox reads there what it should."""
        expected, seen = self.expected(path), self._sandbox.outside(path)
        files = {seen: expected} if isinstance(expected, bytes) else {f"{seen}/{n}": d for n, d in expected.items()}
        try:
            return all(_read(file) == data for file, data in files.items())
        except OSError:  # it is not there, or the sandbox has ended
            return False

    def is_hidden(self, lease: object, paths: Mapping[str, Edit]) -> bool:
        """Whether nothing of this lease's is left, as the kernel's table of mounts has it."""
        for path in paths:
            if lease in self._edits.get(path, ()) or (path not in self._edits and self._covers.is_over(path)):
                return False
            lacking = lacks(path)
            if lacking and lacking[0] not in self._planted and self._is_planted(lacking[0]):
                return False
        return True

    def _cover(self, path: str) -> None:
        """Show what holds now: the new view over the old one, so that nobody looks between them at what is true."""
        before = self._tickets.pop(path, None)
        if self._edits[path]:
            if before is None or self._covers.is_mounted(before):  # else the sandbox is gone, and all mounts with it
                self._tickets[path] = self._covers.over(path, self.expected(path))
        else:
            del self._edits[path], self._originals[path]
        if before is not None:
            self._covers.off(before)

    def _plant_for(self, lease: object, path: str) -> None:
        lacking = lacks(path)
        if lacking:
            parent, missing = lacking
            if parent not in self._planted:
                self._sandbox.join(Plant(parent, missing, self._sandbox.place.tmp))
            self._planted.setdefault(parent, set()).add(lease)

    def _is_planted(self, parent: str) -> bool:
        try:
            with open(f"/proc/{self._sandbox.keeper}/mountinfo", "rb") as file:
                lines = [line.split() for line in file]
        except OSError:  # its keeper is dead, and so are its mounts
            return False
        return any(line[4] == os.fsencode(parent) and line[-2] == _SOURCE for line in lines)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


_OF: WeakKeyDictionary[Sandbox, Views] = WeakKeyDictionary()


def views(sandbox: Sandbox) -> Views:
    """The one register of a sandbox's views, which all faults share."""
    if sandbox not in _OF:
        _OF[sandbox] = Views(sandbox)
    return _OF[sandbox]
