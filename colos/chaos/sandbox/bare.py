"""The `bare` tier: what is left where the kernel or the policy refuses namespaces.

A session and process group of its own, a subreaper above everything the system forks, the
parent-death signal, a temporary directory, and a watchdog that outlives pytest just long enough
to end all of it.  Sources: prctl(2), setsid(2), seccomp_unotify(2).
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
from colos.chaos.sandbox.trap import DiskTrap

__all__ = ["PREFIX", "launch"]

#: How the temporary directory of a bare sandbox is named.
PREFIX = "colos-"
_KILL_DEADLINE_S = 5.0


def launch(spec: SandboxSpec, channel: socket.socket, *, trap_disk: bool) -> None:
    """Be the watchdog of a bare sandbox until its end; runs in a process of its own, never returns."""
    del spec  # a host directory has no size of its own: the disk fault counts instead
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # only the channel's end ends a watchdog
    kernel.become_subreaper()
    base = tempfile.mkdtemp(prefix=PREFIX)
    try:
        place = Place(f"{base}/data", f"{base}/run", f"{base}/home", f"{base}/tmp")
        for directory in (place.data, place.run, place.home, place.tmp):
            os.mkdir(directory, 0o700)
        pidfd = os.pidfd_open(os.getpid())
        wire.send(channel, ("made", os.getpid()), (pidfd,))
        os.close(pidfd)
        wire.send(channel, ("furnished", place))
        Keeper(channel, place, DiskTrap(place.data) if trap_disk else None).run()
    finally:
        _end_everything()
        shutil.rmtree(base, ignore_errors=True)
    os._exit(0)


def _end_everything() -> None:
    """Kill and reap every descendant; as their subreaper we are left with none."""
    deadline = time.monotonic() + _KILL_DEADLINE_S
    while time.monotonic() < deadline:
        alive = [process for process in descendants(os.getpid()) if process.state != "Z"]
        for process in alive:
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        try:
            if not alive and os.waitpid(-1, os.WNOHANG) == (0, 0):
                continue
            if alive:
                os.waitpid(-1, 0)
        except ChildProcessError:
            return
