"""Process identity and the kernel's words about it: parent-death, reaping, exit reasons, descriptors.

The only room of the runtime that speaks to the kernel through ctypes and fcntl.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import time
from dataclasses import dataclass
from typing import Final

import anyio

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_P_ALL: Final = 0
_P_PID: Final = 1
_WNOHANG_EXITED_NOWAIT: Final = 0x1 | 0x4 | 0x0100_0000
_PF_EXITING: Final = 0x4
_PROC_BYTES: Final = 8192

_CLONE_PARENT: Final = 0x8000
_clone_number: Final = {"x86_64": 56, "aarch64": 220}.get(os.uname().machine)

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0):
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}, {value}): {os.strerror(code)}")


def become_subreaper() -> None:
    """Let orphans among this process's descendants become its own children (and be reaped by it)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent_pid: int, number: signal.Signals = signal.SIGKILL) -> bool:
    """Arm a signal for the parent's death; False if `parent_pid` is already not the parent.

    The signal belongs to the parent's *thread* that made this process: only a thread that
    outlives its children may fork them.
    """
    _prctl(_PR_SET_PDEATHSIG, number)
    return os.getppid() == parent_pid


def can_fork_siblings() -> bool:
    """Whether `fork_sibling` works: CPython on x86-64 or aarch64."""
    return _clone_number is not None and hasattr(ctypes, "pythonapi")


def fork_sibling() -> int:
    """Fork a child of this process's *parent*: its pid here, 0 there.  For single-threaded processes.

    One fork instead of two and a wait for reparenting.  Source: clone(2), CLONE_PARENT; the hooks
    around it are those of os.fork.  Raises OSError.
    """
    python, libc = ctypes.pythonapi, ctypes.PyDLL(None, use_errno=True)  # neither lets go of the interpreter
    python.PyOS_BeforeFork()
    pid = int(libc.syscall(_clone_number, ctypes.c_ulong(_CLONE_PARENT | signal.SIGCHLD), None, None, None, None))
    if pid == 0:
        python.PyOS_AfterFork_Child()
        return 0
    code = ctypes.get_errno()
    python.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(code, f"clone: {os.strerror(code)}")
    return pid


def lock_file(path: str) -> int | None:
    """Take an exclusive flock on a file, made where missing; its descriptor, or None if it is held."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def close_all_but(kept: int) -> None:
    """Close every descriptor but stdin, stdout, stderr and `kept`."""
    close_range = getattr(_libc, "close_range", None)
    if kept > 2 and close_range is not None:
        below = 0 if kept == 3 else close_range(3, kept - 1, 0)
        if below == 0 and close_range(kept + 1, ctypes.c_uint(-1), 0) == 0:
            return
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:  # no close_range in this kernel, no /proc here: try the numbers that can be open
        numbers = list(range(3, min(os.sysconf("SC_OPEN_MAX"), 65536)))
    for number in numbers:
        if number > 2 and number != kept:
            try:
                os.close(number)
            except OSError:  # the listing's own descriptor, gone by now
                pass


def reset_signals() -> None:
    """Forget the handlers, the mask and the wake-up descriptor of the process this was forked from.

    SIGINT is ignored: a terminal sends it to every process at once, and stopping in order is the
    root's business.  The root does this once, and what it forks before its loop starts inherits it.
    """
    try:
        signal.set_wakeup_fd(-1)
    except ValueError:  # not the main thread of the main interpreter: then there is none to forget
        pass
    for number in signal.valid_signals():
        if signal.getsignal(number) not in (signal.SIG_DFL, signal.SIG_IGN, None):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as in every Python: a write to the dead is an error, not an end
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def complain(text: str) -> None:
    """Say something on stderr, which may be a file on a full disk: that must not matter."""
    try:
        os.write(2, f"colos: {text.rstrip()}\n".encode(errors="backslashreplace"))
    except OSError:  # nobody can be told
        pass


# --- death -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Death:
    """What the kernel said about a process that ended: its wait status and what it used."""

    status: int
    user_s: float
    system_s: float
    rss_kib_max: int

    @property
    def reason(self) -> str:
        """`killed`, `killed (SIGSEGV)` or `exited with status 3`."""
        return describe_status(self.status)


def describe_status(status: int) -> str:
    """A wait status as an exit reason; SIGKILL is OTP's *killed*."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exited with status {code}"
    if code == -signal.SIGKILL:
        return "killed"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # a real-time signal has a number only
        name = f"signal {-code}"
    return f"killed ({name})"


class _SigInfo(ctypes.Structure):
    # siginfo_t of SIGCHLD on Linux: three ints, padding to the union, then pid and uid; 128 bytes in all.
    _fields_ = (("head", ctypes.c_int * (4 if ctypes.sizeof(ctypes.c_void_p) == 8 else 3)), ("pid", ctypes.c_int),
                ("rest", ctypes.c_char * 124))  # fmt: skip


