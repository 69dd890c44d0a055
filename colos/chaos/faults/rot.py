"""Bit rot: the data disk gives back something else than was written.

Mechanism: pwrite(2) or ftruncate(2) on the file, from outside, with its time of change put back: a
disk tells nobody that it rots.  What is damaged, and where, comes from the hash of the fault's seed
and the file's path.  Proof: the file's checksum before and after.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from hypothesis import strategies as st

from colos.chaos.fault import Fault, Lease, Site, count_of
from colos.chaos.sandbox.datadisk import DataDisk, Entry, glob_of, key_of
from colos.errors import InvalidSpecification

if TYPE_CHECKING:
    from colos.chaos.sandbox.session import Session

__all__ = ["BitRot"]

MODES = ("flip", "garbage", "truncate", "stale")
_SEEDS = 1 << 16
_BLOCK = 512  # a disk's sector
_SIZE_MAX = 64 << 20  # a file above this is left alone
_REMEMBERED_MAX = 64 << 20  # of older copies, for one run
_PIECE = 1 << 20


class BitRot(Fault):
    """One regular, non-empty file that matches the glob `path` (below {data}; ``*`` matches ``/`` too) is damaged.

    `seed` chooses the file and the place in it.  `mode` is what happens to it:

    - ``flip``: one bit is the other one;
    - ``garbage``: one 512-byte block (what there is of it) holds other bytes;
    - ``truncate``: the tail is cut off, at least one byte and at most all;
    - ``stale``: the contents are those of an earlier moment, as after a write that the disk lost.  The
      older copy was taken by an earlier bit-rot step of the same run, of any mode, that looked at the
      file; where there is none, or it is no different, this step only takes one and does not fire.

    The damage stays, as on a real disk: nothing is healed.  The file's time of change (mtime) does not
    tell; descriptors and mappings that are open see the damage at once.  Files that their owner cannot
    read or write, and files above 64 MiB, are left alone.
    """

    kind = "bit-rot"
    uses = "pwrite"
    family = "disk"
    targeted = False
    summary = "a file below {data} is damaged: a bit flipped, a block garbled, the tail cut, an older version"
    sees = "other bytes than were written; no error"
    proof = "the file's checksum before and after"
    parameters: ClassVar[Mapping[str, object]] = {"path": "*", "seed": 0, "mode": "flip"}

    def __init__(self, *, paths: Sequence[str] = ("*",), modes: Sequence[str] = MODES) -> None:
        super().__init__()
        self.paths = tuple(glob_of(path) for path in paths)
        self.modes = tuple(_mode(name) for name in modes)

    def __repr__(self) -> str:
        return f"BitRot(paths={self.paths}, modes={self.modes})"

    @classmethod
    def unavailable(cls, session: Session) -> tuple[str, str] | None:
        """Whoever owns a file may write to it."""
        del session
        return None

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """How, and by which glob and seed."""
        return st.fixed_dictionaries(
            {
                "path": st.sampled_from(self.paths),
                "seed": st.integers(0, _SEEDS - 1),
                "mode": st.sampled_from(self.modes),
            }
        )

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Damage one file."""
        del target
        complete = cls.complete(arguments)
        pattern, seed, mode = glob_of(complete["path"]), count_of(complete["seed"], "a seed"), _mode(complete["mode"])
        return _Rotten(_rot(site, pattern, seed, mode))


def _mode(name: object) -> str:
    if name not in MODES:
        raise InvalidSpecification(f"bits rot by {', '.join(MODES)}, not by {name!r}")
    return str(name)


class _Rotten(Lease):
    mechanism = "pwrite"
    lasting = False

    def __init__(self, proof: str | None) -> None:
        self._proof = proof

    def fired(self) -> str | None:
        return self._proof

    def heal(self) -> None:
        """Nothing: the damage stays."""

    def is_healed(self) -> bool:
        return True


# --- older copies ----------------------------------------------------------------------------

_Copies = dict[str, bytes]
#: By run: what files held when a bit-rot step last looked at them.
_remembered: weakref.WeakKeyDictionary[Site, _Copies] = weakref.WeakKeyDictionary()


def _remember(copies: _Copies, path: str, contents: bytes) -> None:
    """Keep the first copy of a file; what is there stays, and nothing goes in above the bound."""
    if path not in copies and sum(map(len, copies.values())) + len(contents) <= _REMEMBERED_MAX:
        copies[path] = contents


# --- the damage ------------------------------------------------------------------------------


def _fits(entry: Entry) -> bool:
    usable = stat.S_IRUSR | stat.S_IWUSR
    return entry.regular and entry.status.st_mode & usable == usable and 0 < entry.status.st_size <= _SIZE_MAX


def _rot(site: Site, pattern: str, seed: int, mode: str) -> str | None:
    copies = _remembered.setdefault(site, {})
    with DataDisk(site.sandbox) as disk:
        for entry in disk.choose(pattern, seed, 1, _fits):
            try:
                file = disk.open(entry.path, os.O_RDWR)
            except OSError:
                return None  # it went meanwhile
            try:
                return _damage(file, entry.path, seed, mode, copies)
            finally:
                os.close(file)
    return None


def _damage(file: int, path: str, seed: int, mode: str, copies: _Copies) -> str | None:
    status, before = os.fstat(file), _read(file)
    older = copies.pop(path, None) if mode == "stale" else None
    _remember(copies, path, before)
    said = ""
    if not before:
        return None
    if mode == "flip":
        said = _flip(file, before, seed, path)
    elif mode == "garbage":
        said = _garble(file, before, seed, path)
    elif mode == "truncate":
        size = key_of(seed, "truncate", path) % len(before)
        os.ftruncate(file, size)
        said = f"cut from {len(before)} to {size} bytes"
    elif older is not None and older != before:
        os.ftruncate(file, len(older))
        _write(file, older, 0)
        said = f"as it was before: {len(older)} bytes, not {len(before)}"
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    was, now = _digest(before), _digest(_read(file))
    return f"{path}: {said} (blake2b {was}, now {now})" if was != now else None


def _flip(file: int, before: bytes, seed: int, path: str) -> str:
    at, bit = divmod(key_of(seed, "flip", path) % (8 * len(before)), 8)
    _write(file, bytes([before[at] ^ 1 << bit]), at)
    return f"bit {bit} of byte {at} flipped"


def _garble(file: int, before: bytes, seed: int, path: str) -> str:
    blocks = -(-len(before) // _BLOCK)
    at = key_of(seed, "garbage", path) % blocks * _BLOCK
    length = min(_BLOCK, len(before) - at)
    noise = b"".join(key_of(seed, "noise", path, number).to_bytes(8, "big") for number in range(_BLOCK // 8))[:length]
    if noise == before[at : at + length]:
        noise = bytes(byte ^ 0xFF for byte in noise)
    _write(file, noise, at)
    return f"bytes {at} to {at + length} garbled"


def _read(file: int) -> bytes:
    pieces: list[bytes] = []
    done = 0
    while done <= _SIZE_MAX and (piece := os.pread(file, _PIECE, done)):
        pieces.append(piece)
        done += len(piece)
    return b"".join(pieces)


def _write(file: int, data: bytes, at: int) -> None:
    done = 0
    while done < len(data):
        try:
            done += os.pwrite(file, data[done:], at + done)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                return  # into a hole of the file, on a full disk: what was written is damage too
            raise


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=6).hexdigest()
