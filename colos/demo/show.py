"""``colos demo``: the main job, start to end, on the ledger, told to somebody who sees it for the first time."""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from colos.chaos.driver import Driver
from colos.chaos.machine import ChaosMachine
from colos.chaos.outcomes import Exploration, Failure, Options, ReplayOutcome
from colos.chaos.report import numbered, tally
from colos.chaos.sandbox.session import Session
from colos.chaos.scenario import load
from colos.demo.machine import BuggyLedger, RepairedLedger
from colos.errors import HarnessBroken

__all__ = ["show"]

_LINE = 100


class _Progress:
    """One line that is written over on a terminal; plain lines, fewer of them, elsewhere."""

    def __init__(self) -> None:
        self._out = sys.stdout  # while Hypothesis runs, what is printed is kept from the terminal
        self._terminal = sys.stdout.isatty()
        self._last = ""

    def __call__(self, text: str) -> None:
        if self._terminal:
            print(f"\r  … {text[:_LINE]:<{_LINE}}", end="", flush=True, file=self._out)
        elif text.split(":")[0] != self._last:
            print(f"  … {text}", flush=True, file=self._out)
        self._last = text.split(":")[0]

    def done(self) -> None:
        """Leave the terminal's line clean."""
        if self._terminal:
            print("\r" + " " * (_LINE + 4) + "\r", end="", flush=True, file=self._out)


def show(sandbox: str | None, seed: int | None, examples: int, directory: str) -> int:
    """Run the demo; returns 0 when every part of it happened."""
    seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    session = Session(sandbox)
    started = time.monotonic()
    try:
        return _Demo(session, Options(examples=examples, steps=12, seed=seed), _place(directory)).run(started)
    except HarnessBroken as error:
        print(f"\nharness broken (no verdict on the system): {error}", file=sys.stderr)
        return 1
    finally:
        session.close()


def _place(directory: str) -> Path:
    """Where files go: the folder asked for, else here, else (nothing may be written here) a temporary one."""
    wanted = Path(directory or ".colos/demo")
    try:
        wanted.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=wanted):
            return wanted
    except OSError:
        if directory:
            raise
        return Path(tempfile.mkdtemp(prefix="colos-demo-"))


class _Demo:
    def __init__(self, session: Session, options: Options, place: Path) -> None:
        self._session = session
        self._options = options
        self._place = place
        self._progress = _Progress()
        self._fired: Counter[str] = Counter()

    def run(self, started: float) -> int:
        print("ColOS demo: a ledger of jobs (a front, a writer that keeps a file, a counter; each an OS process).")
        print("It promises that no acknowledged job is ever lost.  We break its machine to see.\n")
        refused = f" ({self._session.refusal})" if self._session.tier == "bare" else ""
        print(f"sandbox: {self._session.tier}{refused}; seed {self._options.seed}")
        print(f"faults:  {', '.join(sorted(fault.kind for fault in BuggyLedger.faults))}\n")

        print("1. Exploring the ledger as it was shipped")
        failure = self._explore(BuggyLedger, self._place).failure
        if failure is None or failure.saved is None:
            print("   no violation was found and saved: the demo has failed; try another --seed or more --examples")
            return 1
        self._tell(failure)
        replayed = self._replay(BuggyLedger, failure.saved, "4. Replaying the file, on the ledger as it was shipped")
        held = not self._replay(RepairedLedger, failure.saved, "5. Replaying the file, on the repaired ledger")

        print("6. Exploring the repaired ledger: the same storm")
        repaired = self._explore(RepairedLedger, None)
        if repaired.failure is not None:
            print(f"   {repaired.failure.violation.name}: {repaired.failure.violation.detail}")
            print(numbered(repaired.failure.minimal))
        else:
            print(f"   {repaired.examples} examples, nothing violated\n")
        idle = [fault.kind for fault in BuggyLedger.faults if not self._fired[fault.kind]]
        print(f"faults that fired (each shown by the kernel): {tally(self._fired)}")
        if idle:
            print(f"never fired: {', '.join(idle)}")
        print(f"done in {time.monotonic() - started:.0f} s")
        return 0 if replayed and held and repaired.failure is None and not idle else 1

    def _driver(self, machine: type[ChaosMachine], name: str) -> Driver:
        return Driver(
            machine,
            self._session,
            test=f"colos.demo.machine::{machine.__name__}",
            journal=self._place / f"{name}.jsonl",
            options=self._options,
            progress=self._progress,
        )

    def _explore(self, machine: type[ChaosMachine], directory: Path | None) -> Exploration:
        with self._driver(machine, machine.__name__) as driver:
            exploration = driver.explore({}, directory)
        self._progress.done()
        self._fired.update(exploration.fired)
        return exploration

    def _replay(self, machine: type[ChaosMachine], saved: Path, title: str) -> bool:
        """Whether the scenario's violation came back."""
        print(title)
        with self._driver(machine, f"replay-{machine.__name__}") as driver:
            replay = driver.replay(load(saved), until_failed=True)
        self._progress.done()
        if replay.failed:
            print("   violated again, as the file says\n")
            return True
        said = "held" if replay.outcome is ReplayOutcome.FIXED else replay.outcome.value
        print(f"   {said}: the promise is kept\n")
        return False

    def _tell(self, failure: Failure) -> None:
        print(f"   found: {failure.violation.name}")
        print(f"          {failure.violation.detail.splitlines()[0]}\n")
        print("2. Confirming and minimising")
        print(f"   the same steps, run again, fail in {failure.repro.failed} of {failure.repro.runs} runs")
        print(
            f"   {len(failure.found)} steps come down to {len(failure.minimal)}, in {failure.minimising_runs} runs:\n"
        )
        print(numbered(failure.minimal))
        print(f"\n3. Saving it: {failure.saved}\n")
        assert failure.saved is not None
        print("".join(f"   | {line}\n" for line in failure.saved.read_text(encoding="utf-8").splitlines()))
