"""The process that keeps a sandbox: starts the program, reaps, restarts by policy, ends with us.

In the `namespaces` tier it is PID 1 inside; in `bare` it is the watchdog and subreaper above the
system.  It is single-threaded, forks the program, and holds one end of the channel to the test;
end-of-file on that channel is the end of the sandbox.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from colos.chaos.mechanisms import kernel
from colos.chaos.sandbox import wire
from colos.chaos.sandbox.spec import Place, Program

if TYPE_CHECKING:
    from colos.chaos.sandbox.trap import SyscallTrap

__all__ = ["OUTPUT", "Keeper"]

#: The file in the run directory that takes the program's standard output and error.
OUTPUT = "output.log"
_READY = b"r"


class Keeper:
    """One poll loop over the channel, dying children, readiness, and trapped calls."""

    def __init__(
        self, channel: socket.socket, place: Place, trap: SyscallTrap | None = None, lifeline: int | None = None
    ) -> None:
        self._channel = channel
        self._place = place
        self._trap = trap
        self._lifeline = lifeline
        self._program: Program | None = None
        self._main = 0
        self._restarts: deque[float] = deque()
        self._count = 0
        self._ready = -1
        self._stopping = False
        self._poll = select.poll()

    def run(self) -> None:
        """Serve until the test's end of the channel closes, or the process behind the lifeline ends."""
        wake_in, wake_out = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_out, warn_on_full_buffer=False)
        self._poll.register(self._channel, select.POLLIN)
        self._poll.register(wake_in, select.POLLIN)
        if self._lifeline is not None:
            self._poll.register(self._lifeline, select.POLLIN)
        trap = self._trap
        sleep_ms: float | None = None
        while True:
            for descriptor, event in self._poll.poll(sleep_ms):
                if trap is not None and descriptor in trap.listeners:  # first: it is what is asked most often
                    trap.serve(descriptor, event)
                elif descriptor == self._channel.fileno():
                    if not self._command():
                        return
                elif descriptor == self._lifeline:
                    return
                elif descriptor == wake_in:
                    _drain(wake_in)
                    self._reap()
                elif descriptor == self._ready:
                    self._announce_ready()
            sleep_ms = None
            if trap is not None and trap.delays:
                trap.go_on()
                due_s = trap.next_due_s()
                sleep_ms = None if due_s is None else due_s * 1000

    # --- what the test asks for ---------------------------------------------------------

    def _command(self) -> bool:
        received = wire.receive(self._channel)
        if received is None:
            return False
        message, descriptors = received
        for descriptor in descriptors:
            os.close(descriptor)
        match message:
            case ("start", program):
                self._program = program
                self._start()
            case ("stop",):
                self._stopping = True
                if self._main:
                    os.kill(self._main, signal.SIGTERM)
                else:
                    self._tell(("gone",))
            case ("trap", request) if self._trap is not None:
                self._tell(("trapped", self._trap.answer(request)))
            case _:
                self._tell(("refused", f"the keeper does not know {message!r}"))
        return True

    def _tell(self, event: tuple[Any, ...]) -> None:
        try:
            wire.send(self._channel, event)
        except OSError:
            pass  # the test is gone; the poll loop sees the end-of-file next

    # --- the program --------------------------------------------------------------------

    def _start(self) -> None:
        assert self._program is not None
        self._close_ready()
        written = self._output_size()
        ready_in, ready_out = os.pipe()
        handover = self._trap.prepare() if self._trap is not None else None
        keeper = os.getpid()
        main = os.fork()
        if main == 0:
            os.close(ready_in)
            self._become(self._program, ready_out, keeper, handover)
        os.close(ready_out)
        self._main = main
        self._ready = ready_in
        self._poll.register(ready_in, select.POLLIN)
        if handover is not None and self._trap is not None:
            self._trap.accept(handover, main, self._poll)
        self._count += 1
        self._tell(("started", main, self._count, written))

    def _become(self, program: Program, ready: int, keeper: int, handover: Any) -> NoReturn:
        """In the forked child: shed what is the harness's, then be the program."""
        status = 70  # EX_SOFTWARE, sysexits(3)
        try:
            signal.set_wakeup_fd(-1)
            _close_all_but({ready, *(end.fileno() for end in handover or ())})
            for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)  # an ignored signal would stay so across exec
            kernel.die_with_parent(keeper)
            os.setsid()
            self._redirect()
            os.environ.update(self._place.environment())
            os.chdir(self._place.data)
            kernel.drop_privileges()
            if handover is not None and self._trap is not None:
                self._trap.install(handover)
            status = program.run(self._place, _teller(ready))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _output_size(self) -> int:
        try:
            return os.stat(os.path.join(self._place.run, OUTPUT)).st_size
        except FileNotFoundError:
            return 0

    def _redirect(self) -> None:
        nothing = os.open(os.devnull, os.O_RDONLY)
        output = os.open(os.path.join(self._place.run, OUTPUT), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(nothing, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        for descriptor in (nothing, output):
            if descriptor > 2:
                os.close(descriptor)

    def _announce_ready(self) -> None:
        said = os.read(self._ready, 1)
        self._close_ready()
        if said == _READY:
            self._tell(("ready", self._count))

    def _close_ready(self) -> None:
        if self._ready >= 0:
            self._poll.unregister(self._ready)
            os.close(self._ready)
            self._ready = -1

    # --- deaths -------------------------------------------------------------------------

    def _reap(self) -> None:
        """Take every dead child: the program, and the orphans that came to us."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._main:
                self._exited(os.waitstatus_to_exitcode(status))

    def _exited(self, code: int) -> None:
        self._main = 0
        again = not self._stopping and self._may_restart(code)
        self._tell(("exited", code, self._count, again))
        if again:
            self._start()

    def _may_restart(self, code: int) -> bool:
        policy = self._program.restarts if self._program is not None else None
        if policy is None or (code == 0 and policy.when == "failure"):
            return False
        now = time.monotonic()
        while self._restarts and now - self._restarts[0] > policy.period_s:
            self._restarts.popleft()
        if len(self._restarts) >= policy.limit:
            return False
        self._restarts.append(now)
        return True


def _teller(ready: int) -> Callable[[], None]:
    def tell() -> None:
        os.write(ready, _READY)
        os.close(ready)

    return tell


def _close_all_but(kept: set[int]) -> None:
    """The system inherits nothing of the harness's: no channel, no pipe."""
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor > 2 and descriptor not in kept:
            try:
                os.close(descriptor)
            except OSError:
                pass  # the listing's own descriptor is gone already


def _drain(descriptor: int) -> None:
    try:
        while os.read(descriptor, 512):
            pass
    except BlockingIOError:
        return
