"""What every process of a node does when it begins, done once before any is forked.

Code that has run is specialised and its caches are filled.  Done in each fork instead, that writes to, and
so copies, some hundred pages: measured, a tenth of what is an idle actor's own, and of a node's start.
What a process writes to all the same, it copies before it is needed, if it plays this while it waits.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
from typing import Final

import anyio

from colos.runtime import message
from colos.runtime.callers import Callers
from colos.runtime.mailbox import Mailbox
from colos.runtime.refs import ActorRef
from colos.runtime.stats import Stats
from colos.runtime.switchboard import Switchboard
from colos.runtime.trace import Tracer
from colos.runtime.transport import Connection

_DEADLINE_S: Final = 1.0
_rehearsed: set[str] = set()


def rehearse(backend: str, times: int = 1) -> None:
    """Play it in this process, where no event loop runs, unless it was played here before."""
    if backend not in _rehearsed:
        _rehearsed.add(backend)
        importlib.import_module(f"anyio._backends._{backend}")  # which anyio itself would do in every process
        try:
            for _ in range(times):
                anyio.run(_play, backend=backend)
        except OSError:  # no descriptor to spare: whoever needs one in earnest will say so
            pass


async def _play() -> None:
    with anyio.open_signal_receiver(signal.SIGCHLD):
        await play()


async def play() -> None:
    """A call from a process to another, over a real socket, and its answer."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("")  # the kernel chooses a name that is in no file system
        listening.listen()
        listening.setblocking(False)
        caller = socket.socket(socket.AF_UNIX)
        caller.connect(listening.getsockname())
        async with anyio.create_task_group() as tasks:
            me = ActorRef("rehearsal", 1, os.sep)
            board = Switchboard(os.sep, tasks.start_soon, own=me, root=Connection(caller, tasks.start_soon))
            mailbox = Mailbox(1)
            board.callers = Callers(listening, tasks.start_soon, mailbox, Tracer())
            board.root_peer.listen()
            tasks.start_soon(board.callers.run)
            tasks.start_soon(_answer, mailbox)
            with anyio.move_on_after(_DEADLINE_S):
                await board.ask_root("echo", 1)
            board.close()
            for one in board.callers.connections():
                one.connection.close()
            tasks.cancel_scope.cancel()


async def _answer(mailbox: Mailbox) -> None:
    await mailbox.wait()
    letter = mailbox.take()
    assert letter is not None
    assert letter.frame is not None
    assert letter.caller is not None
    stats = Stats(os.devnull)
    method, args, _ = message.decode(letter.frame)
    stats.busy(method)
    letter.caller.connection.post(message.encode_result(letter.frame.request, "rehearsal", method, args[0]))
    stats.idle()
    stats.waiting(1)
