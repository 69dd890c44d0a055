"""Ctrl-C, and the death of pytest itself, at any moment: nothing is left behind (DESIGN law 5)."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

STARTED_S = 30.0
#: How long a run may take to end after Ctrl-C, and its rest after any end.
ENDED_S = 5.0
GONE_S = 5.0
#: What one moment can meet: making a sandbox, booting, an op, a lasting fault, a heal, the end of an example.
STORM = """
from colos.chaos import CpuStarvation, DescriptorExhaustion

class TestStorm(Box):
    faults = (Kill("box"), DiskFull(), CpuStarvation("box"), DescriptorExhaustion("box"))

    @rule()
    async def wait(self):
        import anyio
        self.tasks.start_soon(anyio.sleep_forever)
        await anyio.sleep(0.01)
"""
FAILING = """
class TestFailing(Box):
    faults = (Kill("box"), DiskFull())

    @always
    def is_well(self):
        assert self.starts() < 3
"""


def until(holds: Callable[[], object], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def marked(mark: str) -> list[str]:
    """Every living process of a run, by the environment that it began with; a zombie has none."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if mark.encode() in (entry / "environ").read_bytes():
                    found.append(f"{entry.name} {(entry / 'comm').read_text().strip()}")
            except OSError:
                continue  # it has just ended
    return found


class Run:
    def __init__(self, project, *arguments: str) -> None:
        self.mark = uuid.uuid4().hex
        self.project = project
        self.journals = project.path / ".colos/journal"
        self.process: subprocess.Popen[bytes] = project.start("--colos-examples=100000", *arguments, mark=self.mark)

    def wait_until(self, written: str) -> None:
        """Until some journal tells of this."""

        def told() -> bool:
            assert self.process.poll() is None, self.said()
            return any(written in path.read_text() for path in self.journals.glob("*.jsonl"))

        assert until(told, STARTED_S), self.said()
        assert marked(self.mark)

    def said(self) -> str:
        return str(self.project.output.read_text())

    def left(self) -> list[str]:
        """Processes, temporary directories and mounts that are still there."""
        mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "colos" in line.split()[4]]
        return [*marked(self.mark), *map(str, self.project.temporary.iterdir()), *mounts]


@pytest.fixture
def run(project) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def begin(*arguments: str) -> Run:
        runs.append(Run(project, *arguments))
        return runs[-1]

    yield begin
    for each in runs:
        if each.process.poll() is None:
            os.killpg(each.process.pid, signal.SIGKILL)
            each.process.wait(GONE_S)


TIERS = pytest.mark.parametrize("tier", ["namespaces", "bare"])


@pytest.mark.slow
@TIERS
@pytest.mark.parametrize("moment", range(3))
def test_ctrl_c_ends_the_run_at_once_and_leaves_nothing(project, run, tier, moment):
    """To pytest alone, and, as a terminal does it, to all of its group; any moment of any step."""
    project.box(STORM)
    running = run(f"--colos-sandbox={tier}", "--colos-steps=8")
    running.wait_until('"fault-fired"')
    time.sleep(random.Random(f"{tier} {moment}").uniform(0, 0.5))  # not waiting for anything: this is the moment
    began = time.monotonic()
    if moment % 2:
        os.killpg(running.process.pid, signal.SIGINT)
    else:
        running.process.send_signal(signal.SIGINT)
    code = running.process.wait(STARTED_S)
    took = time.monotonic() - began
    assert code == pytest.ExitCode.INTERRUPTED, running.said()
    for noise in ("harness broken", "INTERNALERROR", "Exception ignored", "was never awaited", "Falsifying"):
        assert noise not in running.said()
    assert "KeyboardInterrupt" in running.said()
    assert until(lambda: not running.left(), GONE_S), running.left()
    assert took < ENDED_S, running.said()
    assert not (project.path / "scenarios").exists()


@pytest.mark.slow
@TIERS
def test_ctrl_c_while_minimising_saves_nothing_half_done(project, run, tier):
    project.box(FAILING)
    running = run(f"--colos-sandbox={tier}", "--colos-seed=1", "--colos-steps=12")
    running.wait_until('"kill')
    assert until(lambda: list(running.journals.glob("*-minimise.jsonl")), STARTED_S), running.said()
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(STARTED_S) == pytest.ExitCode.INTERRUPTED, running.said()
    assert until(lambda: not running.left(), GONE_S), running.left()
    assert not list(project.path.glob("scenarios/*"))


@pytest.mark.slow
@TIERS
@pytest.mark.parametrize("moment", range(2))
def test_the_death_of_pytest_leaves_nothing(project, run, tier, moment):
    project.box(STORM)
    running = run(f"--colos-sandbox={tier}", "--colos-steps=8")
    running.wait_until('"fault-fired"')
    time.sleep(random.Random(f"{tier} {moment} dies").uniform(0, 0.5))  # this is the moment
    running.process.kill()
    assert running.process.wait(GONE_S) == -signal.SIGKILL
    assert until(lambda: not running.left(), GONE_S), running.left()


@pytest.mark.slow
def test_the_death_of_a_worker_of_xdist_leaves_nothing(project, run):
    """The run goes on to its end with another in its place; its sandboxes end with it."""
    pytest.importorskip("xdist")
    project.box(STORM, "class TestAfter(Box):\n    faults = (Kill('box'),)\n")
    running = run("--colos-steps=8", "--colos-examples=20", "-n", "2")
    running.wait_until('"fault-fired"')
    workers = [child for child in psutil.Process(running.process.pid).children() if child.children()]
    assert workers, running.said()  # those that explore have a template below them
    below = workers[0].children(recursive=True)
    assert below
    workers[0].kill()
    assert running.process.wait(STARTED_S) == pytest.ExitCode.TESTS_FAILED, running.said()
    assert "replacing crashed worker" in running.said()
    assert "1 failed, 1 passed" in running.said()
    assert until(lambda: not running.left(), GONE_S), running.left()
