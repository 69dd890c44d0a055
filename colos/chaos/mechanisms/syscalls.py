"""System calls of other processes, answered by us: seccomp user notification.

A process installs a filter on itself (`install`) and hands the listener's descriptor to a
*supervisor*, which receives each trapped call (`Listener.receive`) and lets it go, makes it
fail, or answers it.  No privilege is needed, children inherit the filter, static programs are
covered, and the numbers are the kernel's own doing.  Linux, x86_64 and aarch64.

What it cannot do: a filter is never removed (let the calls go instead); a process has at most
one listener, so one `install` must name everything that will ever be wanted; io_uring and the
vDSO are not seen; when the last descriptor of the listener is closed, trapped calls fail with
ENOSYS.  The supervisor reads the caller's memory and descriptors, so it needs ptrace rights
over it: the same user, and with yama's ``ptrace_scope`` 1 also one of its ancestors.

Sources: seccomp(2), seccomp_unotify(2), process_vm_readv(2), pidfd_getfd(2),
``linux/seccomp.h``, Documentation/userspace-api/seccomp_filter.rst.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import select
import signal
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from colos.chaos.mechanisms.rawcalls import (
    ARCHITECTURES,
    LIBC,
    NAMES,
    NUMBERS,
    architecture,
    call,
    number_of,
    open_of,
    read_memory,
    read_path,
    thread_group,
    write_memory,
)
from colos.errors import InvalidSpecification

__all__ = [
    "Listener",
    "Notification",
    "Trap",
    "call",
    "install",
    "merged",
    "number_of",
    "open_of",
    "probe",
    "read_memory",
    "read_path",
    "thread_group",
    "write_memory",
]

_PR_SET_NO_NEW_PRIVS = 38
_SET_MODE_FILTER = 1
_SPEC_ALLOW, _NEW_LISTENER, _WAIT_KILLABLE_RECV = 1 << 2, 1 << 3, 1 << 5
_RET_ALLOW, _RET_USER_NOTIF = 0x7FFF0000, 0x7FC00000
_LOAD, _JUMP_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x45, 0x06
_DATA_NUMBER, _DATA_ARCH, _DATA_ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data

_IOCTL_RECV, _IOCTL_SEND = 0xC0502100, 0xC0182101
_IOCTL_ID_VALID, _IOCTL_SET_FLAGS = 0x40082102, 0x40082104
_SYNC_WAKE_UP = 1
_CONTINUE = 1
_NOTIFICATION = struct.Struct("<QIIiIQ6Q")  # id, pid, flags, number, arch, instruction pointer, arguments
_RESPONSE = struct.Struct("<QqiI")  # id, value, -errno, flags


@dataclass(frozen=True)
class Trap:
    """A system call to be told of; with `mask`, only when ``args[argument] & mask`` is not zero.

    The condition is judged in the kernel, on the low 32 bits of the argument, so that calls
    that do not meet it cost next to nothing.
    """

    call: str
    argument: int = 0
    mask: int = 0


def merged(traps: Iterable[Trap]) -> tuple[Trap, ...]:
    """Each call once: two different conditions on one call become none, so that both are met."""
    found: dict[str, Trap] = {}
    for trap in traps:
        known = found.setdefault(trap.call, trap)
        if known != trap:
            found[trap.call] = Trap(trap.call)
    return tuple(found.values())


class Notification(NamedTuple):
    """A call that waits for an answer; `pid` is the calling *thread's* id, as the supervisor sees it."""

    id: int
    pid: int
    call: str
    args: tuple[int, ...]


# --- the trapped side ---------------------------------------------------------------------


