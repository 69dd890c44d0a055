"""Single files of the data disk: vanished, or shut by their mode.

A file is chosen by the hash of the fault's seed and its path, among those that match when the step
runs.  Mechanisms: unlink(2) and chmod(2), from outside, through `DataDisk`.  Proof: what stat(2)
says at that path.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from hypothesis import strategies as st

from colos.chaos.fault import Fault, Lease, Site, count_of
from colos.chaos.mechanisms.capabilities import overrides_modes
from colos.chaos.sandbox.datadisk import DataDisk, Entry, glob_of, set_mode
from colos.errors import InvalidSpecification

if TYPE_CHECKING:
    from colos.chaos.sandbox.session import Session

__all__ = ["FileVanished", "PermissionLost"]

_SEEDS = 1 << 16
_COUNT_MAX = 64
_SIZE_MAX = 64 << 20  # of all that is kept to be put back
_PIECE = 1 << 20


class _OnFiles(Fault):
    """What the two kinds have in common: a glob, a seed, a count."""

    family = "disk"
    targeted = False
    parameters: ClassVar[Mapping[str, object]] = {"path": "*", "seed": 0, "count": 1}

    def __init__(self, *, paths: Sequence[str] = ("*",)) -> None:
        super().__init__()
        self.paths = tuple(glob_of(path) for path in paths)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(paths={self.paths})"

    @classmethod
    def unavailable(cls, session: Session) -> tuple[str, str] | None:
        """Any owner may do it."""
        del session
        return None

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """Which of the declared globs, which of the files, and how many."""
        return st.fixed_dictionaries(
            {"path": st.sampled_from(self.paths), "seed": st.integers(0, _SEEDS - 1), "count": st.integers(1, 3)}
        )


def _complete(kind: type[Fault], arguments: Mapping[str, Any]) -> tuple[str, int, int]:
    complete = kind.complete(arguments)
    count = count_of(complete["count"], "how many files")
    if not 1 <= count <= _COUNT_MAX:
        raise InvalidSpecification(f"how many files is 1 to {_COUNT_MAX}, not {count}")
    return glob_of(complete["path"]), count_of(complete["seed"], "a seed"), count


# --- vanished --------------------------------------------------------------------------------


class FileVanished(_OnFiles):
    """`count` regular files that match the glob `path` (below {data}; ``*`` matches ``/`` too) are unlinked.

    `seed` chooses among those that match.  Who has one open keeps the old inode, as on any Unix.
    Healing puts each back as it was (contents, mode, times) unless something is at its path by then or
    its directory is gone; what was written meanwhile through descriptors on the old inode is lost, and
    on a disk that has no room the file stays lost.  Files that their owner cannot read, and those that
    would bring what is kept above 64 MiB, are left alone.  unlink(2).
    """

    kind = "file-vanished"
    uses = "unlink"
    summary = "a file below {data} is unlinked; healing puts it back unless something new is there"
    sees = "ENOENT at its path; open descriptors go on with the old inode"
    proof = "stat at the path finds nothing where a file was"

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Unlink them."""
        del target
        return _Vanished(site, *_complete(cls, arguments))


def _readable(entry: Entry) -> bool:
    return entry.regular and bool(entry.status.st_mode & stat.S_IRUSR)


class _Vanished(Lease):
    mechanism = "unlink"

    def __init__(self, site: Site, pattern: str, seed: int, count: int) -> None:
        self._kept: dict[Entry, int] = {}  # and a descriptor on its contents
        self._proof: list[str] = []
        self._disk = DataDisk(site.sandbox)
        try:
            room = _SIZE_MAX
            for entry in self._disk.choose(pattern, seed, count, _readable):
                if entry.status.st_size <= room and self._take(entry):
                    room -= entry.status.st_size
        except BaseException:
            self.heal()
            raise

    def _take(self, entry: Entry) -> bool:
        try:
            copy = _copy_of(self._disk, entry)
        except OSError:
            return False  # gone or shut meanwhile
        try:
            self._disk.remove(entry.path)
        except OSError:
            os.close(copy)
            return False
        self._kept[entry] = copy
        now = self._disk.status(entry.path)
        if now is None or now.st_ino != entry.status.st_ino:
            self._proof.append(f"{entry.path} is gone ({entry.status.st_size} bytes)")
        return True

    def fired(self) -> str | None:
        return "; ".join(self._proof) or None

    def heal(self) -> None:
        while self._kept:
            entry, copy = self._kept.popitem()
            try:
                _put_back(self._disk, entry, copy)
            finally:
                os.close(copy)
        self._disk.close()

    def is_healed(self) -> bool:
        return not self._kept  # what could not be put back is lost, as it would be


