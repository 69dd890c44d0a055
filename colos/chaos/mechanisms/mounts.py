"""What is done to a sandbox's own mounts, from inside it: requests for `Sandbox.join`.

Sources: mount_setattr(2), open_tree(2).  A mount becomes read-only only while no file is open for
writing through it (EBUSY), and a file system only while no mount of it is written through and no
deleted file is open: the flag of the one mount asks for less, and programs see the same EROFS.
"""

from __future__ import annotations

import errno
import time
from dataclasses import dataclass
from typing import Any

from colos.chaos.mechanisms import kernel

__all__ = ["CloneMount", "SetReadOnly", "SetWritable"]

_PAUSE_S = 0.001


@dataclass(frozen=True)
class SetReadOnly:
    """Make the mount at `path` read-only, at the first moment within `patience_s` when nobody writes through it."""

    path: str
    patience_s: float

    def __call__(self) -> tuple[Any, tuple[int, ...]]:
        """Whether there was such a moment."""
        deadline = time.monotonic() + self.patience_s
        while True:
            try:
                kernel.set_read_only(self.path)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                if time.monotonic() >= deadline:
                    return False, ()
                time.sleep(_PAUSE_S)
            else:
                return True, ()


@dataclass(frozen=True)
class SetWritable:
    """Make the mount at `path` writable again."""

    path: str

    def __call__(self) -> tuple[Any, tuple[int, ...]]:
        """Clear the flag."""
        kernel.set_writable(self.path)
        return None, ()


@dataclass(frozen=True)
class CloneMount:
    """Pass out a mount of the harness's own on the file system at `path`."""

    path: str

    def __call__(self) -> tuple[Any, tuple[int, ...]]:
        """A descriptor on its root."""
        return None, (kernel.clone_writable(self.path),)
