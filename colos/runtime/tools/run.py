"""`colos run`: a node in the foreground, as a service manager, a container or a terminal runs one.

This process is the node's heart.  It stops the node in order on SIGTERM and SIGINT; as PID 1 it
reaps whatever is orphaned.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from typing import Any

from colos.errors import InvalidSpecification
from colos.runtime import process, rundir
from colos.runtime.heart import Heart, Pulse
from colos.runtime.node import serve
from colos.runtime.root import START_FAILED
from colos.runtime.supervisor import Supervisor, specify

_STOP_S = 30.0


class _UnusableError(Exception):
    """What was asked for cannot be run; the text says why in a line."""


def run(supervisor: str, node: str | None, backend: str, restarts: int, watch_s: float | None) -> int:
    """Be a node until it ends: 0 after a clean stop, 1 when it gave up, 2 when it did not start."""
    # As PID 1, what nobody handles yet would be lost: it waits until the heart listens.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    try:
        found = _find(supervisor)
        run_dir = os.path.abspath(rundir.node_directory(node or specify(found).name))
        os.makedirs(run_dir, mode=0o700, exist_ok=True)
    except (_UnusableError, InvalidSpecification) as error:
        process.complain(str(error))
        return START_FAILED
    except OSError as error:
        process.complain(f"there can be no run directory: {error}")
        return START_FAILED

    def be_root(pulse: Pulse) -> int:
        def ready() -> None:
            process.complain(f"the node {os.path.basename(run_dir)!r} runs in {run_dir}")

        return serve(found, run_dir, backend=backend, ready=ready, pulse=pulse)

    sys.stdout.flush()  # what a module printed must not be printed by each fork
    return Heart(be_root, lifeline=None, restarts=restarts, watch_s=watch_s, stop_s=_STOP_S).guard()


def _find(name: str) -> type[Supervisor]:
    module_name, colon, qualname = name.partition(":")
    if not (module_name and colon and qualname):
        raise _UnusableError(f"{name!r} names no supervisor: it must be MODULE:SUPERVISOR, such as bank.tree:Bank")
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())
    found: Any
    try:
        found = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise _UnusableError(f"there is no module {error.name!r} in {os.getcwd()} or on sys.path") from None
        raise _UnusableError(f"the module {module_name!r} needs one that is not there: {error.name}") from None
    except Exception as error:  # the author's code runs
        traceback.print_exc()
        raise _UnusableError(
            f"the module {module_name!r} cannot be imported: {type(error).__name__}: {error}"
        ) from None
    for part in qualname.split("."):
        if not hasattr(found, part):
            raise _UnusableError(f"the module {module_name!r} has no {qualname!r}")
        found = getattr(found, part)
    if not (isinstance(found, type) and issubclass(found, Supervisor)):
        raise _UnusableError(f"{name} is not a subclass of colos.runtime.Supervisor")
    return found
