"""What a trapped call would do to a disk, read off its arguments; and doing a part of it.

All that knows the argument layout of the calls that write or create is here: write(2), readv(2),
fallocate(2), sendfile(2), splice(2), copy_file_range(2), open(2), openat2(2), mkdir(2), mknod(2),
symlink(2).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
import sys
import termios
from dataclasses import dataclass

from colos.chaos.mechanisms.diskusage import BLOCK, Tree, blocks_up
from colos.chaos.mechanisms.syscalls import Notification, call, open_of, read_memory, read_path, write_memory

__all__ = ["CREATES", "CREATING", "WRITING", "Write", "c_int", "perform", "would_create", "would_write"]

_O_TMPFILE_BIT = 0o20000000  # O_TMPFILE without its O_DIRECTORY, whose value depends on the architecture
CREATES = os.O_CREAT | _O_TMPFILE_BIT

WRITING: dict[str, int] = {
    "write": 0,
    "pwrite64": 0,
    "writev": 0,
    "pwritev": 0,
    "pwritev2": 0,
    "sendfile": 0,
    "copy_file_range": 2,
    "splice": 2,
    "fallocate": 0,
}
"""Call: which argument is the descriptor that is written to."""

CREATING: dict[str, tuple[int | None, int, int | None]] = {
    "open": (None, 0, 1),
    "openat": (0, 1, 2),
    "openat2": (0, 1, None),  # its flags are in memory
    "creat": (None, 0, None),
    "mkdir": (None, 0, None),
    "mkdirat": (0, 1, None),
    "mknod": (None, 0, None),
    "mknodat": (0, 1, None),
    "symlink": (None, 1, None),
    "symlinkat": (1, 2, None),
}
"""Call: which arguments are the directory, the path and the flags."""

_OPENING = ("open", "openat", "openat2", "creat")
_PLAIN = ("write", "pwrite64")
_BETWEEN = ("copy_file_range", "splice")  # fd_in, *off_in, fd_out, *off_out, length, flags
_AT_FDCWD = -100
_RWF_APPEND, _RWF_NOAPPEND = 0x10, 0x20
_FALLOC_TAKES_NOTHING = 0x02 | 0x08 | 0x20  # punch hole, collapse range, insert range
_SPLICE_F_NONBLOCK = 2
_CALL_MAX = 0x7FFFF000  # what one call transfers at most
_VECTORS_MAX = 1024
_PIPE_SIZE = 1 << 16
_PIECE_MAX = 4 << 20  # what is copied at a time
_TRANSFER_MAX = 64 << 20  # a transfer may always end short, and its callers know


@dataclass(frozen=True, slots=True)
class Write:
    """A call that may take blocks, whatever its name: bytes [start, end) of the open file `fd` (ours)."""

    fd: int
    status: os.stat_result
    start: int
    end: int
    placed: bool  # by an offset of its own; else the open file's decides, which other callers move too
    source: int | None = None  # of a transfer: our duplicate of the descriptor read from


def c_int(argument: int) -> int:
    """The C int in the low half of an argument."""
    return ctypes.c_int32(argument & 0xFFFFFFFF).value


def _c_long(argument: int) -> int:
    return ctypes.c_int64(argument).value


# --- writing ------------------------------------------------------------------------------


def would_write(n: Notification, descriptors: list[int]) -> Write | None:
    """What the call would write to ``descriptors[0]``, a duplicate of the caller's; None where nothing.

    Adds what else it opens to `descriptors`, for the caller to close.  Raises OSError.
    """
    out = descriptors[0]
    mode, status = fcntl.fcntl(out, fcntl.F_GETFL), os.fstat(out)
    if mode & os.O_ACCMODE == os.O_RDONLY:
        return None
    append = bool(mode & os.O_APPEND)
    if n.call == "fallocate":
        start, length = _c_long(n.args[2]), _c_long(n.args[3])
        write = None if n.args[1] & _FALLOC_TAKES_NOTHING else Write(out, status, start, start + length, placed=True)
    elif n.call == "sendfile" or n.call in _BETWEEN:
        write = None if append else _would_transfer(n, descriptors, status)  # EINVAL or EBADF when appending
    else:
        write = _would_store(n, out, status, append)
    return write if write and 0 <= write.start < write.end else None


def _would_store(n: Notification, out: int, status: os.stat_result, append: bool) -> Write:
    offset = None if n.call in ("write", "writev") else _c_long(n.args[3])
    if n.call == "pwritev2":
        append = (append or bool(n.args[5] & _RWF_APPEND)) and not n.args[5] & _RWF_NOAPPEND
        offset = None if offset == -1 else offset
    length = sum(size for _, size in _vector(n))
    placed = offset is not None and not append  # pwrite(2), BUGS: appends whatever the offset
    if append:
        offset = status.st_size
    start = os.lseek(out, 0, os.SEEK_CUR) if offset is None else offset
    return Write(out, status, start, start + min(length, _CALL_MAX), placed)


def _vector(n: Notification) -> list[tuple[int, int]]:
    """Where the caller's data is: address and length of each piece."""
    if n.call in _PLAIN:
        return [(n.args[1], n.args[2])]
    data = read_memory(n.pid, n.args[1], 16 * min(n.args[2], _VECTORS_MAX))
    return [(address, size) for address, size in struct.iter_unpack("=QQ", data)]