def _program(calls: Sequence[Trap], audit_arch: int, column: int) -> list[bytes]:
    """The BPF program: foreign architectures and every call that is not named are allowed.

    No jump is longer than five, and no path of a call that is not named loads an argument: the
    kernel then keeps such calls in its always-allowed bitmap (5.11) and runs no filter for them.
    An x32 number carries bit 30, equals none of ours, and is allowed.
    """

    def step(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("=HBBI", code, if_true, if_false, operand)

    program = [
        step(_LOAD, _DATA_ARCH),
        step(_JUMP_EQUAL, audit_arch, 1, 0),
        step(_RETURN, _RET_ALLOW),
        step(_LOAD, _DATA_NUMBER),
    ]
    for trap in calls:
        if trap.call not in NUMBERS or not 0 <= trap.argument <= 5 or not 0 <= trap.mask < 1 << 32:
            raise InvalidSpecification(f"{trap} names no known system call, argument (0-5) or mask (32 bits)")
        number = NUMBERS[trap.call][column]
        if number is None:
            continue  # nobody can make a call that this architecture does not have
        if not trap.mask:
            program += [step(_JUMP_EQUAL, number, 0, 1), step(_RETURN, _RET_USER_NOTIF)]
            continue
        program += [
            step(_JUMP_EQUAL, number, 0, 4),
            step(_LOAD, _DATA_ARGUMENTS + 8 * trap.argument),  # the low half: both are little-endian
            step(_JUMP_SET, trap.mask, 0, 1),
            step(_RETURN, _RET_USER_NOTIF),
            step(_LOAD, _DATA_NUMBER),
        ]
    return [*program, step(_RETURN, _RET_ALLOW)]


def install(calls: Sequence[Trap]) -> int:
    """Trap `calls` of this process and all its descendants, for ever; returns the listener's descriptor.

    Call it right after the fork, single-threaded.  The descriptor is close-on-exec; have it taken
    (pidfd_getfd(2); or sent away, where sendmsg is not trapped) and close it: from here on each trapped
    call waits until somebody answers.  Sets ``no_new_privs``, so set-user-id programs lose their privilege.

    Raises OSError: EBUSY (a listener exists already), EINVAL (kernel before 5.0), ENOSYS or EPERM
    (seccomp is missing or itself filtered); InvalidSpecification for an unknown call.  seccomp(2).
    """
    arch = architecture()
    if arch is None:
        raise OSError(errno.ENOSYS, f"no system call table for {platform.machine()}")
    program = _program(calls, *arch)
    code = ctypes.create_string_buffer(b"".join(program))
    fprog = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(code)))
    ones_and_zeros = [ctypes.c_ulong(value) for value in (1, 0, 0, 0)]
    if LIBC.prctl(_PR_SET_NO_NEW_PRIVS, *ones_and_zeros) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")
    # This is no security boundary: leave the CPU's speculation as it was.
    flags = _NEW_LISTENER | _SPEC_ALLOW
    try:
        # A signal must not make a call repeat that was answered by acting (Linux 5.19).
        return call("seccomp", _SET_MODE_FILTER, flags | _WAIT_KILLABLE_RECV, ctypes.addressof(fprog))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return call("seccomp", _SET_MODE_FILTER, flags, ctypes.addressof(fprog))


# --- the supervising side -----------------------------------------------------------------