def peek_dead_child(foreign: frozenset[int] = frozenset()) -> int | None:
    """The pid of some child that has ended and is not yet reaped, which it leaves in place; None if none.

    Peeking first and waiting by pid keeps an adopted stranger's status and a child's apart.  The
    `foreign` children are somebody else's to wait for.  (Through ctypes, because PyPy has no os.waitid.)
    """
    pid = _peek(_P_ALL, 0)
    if pid is None or pid not in foreign:
        return pid
    # It stays a zombie until whoever started it asks, and would hide the others.
    return next((child for child in children() if child not in foreign and _peek(_P_PID, child)), None)


def _peek(what: int, pid: int) -> int | None:
    info = _SigInfo()
    while _libc.waitid(what, pid, ctypes.byref(info), _WNOHANG_EXITED_NOWAIT):
        code = ctypes.get_errno()
        if code == errno.ECHILD:
            return None
        if code != errno.EINTR:
            raise OSError(code, f"waitid: {os.strerror(code)}")
    return info.pid or None


def reap(pid: int) -> Death:
    """Collect a dead child; it must be one (see `peek_dead_child`), or this waits for it."""
    _, status, usage = os.wait4(pid, 0)
    return Death(status, usage.ru_utime, usage.ru_stime, usage.ru_maxrss)


def is_dying(pid: int) -> bool:
    """Whether a child is dead, on its way out, or has a SIGKILL that it cannot escape.

    kill(2) returns before its victim has died, so asking wait(2) alone would call a process
    alive that never runs again.
    """
    try:
        fields = _stat(pid)
        status = _read(f"/proc/{pid}/status")
    except FileNotFoundError:
        return os.path.exists("/proc/self")  # gone; but where there is no /proc, take it for alive
    except ProcessLookupError:
        return True
    kill_bit = 1 << (signal.SIGKILL - 1)
    pending = 0
    for line in status.splitlines():
        if line.startswith((b"SigPnd:", b"ShdPnd:")):
            pending |= int(line.split()[1], 16)
    return fields[0] in (b"Z", b"X") or bool(int(fields[6]) & _PF_EXITING) or bool(pending & kill_bit)


def is_fit(pid: int) -> bool:
    """Whether a child runs: it is neither dead nor stopped.  Where there is no /proc, it is taken to."""
    try:
        fields = _stat(pid)
    except FileNotFoundError:
        return not os.path.exists("/proc/self")
    except ProcessLookupError:
        return False
    return fields[0] not in (b"Z", b"X", b"T", b"t") and not int(fields[6]) & _PF_EXITING


def start_time_ticks(pid: int | str = "self") -> int:
    """When a process started, in clock ticks after boot: with the pid, its identity.  0 if unknown."""
    try:
        return int(_stat(pid)[19])
    except (OSError, IndexError, ValueError):  # gone, or no /proc here
        return 0


def _stat(pid: int | str) -> list[bytes]:
    """The fields of its stat file from the state on: proc(5) counts them from 3."""
    return _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()


def _read(path: str) -> bytes:
    """A file of /proc, at once: a buffered reader asks the kernel five times more."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, _PROC_BYTES)
    finally:
        os.close(descriptor)


async def wait_dead(pid: int, timeout_s: float) -> bool:
    """Wait until a child of this process has ended (it is not reaped); False at the deadline."""
    try:
        descriptor = os.pidfd_open(pid)
    except (AttributeError, OSError):  # PyPy, an old kernel, or no descriptor left: poll instead
        descriptor = -1
    try:
        with anyio.move_on_after(timeout_s):
            if descriptor >= 0:
                await anyio.wait_readable(descriptor)
                return True
            while not is_dying(pid):  # noqa: ASYNC110 - the kernel offers nothing to wait on here
                await anyio.sleep(0.005)
            return True
        return False
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def kill_all_children(timeout_s: float, foreign: frozenset[int] = frozenset()) -> list[int]:
    """SIGKILL and reap every child left but the `foreign`, adopted ones too; the pids still there at the deadline."""
    deadline = time.monotonic() + timeout_s
    while True:
        while (dead := peek_dead_child(foreign)) is not None:
            reap(dead)
        left = [pid for pid in children() if pid not in foreign] if _peek_any() else []
        if not left or time.monotonic() > deadline:
            return left
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:  # it went by itself
                pass
        time.sleep(0.001)  # the kernel offers no wait with a deadline for *any* child


def _peek_any() -> bool:
    """Whether this process has any child."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    except AttributeError:  # PyPy
        return bool(children())
    return True


def children() -> list[int]:
    """This process's children, zombies too."""
    try:
        found: list[int] = []
        for thread in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{thread}/children", "rb") as file:
                found += map(int, file.read().split())
        return found
    except OSError:  # a kernel without that file, or no /proc
        import psutil  # type: ignore[import-untyped,unused-ignore]  # only there it is needed

        return [child.pid for child in psutil.Process().children()]