def _copy_of(disk: DataDisk, entry: Entry) -> int:
    """The contents in memory: the disk may have no room, and must show nothing of ours."""
    source = disk.open(entry.path, os.O_RDONLY)
    copy = os.memfd_create("colos-vanished", os.MFD_CLOEXEC)
    try:
        status = os.fstat(source)
        if status.st_ino != entry.status.st_ino or status.st_size > _SIZE_MAX:
            raise FileNotFoundError(entry.path)
        _pour(source, copy, status.st_size)
    except BaseException:
        os.close(copy)
        raise
    finally:
        os.close(source)
    return copy


def _pour(source: int, sink: int, size: int) -> None:
    """Copy `size` bytes from the beginning.  Raises `OSError`."""
    done = 0
    while done < size:
        piece = os.pread(source, min(_PIECE, size - done), done)
        if not piece:
            return  # it has shrunk
        os.pwrite(sink, piece, done)
        done += len(piece)


def _put_back(disk: DataDisk, entry: Entry, copy: int) -> None:
    """Make the file anew, never over another; not where the directory is gone or shut, or there is no room."""
    try:
        file = disk.open(entry.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0)
    except OSError:
        return
    try:
        _pour(copy, file, os.fstat(copy).st_size)
        os.utime(file, ns=(entry.status.st_atime_ns, entry.status.st_mtime_ns))
        os.fchmod(file, stat.S_IMODE(entry.status.st_mode))  # last: nobody reads it half written
    except OSError:
        disk.remove(entry.path)
    finally:
        os.close(file)


# --- permission ------------------------------------------------------------------------------


class PermissionLost(_OnFiles):
    """`count` files or directories that match the glob `path` (below {data}) get mode 0: nobody may enter.

    `seed` chooses among those that match.  The system gives up every capability before it begins, so
    modes bind it though it runs as root.  Healing puts the mode back unless somebody else changed it
    meanwhile; descriptors that are open go on.  chmod(2), capabilities(7) CAP_DAC_OVERRIDE.
    """

    kind = "permission-lost"
    uses = "chmod"
    summary = "a file or directory below {data} gets mode 0"
    sees = "EACCES from open, and from every path through a directory; open descriptors go on"
    proof = "mode 0 by stat, and no process of the system has a capability that overrides it"

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Take the mode away."""
        del target
        return _Shut(site, *_complete(cls, arguments))


class _Shut(Lease):
    mechanism = "chmod"

    def __init__(self, site: Site, pattern: str, seed: int, count: int) -> None:
        self._site = site
        self._shut: dict[int, int] = {}  # a descriptor, for a path may be shut off; the mode to put back
        self._proof: list[str] = []
        try:
            with DataDisk(site.sandbox) as disk:
                chosen = disk.choose(pattern, seed, count, self._fits)
                for entry in sorted(chosen, key=lambda entry: entry.path, reverse=True):  # a directory after its files
                    self._shut_one(disk, entry)
        except BaseException:
            self.heal()
            self.is_healed()
            raise
        if any(overrides_modes(process.pid) for process in site.sandbox.processes()):
            self._proof = []  # it does not bind everybody: then it is no fault

    @staticmethod
    def _key(status: os.stat_result) -> tuple[str, int]:
        return "mode", status.st_ino

    def _fits(self, entry: Entry) -> bool:
        """A file or directory with a mode to lose, or one that another lease keeps shut already."""
        kind, mode = stat.S_IFMT(entry.status.st_mode), stat.S_IMODE(entry.status.st_mode)
        return kind in (stat.S_IFREG, stat.S_IFDIR) and bool(mode or self._key(entry.status) in self._site.overlays)

    def _shut_one(self, disk: DataDisk, entry: Entry) -> None:
        try:
            held = disk.open(entry.path, os.O_PATH)
        except OSError:
            return  # it is gone, or lies in a directory that was shut
        status = os.fstat(held)
        mode = stat.S_IMODE(status.st_mode)
        if not self._fits(Entry(entry.path, status)):  # another thing is at its path by now
            os.close(held)
            return
        self._shut[held] = mode
        self._site.overlays.hold(self._key(status), self, 0, lambda: mode)
        set_mode(held, 0)
        if not stat.S_IMODE(os.fstat(held).st_mode):
            self._proof.append(f"{entry.path} has mode 0")

    def fired(self) -> str | None:
        return "; ".join(self._proof) or None

    def heal(self) -> None:
        for held in self._shut:
            status = os.fstat(held)
            holds, original = self._site.overlays.release(self._key(status), self)
            if original is not None:
                self._shut[held] = int(original)
            if holds is None and self._shut[held] and not stat.S_IMODE(status.st_mode):
                set_mode(held, self._shut[held])

    def is_healed(self) -> bool:
        for held, mode in self._shut.items():
            status = os.fstat(held)
            if mode and not stat.S_IMODE(status.st_mode) and self._key(status) not in self._site.overlays:
                return False
        for held in self._shut:
            os.close(held)
        self._shut = {}
        return True
