"""What the environment did to a run is told, retried, and never blamed on the system."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import rule
from nowhere_kinds import Hold

from colos.chaos import ChaosMachine, always
from colos.chaos.environment import OOM_KILLED, Environment, full_file_system, has_risen, oom_kills_in, shortage
from colos.chaos.fault import REGISTRY
from colos.chaos.mechanisms import memorycgroup
from colos.chaos.outcomes import ReplayOutcome
from colos.chaos.properties import Outcome
from colos.chaos.scenario import Inject, Op, Repro, Scenario
from colos.chaos.told import of_exploration

FULL_TMPFS = """
import os, subprocess, sys
subprocess.run(["mount", "-t", "tmpfs", "-o", sys.argv[2], "none", sys.argv[1]], check=True)
from colos.chaos.environment import Environment
environment = Environment(temporary=sys.argv[1])
print(environment.excuse(environment.oom_kills(), [], oom_injected=True))
try:
    for number in range(1000):
        with open(f"{sys.argv[1]}/{number}", "wb") as file:
            file.write(bytes(int(sys.argv[3])))
except OSError as error:
    assert error.strerror == "No space left on device", error
print(environment.excuse(environment.oom_kills(), [], oom_injected=True))
"""


def vmstat_with(path: Path, count: int) -> None:
    path.write_text(f"nr_free_pages 17\noom_kill_other 99\noom_kill {count}\npgfault 5\n", encoding="ascii")


@pytest.fixture
def vmstat(tmp_path: Path) -> Path:
    path = tmp_path / "vmstat"
    vmstat_with(path, 3)
    return path


# --- the environment ---------------------------------------------------------------------


def test_the_kernels_own_counter_is_found_here():
    assert isinstance(oom_kills_in("/proc/vmstat"), int)


def test_an_oom_kill_since_the_beginning_is_an_excuse_unless_a_fault_asked_for_it(vmstat):
    environment = Environment(vmstat=str(vmstat), events=None)
    before = environment.oom_kills()
    assert before == (3,)
    assert environment.excuse(before, [], oom_injected=False) is None
    vmstat_with(vmstat, 4)
    assert environment.excuse(before, [], oom_injected=False) == OOM_KILLED
    assert environment.excuse(before, [], oom_injected=True) is None


@pytest.mark.parametrize(
    ("before", "after", "risen"),
    [
        ((3, 1), (3, 1), False),
        ((3, 1), (3, 2), True),
        ((3, 1), (4, None), True),
        ((None, None), (4, None), False),  # nothing is known of the beginning
        ((), (), False),
    ],
)
def test_only_a_count_that_was_read_twice_tells_anything(before, after, risen):
    assert has_risen(before, after) is risen


def test_where_there_is_no_counter_nothing_is_claimed(tmp_path):
    environment = Environment(vmstat=str(tmp_path / "missing"), events=None)
    assert environment.excuse(environment.oom_kills(), [], oom_injected=False) is None


@pytest.mark.parametrize(
    ("options", "each"),
    [("size=2m", 1 << 16), ("size=64m,nr_inodes=20", 0)],
    ids=["no room", "no inode"],
)
def test_a_full_disk_is_named_by_its_mount(tmp_path, options, each):
    command = ["unshare", "-Urm", sys.executable, "-c", FULL_TMPFS, str(tmp_path), options, str(each)]
    refused = subprocess.run(
        ["unshare", "-Urm", "mount", "-t", "tmpfs", "none", str(tmp_path)], capture_output=True, text=True, check=False
    )
    if refused.returncode:
        pytest.skip(f"a mount of our own is refused here: {refused.stderr.strip()}")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    first, then = done.stdout.splitlines()
    assert first == "None"
    assert then.startswith(f"the host's file system at {tmp_path} is full")


def test_of_a_directory_that_is_not_there_yet_its_parent_is_looked_at(tmp_path):
    assert full_file_system(tmp_path / "a" / "b") == full_file_system(tmp_path)


def test_proc_has_no_room_and_is_not_full():
    assert os.statvfs("/proc").f_bavail == 0
    assert full_file_system("/proc") is None


@pytest.mark.parametrize(
    ("number", "families", "excuses"),
    [
        (errno.ENOSPC, set(), True),
        (errno.ENOSPC, {"memory"}, True),
        (errno.ENOSPC, {"disk"}, False),
        (errno.EDQUOT, {"disk"}, False),
        (errno.EMFILE, {"disk"}, True),
        (errno.ENFILE, {"descriptors"}, False),
        (errno.ENOMEM, {"memory"}, False),
        (errno.EPERM, set(), False),
    ],
)
def test_what_the_harness_runs_out_of_is_an_excuse_unless_a_fault_takes_it(number, families, excuses):
    said = shortage(OSError(number, os.strerror(number)), families)
    assert (said is not None) is excuses
    assert said is None or said.endswith(errno.errorcode[number])


@contextmanager
def little_memory(pid: int) -> Iterator[None]:
    """A process in a memory cgroup of 8 MiB, in whichever version of the hierarchy there is one; else a skip."""
    reason = memorycgroup.probe()
    if reason is None:
        group, home = memorycgroup.MemoryGroup(), memorycgroup.origin_of(os.getpid())
        group.set("memory.max", str(8 << 20))
        group.add(pid, memorycgroup.origin_of(pid))
        try:
            yield
        finally:
            group.remove(home)
        return
    place = Path(f"/sys/fs/cgroup/memory/colos-test-{os.getpid()}")
    try:
        place.mkdir()
        (place / "memory.limit_in_bytes").write_text(str(8 << 20))
        (place / "cgroup.procs").write_text(str(pid))
    except OSError as error:
        pytest.skip(f"no memory cgroup of our own: {reason}; and of version 1: {error}")
    try:
        yield
    finally:
        place.rmdir()


EATER = "input(); eaten = bytearray(b'x') * (64 << 20)"


@pytest.mark.skipif(
    "PYTEST_XDIST_WORKER" in os.environ, reason="the kernel counts OOM kills for all: what runs beside would see it too"
)
def test_a_real_oom_kill_is_seen():
    environment = Environment()
    before = environment.oom_kills()
    with subprocess.Popen([sys.executable, "-c", EATER], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as eater:
        try:
            with little_memory(eater.pid):
                eater.communicate(b"\n", timeout=30)
        finally:
            eater.kill()
    assert eater.returncode == -signal.SIGKILL
    assert environment.excuse(before, [], oom_injected=False) == OOM_KILLED
    assert environment.excuse(before, [], oom_injected=True) is None


# --- runs ----------------------------------------------------------------------------


@pytest.fixture
def spoilt(nothing, vmstat):
    """A machine that violates its property; in its first `times` runs the kernel kills for memory besides."""

    def make(times: int) -> type[ChaosMachine]:
        class Broken(ChaosMachine):
            system = nothing
            runs = 0
            broken = False

            def __init__(self):
                super().__init__()
                type(self).runs += 1

            @rule()
            def break_it(self):
                if type(self).runs <= times:
                    vmstat_with(vmstat, 3 + type(self).runs)
                self.broken = True

            @always
            def is_whole(self):
                return not self.broken

        return Broken

    return make


def looking_at(driver, vmstat: Path):
    driver.setting.environment = dataclasses.replace(driver.setting.environment, vmstat=str(vmstat), events=None)
    return driver


STEPS = (Op("break_it", {}, (), ()),)


def test_a_spoilt_run_is_repeated_and_then_judged(lab, spoilt, vmstat):
    machine = spoilt(2)
    with looking_at(lab.driver(machine), vmstat) as driver:
        verdict, _ = driver.run(STEPS)
    assert (verdict.outcome, machine.runs) == (Outcome.VIOLATED, 3)


def test_a_run_that_is_spoilt_three_times_is_inconclusive(lab, spoilt, vmstat):
    machine = spoilt(100)
    with looking_at(lab.driver(machine), vmstat) as driver:
        verdict, executor = driver.run(STEPS)
    assert (verdict.outcome, verdict.violation, verdict.reason) == (Outcome.INCONCLUSIVE, None, OOM_KILLED)
    assert (executor.violation, machine.runs) == (None, 3)
    (judged,) = lab.journal("verdict")
    assert (judged["outcome"], judged["property"], judged["reason"]) == ("inconclusive", "always:is_whole", OOM_KILLED)


def test_replaying_says_inconclusive_and_why(lab, spoilt, vmstat):
    scenario = Scenario("test_x.py::TestX", "always:is_whole", STEPS, Repro(1, 1))
    with looking_at(lab.driver(spoilt(100)), vmstat) as driver:
        replay = driver.replay(scenario)
    assert (replay.outcome, replay.failed, replay.verdict.reason) == (ReplayOutcome.INCONCLUSIVE, 0, OOM_KILLED)


def test_the_search_goes_on_past_what_the_environment_did(lab, spoilt, vmstat):
    with looking_at(lab.driver(spoilt(4), examples=10, steps=3), vmstat) as driver:
        found = driver.explore({}, lab.directory)
    assert found.inconclusive == {OOM_KILLED: 4}
    assert found.failure is not None
    assert (found.failure.violation.name, found.examples) == ("always:is_whole", 5)


def test_examples_without_a_verdict_are_repeated(lab, spoilt, vmstat):
    """The fifth run of 4 examples violates: it is the first one again, with its own argument."""
    arguments = []

    class Noting(spoilt(4)):
        @rule(how=st.integers())
        def break_it(self, how):
            arguments.append(how)
            super().break_it()

    with looking_at(lab.driver(Noting, examples=4, steps=3), vmstat) as driver:
        found = driver.explore({}, lab.directory)
    assert found.failure is not None
    assert (found.inconclusive.total(), found.examples) == (4, 5)
    assert arguments[4] == arguments[0]


def test_for_examples_that_stay_without_a_verdict_others_are_drawn(lab, spoilt, vmstat):
    """Four examples, the first of them three times more, and then a fifth."""
    with looking_at(lab.driver(spoilt(7), examples=4, steps=3), vmstat) as driver:
        found = driver.explore({}, lab.directory)
    assert found.failure is not None
    assert (found.inconclusive.total(), found.examples) == (5, 6)


def test_a_search_that_is_always_spoilt_ends_and_blames_nobody(lab, spoilt, vmstat):
    with looking_at(lab.driver(spoilt(1000), examples=4, steps=3), vmstat) as driver:
        found = driver.explore({}, lab.directory)
    assert found.failure is None
    assert (found.inconclusive.total(), found.examples) == (15, 15)
    told = of_exploration("t", found, idle="")
    assert (told.outcome, told.line) == ("inconclusive", OOM_KILLED)
    assert f"  inconclusive ×15: {OOM_KILLED}" in told.details


@pytest.mark.usefixtures("kinds")
def test_a_fault_that_the_harness_has_no_descriptors_for_is_inconclusive(lab, nothing):
    class Starved(Hold):
        kind = "starved"

        @classmethod
        def inject(cls, site, target, arguments):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    try:

        class Machine(ChaosMachine):
            system = nothing
            faults = (Starved(),)

            @rule()
            def step(self):
                pass

        with lab.driver(Machine) as driver:
            verdict, _ = driver.run((Inject("starved", "f1", None, {}),))
    finally:
        del REGISTRY["starved"]
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.reason.endswith("EMFILE")
