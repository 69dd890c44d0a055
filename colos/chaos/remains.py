"""What a system leaves behind when it has stopped: shared memory and temporary files.

What a process made that was killed is not the system's doing: nobody can clean up after SIGKILL but the next
start, and only some do.  So nothing counts that is older than the last death that was not in order.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from colos.chaos.looking import listed
from colos.chaos.mechanisms import wallclocks
from colos.chaos.properties import Violation
from colos.chaos.sandbox.handle import Sandbox
from colos.chaos.sandbox.spec import COVERED, NAMESPACES

__all__ = ["TEMPORARY_SLACK", "SharedMemory", "TemporaryFiles"]

#: How many entries may stay in the temporary directories: a program's caches and locks have fixed names and are
#: one or two (``/tmp/node-compile-cache``, ``/tmp/tmux-0``); what leaks grows with use.
TEMPORARY_SLACK = 2
_SHM = "/dev/shm"
_MOST = 10_000  # entries looked at


@dataclass(frozen=True)
class _Entry:
    path: str
    """As the system knows it."""
    mode: int
    size: int
    changed: float

    def __str__(self) -> str:
        if stat.S_ISDIR(self.mode):
            what = "directory"
        elif stat.S_ISSOCK(self.mode):
            what = "socket"
        else:
            what = f"{self.size} bytes"
        return f"{self.path} ({what}, last changed {max(0.0, time.time() - self.changed):.1f} s ago)"


def _walk(sandbox: Sandbox, top: str, into: Callable[[str], bool]) -> Iterator[_Entry]:
    """Everything below `top` on its own file system; directories only as far as `into` says."""
    outside = sandbox.outside("")
    own = {f"{sandbox.place.tmp}/colos"}  # the sandbox's own directories
    try:
        device = os.stat(outside + top).st_dev
    except OSError:
        return
    waiting, seen = [top], 0
    while waiting:
        directory = waiting.pop()
        try:
            with os.scandir(outside + directory) as entries:
                for entry in entries:
                    path = f"{directory}/{entry.name}"
                    state = entry.stat(follow_symlinks=False)
                    seen += 1
                    if state.st_dev != device or path in own:
                        continue  # what is mounted there is not the system's
                    yield _Entry(path, state.st_mode, state.st_size, state.st_ctime)
                    if seen >= _MOST:
                        return
                    if stat.S_ISDIR(state.st_mode) and into(path):
                        waiting.append(path)
        except OSError:
            continue  # removed while we looked, or closed to us


def _is_own(sandbox: Sandbox, path: str) -> bool:
    """Whether there is a file system of the sandbox's own at `path`, and not the host's in sight."""
    try:
        return os.stat(sandbox.outside(path)).st_dev != os.stat(path).st_dev
    except OSError:
        return False


class TemporaryFiles:
    """What was in the temporary directories when the system was first ready, against what stays.

    They are TMPDIR, and in `namespaces` ``/tmp`` and ``/var/tmp`` too (in `bare` those are the host's, where
    nobody can tell whose a file is).  A leak is more than `TEMPORARY_SLACK` new entries; a new directory is one,
    whatever is in it.  A file that was unlinked while open is gone with its process.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._tops = [sandbox.place.tmp]
        if sandbox.tier == NAMESPACES:
            wanted = (path for path in COVERED if path not in (_SHM, *self._tops))
            self._tops += [path for path in wanted if _is_own(sandbox, path)]
        self._first = {entry.path for top in self._tops for entry in _walk(sandbox, top, lambda _: True)}

    def leak(self, died_at: float) -> Violation | None:
        """What stays, of what is younger than the last death out of order (`died_at`, seconds since the epoch)."""
        left = [
            entry
            for top in self._tops
            for entry in _walk(self._sandbox, top, self._first.__contains__)
            if entry.path not in self._first and entry.changed > died_at
        ]
        if len(left) <= TEMPORARY_SLACK or len(self._first) >= _MOST:
            return None  # of more than that we do not know what was there before
        said = listed(str(entry) for entry in sorted(left, key=lambda entry: entry.changed))
        return Violation(
            "builtin:no_temporary_file_leak",
            f"{len(left)} temporary files or directories that were not there when the system was first ready are "
            f"left after it stopped{_how(self._sandbox)}: {said}",
        )


def _how(sandbox: Sandbox) -> str:
    """Why nothing was cleaned up, where that is plain."""
    unhandled = sandbox.exits and sandbox.exits[-1][0] == -15
    return " (by SIGTERM, which it does not handle)" if unhandled else ""


class SharedMemory:
    """Shared memory that outlives the system: files in /dev/shm, and System V segments.

    Neither goes away with the processes that use it, and nothing else uses it: one is a leak.  (Named POSIX
    semaphores are files in /dev/shm, too.)  In `bare` both are the host's.  Of a file there nobody can tell who
    made it, so files are not checked; of a segment the kernel knows its maker's pid, so those count whose
    maker was seen in the sandbox.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._own = sandbox.tier == NAMESPACES
        self._files = self._own and _is_own(sandbox, _SHM)
        # In namespaces the table was empty when the sandbox was made.
        self._first = set() if self._own else set(sandbox.segments())

    def _is_ours(self, entry: _Entry) -> bool:
        """Whether libfaketime made it, with which the harness starts a system that clock faults are declared for."""
        loaded = wallclocks.is_loaded(dict(self._sandbox.place.extra))
        return loaded and os.path.basename(entry.path).startswith(wallclocks.LEFT_BEHIND)

    def leak(self, died_at: float, makers: set[int], last: set[int]) -> Violation | None:
        """What stays.  `makers` are all pids that were seen, `last` those that ended in order."""
        files = _walk(self._sandbox, _SHM, lambda _: True) if self._files else ()
        left = [
            str(entry)
            for entry in sorted(files, key=lambda entry: entry.changed)
            if not stat.S_ISDIR(entry.mode) and entry.changed > died_at and not self._is_ours(entry)
        ]
        for number, segment in self._sandbox.segments().items():
            in_order = segment.maker in last or segment.changed > died_at
            if number not in self._first and in_order and (self._own or segment.maker in makers):
                left.append(
                    f"System V segment {number} (key {segment.key:#x}, {segment.size} bytes, made by pid "
                    f"{segment.maker} {'inside' if self._own else 'here'} {time.time() - segment.changed:.0f} s ago)"
                )
        if not left:
            return None
        return Violation(
            "builtin:no_shared_memory_leak",
            f"left after the system stopped{_how(self._sandbox)}: {listed(left)}",
        )
