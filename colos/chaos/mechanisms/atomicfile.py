"""A file with all its content or none: written beside its place, and put there at the end."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["written"]


@contextmanager
def written(path: Path, content: bytes, mode: int) -> Iterator[str]:
    """A temporary file beside `path` with all the content, safely on the disk; gone at the end, unless renamed.

    Raises `OSError`.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)  # mkstemp's 0600 is not for a file that others read
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        try:
            os.unlink(temporary)
        except FileNotFoundError:  # renamed
            pass
