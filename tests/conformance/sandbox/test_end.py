"""The end of a sandbox leaves nothing, whoever dies first."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sandbox_bench import (
    DEADLINE_S,
    ROOT,
    Agent,
    descriptors,
    eventually,
    gone,
    spec,
    state_of,
)

from colos.chaos import CommandSystem, output_contains
from colos.chaos.sandbox.handle import Sandbox
from colos.chaos.sandbox.processes import Process, descendants, read_process
from colos.chaos.sandbox.session import Session
from colos.errors import HarnessBroken

SCRIPT = Path(__file__).parent / "session_script.py"


def populate(sandbox: Sandbox) -> list[Process]:
    """A program, a child of it, and a daemon that has left its session; all processes of the sandbox."""
    agent = Agent(sandbox)
    try:
        agent.do("fork('child', idle); daemon('stray')")
    finally:
        agent.hang_up()
    found = sandbox.processes()
    assert {process.command for process in found} >= {"child", "stray"}
    return found


def whole(sandbox: Sandbox) -> list[Process]:
    """With the harness's own: keeper, and launcher or watchdog."""
    keeper = read_process(sandbox.keeper)
    assert keeper is not None
    launcher = read_process(keeper.parent)
    assert launcher is not None
    return [*sandbox.processes(), keeper, launcher]


def template_of(sandbox: Sandbox) -> int:
    return whole(sandbox)[-1].parent


def directory_of(sandbox: Sandbox) -> Path | None:
    return Path(sandbox.place.data).parent if sandbox.tier == "bare" else None


def nothing_left(processes: list[Process], directory: Path | None) -> None:
    eventually(
        lambda: all(gone(process) or state_of(process) == "Z" for process in processes),
        f"{[p for p in processes if not gone(p)]} are gone",
    )
    if directory is not None:
        eventually(lambda: not directory.exists(), f"{directory} is removed")


@pytest.fixture
def own(session: Session) -> Iterator[Session]:
    """A session that a test may break."""
    own = Session(session.tier)
    yield own
    own.close()


@pytest.fixture
def make(session: Session) -> Iterator[Callable[..., Sandbox]]:
    """Makes sandboxes, which end with the test whatever it says."""
    made: list[Sandbox] = []

    def sandbox(of: Session | None = None) -> Sandbox:
        made.append((of or session).sandbox(spec()))
        return made[-1]

    yield sandbox
    for sandbox_made in made:
        sandbox_made.destroy()


# --- destroy -----------------------------------------------------------------------------


def test_destroy_leaves_no_process_and_no_directory(session: Session, make: Callable[..., Sandbox]) -> None:
    sandbox = make()
    populate(sandbox)
    everything, directory = whole(sandbox), directory_of(sandbox)
    sandbox.destroy()
    alive = [process for process in everything[:-1] if not gone(process) and state_of(process) not in "ZX"]
    assert not alive  # at once: destroy has waited
    assert directory is None or not directory.exists()
    nothing_left(everything, None)
    sandbox.destroy()


def test_many_sandboxes_leak_nothing(session: Session, make: Callable[..., Sandbox]) -> None:
    first = make()
    template = template_of(first)
    first.destroy()
    before, mounts = descriptors(), Path("/proc/self/mountinfo").read_text()
    others = {process.pid for process in descendants(template)}  # of a test before: made ahead, and not yet used
    for _ in range(20):
        sandbox = make()
        CommandSystem(["/bin/sh", "-c", "sleep 60 & echo up; wait"], ready=output_contains("up")).boot(
            sandbox
        ).wait_ready(DEADLINE_S)
        sandbox.destroy()
    assert descriptors() == before
    assert Path("/proc/self/mountinfo").read_text() == mounts
    eventually(
        lambda: {process.pid for process in descendants(template)} <= others,
        "the template has no child, not even a dead one",
    )
    assert len(os.listdir(f"/proc/{template}/fd")) <= 8


def test_an_unused_sandbox_can_be_destroyed(session: Session, make: Callable[..., Sandbox]) -> None:
    before = descriptors()
    sandbox = make()
    everything = whole(sandbox)
    sandbox.destroy()
    sandbox.destroy()
    with pytest.raises(HarnessBroken, match="destroyed"):
        sandbox.catch_up()
    nothing_left(everything, None)
    assert descriptors() == before


def test_destroy_ends_a_program_that_forks_like_mad(session: Session, make: Callable[..., Sandbox]) -> None:
    sandbox = make()
    agent = Agent(sandbox)
    agent.do(
        "def storm():\n"
        "    for _ in range(3000):\n"  # bounded: no test may become a fork bomb
        "        if os.fork() == 0:\n"
        "            os.setsid(); time.sleep(3); os._exit(0)\n"
        "        time.sleep(0.0005)\n"
        "fork('storm', storm)"
    )
    eventually(lambda: len(sandbox.processes()) > 20, "the storm has begun")
    agent.hang_up()
    everything = whole(sandbox)
    sandbox.destroy()
    nothing_left(everything, directory_of(sandbox))
    assert not [
        p
        for p in map(read_process, map(int, filter(str.isdigit, os.listdir("/proc"))))
        if p and p.command == "storm" and p.state not in "ZX"
    ]


