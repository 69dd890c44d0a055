"""A process that does nothing but use a CPU, made inside a sandbox of namespaces or beside one that has none.

In `namespaces` it is a child of the sandbox's first process, in its process table: it ends with it.
In `bare` it ends with the harness (its lifeline) and with the sandbox's keeper (a pidfd), whichever
ends first.  Sources: setns(2), pid_namespaces(7), pidfd_open(2), prctl(2), alarm(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, NoReturn

from colos.chaos.mechanisms import kernel

__all__ = ["LIFE_S", "NAME", "Busy", "cpu_s_of", "outer_pid", "start_beside"]

#: What it is called in /proc.
NAME = "colos-rival"
#: How long it lives at most, whatever happens to everybody else.
LIFE_S = 600
_PR_SET_NAME = 15
_TURNS = 20_000
_LOOP = f"""import select, signal, sys
signal.alarm({LIFE_S})
with open("/proc/self/comm", "w") as file: file.write("{NAME}")
poll = select.poll()
poll.register(0, select.POLLIN)
poll.register(int(sys.argv[1]), select.POLLIN)
while not poll.poll(0):
    for _ in range({_TURNS}): pass
"""


@dataclass(frozen=True)
class Busy:
    """Start one inside (see `Sandbox.join`); passes out its pidfd."""

    def __call__(self) -> tuple[Any, tuple[int, ...]]:
        """Fork it into the sandbox's process table, as a child of the sandbox's first process."""
        table = os.open("/proc/1/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        kernel.setns(table, kernel.CLONE_NEWPID)  # for children: only they are in it
        os.close(table)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        between = os.fork()
        if between == 0:
            _fork_again(theirs)
        theirs.close()
        os.waitpid(between, 0)
        with ours:
            ours.settimeout(5.0)
            _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
        if not descriptors:
            raise ChildProcessError(errno.ECHILD, "the busy process has not come up")
        return None, (descriptors[0],)


def _fork_again(said: socket.socket) -> NoReturn:
    """Leave a child behind, which falls to the sandbox's first process; its parent outside would be no good one."""
    try:
        if os.fork() == 0:
            _be_busy(said)
    finally:
        os._exit(0)


def _be_busy(said: socket.socket) -> NoReturn:
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(LIFE_S)
        os.setsid()
        ctypes.CDLL(None).prctl(_PR_SET_NAME, NAME.encode(), 0, 0, 0)  # /proc is read-only in here
        kernel.drop_privileges()
        socket.send_fds(said, [b"b"], [os.pidfd_open(os.getpid())])
        os.closerange(0, 1024)  # nothing of the harness's stays open in here
        while True:
            pass
    finally:
        os._exit(1)


def start_beside(keeper: int) -> subprocess.Popen[bytes]:
    """Start one outside any namespace; it ends with this process and with `keeper`.  Raises `OSError`."""
    pidfd = os.pidfd_open(keeper)
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _LOOP, str(pidfd)],
            stdin=subprocess.PIPE,  # the lifeline
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[pidfd],
            cwd="/",
            start_new_session=True,
        )
    finally:
        os.close(pidfd)


def outer_pid(pidfd: int) -> int:
    """The pid behind a pidfd, as this process's own /proc has it; -1 when it is gone."""
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as file:
        return next((int(line.split()[1]) for line in file if line.startswith("Pid:")), -1)


def cpu_s_of(pid: int) -> float:
    """How much CPU time a process has had, in seconds; 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
