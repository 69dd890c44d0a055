"""The test's side of the template: start it, ask it for sandboxes, act inside them.

One `Session` serves a whole pytest run.  Requests carry their own reply socket, so that threads
may ask at once.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from colos.chaos.sandbox import wire
from colos.chaos.sandbox.handle import Sandbox
from colos.chaos.sandbox.spec import BARE, NAMESPACES, Program, SandboxSpec, kept_paths
from colos.errors import HarnessBroken

__all__ = ["Session"]

_START_S = 60.0
_ANSWER_S = 10.0
_END_S = 5.0
_LAST_WORDS_S = 0.5
# The path goes by argument: PYTHONPATH would reach the system under test.
_BOOTSTRAP = """import sys
sys.path[:] = {path!r}
from colos.chaos.sandbox.template import main
main({descriptor})"""


@dataclass(frozen=True)
class _Ahead:
    """A sandbox that was asked for before it is needed."""

    spec: SandboxSpec
    program: Program
    trap: bool
    started: bool
    channel: socket.socket


class Session:
    """The template process, and what this machine can do.

    `tier` is chosen at the first sandbox: `namespaces` where the kernel and its policy allow
    them, else `bare`; `forced` names one.  `refusal` keeps why `namespaces` was not to be had.
    """

    def __init__(self, forced: str | None = None) -> None:
        self._forced = forced
        self._tier: str | None = None
        self.refusal: str | None = None
        self._probed: dict[str, str | None] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._said = -1
        self._imported: set[str] = set()
        self._ahead: dict[int, _Ahead] = {}  # by thread

    # --- the template -------------------------------------------------------------------

    def _template(self) -> socket.socket:
        if self._channel is None:
            ours, theirs = wire.pair()
            self._said = os.memfd_create("colos-template-stderr")
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _BOOTSTRAP.format(path=sys.path, descriptor=theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=self._said,
                    stderr=self._said,
                    start_new_session=True,  # Ctrl-C goes to pytest, which heals; we end with its channel
                )
            self._channel = ours
            self._import([])
        return self._channel

    def _import(self, modules: list[tuple[str, str]], rehearsal: Callable[[], None] | None = None) -> None:
        path = [entry for entry in sys.path if entry]
        trouble = self._ask(("import", path, modules, rehearsal), timeout_s=_START_S)
        if trouble:
            raise HarnessBroken("the template cannot import the test's modules", trouble)

    def prepare(self, modules: Iterable[ModuleType], rehearsal: Callable[[], None] | None = None) -> None:
        """Have the template import these modules under the names that they have here, then run `rehearsal`."""
        wanted = [(m.__name__, m.__file__) for m in modules if m.__file__ and m.__name__ not in self._imported]
        if wanted:
            self._forgo_all()  # it was forked before these modules were there
            self._template()
            self._import([(name, os.path.abspath(file)) for name, file in wanted], rehearsal)
            self._imported.update(name for name, _ in wanted)

    def _request(self, message: tuple[Any, ...], descriptors: tuple[int, ...] = ()) -> socket.socket:
        """Send a request with one end of a fresh channel; returns our end of it."""
        template = self._template()
        ours, theirs = wire.pair()
        with theirs:
            try:
                wire.send(template, message, (theirs.fileno(), *descriptors))
            except OSError as error:
                ours.close()
                raise HarnessBroken("the template is gone", f"{error}\n{self._stderr()}") from None
        return ours

    def _ask(self, message: tuple[Any, ...], descriptors: tuple[int, ...] = (), *, timeout_s: float = _ANSWER_S) -> Any:
        with self._request(message, descriptors) as reply:
            answer, _ = self.await_message(reply, f"{message[0]!r}", timeout_s)
        return answer

    def await_message(self, channel: socket.socket, what: str, timeout_s: float) -> tuple[Any, list[int]]:
        """The next message on a channel, or `HarnessBroken` at its end or at the deadline."""
        if not wire.readable(channel, timeout_s):
            raise HarnessBroken(f"the sandbox's answer to {what}", f"did not come within {timeout_s:g} s")
        received = wire.receive(channel)
        if received is None:
            raise HarnessBroken(f"the sandbox's answer to {what}", f"its process ended instead\n{self._stderr()}")
        return received

    def _stderr(self) -> str:
        """The end of what the template wrote; one that is dying is given the time to finish its sentence."""
        assert self._process is not None
        try:
            self._process.wait(_LAST_WORDS_S)
        except subprocess.TimeoutExpired:
            pass  # it lives: what it has said so far is what there is
        size = os.fstat(self._said).st_size
        return os.pread(self._said, 4096, max(0, size - 4096)).decode(errors="replace")

    # --- what this machine can do -------------------------------------------------------

    @property
    def tier(self) -> str:
        """The tier of this session's sandboxes; makes one to find out."""
        if self._tier is None:
            self._tier = self._choose()
        return self._tier

    def _choose(self) -> str:
        if self._forced == BARE:
            self.refusal = "bare was asked for"
            return BARE
        trial = self._launch(NAMESPACES, SandboxSpec(kept=kept_paths()), trap=False)
        if isinstance(trial, Sandbox):
            trial.destroy()
            return NAMESPACES
        if self._forced == NAMESPACES:
            raise HarnessBroken("the sandbox tier 'namespaces' was asked for", f"but is refused here: {trial}")
        self.refusal = trial
        return BARE

    def probe(self, what: str) -> str | None:
        """Whether a mechanism works here: None, or the reason why not.  Tried once, in a process of its own.

        `what` is a module of `colos.chaos.mechanisms`, whose `probe` is called, or ``module.function``.
        """
        if what not in self._probed:
            self._probed[what] = self._ask(("probe", what))
        return self._probed[what]

    def probe_syscalls(self) -> str | None:
        """Whether trapped system calls work here: None, or the reason why not."""
        return self.probe("syscalls")

    # --- sandboxes ----------------------------------------------------------------------

    def sandbox(self, spec: SandboxSpec, program: Program | None = None) -> Sandbox:
        """A fresh sandbox of this session's tier, furnished; `program` is what the caller will start in it.

        One that was prefetched for the same program may have begun to start it: `Sandbox.start` knows.
        """
        ahead = self._ahead.get(threading.get_ident())
        if ahead is not None and (ahead.spec, ahead.program) == (spec, program):
            del self._ahead[threading.get_ident()]
            made = self._collect(self.tier, ahead.channel, trap=ahead.trap)
            if isinstance(made, Sandbox):
                made.started = ahead.program if ahead.started else None
                return made  # else: what was asked for ahead has died meanwhile, and a new one tells why
        self.forgo()
        made = self._launch(self.tier, spec, trap=self._traps(spec))
        if isinstance(made, str):
            raise HarnessBroken("a sandbox could not be made", made)
        return made

    def prefetch(self, spec: SandboxSpec, program: Program) -> None:
        """Have this thread's next sandbox made while its last one is healed and stopped; nobody waits for it here.

        In `namespaces` its program starts too.  In `bare` two programs would meet on the host's network.
        """
        if threading.get_ident() not in self._ahead:
            trap, started = self._traps(spec), self.tier == NAMESPACES
            channel = self._request(("sandbox", self.tier, spec, trap))
            if started:
                wire.send(channel, ("start", program))  # waits in the channel until there is a keeper
            self._ahead[threading.get_ident()] = _Ahead(spec, program, trap, started, channel)

    def forgo(self, thread: int | None = None) -> None:
        """End the sandbox that this thread (or another) has asked for ahead, if it has."""
        ahead = self._ahead.pop(threading.get_ident() if thread is None else thread, None)
        if ahead is not None:
            made = self._collect(self.tier, ahead.channel, trap=ahead.trap)
            if isinstance(made, Sandbox):
                made.destroy()

    def _forgo_all(self) -> None:
        for thread in list(self._ahead):
            self.forgo(thread)

    def _traps(self, spec: SandboxSpec) -> bool:
        return (self.tier == BARE or bool(spec.traps)) and self.probe_syscalls() is None

    def _launch(self, tier: str, spec: SandboxSpec, *, trap: bool) -> Sandbox | str:
        return self._collect(tier, self._request(("sandbox", tier, spec, trap)), trap=trap)

    def _collect(self, tier: str, channel: socket.socket, *, trap: bool) -> Sandbox | str:
        """Take over a sandbox that was asked for; the reason when it was refused."""
        try:
            made, descriptors = self.await_message(channel, "being made", _ANSWER_S)
            if made[0] != "made":
                channel.close()
                return str(made[1])
            sandbox = Sandbox(self, tier, channel, made[1], descriptors, trapping=trap)
        except BaseException:
            channel.close()
            raise
        refused = sandbox.furnish(_ANSWER_S)
        if refused:
            sandbox.destroy()
            return refused
        return sandbox

    def join(self, pidfd: int, request: Callable[[], tuple[Any, tuple[int, ...]]]) -> tuple[Any, list[int]]:
        """Do something inside a sandbox.  Raises `OSError` with the errno met in there."""
        with self._request(("join", request), (pidfd,)) as reply:
            answer, descriptors = self.await_message(reply, type(request).__name__, _ANSWER_S)
        if answer[0] == "error":
            raise OSError(answer[1], answer[2])
        if answer[0] != "done":
            raise HarnessBroken(f"acting inside the sandbox ({type(request).__name__})", str(answer[1]))
        return answer[1], descriptors

    def close(self) -> None:
        """End the template; sandboxes that still stand end with it.  May be called twice."""
        if self._channel is None or self._process is None:
            return
        self._forgo_all()
        self._channel.close()
        self._channel = None
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(_END_S)
        os.close(self._said)
        self._imported.clear()
