"""System calls that Python does not offer, through the C library, with errno checked.

Sources: prctl(2), unshare(2), setns(2), mount(2), umount2(2), mount_setattr(2), open_tree(2), fsconfig(2), capset(2),
sethostname(2), netdevice(7).  Call numbers of the generic table are the same on every architecture since
Linux 5.1, which is why one number serves x86_64 and aarch64 below.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct

__all__ = [
    "CLONE_NEWIPC",
    "CLONE_NEWNET",
    "CLONE_NEWNS",
    "CLONE_NEWPID",
    "CLONE_NEWUSER",
    "CLONE_NEWUTS",
    "MS_BIND",
    "MS_NODEV",
    "MS_NOSUID",
    "MS_PRIVATE",
    "MS_RDONLY",
    "MS_REC",
    "MS_REMOUNT",
    "become_subreaper",
    "clone_writable",
    "die_with_parent",
    "drop_privileges",
    "loopback_up",
    "mount",
    "no_new_privileges",
    "reconfigure",
    "set_hostname",
    "set_read_only",
    "set_writable",
    "setns",
    "unmount",
    "unshare",
]

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
_MNT_DETACH = 2

_PR_SET_PDEATHSIG = 1
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_SIGKILL = 9
_SYS_OPEN_TREE = 428
_SYS_FSCONFIG = 431
_SYS_FSPICK = 433
_SYS_MOUNT_SETATTR = 442
_OPEN_TREE_CLONE = 1
_FSPICK_CLOEXEC = 1
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_RECONFIGURE = 7
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_AT_EMPTY_PATH = 0x1000
_MOUNT_ATTR_RDONLY = 1
_CAPABILITY_VERSION_3 = 0x20080522
_LAST_CAPABILITY = 40
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def unshare(flags: int) -> None:
    """Leave the shared namespaces in `flags`; a user namespace needs a single-threaded caller."""
    _check(_libc.unshare(flags), "unshare")


def setns(fd: int, flags: int) -> None:
    """Join the namespaces in `flags` of the process behind a pidfd (Linux 5.8)."""
    _check(_libc.setns(fd, flags), "setns")


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None) -> None:
    """mount(2), raw: mount(8) would send the uid and gid options again and fail."""
    _check(
        _libc.mount(
            source.encode(),
            os.fsencode(target),
            kind.encode() if kind is not None else None,
            ctypes.c_ulong(flags),
            data.encode() if data is not None else None,
        ),
        f"mount {target}",
    )


def unmount(path: str) -> None:
    """Unmount what is seen at `path`, also while it is in use."""
    _check(_libc.umount2(os.fsencode(path), _MNT_DETACH), f"umount {path}")


def set_read_only(path: str) -> None:
    """Make a mount and everything below it read-only, in one call (Linux 5.12)."""
    _set_attributes(path, _AT_RECURSIVE, _MOUNT_ATTR_RDONLY, 0)


def set_writable(path: str) -> None:
    """Make one mount writable again and leave its other flags: nosuid and the like are locked in here."""
    _set_attributes(path, 0, 0, _MOUNT_ATTR_RDONLY)


def _set_attributes(path: str, flags: int, wanted: int, unwanted: int, *, at: int = _AT_FDCWD) -> None:
    attributes = struct.pack("=QQQQ", wanted, unwanted, 0, 0)
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    _check(
        _libc.syscall(
            _SYS_MOUNT_SETATTR,
            at,
            os.fsencode(path),
            flags,
            buffer,
            ctypes.c_size_t(len(attributes)),
        ),
        f"mount_setattr {path}",
    )


def clone_writable(path: str) -> int:
    """A descriptor on a new mount, attached nowhere, of what is mounted at `path` (Linux 5.12).

    Read-only or not is a mount's own: this one is writable whatever the first is or becomes.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC
    clone = _check(_libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(path), flags), f"open_tree {path}")
    try:
        _set_attributes("", _AT_EMPTY_PATH, 0, _MOUNT_ATTR_RDONLY, at=clone)
    except BaseException:
        os.close(clone)
        raise
    return clone


def reconfigure(path: str, options: dict[str, str]) -> None:
    """Change options of the file system mounted at `path`, and no flag of any mount of it (Linux 5.2)."""
    picked = _check(_libc.syscall(_SYS_FSPICK, _AT_FDCWD, os.fsencode(path), _FSPICK_CLOEXEC), f"fspick {path}")
    try:
        for name, value in options.items():
            key, text = name.encode(), value.encode()
            _check(_libc.syscall(_SYS_FSCONFIG, picked, _FSCONFIG_SET_STRING, key, text, 0), f"fsconfig {name}={value}")
        _check(_libc.syscall(_SYS_FSCONFIG, picked, _FSCONFIG_CMD_RECONFIGURE, None, None, 0), f"reconfigure {path}")
    finally:
        os.close(picked)


def die_with_parent(parent: int) -> None:
    """Be killed when the thread that forked us ends; `parent` is who that must still be."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before we armed the signal
        os._exit(1)


def become_subreaper() -> None:
    """Adopt the orphans among our descendants, so that none escapes to PID 1."""
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl(PR_SET_CHILD_SUBREAPER)")


def no_new_privileges() -> None:
    """No exec from here on gives more privileges (set-user-id programs included)."""
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")


def drop_privileges() -> None:
    """Give up every capability for good: the system must not be able to undo a fault."""
    no_new_privileges()
    for capability in range(_LAST_CAPABILITY + 1):
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # EINVAL past the kernel's last one
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    nothing = bytes(24)
    _check(_libc.capset(ctypes.c_char_p(header), ctypes.c_char_p(nothing)), "capset")


def set_hostname(name: str) -> None:
    """Name this UTS namespace's machine."""
    _check(_libc.sethostname(name.encode(), len(name)), "sethostname")


def loopback_up() -> None:
    """Bring up ``lo`` in this network namespace, where it starts down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH14x", b"lo", 0)
        (flags,) = struct.unpack_from("H", fcntl.ioctl(control, _SIOCGIFFLAGS, request), 16)
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))
