"""The command: ``colos demo`` and ``colos doctor``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

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

    chosen = parser.parse_args(arguments)
    # Each face is imported when it is asked for: --help must not wait for Hypothesis.
    try:
        if chosen.command == "demo":
            from colos.demo.show import show

            return show(chosen.sandbox, chosen.seed, chosen.examples, chosen.directory)
        from colos.chaos.doctor import examine

        return examine(chosen.sandbox)
    except KeyboardInterrupt:
        print("\ninterrupted; everything is healed and gone", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
