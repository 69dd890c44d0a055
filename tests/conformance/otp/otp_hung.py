"""An actor that cannot die: it asks a file server that never answers, as a network file system without its network.

The kernel's own way there is FUSE: a request that its server has read is waited for in uninterruptible sleep (state D)
once a signal has come, SIGKILL too, until the server answers or ends.  Source: fs/fuse/dev.c, request_wait_answer.
"""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

from colos.runtime import Actor, ChildSpec, Supervisor

_CLONE_NEWNS, _CLONE_NEWUSER = 0x0002_0000, 0x1000_0000
_MS_NOSUID_NODEV, _MS_REC_PRIVATE = 0x6, 0x4_4000
_INIT, _LOOKUP = 26, 1
_VERSION = (7, 31)
_REQUEST = struct.Struct("=IIQ")  # linux/fuse.h, fuse_in_header: length, opcode, unique; 24 bytes more
_REQUEST_BYTES = 40
_HELLO = struct.Struct("=IiQIIIIHHII36x")  # fuse_out_header, and fuse_init_out of 64 bytes
_READ_BYTES = 1 << 17

_libc = ctypes.CDLL(None, use_errno=True)


class Hung(Actor):
    """Does what it is asked to, whatever becomes of it."""

    async def pid(self) -> int:
        return os.getpid()

    async def look(self, path: str) -> None:
        os.stat(path)


class HungSupervisor(Supervisor):
    def children(self) -> list[ChildSpec]:
        return [
            ChildSpec("first", Hung, name="first"),
            ChildSpec("hung", Hung, name="hung", shutdown_s=0.2),
            ChildSpec("last", Hung, name="last"),
        ]


def unanswered(directory: str) -> int:
    """Mount a file system where nobody else sees it; say by which path to get there, and each time it was asked."""
    try:
        device = os.open("/dev/fuse", os.O_RDWR)
        _mount(device, directory)
    except OSError as error:
        print(f"cannot: {error}", flush=True)
        return 1
    print(f"/proc/{os.getpid()}/root{directory}/file", flush=True)
    while True:
        request = os.read(device, _READ_BYTES)
        size, what, unique = _REQUEST.unpack_from(request)
        assert size == len(request)
        if what == _INIT:
            read_ahead = struct.unpack_from("=I", request, _REQUEST_BYTES + 8)[0]
            os.write(device, _HELLO.pack(_HELLO.size, 0, unique, *_VERSION, read_ahead, 0, 1, 1, 4096, 1))
        elif what == _LOOKUP:
            print("asked", flush=True)


def _mount(device: int, directory: str) -> None:
    """In a mount namespace of one's own; who is not root needs a user namespace for that."""
    uid, gid = os.geteuid(), os.getegid()
    _call(_libc.unshare(_CLONE_NEWNS | (_CLONE_NEWUSER if uid else 0)))
    if uid:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    _call(_libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC_PRIVATE), None))
    options = f"fd={device},rootmode=40000,user_id={uid},group_id={gid}"
    _call(_libc.mount(b"hung", os.fsencode(directory), b"fuse", ctypes.c_ulong(_MS_NOSUID_NODEV), options.encode()))


def _call(result: int) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
