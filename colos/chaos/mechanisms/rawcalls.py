"""System calls by name, and looking into another process: its memory and its descriptors.

All of it needs ptrace rights over the other process: the same user, and with yama's
``ptrace_scope`` 1 to be one of its ancestors.  Linux, x86_64 and aarch64.

Sources: process_vm_readv(2), pidfd_open(2), pidfd_getfd(2), ptrace(2) "access mode checking".
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

__all__ = [
    "ARCHITECTURES",
    "LIBC",
    "NAMES",
    "NUMBERS",
    "architecture",
    "call",
    "number_of",
    "open_of",
    "read_memory",
    "read_path",
    "thread_group",
    "write_memory",
]

PATH_MAX = 4096
_PAGE = 4096
_PIDFD_THREAD = os.O_EXCL  # Linux 6.9: a pidfd of one thread

# name: (x86_64, aarch64); None where the architecture has no such call.  asm/unistd_64.h and
# asm-generic/unistd.h.
NUMBERS: dict[str, tuple[int, int | None]] = {
    "read": (0, 63), "pread64": (17, 67), "readv": (19, 65), "preadv": (295, 69), "preadv2": (327, 286),
    "write": (1, 64), "pwrite64": (18, 68), "writev": (20, 66), "pwritev": (296, 70), "pwritev2": (328, 287),
    "sendfile": (40, 71), "splice": (275, 76), "copy_file_range": (326, 285), "fallocate": (285, 47),
    "truncate": (76, 45), "ftruncate": (77, 46),
    "open": (2, None), "openat": (257, 56), "openat2": (437, 437), "creat": (85, None), "close": (3, 57),
    "mkdir": (83, None), "mkdirat": (258, 34), "mknod": (133, None), "mknodat": (259, 33),
    "symlink": (88, None), "symlinkat": (266, 36), "link": (86, None), "linkat": (265, 37),
    "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276),
    "unlink": (87, None), "unlinkat": (263, 35), "rmdir": (84, None),
    "fsync": (74, 82), "fdatasync": (75, 83), "sync": (162, 81), "syncfs": (306, 267),
    "sync_file_range": (277, 84), "msync": (26, 227), "flock": (73, 32), "fcntl": (72, 25),
    "connect": (42, 203), "accept": (43, 202), "accept4": (288, 242), "bind": (49, 200), "listen": (50, 201),
    "sendto": (44, 206), "recvfrom": (45, 207), "sendmsg": (46, 211), "recvmsg": (47, 212),
    "socket": (41, 198), "socketpair": (53, 199), "shutdown": (48, 210), "setsockopt": (54, 208),
    "getsockopt": (55, 209),
    "pipe": (22, None), "pipe2": (293, 59), "epoll_create1": (291, 20), "eventfd2": (290, 19),
    "timerfd_create": (283, 85), "inotify_init1": (294, 26), "memfd_create": (319, 279),
    "stat": (4, None), "lstat": (6, None), "newfstatat": (262, 79), "statx": (332, 291), "getdents64": (217, 61),
    "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439),
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53),
    "epoll_wait": (232, None), "epoll_pwait": (281, 22), "poll": (7, None), "ppoll": (271, 73),
    "select": (23, None), "pselect6": (270, 72), "nanosleep": (35, 101), "clock_nanosleep": (230, 115),
    "futex": (202, 98), "sched_yield": (24, 124), "kill": (62, 129), "wait4": (61, 260), "ioctl": (16, 29),
    "fork": (57, None), "vfork": (58, None), "clone": (56, 220), "clone3": (435, 435),
    "mmap": (9, 222), "brk": (12, 214), "mremap": (25, 216), "getrandom": (318, 278),
    "execve": (59, 221), "execveat": (322, 281), "getppid": (110, 173), "io_uring_setup": (425, 425),
    "seccomp": (317, 277), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
}  # fmt: skip
ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}  # linux/audit.h; column of NUMBERS

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long


def architecture() -> tuple[int, int] | None:
    """The audit number and the column of `NUMBERS`, or None where this module has no table."""
    if sys.platform != "linux" or struct.calcsize("P") != 8:
        return None
    return ARCHITECTURES.get(platform.machine())


_column = (architecture() or (0, 0))[1]
NAMES = {numbers[_column]: name for name, numbers in NUMBERS.items()}


def number_of(name: str) -> int | None:
    """The number of a call here; None where this architecture has none."""
    return NUMBERS[name][_column]


def call(name: str, *args: int) -> int:
    """The system call `name` with plain numbers; raises OSError with its errno."""
    number = number_of(name)
    if number is None:
        raise OSError(errno.ENOSYS, f"{name} does not exist on {platform.machine()}")
    result: int = LIBC.syscall(ctypes.c_long(number), *map(ctypes.c_long, args))
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def _memory(name: str, pid: int, address: int, buffer: ctypes.Array[ctypes.c_char], length: int) -> int:
    local = ctypes.create_string_buffer(struct.pack("@PN", ctypes.addressof(buffer), length))
    remote = ctypes.create_string_buffer(struct.pack("@PN", address, length))
    return call(name, pid, ctypes.addressof(local), 1, ctypes.addressof(remote), 1, 0)


def read_memory(pid: int, address: int, length: int) -> bytes:
    """`length` bytes of another process's memory, fewer where it ends.

    Raises OSError: EFAULT (not mapped), ESRCH (gone), EPERM (no ptrace rights).  process_vm_readv(2).
    """
    if not length:
        return b""
    buffer = ctypes.create_string_buffer(length)
    return ctypes.string_at(buffer, _memory("process_vm_readv", pid, address, buffer, length))


def write_memory(pid: int, address: int, data: bytes) -> None:
    """Overwrite another process's memory, in pages it may write itself; raises as `read_memory`."""
    buffer = ctypes.create_string_buffer(data, max(len(data), 1))
    _memory("process_vm_writev", pid, address, buffer, len(data))


def read_path(pid: int, address: int) -> str:
    """The path at `address` in another process; raises as `read_memory`, and ENAMETOOLONG past PATH_MAX."""
    path = b""
    while len(path) < PATH_MAX:
        # Page by page: what follows the path's last page may not be mapped.
        here = address + len(path)
        chunk = read_memory(pid, here, _PAGE - here % _PAGE)
        path += chunk
        end = path.find(0)
        if 0 <= end < PATH_MAX:
            return os.fsdecode(path[:end])
        if not chunk:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
    raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))


def thread_group(pid: int) -> int:
    """The process that thread `pid` belongs to; raises OSError (ENOENT, ESRCH) when it is gone.  proc(5)."""
    with open(f"/proc/{pid}/status", "rb") as status:
        for line in status:
            if line.startswith(b"Tgid:"):
                return int(line[5:])
    raise ProcessLookupError(errno.ESRCH, f"/proc/{pid}/status has no Tgid")


def open_of(pid: int, fd: int) -> int:
    """A duplicate of descriptor `fd` of process or thread `pid`: one open file, so one offset; close-on-exec.

    Raises OSError: EBADF (no such descriptor), ESRCH (gone), EPERM (no ptrace rights).  pidfd_getfd(2).
    """
    try:
        pidfd = call("pidfd_open", pid, _PIDFD_THREAD)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        pidfd = call("pidfd_open", thread_group(pid), 0)  # before Linux 6.9
    try:
        return call("pidfd_getfd", pidfd, fd, 0)
    finally:
        os.close(pidfd)
