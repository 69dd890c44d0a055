"""The `bare` tier: what is left where the kernel or the policy refuses namespaces.

A session and process group of its own, a temporary directory, and two subreapers above everything
the system forks: the keeper, and a watchdog above it.  Both outlive pytest just long enough to end
all of it, and each does so alone when the other was killed.  Sources: prctl(2), setsid(2),
pidfd_open(2), seccomp_unotify(2).
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
import time

from colos.chaos.mechanisms import kernel
from colos.chaos.sandbox import wire
from colos.chaos.sandbox.keeper import Keeper
from colos.chaos.sandbox.processes import descendants
from colos.chaos.sandbox.spec import Place, SandboxSpec
from colos.chaos.sandbox.trap import SyscallTrap

__all__ = ["PREFIX", "launch"]

#: How the temporary directory of a bare sandbox is named.
PREFIX = "colos-"
_KILL_DEADLINE_S = 60.0  # far above the test's own: it reports what stays while we go on trying
_KILL_PAUSE_S = 0.001


def launch(spec: SandboxSpec, channel: socket.socket, template: int, *, trap: bool) -> None:
    """Be the watchdog of a bare sandbox until its end; runs in a process of its own, never returns.

    `template` is a pidfd: the sandbox ends with that process, as one of namespaces does.
    """
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # only the lifelines end a watchdog
    kernel.become_subreaper()
    base = tempfile.mkdtemp(prefix=PREFIX)
    try:
        watchdog = os.pidfd_open(os.getpid())
        keeper = os.fork()
        if keeper == 0:
            kernel.become_subreaper()
            _keep(spec, base, channel, watchdog, template, trap=trap)
        else:
            channel.close()  # so that the test sees its end when the keeper dies
            os.waitpid(keeper, 0)
    finally:
        _end_everything()
        _remove(base)
    os._exit(0)


def _keep(spec: SandboxSpec, base: str, channel: socket.socket, watchdog: int, template: int, *, trap: bool) -> None:
    place = Place(f"{base}/data", f"{base}/run", f"{base}/home", f"{base}/tmp", spec.environment)
    for directory in (place.data, place.run, place.home, place.tmp):
        os.mkdir(directory, 0o700)
    keeper = os.pidfd_open(os.getpid())
    wire.send(channel, ("made", os.getpid()), (watchdog, keeper))
    os.close(watchdog)
    os.close(keeper)
    wire.send(channel, ("furnished", place))
    # A host directory has no size of its own: a full disk is counted instead.
    Keeper(channel, place, SyscallTrap(spec.traps, place.data) if trap else None, lifeline=template).run()


def _end_everything() -> None:
    """Kill and reap every descendant; as their subreaper we are left with none."""
    deadline = time.monotonic() + _KILL_DEADLINE_S
    while time.monotonic() < deadline:
        for process in descendants(os.getpid()):
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        try:
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        except ChildProcessError:
            return
        time.sleep(_KILL_PAUSE_S)  # dying takes a moment, and a blocking wait would have no deadline


def _remove(base: str) -> None:
    """Remove the directory, whatever modes the system gave to what is in it."""
    for parent, directories, _ in os.walk(base):
        for name in directories:
            path = os.path.join(parent, name)
            if not os.path.islink(path):
                os.chmod(path, 0o700)
    shutil.rmtree(base, ignore_errors=True)
