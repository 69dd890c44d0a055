"""The fork server: the root's own single-threaded child, which forks its processes.

A process that runs an event loop must not fork itself, so whoever starts a node forks the zygote
before the loop starts.  The zygote makes siblings of itself (CLONE_PARENT); where that cannot be,
it forks twice, and the root is a child subreaper.  Either way the new process is *the root's own
child*, with a true exit status.  A node's first children are forked by the root itself, before its loop starts.

A new process is nobody: it runs its event loop and waits to be told who it is.  Beside the zygote waits a
spare, forked by it: when the zygote dies or hangs, the spare takes its place.
"""

from __future__ import annotations

import array
import gc
import os
import signal
import socket
import struct
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NoReturn

from colos.errors import StartFailed
from colos.runtime import process, stacks, streams, worker
from colos.runtime.reasons import describe
from colos.runtime.rehearsal import rehearse
from colos.runtime.supervisor import Plan

_PROCESS: Final = b"P"
_SPARE: Final = b"S"
_PID: Final = struct.Struct("<I")
_REPARENT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Nursery:
    """What every process of a node is born with.  `plans` holds those that the node was started with, by path."""

    plans: Mapping[str, Plan]
    run_dir: str
    backend: str
    root_pid: int


def prepare(backend: str) -> None:
    """Do once what every fork would have to do, and settle memory, so that forks share it.

    Raises StartFailed if this process must not fork.
    """
    if threading.active_count() > 1 or _kernel_threads() > 1:
        raise StartFailed("the node", "it must be forked from a single-threaded process, and this one has threads")
    process.reset_signals()
    streams.prepare_streams()
    stacks.prepare()
    rehearse(backend)
    if hasattr(gc, "freeze"):
        gc.freeze()


def _kernel_threads() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:  # no /proc here
        return 1


def fork_process(nursery: Nursery, control: socket.socket) -> int:
    """Fork a process of the node as this process's own child; its pid.  Only before an event loop runs here."""
    pid = os.fork()
    if pid == 0:
        _become(nursery, control, former_parent=0)
    return pid


class Zygote:
    """The root's side of a zygote."""

    def __init__(self, requests: socket.socket, pid: int | None) -> None:
        self._requests = requests
        self._pid = pid

    @classmethod
    def fork(cls, nursery: Nursery) -> Zygote:
        """The first one.  Only before an event loop runs here."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            _be_zygote(nursery, theirs)
        theirs.close()
        return cls(ours, pid)

    @property
    def pid(self) -> int | None:
        """Its pid, as soon as it has said it."""
        if self._pid is None:
            try:
                (self._pid,) = _PID.unpack(self._requests.recv(_PID.size, socket.MSG_DONTWAIT))
            except (OSError, struct.error):  # not yet, or it died before
                pass
        return self._pid

    def gone(self) -> bool:
        """Whether it is dead, which of a spare without a pid only its socket tells."""
        if self.pid is not None:
            return False
        try:
            return not self._requests.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def spare(self) -> Zygote:
        """Ask for another zygote, never waiting.  Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._ask(_SPARE, theirs)
        return Zygote(ours, None)

    def spawn(self, control: socket.socket) -> None:
        """Ask for a process, never waiting: it says BORN on `control`, or that ends.  Raises OSError."""
        self._ask(_PROCESS, control)

    def _ask(self, request: bytes, descriptor: socket.socket) -> None:
        rights = array.array("i", [descriptor.fileno()])
        self._requests.sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], socket.MSG_DONTWAIT)

    def kill(self) -> None:
        """End it; it keeps nothing that would need an orderly end.  Only before it is reaped."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)
        self._requests.close()  # which ends it, too


# --- in the zygote -----------------------------------------------------------------------


def _be_zygote(nursery: Nursery, requests: socket.socket) -> NoReturn:
    try:
        if process.die_with_parent(nursery.root_pid):
            process.close_all_but(requests.fileno())
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the processes in between need no reaping
            while _fork_next(nursery, requests):
                pass
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _fork_next(nursery: Nursery, requests: socket.socket) -> bool:
    """Serve one request; False when the root is gone."""
    try:
        what, descriptors, _, _ = socket.recv_fds(requests, 1, 1)
    except ConnectionResetError:  # it died before it had read what this zygote said: its pid
        return False
    if not what:
        return False
    control = socket.socket(fileno=descriptors[0])
    try:
        if process.can_fork_siblings():
            if process.fork_sibling() == 0:
                _go(nursery, what, control, former_parent=0)
        elif os.fork() == 0:
            _fork_and_go(nursery, what, control)
    except OSError as error:  # process-table exhaustion, say: the root decides
        if what == _PROCESS:
            worker.say_last_words(control, describe(error), "")
    finally:
        control.close()
    return True


def _fork_and_go(nursery: Nursery, what: bytes, control: socket.socket) -> NoReturn:
    try:
        here = os.getpid()
        if os.fork() == 0:
            _go(nursery, what, control, former_parent=here)
    except OSError as error:
        if what == _PROCESS:
            worker.say_last_words(control, describe(error), "")
    finally:
        os._exit(0)


def _go(nursery: Nursery, what: bytes, control: socket.socket, former_parent: int) -> NoReturn:
    if what == _PROCESS:
        _become(nursery, control, former_parent=former_parent)
    try:
        _wait_for_root(former_parent)
        control.send(_PID.pack(os.getpid()))
        _be_zygote(nursery, control)
    finally:
        os._exit(1)


def _wait_for_root(former_parent: int) -> None:
    deadline = time.monotonic() + _REPARENT_S
    while os.getppid() == former_parent and time.monotonic() < deadline:
        os.sched_yield()  # the kernel tells nobody when it reparents


# --- in the process ----------------------------------------------------------------------


def _become(nursery: Nursery, control: socket.socket, former_parent: int) -> NoReturn:
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _wait_for_root(former_parent)
        if process.die_with_parent(nursery.root_pid):
            process.close_all_but(control.fileno())
            worker.run(nursery.plans, nursery.run_dir, control, nursery.backend)
    except BaseException as error:  # nothing may return into the stack that this process was forked from
        worker.say_last_words(control, describe(error), traceback.format_exc())
    finally:
        os._exit(1)
