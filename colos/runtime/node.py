"""Starting, connecting to and stopping a node."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
import types
from collections.abc import Callable
from typing import Any, Final

import anyio
import anyio.abc

from colos.errors import ColosError, InvalidSpecification, StartFailed
from colos.runtime import process, rundir, transport, zygote
from colos.runtime.client import NodeClient, connect
from colos.runtime.heart import Heart, Pulse
from colos.runtime.root import START_FAILED, Root
from colos.runtime.supervisor import Supervisor, specify

_MAIN: Final = "__colos_main__"
"""Under this name a program's own file is imported in a root, as multiprocessing does under its own."""
_START_S: Final = 30.0
_STOP_S: Final = 30.0
_KILL_S: Final = 5.0


# --- being a node ------------------------------------------------------------------------


def serve(
    supervisor: type[Supervisor],
    run_dir: str,
    *,
    backend: str = "asyncio",
    ready: Callable[[], None] | None = None,
    lifeline: socket.socket | None = None,
    pulse: Pulse | None = None,
) -> int:
    """Be a node's root: start the supervisor's children, keep them, stop them on SIGTERM or SIGINT.

    For a single-threaded process that has nothing else to do, which stays a child subreaper and
    keeps these signal handlers.  `ready` is called once, when every child is ready; the end of
    `lifeline`, if one is given, stops the node; `pulse` is what a heart watches.  Returns 0 after a
    clean stop, 1 when the supervisor gave up (or its zygotes died), 2 when the start failed; why is
    in run_dir/crash and on stderr.
    """
    root: Root | None = None
    try:
        os.makedirs(run_dir, mode=0o700, exist_ok=True)
        if process.lock_file(f"{run_dir}/lock") is None:
            process.complain(f"a node already lives in {run_dir}")
            return START_FAILED
        tree = specify(supervisor)
        process.become_subreaper()
        zygote.prepare(backend)
        directory = rundir.RunDirectory(run_dir)
        directory.make(f"{tree.name} {tree.label}")
        root = Root(tree, directory, backend, pulse)
        listening = transport.listen(run_dir)
        root.fork_first()
        code = anyio.run(root.run, listening, lifeline, ready or _nothing, backend=backend)
        if root.failure:
            _tell(run_dir, root.account())
        return code
    except Exception as error:  # whatever it is, whoever started this node reads it in the same place
        trace = "" if isinstance(error, ColosError) else f"\n{traceback.format_exc()}"
        _tell(run_dir, f"{type(error).__name__}: {error}\n{trace}")
        return START_FAILED
    finally:
        if root is not None:
            root.end()


def _nothing() -> None:
    pass


def _tell(run_dir: str, text: str) -> None:
    rundir.write(f"{run_dir}/crash", text)
    process.complain(text)


# --- a node of one's own -----------------------------------------------------------------


