"""The template: one single-threaded process a session, from which every sandbox is forked.

It has the test's modules imported once, so that a fresh machine costs forks and no imports.
Only a single-threaded process may make or join a user namespace, and pytest has threads: pytest
itself never forks.  Run as ``python -c 'from colos.chaos.sandbox.template import main; main(FD)'``.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from colos.chaos.sandbox import join, namespaces, spec, wire

__all__ = ["main"]


def main(descriptor: int) -> NoReturn:
    """Serve requests on the inherited channel until its other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is pytest's to handle; we end with its channel
    channel = socket.socket(fileno=descriptor)
    channel.set_inheritable(False)
    while (received := _next(channel)) is not None:
        message, descriptors = received
        try:
            _serve(channel, message, descriptors)
        finally:
            for extra in descriptors:
                os.close(extra)
    os._exit(0)


def _next(channel: socket.socket) -> tuple[Any, list[int]] | None:
    """The next request.  Children are reaped as they die, but never those that an import waits for."""
    signal.signal(signal.SIGCHLD, lambda *_: _reap())
    try:
        _reap()
        return wire.receive(channel)
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _serve(channel: socket.socket, message: tuple[Any, ...], descriptors: list[int]) -> None:
    match message:
        case ("import", path, modules, rehearsal):
            _reply(descriptors[0], _import(path, modules, rehearsal))
        case ("sandbox", spec.BARE, wanted, trap):
            from colos.chaos.sandbox import bare

            lifeline = os.pidfd_open(os.getpid())
            try:
                _fork(channel, descriptors, lambda: bare.launch(wanted, _own(descriptors), lifeline, trap=trap))
            finally:
                os.close(lifeline)
        case ("sandbox", _, wanted, trap):
            template = os.getpid()
            _fork(channel, descriptors, lambda: namespaces.launch(wanted, _own(descriptors), template, trap=trap))
        case ("join", request):
            _fork(channel, descriptors, lambda: join.perform(request, _own(descriptors), descriptors[1]))
        case ("probe", request):
            _fork(channel, descriptors, lambda: join.probe(request, _own(descriptors)))


def _own(descriptors: list[int]) -> socket.socket:
    """In a forked child: the request's own channel, which is the child's from now on."""
    return socket.socket(fileno=descriptors[0])


def _reply(descriptor: int, answer: object) -> None:
    with socket.socket(fileno=os.dup(descriptor)) as reply:
        wire.send(reply, answer)


def _fork(channel: socket.socket, descriptors: list[int], then: Callable[[], None]) -> None:
    """Run `then` in a child that owns nothing of the template's but what it was given."""
    if os.fork():
        return
    try:
        channel.close()
        then()
    except BaseException:
        try:
            _reply(descriptors[0], ("refused", traceback.format_exc()))
        except OSError:
            pass  # nobody is left to tell
    finally:
        os._exit(1)


def _import(path: list[str], modules: list[tuple[str, str]], rehearsal: Callable[[], None] | None) -> str:
    """Import the test's modules under the names pytest gave them, and rehearse; returns a traceback, or ''."""
    for entry in reversed(path):
        if entry not in sys.path:
            sys.path.insert(0, entry)
    try:
        for name, file in modules:
            _import_one(name, file)
        if rehearsal is not None:
            rehearsal()
    except BaseException:
        return traceback.format_exc()
    gc.collect()
    gc.freeze()  # keep the collector from touching, and so copying, every page after each fork
    return ""


def _import_one(name: str, file: str) -> None:
    if name in sys.modules:
        return
    found = importlib.util.find_spec(name) if _parent_is_importable(name) else None
    if found is not None and found.origin is not None and os.path.realpath(found.origin) == os.path.realpath(file):
        importlib.import_module(name)
        return
    # pytest's importlib mode names modules after their place in the project; nothing finds those.
    found = importlib.util.spec_from_file_location(name, file)
    if found is None or found.loader is None:
        raise ImportError(f"{file} cannot be imported as {name}")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    found.loader.exec_module(module)


def _parent_is_importable(name: str) -> bool:
    parent = name.rpartition(".")[0]
    if not parent:
        return True
    try:
        return importlib.util.find_spec(parent) is not None
    except ModuleNotFoundError:
        return False


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        return