def _would_transfer(n: Notification, descriptors: list[int], status: os.stat_result) -> Write:
    """sendfile, splice, copy_file_range: as much as the source has, to and from where they point."""
    source_fd, source_at, out_at, length = n.args[1], n.args[2], 0, n.args[3]
    if n.call in _BETWEEN:
        source_fd, source_at, out_at, length = n.args[0], n.args[1], n.args[3], n.args[4]
    source = open_of(n.pid, c_int(source_fd))
    descriptors.append(source)
    start = _position(n.pid, descriptors[0], out_at)
    origin = os.fstat(source)
    if stat.S_ISREG(origin.st_mode):
        length = min(length, max(0, origin.st_size - _position(n.pid, source, source_at)))
    elif stat.S_ISFIFO(origin.st_mode):
        waiting = fcntl.ioctl(source, termios.FIONREAD, bytes(4))
        # An empty pipe will have something later, and about so much at most.
        length = min(length, struct.unpack("=i", waiting)[0] or _PIPE_SIZE)
    end = start + min(length, _TRANSFER_MAX)
    return Write(descriptors[0], status, start, end, placed=False, source=source)


def _position(pid: int, fd: int, address: int) -> int:
    """The offset that the caller points at, else that of the open file `fd`, ours."""
    if not address:
        return os.lseek(fd, 0, os.SEEK_CUR)
    return int(struct.unpack("=q", read_memory(pid, address, 8))[0])


def perform(n: Notification, write: Write, length: int) -> int | None:
    """Carry out the first `length` bytes of the call in the caller's stead.

    Returns what the kernel does: a count, or a negative errno; None, with nothing done, where the
    caller had better make the call itself.
    """
    try:
        if n.call == "fallocate":
            return call(n.call, write.fd, *n.args[1:])
        return _transfer(n, write, length) if write.source is not None else _store(n, write, length)
    except BlockingIOError:
        return None  # a pipe that somebody else has emptied: the caller may wait, we may not
    except OSError as error:
        return -(error.errno or errno.EIO)


def _store(n: Notification, write: Write, length: int) -> int:
    """Write piece by piece what may be large; as the kernel does, end early where some is written already."""
    vector, done = _vector(n), 0
    while done < length:
        try:
            data = _gather(n.pid, vector, done, min(length - done, _PIECE_MAX))
            wrote = _store_piece(n, write, data, done)
        except OSError:
            if done:
                break
            raise
        done += wrote
        if wrote < len(data) or not wrote:
            break
    return done


