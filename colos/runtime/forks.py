"""Where a node's processes come from: the zygote, the spare that takes its place, and the understudy it made ahead."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterable
from typing import Final

from colos.runtime import message, process
from colos.runtime.incarnation import Child
from colos.runtime.process import Death
from colos.runtime.supervisor import Plan, TreeSpec
from colos.runtime.zygote import Nursery, Zygote, fork_process

_PEEK: Final = socket.MSG_PEEK | socket.MSG_DONTWAIT


class Understudy:
    """A process that is nobody yet, and waits to be told who it is: a start that has happened ahead."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self._pid: int | None = None

    @property
    def pid(self) -> int | None:
        """Its pid, as soon as it has said BORN, which stays to be read."""
        if self._pid is None:
            try:
                for frame in message.Parser().feed(self.control.recv(message.HEADER_BYTES, _PEEK)):
                    self._pid = frame.request if frame.kind == message.BORN else None
            except (OSError, message.ProtocolError):  # not yet, or never
                pass
        return self._pid

    def gone(self) -> bool:
        """Whether it is unfit to be anybody: dead, stopped, or never come to be."""
        if self.pid is not None:
            return not process.is_fit(self.pid)
        try:
            return not self.control.recv(1, _PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def end(self) -> None:
        """It is not needed; its lifeline's end would do, if it runs."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)  # not reaped, so the pid is still its own
        self.control.close()


class Forks:
    """The root's hand on all of them."""

    def __init__(self, tree: TreeSpec, run_dir: str, backend: str) -> None:
        self._nursery = Nursery(_plans(tree.name, tree), run_dir, backend, os.getpid())
        self._zygote: Zygote | None = None
        self._spare: Zygote | None = None
        self._understudy: Understudy | None = None
        self._busy = False
        """Whether anything was started after the first processes: a node that never changes needs no understudy."""
        self._over = False

    def fork_first(self, children: Iterable[Child]) -> list[tuple[Child, int]]:
        """Fork the first processes, which wait for their turn, and the zygote; before the loop.  Raises OSError."""
        # All in a row: every page written between two forks would have to be copied once more.
        forked = []
        for child in children:
            child.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            with theirs:
                forked.append((child, fork_process(self._nursery, theirs)))
        self._zygote = Zygote.fork(self._nursery)
        return forked

    def fork(self) -> socket.socket:
        """The control socket of a new process, which will say BORN on it; never waits.  Raises OSError."""
        if self._zygote is None:
            raise OSError("the node has no zygote any more")
        self._busy = True
        understudy = self._understudy
        if understudy is not None:
            if understudy.gone():
                self._dismiss()
            elif understudy.pid is not None:
                self._understudy = None
                return understudy.control
        try:
            return self._ask(self._zygote)
        except (BrokenPipeError, ConnectionResetError):
            # It is dead, and nobody has collected it yet.  What died with it is to be started again now: to call
            # that impossible, start after start, would have a supervisor give up.
            if self._spare is None:
                raise
            self.replace()
            return self._ask(self._zygote)

    def _ask(self, zygote: Zygote) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            try:
                zygote.spawn(theirs)
            except BaseException:
                ours.close()
                raise
        ours.setblocking(False)
        return ours

    def _dismiss(self) -> None:
        understudy, self._understudy = self._understudy, None
        if understudy is not None:
            understudy.end()

    def settle(self) -> None:
        """A process has started, and there is time to have an understudy for the next, and a spare again."""
        self.make_spare()
        if self._busy and self._zygote is not None and self._understudy is None and not self._over:
            try:
                self._understudy = Understudy(self._ask(self._zygote))
            except OSError:  # no descriptor, or its queue is full: there is none, then
                pass

    def make_spare(self) -> None:
        """Have a spare, if there is none."""
        if self._zygote is not None and self._spare is None and not self._over:
            try:
                self._spare = self._zygote.spare()
            except OSError:  # no descriptor, or its queue is full: there is none, then
                pass

    def replace(self) -> None:
        """The zygote does not answer: stopped, or worse.  The spare takes its place, if there is one."""
        if self._zygote is not None and self._spare is not None:
            process.complain("the zygote does not answer; the spare takes its place")
            self._zygote.kill()
            self._zygote, self._spare = self._spare, None
            self.make_spare()

    def owns(self, pid: int) -> bool:
        """Whether a dead child was one of these."""
        return any(one is not None and one.pid == pid for one in (self._zygote, self._spare, self._understudy))

    def died(self, pid: int, death: Death) -> str:
        """A child that is none of the node's processes is dead; why nothing can be started any more, if so."""
        if self._zygote is not None and self._zygote.pid == pid:
            return self._promote(death)
        if self._understudy is not None and self._understudy.pid == pid:
            self._understudy.control.close()
            self._understudy = None  # what killed it may kill the next: there is one after the next start
        if self._spare is not None and (self._spare.pid == pid or self._spare.gone()):
            self._spare = None
        if self._zygote is not None and self._zygote.gone():  # a spare once, dead before it could say its pid
            return self._promote(death)
        return ""

    def _promote(self, death: Death) -> str:
        self._zygote, self._spare = self._spare, None
        if self._zygote is not None and self._zygote.gone():
            self._zygote = None
        if self._over:
            return ""
        process.complain(f"the zygote died: {death.reason}")
        if self._zygote is None:
            return f"stopped: its zygote died and there was no spare, so nothing can be started: {death.reason}"
        self.make_spare()
        return ""

    def kill(self) -> None:
        """End them all: nothing is to be started any more."""
        self._over = True
        self._dismiss()
        for zygote in (self._zygote, self._spare):
            if zygote is not None:
                zygote.kill()


def _plans(key: str, tree: TreeSpec) -> dict[str, Plan]:
    """Every plan of a tree by its place, a dynamic supervisor's template under "*"."""
    found: dict[str, Plan] = {}
    templates = () if tree.template is None else (("*", tree.template),)
    for id_, plan in (*((plan.id, plan) for plan in tree.children), *templates):
        found[f"{key}/{id_}"] = plan
        if plan.tree is not None:
            found.update(_plans(f"{key}/{id_}", plan.tree))
    return found
