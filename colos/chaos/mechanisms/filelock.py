"""A lock on a file or a folder that is there: nothing is left of one by whoever was killed.  Source: flock(2)."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["locked"]

_WITHOUT_LOCKS = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_PAUSE_S = 0.01  # flock itself waits without a bound


@contextmanager
def locked(
    path: str | Path, within_s: float, *, shared: bool = False, waiting: Callable[[], None] = lambda: None
) -> Iterator[bool]:
    """Hold a lock on a file or folder, exclusive or `shared`; False where it could not be had.

    That is so when others still hold it after `within_s` seconds, and on a file system that cannot
    lock it, such as some NFS.  `waiting` is called again and again meanwhile.  Raises `OSError`.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield _take(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, within_s, waiting)
    finally:
        os.close(descriptor)  # and with it the lock


def _take(descriptor: int, mode: int, within_s: float, waiting: Callable[[], None]) -> bool:
    deadline = time.monotonic() + within_s
    while True:
        try:
            fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            waiting()
            time.sleep(_PAUSE_S)
        except OSError as error:
            if error.errno in _WITHOUT_LOCKS:
                return False
            raise
        else:
            return True
