"""The `namespaces` tier: a machine of kernel namespaces, made without root in a few milliseconds.

The launcher (forked from the template, single-threaded) unshares and forks the sandbox's first
process, PID 1 inside.  When that one dies, the kernel ends every process, mount and socket in
there: nothing that happens to us can leave a rest behind.

Sources: user_namespaces(7), pid_namespaces(7), mount_namespaces(7), tmpfs(5).
"""

from __future__ import annotations

import os
import socket

from colos.chaos.mechanisms import kernel
from colos.chaos.sandbox import wire
from colos.chaos.sandbox.keeper import Keeper
from colos.chaos.sandbox.segments import SEGMENTS
from colos.chaos.sandbox.spec import COVERED, Place, SandboxSpec
from colos.chaos.sandbox.trap import SyscallTrap

__all__ = ["launch"]

_ALL = (
    kernel.CLONE_NEWUSER
    | kernel.CLONE_NEWPID
    | kernel.CLONE_NEWNS
    | kernel.CLONE_NEWNET
    | kernel.CLONE_NEWIPC
    | kernel.CLONE_NEWUTS
)
#: Where the sandbox's own directories may be mounted: the first that need not stay in sight.
_BASES = (*COVERED, "/mnt", "/srv")
_OWN = kernel.MS_NOSUID | kernel.MS_NODEV


def launch(spec: SandboxSpec, channel: socket.socket, template: int, *, trap: bool) -> None:
    """Make the sandbox and wait for its end; runs in a process of its own and never returns."""
    kernel.die_with_parent(template)
    try:
        uid, gid = os.getuid(), os.getgid()
        kernel.unshare(_ALL)
        _map_identity(uid, gid)
    except OSError as error:
        wire.send(channel, ("refused", str(error)))
        os._exit(1)
    launcher = os.getpid()
    go_in, go_out = os.pipe()
    first = os.fork()
    if first == 0:
        os.close(go_out)
        _first_process(spec, channel, launcher, go_in, trap=trap)
    os.close(go_in)
    pidfd = os.pidfd_open(first)
    wire.send(channel, ("made", first), (pidfd,))
    os.close(pidfd)
    channel.close()
    os.write(go_out, b"g")
    os.waitpid(first, 0)
    os._exit(0)


def _map_identity(uid: int, gid: int) -> None:
    """The same user inside as outside, so that files belong to whom they should."""
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{uid} {uid} 1")
    _write("/proc/self/gid_map", f"{gid} {gid} 1")


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _first_process(spec: SandboxSpec, channel: socket.socket, launcher: int, go: int, *, trap: bool) -> None:
    """PID 1: furnish the machine, then keep it."""
    # getppid() is 0 here: the launcher is in another pid namespace.
    kernel.die_with_parent(0)
    try:
        place = _furnish(spec)
    except OSError as error:
        os.read(go, 1)
        wire.send(channel, ("refused", str(error)))
        os._exit(1)
    if os.read(go, 1) != b"g":  # 'made' goes out first; nothing came: the launcher is dead
        os._exit(1)
    os.close(go)
    table = _open_segments()
    wire.send(channel, ("furnished", place), table)
    for descriptor in table:
        os.close(descriptor)
    Keeper(channel, place, SyscallTrap(spec.traps, None) if trap else None).run()
    os._exit(0)


def _open_segments() -> tuple[int, ...]:
    """The table of System V segments: it tells of the namespace that it was opened in, whoever reads it."""
    try:
        return (os.open(SEGMENTS, os.O_RDONLY),)
    except OSError:
        return ()  # a kernel without them


def _furnish(spec: SandboxSpec) -> Place:
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE, None)
    kernel.mount("proc", "/proc", "proc", _OWN, None)
    writable = {os.path.realpath(path) for path in spec.writable}
    shown = {path: os.open(path, os.O_PATH) for path in sorted({*spec.kept, *writable})}  # parents first
    kernel.set_read_only("/")
    base = next(path for path in _BASES if os.path.isdir(path) and path not in shown)
    for cover in dict.fromkeys((base, *COVERED)):
        if os.path.isdir(cover) and cover not in shown:
            kernel.mount("tmpfs", cover, "tmpfs", _OWN, f"size={spec.tmp_bytes},mode=1777")
    for path, descriptor in shown.items():
        _show(descriptor, path, read_only=path not in writable)
    place = Place(f"{base}/colos/data", f"{base}/colos/run", f"{base}/colos/home", base, spec.environment)
    for directory in (f"{base}/colos", place.data, place.run, place.home):
        os.mkdir(directory, 0o700)
    kernel.mount("tmpfs", place.data, "tmpfs", _OWN, f"size={spec.data_bytes},nr_inodes={spec.data_inodes},mode=700")
    kernel.mount("tmpfs", place.run, "tmpfs", _OWN, f"size={spec.run_bytes},mode=700")
    kernel.set_hostname("colos")
    kernel.loopback_up()
    return place


def _show(descriptor: int, path: str, *, read_only: bool) -> None:
    """Show at `path` what the descriptor was opened on, before anything was mounted over it."""
    source = f"/proc/self/fd/{descriptor}"
    if not os.path.lexists(path):  # it lies under what was covered
        if os.path.isdir(source):
            os.makedirs(path)
        else:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    kernel.mount(source, path, None, kernel.MS_BIND | kernel.MS_REC, None)
    if not read_only:  # what it shows is read-only already, and a bind keeps that
        kernel.set_writable(path)
    os.close(descriptor)
