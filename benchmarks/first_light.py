"""What first light promises of speed, each figure against something run in the same minute.

    python benchmarks/first_light.py [--runs 30] [--sandbox bare]

Prints medians and the ratios that matter; judges nothing.  Machines are noisy: run it on an idle one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

# Nothing of colos up here: the spawned processes import this module, and must not pay for it.
if TYPE_CHECKING:
    from colos.chaos.sandbox.session import Session

EXAMPLES = 40


def answer(pipe: object) -> None:
    pipe.send(pipe.recv())  # type: ignore[attr-defined]


def three_spawned() -> float:
    """Three multiprocessing *spawn* processes that each answer one message."""
    context = multiprocessing.get_context("spawn")
    started = time.perf_counter()
    pipes, processes = [], []
    for _ in range(3):
        ours, theirs = context.Pipe()
        process = context.Process(target=answer, args=(theirs,))
        process.start()
        ours.send("?")
        pipes.append(ours)
        processes.append(process)
    for pipe in pipes:
        pipe.recv()
    took = time.perf_counter() - started
    for process in processes:
        process.join()
    return took


def sandbox_with_node(session: Session) -> tuple[float, float]:
    """Seconds to a fresh sandbox with a node of three actors ready in it, and to its end."""
    from colos.chaos.sandbox.spec import SandboxSpec, kept_paths
    from colos.demo.machine import RepairedLedger

    spec = SandboxSpec(kept=kept_paths())
    started = time.perf_counter()
    sandbox = session.sandbox(spec, RepairedLedger.system.program())
    RepairedLedger.system.boot(sandbox).wait_ready(10.0)
    took = time.perf_counter() - started
    started = time.perf_counter()
    sandbox.destroy()
    return took, time.perf_counter() - started


def examples_a_second(session: Session) -> float:
    """Exploring the repaired demo: 3 actors, 12 steps an example, all four families."""
    from colos.chaos.driver import Driver
    from colos.chaos.outcomes import Options
    from colos.demo.machine import RepairedLedger

    with (
        tempfile.TemporaryDirectory() as folder,
        Driver(
            RepairedLedger,
            session,
            test="benchmark",
            journal=Path(folder) / "journal.jsonl",
            options=Options(examples=EXAMPLES, steps=12, seed=1),
        ) as driver,
    ):
        started = time.perf_counter()
        exploration = driver.explore({}, None)
        took = time.perf_counter() - started
    assert exploration.failure is None, exploration.failure
    assert len(exploration.fired) == 4, exploration.fired
    return exploration.examples / took


def start_of_pytest(*extra: str) -> float:
    """Seconds of a pytest that finds one plain test, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "test_one.py").write_text("def test_one(): pass\n")
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *extra, folder],
            cwd=folder, check=True, capture_output=True,
        )  # fmt: skip
        return time.perf_counter() - started


def median_ms(measure: Callable[[], float], runs: int) -> float:
    return statistics.median(measure() for _ in range(runs)) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--sandbox", choices=("namespaces", "bare"))
    chosen = parser.parse_args()
    import colos.demo.machine
    from colos.chaos.sandbox.session import Session
    from colos.chaos.sandbox.spec import SandboxSpec, kept_paths
    from colos.demo.machine import RepairedLedger

    session = Session(chosen.sandbox)
    try:
        session.prepare([colos.demo.machine, *RepairedLedger.system.modules()], RepairedLedger.system.rehearsal())
        print(f"python {sys.version.split()[0]}, {os.cpu_count()} cores, sandbox {session.tier}")
        ours, ends, theirs = [], [], []
        cold: list[float] = []
        for _ in range(chosen.runs):  # in turns, so that all meet the same noise
            took, end = sandbox_with_node(session)
            cold.append(took * 1e3)
            ends.append(end * 1e3)
            session.prefetch(
                SandboxSpec(kept=kept_paths()), RepairedLedger.system.program()
            )  # as the executor does while it heals the last one
            theirs.append(three_spawned() * 1e3)
            took, end = sandbox_with_node(session)
            ours.append(took * 1e3)
            ends.append(end * 1e3)
        spawned = statistics.median(theirs)
        fresh = statistics.median(cold)
        ending = f"destroyed in {statistics.median(ends):.1f} ms"
        print(f"sandbox and node of 3 actors, ready   {fresh:6.1f} ms (min {min(cold):.1f}), {ending}")
        print(f"3 multiprocessing spawn, answered     {spawned:6.1f} ms (min {min(theirs):.1f})")
        print(f"ratio                                 {spawned / fresh:6.1f} x faster")
        print(f"the wait for one that was made ahead  {statistics.median(ours):6.1f} ms, as exploring has it")
        print(f"exploring the repaired demo           {examples_a_second(session):6.1f} examples a second")
    finally:
        session.close()
    with_plugin, without = [], []
    for _ in range(max(5, chosen.runs // 3)):
        with_plugin.append(start_of_pytest() * 1e3)
        without.append(start_of_pytest("-p", "no:colos") * 1e3)
    extra = statistics.median(with_plugin) - statistics.median(without)
    print(f"pytest with the plugin, no chaos test {extra:+6.1f} ms (of {statistics.median(without):.0f} ms)")


if __name__ == "__main__":
    main()