class Node:
    """``async with Node(LedgerSupervisor) as node:`` starts a node as a child of this program.

    A fresh interpreter imports the supervisor by name; it is the node's heart, and forks its root.
    Leaving the block stops the node in order, within `stop_s` or, cancelled or not, little more; if
    this program dies, however it does, the node ends too.
    `run_dir` is its run directory, or its name, under which others find it; without one it is
    new and removed afterwards (in $COLOS_RUN, else $XDG_RUNTIME_DIR/colos, else the temporary directory).
    The heart starts a root that dies again, up to `restarts` times a minute, and kills one
    whose event loop stands still for `watch_s`.  Raises StartFailed on entering.
    """

    def __init__(
        self,
        supervisor: type[Supervisor],
        run_dir: str | None = None,
        backend: str = "asyncio",
        *,
        start_s: float = _START_S,
        stop_s: float = _STOP_S,
        restarts: int = 0,
        watch_s: float | None = None,
    ) -> None:
        self._label = _importable(supervisor)
        specify(supervisor)
        self._given_dir = None if run_dir is None else rundir.node_directory(run_dir)
        self._restarts = restarts
        self._watch_s = watch_s
        self._backend = backend
        self._start_s = start_s
        self._stop_s = stop_s

    async def __aenter__(self) -> NodeClient:
        run_dir = self._given_dir or _fresh_run_dir()
        self._run_dir = run_dir
        os.makedirs(run_dir, mode=0o700, exist_ok=True)
        self._lifeline, theirs = socket.socketpair()
        self._lifeline.setblocking(False)
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: connect | None = None
        try:
            with theirs:
                self._process = self._launch(run_dir, theirs)
            await self._wait_ready(self._process)
            connection = connect(run_dir)
            client = await connection.__aenter__()
            self._connection = connection
            return client
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._end()
            raise

    def _launch(self, run_dir: str, lifeline: socket.socket) -> subprocess.Popen[bytes]:
        main = getattr(sys.modules["__main__"], "__file__", None) if self._label.startswith("__main__:") else None
        if main:
            sys.modules.setdefault(_MAIN, sys.modules["__main__"])  # so that what its classes raise can be read here
        orders = {
            "sys_path": sys.path,
            "main": main,
            "supervisor": self._label,
            "run_dir": run_dir,
            "backend": self._backend,
            "lifeline": lifeline.fileno(),
            "restarts": self._restarts,
            "watch_s": self._watch_s,
            "stop_s": self._stop_s,
            "fresh": self._given_dir is None,
        }
        boot = (
            "import json, sys; orders = json.loads(sys.argv[1]); sys.path[:] = orders['sys_path']; "
            "from colos.runtime.node import _boot; _boot(orders)"
        )
        with open(f"{run_dir}/root.log", "wb") as log:
            return subprocess.Popen(
                [sys.executable, "-c", boot, json.dumps(orders)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(lifeline.fileno(),),
            )

    async def _wait_ready(self, started: subprocess.Popen[bytes]) -> None:
        with anyio.move_on_after(self._start_s) as deadline:
            await anyio.wait_readable(self._lifeline)
        try:
            ready = self._lifeline.recv(1)
        except OSError:  # not readable at the deadline, or the root died hard
            ready = b""
        if ready:
            return
        reason = f"it was not ready within {self._start_s:g} s"
        if not deadline.cancelled_caught:
            await process.wait_dead(started.pid, self._stop_s)
            crash = rundir.tail(f"{self._run_dir}/crash", 1 << 20)
            reason = crash.rstrip() or process_end(started.poll())
        raise StartFailed(self._label, reason, rundir.tail(f"{self._run_dir}/root.log"))

    async def __aexit__(self, *_: object) -> None:
        try:
            if self._connection is not None:
                await self._connection.__aexit__()
        finally:
            with anyio.CancelScope(shield=True):
                await self._end()

    async def _end(self) -> None:
        """Close the lifeline, wait for the root, clean up; `stop_s` bounds it."""
        self._lifeline.close()
        if self._process is not None:
            if not await process.wait_dead(self._process.pid, self._stop_s + _KILL_S):
                self._process.send_signal(signal.SIGQUIT)  # the heart kills everything
                if not await process.wait_dead(self._process.pid, 2 * _KILL_S):
                    self._process.kill()
            self._process.wait(1.0)
        if self._given_dir is None:
            shutil.rmtree(self._run_dir, ignore_errors=True)


def process_end(code: int | None) -> str:
    """A Popen's return code in words."""
    if code is None:
        return "its root closed its lifeline and lives on"
    return f"its root ended with {process.describe_status(-code if code < 0 else code << 8)}"


def _importable(supervisor: object) -> str:
    if not isinstance(supervisor, type) or "<locals>" in supervisor.__qualname__:
        raise InvalidSpecification(f"{supervisor!r} cannot be imported by name in the node's own interpreter")
    return f"{supervisor.__module__}:{supervisor.__qualname__}"


def _fresh_run_dir() -> str:
    return tempfile.mkdtemp(prefix="colos-", dir=rundir.base_directory())


def _boot(orders: dict[str, Any]) -> None:
    """In the fresh interpreter: import the supervisor, and be its node's heart."""
    # A terminal's Ctrl-C is the program's, which then stops the node in order.  Not between fork and exec: on Linux
    # 6.18 a process that changes its session there while its parent is killed was seen never to run again.
    os.setsid()
    os.set_inheritable(orders["lifeline"], False)
    lifeline = socket.socket(fileno=orders["lifeline"])
    lifeline.setblocking(False)
    module_name, _, qualname = orders["supervisor"].partition(":")
    try:
        if orders["main"]:
            module: Any = types.ModuleType(_MAIN)
            module.__dict__.update(runpy.run_path(orders["main"], run_name=_MAIN))
            sys.modules["__main__"] = sys.modules[_MAIN] = module
        else:
            __import__(module_name)
            module = sys.modules[module_name]
        supervisor = module
        for part in qualname.split("."):
            supervisor = getattr(supervisor, part)
    except BaseException:
        _tell(orders["run_dir"], f"{orders['supervisor']} cannot be imported\n{traceback.format_exc()}")
        os._exit(START_FAILED)

    def be_root(pulse: Pulse) -> int:
        def ready() -> None:
            _say_ready(lifeline)

        return serve(
            supervisor, orders["run_dir"], backend=orders["backend"], ready=ready, lifeline=lifeline, pulse=pulse
        )

    heart = Heart(
        be_root,
        lifeline=lifeline,
        restarts=orders["restarts"],
        watch_s=orders["watch_s"],
        stop_s=orders["stop_s"],
    )
    code = heart.guard()
    if orders["fresh"] and heart.orphaned:
        shutil.rmtree(orders["run_dir"], ignore_errors=True)  # nobody else is left to do it
    os._exit(code)


def _say_ready(lifeline: socket.socket) -> None:
    try:
        lifeline.send(b"R")
    except OSError:  # whoever started this node is gone, and the lifeline's end is about to stop it
        pass