class Listener:
    """The supervisor's end of one filter.  Owns the descriptor it is given.

    Poll it: readable means that `receive` will not block; hung up (POLLHUP, and not readable) means
    that no process uses the filter any more.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        try:
            # The answer wakes the caller on this CPU at once: 8 µs a call instead of 20 (Linux 6.6).
            fcntl.ioctl(fd, _IOCTL_SET_FLAGS, _SYNC_WAKE_UP)
        except OSError:
            pass  # an older kernel: slower, and otherwise the same

    def fileno(self) -> int:
        """The listener's descriptor, for poll."""
        return self._fd

    def receive(self) -> Notification | None:
        """The next waiting call; None when there is nothing to answer (the caller vanished, or a signal came)."""
        buffer = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(self._fd, _IOCTL_RECV, buffer, True)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                return None
            raise
        fields = _NOTIFICATION.unpack(buffer)  # id, pid, flags, number, architecture, instruction pointer, arguments
        number = fields[3]
        return Notification(fields[0], fields[1], NAMES.get(number) or str(number), fields[6:])

    def is_valid(self, notification: Notification) -> bool:
        """Whether the caller still waits.  Ask *after* reading its memory or descriptors, before acting on them."""
        if self._fd < 0:
            return False
        try:
            fcntl.ioctl(self._fd, _IOCTL_ID_VALID, struct.pack("<Q", notification.id))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    def proceed(self, notification: Notification) -> bool:
        """Let the kernel carry the call out.  False when the caller is gone (so for all answers)."""
        return self._send(_RESPONSE.pack(notification.id, 0, 0, _CONTINUE))

    def fail(self, notification: Notification, error: int) -> bool:
        """Make the call return -1 with errno `error`, a positive number."""
        return self._send(_RESPONSE.pack(notification.id, 0, -error, 0))

    def answer(self, notification: Notification, value: int) -> bool:
        """Make the call return `value` without being carried out."""
        return self._send(_RESPONSE.pack(notification.id, value, 0, 0))

    def close(self) -> None:
        """Close the descriptor; when it was the last one, trapped calls fail with ENOSYS from now on."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _send(self, response: bytes) -> bool:
        if self._fd < 0:  # closed when the last process was gone: nobody waits
            return False
        try:
            fcntl.ioctl(self._fd, _IOCTL_SEND, response)
        except OSError as error:
            # ENOENT: the caller was killed; EINPROGRESS: it has its answer already.
            if error.errno in (errno.ENOENT, errno.EINPROGRESS):
                return False
            raise
        return True


# --- does it work here? -------------------------------------------------------------------

_ANSWER = 424242
_REASONS = {
    errno.EBUSY: "this process already has a seccomp listener, and Linux allows one",
    errno.EINVAL: "the kernel knows no seccomp user notification; it came with Linux 5.0",
    errno.ENOSYS: "the kernel was built without seccomp, or a container's profile hides it",
    errno.EPERM: "a sandbox or a container's profile forbids seccomp(2)",
}


def probe(timeout_s: float = 5.0) -> str | None:
    """None when a child's call can be trapped, looked into and answered here; else why not.

    Really does it, within `timeout_s`, and leaves nothing.  Forks: raises RuntimeError in a process
    that has threads.
    """
    if architecture() is None:
        return f"there is a system call table for Linux on 64-bit {', '.join(ARCHITECTURES)} only"
    if len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError("syscalls.probe() forks, so ask it in a process without threads")
    token = ctypes.create_string_buffer(os.urandom(16), 16)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = os.fork()
        if child == 0:
            _probe_child(theirs, token)
        theirs.close()
        try:
            return _probe_parent(ours, token.raw, time.monotonic() + timeout_s)
        except OSError as error:
            return f"a trapped call could not be looked into or answered: {error}"
        finally:
            try:
                os.kill(child, signal.SIGKILL)  # not reaped yet, so still the same process
                os.waitpid(child, 0)
            except (ProcessLookupError, ChildProcessError):
                pass  # SIGCHLD is ignored here, so the kernel has reaped it


def _probe_child(to_parent: socket.socket, token: ctypes.Array[ctypes.c_char]) -> None:
    """Trap getppid, hand the listener over, call it with something to look into.  Does not return."""
    try:
        listener = install([Trap("getppid")])
        socket.send_fds(to_parent, [b"listener"], [listener])
        os.close(listener)
        value = call("getppid", ctypes.addressof(token), to_parent.fileno())
        to_parent.send(b"answered" if value == _ANSWER else b"a trapped call came back with another answer")
    except OSError as error:
        to_parent.send(_REASONS.get(error.errno or 0, str(error)).encode())
    finally:
        os._exit(0)


def _probe_parent(from_child: socket.socket, token: bytes, deadline: float) -> str | None:
    def wait(fd: int) -> None:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError(errno.ETIMEDOUT, "no answer within the deadline")

    wait(from_child.fileno())
    said, descriptors, _, _ = socket.recv_fds(from_child, 200, 1)
    if not descriptors:
        return said.decode() or "the probing child died"
    listener = Listener(descriptors[0])
    try:
        wait(listener.fileno())
        notification = listener.receive()
        if notification is None:
            return "the probing child died"
        if read_memory(notification.pid, notification.args[0], len(token)) != token:
            return "another process's memory reads wrong"
        os.close(open_of(notification.pid, notification.args[1]))
        if not (listener.is_valid(notification) and listener.answer(notification, _ANSWER)):
            return "the probing child died"
        wait(from_child.fileno())
        said = from_child.recv(200)
        return None if said == b"answered" else said.decode()
    finally:
        listener.close()
