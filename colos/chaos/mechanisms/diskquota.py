"""A full disk for some processes and one directory, decided call by call; no byte of disk is used up.

Every call that may take space below the data directory is trapped (`TRAPS`, see `syscalls`) and
asks `DiskQuota.handle`.  While there is no limit the kernel carries it out; so it does with what
is no file below the directory, and what stays within bytes that a file has already.  Any other
write the supervisor makes in the caller's stead, through a duplicate of its descriptor (same
offset, same O_APPEND), one after another, as far as there is room.  So it ends as on a full tmpfs
or ext4: whole, as a short write up to the end of the last block to be had, or with ENOSPC, and no
two callers get the same last block.

Exact: overwriting, holes, appending, short writes, space given back by truncate and unlink, hard
links, files deleted but open (see `diskusage` for how each is counted, and what is approximated).

Not seen, or different from a real disk:

- stores through a writable mmap, io_uring, and reflinks (FICLONE) take space unnoticed;
- truncate and ftruncate take no space: growing makes a hole, as it does everywhere;
- directories, symbolic links and hard links take no block, and link takes no inode;
- a creating call that was let go counts as done until it shows, or its thread is seen elsewhere,
  or for 2 s: for so long an inode may seem used that was given back at once;
- while a limit is set, a write waits for the supervisor's, an O_SYNC one for its syncing too, and
  its page cache is charged to the supervisor's memory cgroup;
- where the arguments are wrong in other ways too, a full disk may be reported in place of them;
- splice from a pipe that is empty while space is left takes what then comes, unjudged;
- paths are resolved in the supervisor's root: a caller that did chroot(2) is not followed;
- before Linux 5.19 a signal may make a call repeat that was made already.
"""

from __future__ import annotations

import errno
import os
import resource
import stat
import time
from collections import deque
from dataclasses import dataclass

from colos.chaos.mechanisms.diskcalls import (
    CREATES,
    CREATING,
    WRITING,
    Write,
    c_int,
    perform,
    would_create,
    would_write,
)
from colos.chaos.mechanisms.diskusage import BLOCK, Tree, allocated, key_of, reach
from colos.chaos.mechanisms.syscalls import Listener, Notification, Trap, number_of, open_of
from colos.errors import InvalidSpecification

__all__ = ["TRAPS", "DiskQuota"]

TRAPS: tuple[Trap, ...] = (
    *(Trap(name) for name in WRITING),
    *(Trap(name, argument=at, mask=CREATES) if at else Trap(name) for name, (_, _, at) in CREATING.items()),
)

_TAKES_EFFECT_S = 2.0
_CALLERS_OWN = (errno.EFAULT, errno.EBADF, errno.ENAMETOOLONG)  # bad arguments: the kernel says so itself
_BOUNDLESS = 1 << 62


class _Gone(Exception):
    """The caller no longer waits."""


