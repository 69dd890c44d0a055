"""Stacks on demand: SIGQUIT makes a process of a node write down what it is doing, as it does in a JVM.

The interpreter writes every thread's stack into the log at once, even while it is stuck in a C call
(CPython only); as soon as it runs Python code again, `stack` in its directory gets these and the
stacks of all tasks of its event loop.
"""

from __future__ import annotations

import _thread
import faulthandler
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final

from colos.runtime import here, process, rundir

SIGNAL: Final = signal.SIGQUIT


def prepare() -> None:
    """Answer the signal in every process forked from this one."""
    signal.signal(SIGNAL, _dump)
    if hasattr(faulthandler, "register"):  # not in PyPy
        faulthandler.register(SIGNAL, file=2, all_threads=True, chain=True)


def _dump(number: int, frame: FrameType | None) -> None:
    del number
    try:
        worker = here.here()
    except Exception:  # the zygote, or a process that is not one yet
        return
    text = "\n".join(_describe(frame, worker))
    directory = f"{worker.board.run_dir}/actors/{worker.ref.id}"
    if not rundir.write(f"{directory}/stack", text + "\n"):
        process.complain(text)


def _describe(interrupted: FrameType | None, worker: here.Here) -> Iterator[str]:
    yield f"{worker.ref.path} (pid {os.getpid()})"
    for ident, frame in sys._current_frames().items():
        shown = interrupted if ident == _thread.get_ident() else frame
        yield f"\nthread {ident}:"
        yield "".join(traceback.format_stack(shown)).rstrip()
    for name, frames in _tasks():
        yield f"\ntask {name}:"
        for at in frames:
            yield "".join(traceback.format_stack(at, limit=1)).rstrip()


def _tasks() -> Iterator[tuple[str, list[FrameType]]]:
    """Every task of this process's event loop, with its frames from the outermost inwards."""
    asyncio, trio = sys.modules.get("asyncio"), sys.modules.get("trio")
    try:
        if asyncio is not None and (loop := asyncio._get_running_loop()) is not None:
            for task in asyncio.all_tasks(loop):
                yield task.get_name(), _frames_of(task.get_coro())
        elif trio is not None:
            waiting = [trio.lowlevel.current_root_task()]
            while waiting:
                task = waiting.pop()
                if task is not None:
                    yield task.name, _frames_of(task.coro)
                    waiting += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    except RuntimeError:  # no loop runs just now
        return


def _frames_of(awaited: Any) -> list[FrameType]:
    """The frames of a coroutine and of what it awaits."""
    frames: list[FrameType] = []
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is None:
            break
        frames.append(frame)
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
    return frames