def _gather(pid: int, vector: list[tuple[int, int]], skip: int, length: int) -> bytes:
    """`length` bytes of the caller's data, from byte `skip` on."""
    data = bytearray()
    for address, size in vector:
        take = min(size - skip, length - len(data))
        if take > 0:
            data += read_memory(pid, address + skip, take)
        skip = max(0, skip - size)
    return bytes(data)


def _store_piece(n: Notification, write: Write, data: bytes, done: int) -> int:
    raw = ctypes.create_string_buffer(len(data) + BLOCK)
    address = blocks_up(ctypes.addressof(raw)) * BLOCK  # aligned, as O_DIRECT wants it
    ctypes.memmove(address, data, len(data))
    vector = ctypes.create_string_buffer(struct.pack("=QQ", address, len(data)))
    where, size = (address, len(data)) if n.call in _PLAIN else (ctypes.addressof(vector), 1)
    offset = n.args[3] + done if write.placed else n.args[3]
    return call(n.call, write.fd, where, size, offset, *n.args[4:])


def _transfer(n: Notification, write: Write, length: int) -> int:
    assert write.source is not None
    args = list(n.args)
    pointers: tuple[int, ...] = (1, 3)
    if n.call in _BETWEEN:
        args[0], args[2], args[4] = write.source, write.fd, length
        args[5] |= _SPLICE_F_NONBLOCK if n.call == "splice" else 0
    else:
        args[0], args[1], args[3] = write.fd, write.source, length
        pointers = (2,)
    offsets: dict[int, ctypes.c_int64] = {}
    for at in pointers:
        if args[at]:  # an offset in the caller's memory, which the call moves on
            offsets[at] = ctypes.c_int64(_position(n.pid, -1, args[at]))
            args[at] = ctypes.addressof(offsets[at])
    done = call(n.call, *args)
    for at, offset in offsets.items():
        write_memory(n.pid, n.args[at], struct.pack("=q", offset.value))
    return done


# --- creating -----------------------------------------------------------------------------


def would_create(n: Notification, tree: Tree) -> str | None:
    """The path in the tree that would come to be; "" for a file without a name; None where nothing.

    None also where the kernel will refuse for another reason (the path exists, its directory does
    not, or may not be written).  Raises OSError.
    """
    directory, where, flags_at = CREATING[n.call]
    flags = os.O_CREAT if flags_at is None else n.args[flags_at]
    if n.call == "openat2":
        flags = int.from_bytes(read_memory(n.pid, n.args[2], 8), sys.byteorder)
    if not flags & CREATES:
        return None
    given = read_path(n.pid, n.args[where])
    opening = n.call in _OPENING
    if not given or (opening and given.endswith("/") and not flags & _O_TMPFILE_BIT):
        return None  # ENOENT, EISDIR
    given = os.path.join(_base(n, directory), given)
    if flags & _O_TMPFILE_BIT:
        place = os.path.realpath(given)
        return "" if place == tree.root or tree.holds(place) else None
    path = _but_last_resolved(given)
    if opening and not flags & os.O_EXCL and os.path.islink(path):
        path = os.path.realpath(path)  # a dangling link's target is created
    parent, name = os.path.split(path)
    if name in ("", ".", "..") or not tree.holds(path) or os.path.lexists(path):
        return None
    return path if os.path.isdir(parent) and os.access(parent, os.W_OK | os.X_OK) else None


def _base(n: Notification, directory: int | None) -> str:
    """What the caller's relative path starts from; "/" when its descriptor is bad, and the kernel will say so."""
    fd = _AT_FDCWD if directory is None else c_int(n.args[directory])
    try:
        return os.readlink(f"/proc/{n.pid}/cwd" if fd == _AT_FDCWD else f"/proc/{n.pid}/fd/{fd}")
    except FileNotFoundError:
        return "/"


def _but_last_resolved(path: str) -> str:
    """Symbolic links followed in all but the last part."""
    parent, name = os.path.split(path.rstrip("/"))
    return os.path.join(os.path.realpath(parent), name)
