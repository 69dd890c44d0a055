"""What a trapped call is about, as text: the path, the descriptor's file, the address, thread or process.

Read off its arguments, by the layout of each call.  Sources: the manual pages of section 2 named in `_ABOUT`;
ip(7), ipv6(7), unix(7) for addresses; clone(2) for its flags.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys

from colos.chaos.mechanisms.rawcalls import read_memory, read_path
from colos.chaos.mechanisms.syscalls import Notification

__all__ = ["descriptor_of", "subjects_of"]

_AT_FDCWD = -100
_CLONE_THREAD = 0x00010000
_ADDRESS_MAX = 128

_DESCRIPTORS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("read", "pread64", "readv", "preadv", "preadv2"), (0,)),
    **dict.fromkeys(("write", "pwrite64", "writev", "pwritev", "pwritev2"), (0,)),
    **dict.fromkeys(("fsync", "fdatasync", "syncfs", "sync_file_range", "ftruncate", "fallocate", "flock"), (0,)),
    **dict.fromkeys(("recvfrom", "sendto", "recvmsg", "sendmsg", "accept", "accept4", "listen", "fcntl"), (0,)),
    **dict.fromkeys(("getdents64", "fchmod", "ioctl", "shutdown", "setsockopt", "getsockopt"), (0,)),
    "sendfile": (0, 1),
    "splice": (0, 2),
    "copy_file_range": (0, 2),
}
"""Call: which arguments are descriptors."""

_PATHS: dict[str, tuple[tuple[int | None, int], ...]] = {
    **dict.fromkeys(("open", "creat", "truncate", "mkdir", "mknod", "unlink", "rmdir", "execve"), ((None, 0),)),
    **dict.fromkeys(("stat", "lstat", "access", "chmod"), ((None, 0),)),
    **dict.fromkeys(("newfstatat", "statx", "faccessat", "faccessat2", "fchmodat"), ((0, 1),)),
    **dict.fromkeys(("openat", "openat2", "mkdirat", "mknodat", "unlinkat", "execveat"), ((0, 1),)),
    "rename": ((None, 0), (None, 1)),
    "link": ((None, 0), (None, 1)),
    **dict.fromkeys(("renameat", "renameat2", "linkat"), ((0, 1), (2, 3))),
    "symlink": ((None, 1),),
    "symlinkat": ((1, 2),),
}
"""Call: which pairs of arguments are a directory and a path."""


def descriptor_of(n: Notification) -> int | None:
    """The first descriptor among its arguments."""
    at = _DESCRIPTORS.get(n.call)
    return None if at is None else _c_int(n.args[at[0]])


def subjects_of(n: Notification) -> list[str]:
    """All that a call is about; empty where that cannot be told.  Raises OSError when the caller is gone."""
    if n.call in _DESCRIPTORS:
        return [_file(n.pid, _c_int(n.args[at])) for at in _DESCRIPTORS[n.call]]
    if n.call in _PATHS:
        return [_path(n, directory, at) for directory, at in _PATHS[n.call]]
    if n.call in ("connect", "bind"):
        return [_address(read_memory(n.pid, n.args[1], min(n.args[2], _ADDRESS_MAX)))]
    if n.call in ("clone", "clone3", "fork", "vfork"):
        return ["thread" if _makes_thread(n) else "process"]
    return []


def _c_int(argument: int) -> int:
    return ctypes.c_int32(argument & 0xFFFFFFFF).value


def _file(pid: int, fd: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/fd/{fd}").removesuffix(" (deleted)")
    except FileNotFoundError:
        return ""  # a bad descriptor: the kernel knows what to say


def _path(n: Notification, directory: int | None, at: int) -> str:
    """Absolute, its directory's links followed, as the answering process sees them."""
    given = read_path(n.pid, n.args[at])
    if not given.startswith("/"):
        fd = _AT_FDCWD if directory is None else _c_int(n.args[directory])
        base = f"/proc/{n.pid}/cwd" if fd == _AT_FDCWD else f"/proc/{n.pid}/fd/{fd}"
        try:
            given = os.path.join(os.readlink(base), given)
        except FileNotFoundError:
            return given
    parent, name = os.path.split(given.rstrip("/") or "/")
    return os.path.join(os.path.realpath(parent), name)


def _address(data: bytes) -> str:
    """A socket address as ``unix:PATH`` (an abstract one with @ first) or ``inet:HOST:PORT``."""
    if len(data) < 2:
        return ""
    (family,) = struct.unpack_from("=H", data)
    if family == socket.AF_UNIX:
        name = data[2:]
        abstract = name.startswith(b"\0")
        text = os.fsdecode(name[1:] if abstract else name.partition(b"\0")[0])
        return f"unix:{'@' if abstract else ''}{text}"
    if family == socket.AF_INET and len(data) >= 8:
        return f"inet:{socket.inet_ntop(socket.AF_INET, data[4:8])}:{int.from_bytes(data[2:4], 'big')}"
    if family == socket.AF_INET6 and len(data) >= 24:
        return f"inet:{socket.inet_ntop(socket.AF_INET6, data[8:24])}:{int.from_bytes(data[2:4], 'big')}"
    return f"family:{family}"


def _makes_thread(n: Notification) -> bool:
    if n.call == "clone3":  # struct clone_args begins with the flags
        return bool(int.from_bytes(read_memory(n.pid, n.args[0], 8), sys.byteorder) & _CLONE_THREAD)
    return n.call == "clone" and bool(n.args[0] & _CLONE_THREAD)
