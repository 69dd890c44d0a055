"""The command: ``demo``, ``doctor``; ``replay``, ``scenarios``, ``minimise`` for saved scenarios; ``run`` to be a
node; ``ps``, ``stack``, ``trace``, ``attach`` for living ones.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, Final

from colos import __version__

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit status: 0 when all went as promised, 1 when not, 2 for bad usage."""
    parser = argparse.ArgumentParser(
        prog="colos", description="Break a multi-process system with real OS faults, and keep what breaks it."
    )
    parser.add_argument("--version", action="version", version=f"colos {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="find, confirm, minimise, save and replay the bug of a shipped example")
    demo.add_argument("--sandbox", choices=("namespaces", "bare"), help="the tier (default: the best there is)")
    demo.add_argument("--seed", type=int, help="the seed of the search (default: a new one, printed)")
    demo.add_argument("--examples", type=int, default=40, help="how many examples to try (default: 40)")
    demo.add_argument("--directory", default="", help="where the scenario is saved (default: .colos/demo here)")

    doctor = commands.add_parser("doctor", help="which sandbox and faults this machine offers, and why not others")
    doctor.add_argument("--sandbox", choices=("namespaces", "bare"), help="ask for this tier")
    doctor.add_argument("--json", action="store_true", help="for programs: one JSON object, and nothing else")

    _add_scenarios(commands)
    _add_run(commands)
    _add_tools(commands)
    chosen = parser.parse_args(arguments)
    # Each face is imported when it is asked for: --help must not wait for Hypothesis.
    if chosen.command in _TOOLS:
        return _TOOLS[chosen.command](chosen)
    try:
        status = _SHOWS[chosen.command](chosen)
        sys.stdout.flush()  # here, where it is no surprise that nobody reads on
        return status
    except KeyboardInterrupt:
        print("\ninterrupted; everything is healed and gone", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `colos doctor | head`: nobody reads on, and that is no error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _demo(chosen: argparse.Namespace) -> int:
    from colos.demo.show import show

    return show(chosen.sandbox, chosen.seed, chosen.examples, chosen.directory)


def _doctor(chosen: argparse.Namespace) -> int:
    from colos.chaos.doctor import examine

    return examine(chosen.sandbox, as_json=chosen.json)


# --- saved scenarios ---------------------------------------------------------------------


def _add_scenarios(commands: Any) -> None:
    replay = commands.add_parser("replay", help="run saved scenarios again, without pytest")
    replay.add_argument("files", nargs="+", metavar="FILE", help="a scenario's file")
    replay.add_argument("--runs", type=_least_one, metavar="N", help="run each at most so often (default: 30)")

    scenarios = commands.add_parser("scenarios", help="the saved scenarios: test, property, steps, rate, last outcome")
    scenarios.add_argument("folder", nargs="?", default="scenarios", metavar="FOLDER", help="default: scenarios")

    minimise = commands.add_parser("minimise", help="shorten a saved scenario again, and rewrite its file")
    minimise.add_argument("file", metavar="FILE", help="a scenario's file")
    minimise.add_argument("--seconds", type=_seconds, metavar="S", help="how long it may take (default: 60)")
    for each in (replay, minimise):
        each.add_argument("--sandbox", choices=("namespaces", "bare"), help="the tier (default: the best there is)")


def _least_one(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text[:9]) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, 1 or more")
    return int(text[:9])


def _replay(chosen: argparse.Namespace) -> int:
    from colos.chaos.commands.replay import replay

    return replay(chosen.files, chosen.sandbox, chosen.runs)


def _scenarios(chosen: argparse.Namespace) -> int:
    from colos.chaos.commands.scenarios import scenarios

    return scenarios(chosen.folder)


def _minimise(chosen: argparse.Namespace) -> int:
    from colos.chaos.commands.minimise import minimise

    return minimise(chosen.file, chosen.sandbox, chosen.seconds)


# --- a node in the foreground ------------------------------------------------------------


def _add_run(commands: Any) -> None:
    run = commands.add_parser("run", help="be a node until SIGTERM or Ctrl-C; fit for PID 1 of a container")
    run.add_argument("supervisor", metavar="MODULE:SUPERVISOR", help="such as bank.tree:Bank, found as python -m does")
    run.add_argument("--node", metavar="NAME_OR_DIR", help="its name, or run directory (default: by the supervisor)")
    run.add_argument("--backend", choices=("asyncio", "trio"), default="asyncio", help="the event loop of its actors")
    run.add_argument("--restarts", type=_count, default=0, metavar="N", help="restart its root up to N times a minute")
    run.add_argument("--watch", type=_seconds, metavar="SECONDS", help="kill a root that stands still for so long")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, 0 or more")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, more than 0")
    return seconds


def _run(chosen: argparse.Namespace) -> int:
    from colos.runtime.tools.run import run

    return run(chosen.supervisor, chosen.node, chosen.backend, chosen.restarts, chosen.watch)


# --- looking into living nodes -----------------------------------------------------------


def _add_tools(commands: Any) -> None:
    ps = commands.add_parser("ps", help="the nodes and their processes, as a tree")
    ps.add_argument("node", nargs="?", metavar="NODE", help="a node's name or run directory (default: all there are)")
    ps.add_argument("--watch", action="store_true", help="again every second, until Ctrl-C")

    stack = commands.add_parser("stack", help="all threads' and tasks' stacks of a process, also of one that is stuck")
    trace = commands.add_parser("trace", help="the messages of a process, in and out, live, until Ctrl-C")
    attach = commands.add_parser("attach", help="a Python prompt inside a living process")
    for each in (stack, trace, attach):
        each.add_argument("actor", metavar="ACTOR", help="its path, or its registered name")
        each.add_argument("--node", help="the node's name or run directory (default: whichever has such a process)")
    trace.add_argument("--count", type=int, metavar="N", help="end after so many messages")
    attach.add_argument(
        "--write", action="store_true", help="run commands in the live process itself, not in a forked copy of it"
    )


def _ps(chosen: argparse.Namespace) -> int:
    from colos.runtime.tools.ps import show

    return show(chosen.node, chosen.watch)


def _stack(chosen: argparse.Namespace) -> int:
    from colos.runtime.tools.stack import show

    return show(chosen.actor, chosen.node)


def _trace(chosen: argparse.Namespace) -> int:
    from colos.runtime.tools.trace import follow

    return follow(chosen.actor, chosen.node, chosen.count)


def _attach(chosen: argparse.Namespace) -> int:
    from colos.runtime.tools.attach import attach

    return attach(chosen.actor, chosen.node, chosen.write)


_SHOWS: Final = {
    "demo": _demo,
    "doctor": _doctor,
    "replay": _replay,
    "scenarios": _scenarios,
    "minimise": _minimise,
}
_TOOLS: Final = {"run": _run, "ps": _ps, "stack": _stack, "trace": _trace, "attach": _attach}


if __name__ == "__main__":
    sys.exit(main())