@dataclass(frozen=True, slots=True)
class _Pending:
    """A creating call that was let go."""

    call: str
    since: float
    path: str  # "" for a file without a name


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a call returns, as the kernel says it (negative is an errno), and which fault that is, if any."""

    value: int
    hit: str | None = None


_FULL = _Outcome(-errno.ENOSPC, "ENOSPC")


class DiskQuota:
    """How much more the processes of one listener may put below `root`.

    `hits` counts what was really returned since `limit`: ``"ENOSPC"``, and ``"short"`` for writes
    cut short.  `errors` keeps the last problems met while deciding; the calls concerned were let go.
    """

    def __init__(self, root: str) -> None:
        self._tree = Tree(os.path.realpath(root))
        self._limited = False
        self._blocks_cap: int | None = None
        self._inodes_cap: int | None = None
        self._pending: dict[int, _Pending] = {}
        self.hits: dict[str, int] = {}
        self.errors: deque[str] = deque(maxlen=100)

    def limit(self, *, bytes_free: int | None = None, inodes_free: int | None = None) -> None:
        """From now on, that much more than is used now and no further; None sets no limit of that sort.

        Bytes are given in whole blocks of 4096, rounded down.  Replaces an earlier limit, resets `hits`.
        """
        if (bytes_free or 0) < 0 or (inodes_free or 0) < 0:
            raise InvalidSpecification(f"less than nothing cannot be free: {bytes_free} bytes, {inodes_free} inodes")
        self._pending.clear()
        sizes = self._tree.measure()
        self._blocks_cap = None if bytes_free is None else sum(sizes.values()) + bytes_free // BLOCK
        self._inodes_cap = None if inodes_free is None else len(sizes) + inodes_free
        self._limited = not (bytes_free is None and inodes_free is None)
        self.hits = {}

    def lift(self) -> None:
        """No limit any more; `hits` stays readable."""
        self._limited = False
        self._blocks_cap = self._inodes_cap = None
        self._pending.clear()

    def handle(self, listener: Listener, notification: Notification) -> None:
        """Decide and answer.  Never raises for what a caller does, and never leaves it waiting."""
        outcome: _Outcome | None = None
        try:
            self._tree.saw(notification.pid)
            if self._limited:
                outcome = self._decide(listener, notification)
        except _Gone:
            return
        except Exception as error:
            callers_own = isinstance(error, OSError) and error.errno in _CALLERS_OWN
            if not callers_own and listener.is_valid(notification):
                self.errors.append(f"{notification.call} of {notification.pid} was let go: {error!r}")
        if outcome is None:
            listener.proceed(notification)
            return
        if outcome.value < 0:
            delivered = listener.fail(notification, -outcome.value)
        else:
            delivered = listener.answer(notification, outcome.value)
        if delivered and outcome.hit:
            self.hits[outcome.hit] = self.hits.get(outcome.hit, 0) + 1

    def _decide(self, listener: Listener, n: Notification) -> _Outcome | None:
        """None to let it go."""
        self._over(n.pid)  # it calls again
        if n.call in CREATING:
            return self._creating(listener, n) if self._inodes_cap is not None else None
        return self._writing(listener, n) if self._blocks_cap is not None else None

    # --- creating ---------------------------------------------------------------------------

    def _creating(self, listener: Listener, n: Notification) -> _Outcome | None:
        path = would_create(n, self._tree)
        if path is None:
            return None
        # First who is still at it, then the walk: a file made in between is seen by the walk.
        for pid in [pid for pid, pending in self._pending.items() if not _under_way(pid, pending)]:
            self._over(pid)
        assert self._inodes_cap is not None
        if len(self._tree.measure()) + len(self._pending) < self._inodes_cap:
            self._pending[n.pid] = _Pending(n.call, time.monotonic(), path)
            return None
        if not listener.is_valid(n):
            raise _Gone
        return _FULL

    def _over(self, pid: int) -> None:
        """The call that `pid` was let go with has taken effect, or never will."""
        pending = self._pending.pop(pid, None)
        if pending and pending.path == "":
            self._tree.know_nameless(pid)

    # --- writing ----------------------------------------------------------------------------

    def _writing(self, listener: Listener, n: Notification) -> _Outcome | None:
        fd = c_int(n.args[WRITING[n.call]])
        if not self._concerns(n.pid, fd):
            return None
        descriptors = [open_of(n.pid, fd)]
        try:
            write = would_write(n, descriptors)
            return self._judge(listener, n, write) if write else None
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _concerns(self, pid: int, fd: int) -> bool:
        """Whether that descriptor is a regular file below the root."""
        path = f"/proc/{pid}/fd/{fd}"
        try:
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):
                return False
            if self._tree.holds(os.readlink(path)):
                return True
        except (FileNotFoundError, ProcessLookupError):
            return False  # a bad descriptor, or nobody: the kernel knows what to say
        return status.st_nlink > 1 and key_of(status) in self._tree.measure()  # by a name elsewhere

    def _judge(self, listener: Listener, n: Notification, write: Write) -> _Outcome | None:
        room_end = self._reach(write)
        if room_end is None:
            return None
        end, file_size_max = room_end, resource.prlimit(n.pid, resource.RLIMIT_FSIZE)[0]
        if file_size_max != resource.RLIM_INFINITY and file_size_max < write.end:
            if write.start >= file_size_max or n.call == "fallocate":
                return None  # EFBIG and SIGXFSZ: the caller's limit, not ours
            end = min(end, file_size_max)
        if not listener.is_valid(n):
            raise _Gone
        if end <= write.start or (n.call == "fallocate" and end < write.end):  # which gets all or nothing
            return _FULL
        done = perform(n, write, end - write.start)
        if done is None:
            return None
        return _Outcome(done, "short" if write.start + done == room_end < write.end else None)

    def _reach(self, write: Write) -> int | None:
        """The byte up to which there is room; None when the write changes nothing that is counted here."""
        ranges = allocated(f"/proc/self/fd/{write.fd}", write.status)
        end, wanted = reach(ranges, write.start, write.end, _BOUNDLESS)
        if wanted:
            assert self._blocks_cap is not None
            self._tree.know(key_of(write.status))
            free = self._blocks_cap - sum(self._tree.measure().values())
            return reach(ranges, write.start, write.end, free)[0]
        # In place: it may happen whenever it likes, unless others move where it goes, or rely on the end.
        return None if write.placed and end <= write.status.st_size else end


def _under_way(pid: int, pending: _Pending) -> bool:
    """Whether a call that was let go may still have to take effect.  proc(5), /proc/PID/syscall."""
    if time.monotonic() - pending.since > _TAKES_EFFECT_S:
        return False
    if pending.path and os.path.lexists(pending.path):
        return False
    try:
        with open(f"/proc/{pid}/syscall", "rb") as now:
            first = now.read().split(maxsplit=1)[0]
    except PermissionError:
        return True
    except (OSError, IndexError):
        return False  # gone
    # A waiting thread says in which call; a running one may be on its way into ours.
    return first == b"running" or first == str(number_of(pending.call)).encode()
