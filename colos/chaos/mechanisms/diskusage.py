"""What a directory tree uses, counted as a file system would count it: blocks and inodes.

`Tree.measure` walks the tree each time it is asked (about 3 µs a file), so nothing can drift.
Counted are regular files, in blocks of 4096 bytes, holes left out; an inode counts once however
many names it has; a directory, symbolic link or device counts as an inode without blocks, as on
a tmpfs.  Files deleted but still open count for as long as a process known to `saw` holds them.

Approximated: space preallocated beyond a file's end (FALLOC_FL_KEEP_SIZE) does not count; in a
file that has holes *and* preallocated, unwritten blocks, the latter look like holes to a write;
a sparse file that may not be opened counts as if it had no holes; extended attributes and the
file system's own metadata count nothing; a file deleted while only open in a process that never
made a trapped call is taken as freed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from colos.chaos.mechanisms.syscalls import thread_group

__all__ = ["BLOCK", "Key", "Range", "Tree", "allocated", "blocks_up", "key_of", "reach"]

BLOCK = 4096
Key = tuple[int, int]  # device and inode
Range = tuple[int, int]  # blocks: first, and one past the last
_PROCESSES_MAX = 4096


def key_of(status: os.stat_result) -> Key:
    """What identifies a file, whatever it is called."""
    return status.st_dev, status.st_ino


def blocks_up(length: int) -> int:
    """How many blocks `length` bytes need."""
    return -(-length // BLOCK)


def allocated(path: str, status: os.stat_result) -> list[Range]:
    """The blocks of a regular file that hold something, in order; lseek(2), SEEK_DATA.

    Opens `path` only when the file has holes.  Never seeks a descriptor of the caller's: the offset is shared.
    """
    whole = blocks_up(status.st_size)
    if status.st_blocks * 512 >= whole * BLOCK:
        return [(0, whole)] if whole else []
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return [(0, whole)]
    ranges: list[Range] = []
    try:
        end = 0
        while True:
            start = os.lseek(fd, end, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
            first, stop = start // BLOCK, blocks_up(end)
            if ranges and first <= ranges[-1][1]:
                first = ranges.pop()[0]
            ranges.append((first, stop))
    except OSError:
        return ranges  # ENXIO: no data after `end`
    finally:
        os.close(fd)


def reach(ranges: list[Range], start: int, end: int, free_blocks: int) -> tuple[int, int]:
    """How far writing the bytes [start, end) gets when `free_blocks` may be added to `ranges`.

    Returns the byte where it stops, and the blocks it takes.  As a real file system does it: block
    by block, up to the first that cannot be had.
    """
    at, last, taken = start // BLOCK, blocks_up(end), 0
    for first, stop in [*ranges, (last, last)]:
        if at >= last:
            break
        hole = min(first, last) - at
        if hole > 0:
            if taken + hole > free_blocks:
                free = max(0, free_blocks - taken)
                return max(start, (at + free) * BLOCK), taken + free
            taken += hole
        at = max(at, stop)
    return end, taken


def _size(path: str, status: os.stat_result) -> int:
    """The blocks of any file, as counted here."""
    if not stat.S_ISREG(status.st_mode):
        return 0
    whole = blocks_up(status.st_size)
    if status.st_blocks * 512 >= whole * BLOCK:
        return whole
    found = sum(stop - first for first, stop in allocated(path, status))
    return min(whole, max(found, status.st_blocks * 512 // BLOCK))


@dataclass
class Tree:
    """The files below `root` (absolute, without symbolic links); `root` itself does not count."""

    root: str

    def __post_init__(self) -> None:
        self._known: set[Key] = set()
        self._holders: dict[Key, str] = {}  # of deleted files: /proc/PID/fd/FD
        self._processes: dict[int, int] = {}  # thread → process

    def holds(self, path: str) -> bool:
        """Whether `path`, absolute and without symbolic links, lies below the root."""
        return path.startswith(self.root + "/")

    def saw(self, thread: int) -> None:
        """Remember who might hold a deleted file open.  Costs nothing for a thread already known."""
        if thread in self._processes:
            return
        if len(self._processes) >= _PROCESSES_MAX:
            self._processes = {t: p for t, p in self._processes.items() if os.path.exists(f"/proc/{t}")}
        try:
            self._processes[thread] = thread_group(thread)
        except OSError:
            pass  # gone already: it holds nothing

    def know(self, key: Key) -> None:
        """A file of this tree exists, though it may never have had a name (O_TMPFILE)."""
        self._known.add(key)

    def know_nameless(self, thread: int) -> None:
        """`know` every deleted or nameless file of the tree that `thread`'s process has open."""
        for key, _, path in self._open_and_deleted({self._processes.get(thread, thread)}):
            if self.holds(path):
                self._known.add(key)

    def measure(self) -> dict[Key, int]:
        """Every inode in use, with its blocks."""
        sizes: dict[Key, int] = {}
        self._walk(self.root, sizes)
        gone = self._known - sizes.keys()
        if gone:
            self._add_deleted(gone, sizes)
        self._known = set(sizes)
        return sizes

    def _walk(self, directory: str, sizes: dict[Key, int]) -> None:
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except OSError:
                        continue  # removed while we walk
                    sizes[key_of(status)] = _size(entry.path, status)
                    if stat.S_ISDIR(status.st_mode):
                        self._walk(entry.path, sizes)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            pass  # removed while we walk, or closed to us: then its files count nothing

    def _add_deleted(self, gone: set[Key], sizes: dict[Key, int]) -> None:
        """Those of `gone` that are still open somewhere keep their blocks."""
        holders, self._holders = self._holders, {}
        searched = False
        for key in gone:
            if not self._add_held(key, holders.get(key), sizes) and not searched:
                searched = True
                for found, path, _ in self._open_and_deleted(set(self._processes.values())):
                    holders[found] = path
                self._add_held(key, holders.get(key), sizes)
            elif searched:
                self._add_held(key, holders.get(key), sizes)

    def _add_held(self, key: Key, path: str | None, sizes: dict[Key, int]) -> bool:
        if path is None:
            return False
        try:
            status = os.stat(path)
        except OSError:
            return False
        if key_of(status) != key:
            return False
        sizes[key] = _size(path, status)
        self._holders[key] = path
        return True

    def _open_and_deleted(self, processes: set[int]) -> Iterator[tuple[Key, str, str]]:
        """Of each open file without a name: key, path in /proc, the name it had."""
        for process in processes:
            directory = f"/proc/{process}/fd"
            try:
                descriptors = os.listdir(directory)
            except OSError:
                continue  # the process is gone
            for descriptor in descriptors:
                path = f"{directory}/{descriptor}"
                try:
                    status = os.stat(path)
                    if status.st_nlink == 0 and stat.S_ISREG(status.st_mode):
                        yield key_of(status), path, os.readlink(path)
                except OSError:
                    continue  # closed meanwhile