def test_destroy_ends_stopped_processes(session: Session, make: Callable[..., Sandbox]) -> None:
    sandbox = make()
    everything = [*populate(sandbox), *whole(sandbox)]
    for process in sandbox.processes():
        os.kill(process.pid, signal.SIGSTOP)
    eventually(lambda: all(state_of(process) == "T" for process in sandbox.processes()), "all are stopped")
    sandbox.destroy()
    nothing_left(everything, directory_of(sandbox))


def test_destroy_ends_what_ignores_every_signal(session: Session, make: Callable[..., Sandbox]) -> None:
    sandbox = make()
    agent = Agent(sandbox)
    agent.do("[signal.signal(n, signal.SIG_IGN) for n in range(1, 32) if n not in (9, 19, 32)]")
    agent.hang_up()
    everything = whole(sandbox)
    sandbox.destroy()
    nothing_left(everything, directory_of(sandbox))


def test_destroy_removes_what_the_system_has_locked(session: Session, make: Callable[..., Sandbox]) -> None:
    sandbox = make()
    agent = Agent(sandbox)
    outside = directory_of(sandbox)
    agent.do("os.makedirs('locked/deep'); open('locked/deep/file', 'w').close(); os.symlink('/etc', 'locked/link')")
    agent.do("os.chmod('locked/deep', 0); os.chmod('locked', 0)")
    agent.hang_up()
    mode = os.stat("/etc").st_mode
    sandbox.destroy()
    assert outside is None or not outside.exists()
    assert os.stat("/etc").st_mode == mode


# --- the harness's own processes killed ----------------------------------------------------


@pytest.mark.parametrize("victim", ["keeper", "launcher", "template"])
def test_when_one_of_ours_is_killed_everything_goes(own: Session, make: Callable[..., Sandbox], victim: str) -> None:
    sandbox = make(own)
    populate(sandbox)
    everything, directory = whole(sandbox), directory_of(sandbox)
    *_, keeper, launcher = everything
    os.kill({"keeper": keeper.pid, "launcher": launcher.pid, "template": template_of(sandbox)}[victim], signal.SIGKILL)
    if victim == "launcher" and own.tier == "bare":
        sandbox.catch_up()  # the keeper lives on without its watchdog, and ends everything by itself
        sandbox.destroy()
    nothing_left(everything, directory)
    if victim == "template" or not (victim == "launcher" and own.tier == "bare"):
        with pytest.raises(HarnessBroken, match="keeper"):
            sandbox.catch_up()
        with pytest.raises(HarnessBroken, match="keeper"):
            sandbox.ask_to_stop()
    if victim == "template":
        with pytest.raises(HarnessBroken, match="template"):
            make(own)
    sandbox.destroy()


def test_a_system_that_waits_hears_of_the_keepers_death(own: Session, make: Callable[..., Sandbox]) -> None:
    sandbox = make(own)
    running = CommandSystem(["/bin/sh", "-c", "sleep 60"], ready=output_contains("never")).boot(sandbox)
    eventually(lambda: sandbox.pump(0) or sandbox.main_pid, "it has started")
    os.kill(sandbox.keeper, signal.SIGKILL)
    with pytest.raises(HarnessBroken, match="keeper"):
        running.wait_ready(DEADLINE_S)
    sandbox.destroy()


def test_closing_a_session_ends_its_sandboxes(own: Session, make: Callable[..., Sandbox]) -> None:
    sandbox = make(own)
    populate(sandbox)
    everything, directory = whole(sandbox), directory_of(sandbox)
    template = template_of(sandbox)
    own.close()
    own.close()
    nothing_left(everything, directory)
    assert read_process(template) is None
    sandbox.destroy()
    again = make(own)  # a session that is used again begins anew
    again.destroy()


@pytest.fixture
def script() -> Iterator[Callable[..., tuple[subprocess.Popen[bytes], Any]]]:
    started: list[subprocess.Popen[bytes]] = []

    def run(*arguments: str, prefix: tuple[str, ...] = ()) -> tuple[subprocess.Popen[bytes], Any]:
        process = subprocess.Popen(
            [*prefix, sys.executable, str(SCRIPT), *arguments],
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        started.append(process)
        assert process.stdout is not None
        return process, json.loads(process.stdout.readline() or b"null")

    yield run
    for process in started:
        process.kill()
        assert process.stdout is not None
        process.stdout.close()
        process.wait(DEADLINE_S)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_when_the_tests_process_is_killed_everything_goes(
    session: Session, script: Callable[..., Any], number: signal.Signals
) -> None:
    process, told = script(session.tier)
    everything = [found for found in map(read_process, told["pids"]) if found is not None]
    assert len(everything) == len(told["pids"]) >= 6
    process.send_signal(number)
    process.wait(DEADLINE_S)
    nothing_left(everything, Path(told["data"]).parent if session.tier == "bare" else None)
