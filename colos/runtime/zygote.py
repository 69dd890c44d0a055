"""The fork server: a supervisor's own single-threaded child, which forks its actors.

A process that runs an event loop must not fork itself, so whoever starts a node forks the zygote
before the loop starts.  The zygote forks twice, and the supervisor is a child subreaper: so the
actor becomes *the supervisor's own child*, with a true exit status.  A supervisor's first
children are forked by the supervisor itself, also before its loop starts, which saves a fork each.

A zygote that dies is not replaced: without it no child can be restarted, so its node stops.
"""

from __future__ import annotations

import array
import gc
import importlib
import os
import signal
import socket
import struct
import threading
import time
import traceback
from dataclasses import dataclass
from typing import Final, NoReturn

import anyio

from colos.errors import StartFailed
from colos.runtime import process, worker
from colos.runtime.supervisor import TreeSpec

_REQUEST: Final = struct.Struct("<IQ")
_REPARENT_S: Final = 5.0
_REHEARSALS: Final = 20


@dataclass(frozen=True, slots=True)
class Nursery:
    """What every actor of a node is born with."""

    tree: TreeSpec
    run_dir: str
    backend: str
    supervisor_pid: int


def prepare(backend: str) -> None:
    """Do once what every fork would have to do, and settle memory, so that forks share it.

    Raises StartFailed if this process must not fork.
    """
    if threading.active_count() > 1 or _kernel_threads() > 1:
        raise StartFailed("the node", "it must be forked from a single-threaded process, and this one has threads")
    process.reset_signals()
    worker.prepare_streams()
    importlib.import_module(f"anyio._backends._{backend}")  # which anyio itself would do in every actor
    if hasattr(gc, "freeze"):
        gc.freeze()


def rehearse(backend: str) -> None:
    """Run once, in the process that nodes are forked from, what every event loop here does at its start.

    Code that has run is specialised and its caches are filled; done in each fork instead, that writes
    to, and so copies, some hundred pages (measured: 12 % of all that a node copies until it is ready).
    """
    importlib.import_module(f"anyio._backends._{backend}")
    for _ in range(_REHEARSALS):
        anyio.run(_scene, backend=backend)


async def _readable(end: socket.socket) -> None:
    await anyio.wait_readable(end)


async def _scene() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, anyio.open_signal_receiver(signal.SIGCHLD):
        ours.setblocking(False)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_readable, ours)
            with anyio.move_on_after(0.001):
                await anyio.Event().wait()
            theirs.send(b"x")


def _kernel_threads() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:  # no /proc here
        return 1


def fork_actor(nursery: Nursery, index: int, id_: int, control: socket.socket) -> int:
    """Fork an actor as this process's own child; its pid.  Only before an event loop runs here."""
    pid = os.fork()
    if pid == 0:
        _become_actor(nursery, index, id_, control, former_parent=0)
    return pid


class Zygote:
    """The supervisor's side of its zygote."""

    def __init__(self, nursery: Nursery) -> None:
        """Fork it.  Only before an event loop runs here."""
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            _be_zygote(nursery, theirs)
        theirs.close()

    def spawn(self, index: int, id_: int, control: socket.socket) -> None:
        """Ask for an actor, never waiting: it says HELLO on `control`, or that ends.  Raises OSError."""
        rights = array.array("i", [control.fileno()])
        self._requests.sendmsg(
            [_REQUEST.pack(index, id_)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], socket.MSG_DONTWAIT
        )

    def kill(self) -> None:
        """End it; it keeps nothing that would need an orderly end.  Only before it is reaped."""
        os.kill(self.pid, signal.SIGKILL)


# --- in the zygote -----------------------------------------------------------------------


def _be_zygote(nursery: Nursery, requests: socket.socket) -> NoReturn:
    try:
        if process.die_with_parent(nursery.supervisor_pid):
            process.close_all_but(requests.fileno())
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the processes in between need no reaping
            while _fork_next(nursery, requests):
                pass
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _fork_next(nursery: Nursery, requests: socket.socket) -> bool:
    """Serve one request; False when the supervisor is gone."""
    data, descriptors, _, _ = socket.recv_fds(requests, _REQUEST.size, 1)
    if not data:
        return False
    index, id_ = _REQUEST.unpack(data)
    control = socket.socket(fileno=descriptors[0])
    try:
        between = os.fork()
        if between == 0:
            _fork_and_go(nursery, index, id_, control)
    except OSError as error:  # process-table exhaustion, say: the supervisor decides
        worker.say_last_words(control, worker.describe(error), "")
    finally:
        control.close()
    return True


def _fork_and_go(nursery: Nursery, index: int, id_: int, control: socket.socket) -> NoReturn:
    try:
        here = os.getpid()
        if os.fork() == 0:
            _become_actor(nursery, index, id_, control, former_parent=here)
    except OSError as error:
        worker.say_last_words(control, worker.describe(error), "")
    finally:
        os._exit(0)


# --- in the actor ------------------------------------------------------------------------


def _become_actor(nursery: Nursery, index: int, id_: int, control: socket.socket, former_parent: int) -> NoReturn:
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        deadline = time.monotonic() + _REPARENT_S
        while os.getppid() == former_parent and time.monotonic() < deadline:
            os.sched_yield()  # the kernel tells nobody when it reparents
        if process.die_with_parent(nursery.supervisor_pid):
            process.close_all_but(control.fileno())
            spec = nursery.tree.children[index]
            worker.run(spec, f"{nursery.tree.name}/{spec.id}", id_, nursery.run_dir, control, nursery.backend)
    except BaseException as error:  # nothing may return into the stack that this process was forked from
        worker.say_last_words(control, worker.describe(error), traceback.format_exc())
    finally:
        os._exit(1)
