"""Any program as a system: when it serves, how it fails, restarts and stops, and how it is reached."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from sandbox_bench import DEADLINE_S, PYTHON, Agent, agent_in, descriptors, eventually, free_port, state_of

from colos.chaos import CommandSystem, Restarts, file_exists, output_contains, tcp, unix_socket
from colos.chaos.command_system import RunningCommand
from colos.chaos.sandbox.handle import Sandbox
from colos.chaos.sandbox.session import Session
from colos.errors import InvalidSpecification, StartFailed

SH = ("/bin/sh", "-c")
SERVER = """
import socket, sys
server = socket.socket(socket.AF_UNIX if {unix} else socket.AF_INET)
server.bind({address!r})
server.listen()
while True:
    peer, _ = server.accept()
    data = peer.recv(100)
    if data:
        peer.sendall(data.upper())
    peer.close()
"""


def boot(sandbox: Sandbox, script: str, ready: Any = None, **more: Any) -> RunningCommand:
    argv = [*SH, script]
    return CommandSystem(argv, ready=ready or output_contains("up"), name="sh", **more).boot(sandbox)


def started(sandbox: Sandbox, script: str, ready: Any = None, **more: Any) -> RunningCommand:
    running = boot(sandbox, script, ready, **more)
    running.wait_ready(DEADLINE_S)
    return running


def catch_up(sandbox: Sandbox) -> bool:
    sandbox.catch_up()
    return True


# --- readiness ---------------------------------------------------------------------------


def test_ready_when_a_file_is_there(sandbox: Sandbox) -> None:
    running = started(sandbox, "echo x > $COLOS_RUN/ready; sleep 60", file_exists("{run}/ready"))
    assert Path(running.path("{run}/ready")).exists()


def test_ready_when_the_output_says_so(sandbox: Sandbox) -> None:
    running = started(sandbox, "echo to-stdout; echo to-stderr >&2; echo now up; sleep 60", output_contains("now up"))
    assert running.output() == "to-stdout\nto-stderr\nnow up\n"


def test_ready_by_output_although_much_follows(sandbox: Sandbox) -> None:
    much = "i=0; while [ $i -lt 500 ]; do echo 012345678901234567890123456789; i=$((i+1)); done"
    script = f"echo up; {much}; echo x > $COLOS_RUN/done; sleep 60"
    running = boot(sandbox, script)
    eventually(lambda: os.path.exists(running.path("{run}/done")), "it has said much")
    running.wait_ready(DEADLINE_S)
    assert "up" not in running.output()  # only its end
    assert len(running.output()) <= 8192


def test_ready_when_a_unix_socket_accepts(sandbox: Sandbox) -> None:
    source = SERVER.format(unix=True, address=sandbox.place.run + "/s")
    running = CommandSystem([*PYTHON, "-c", source], ready=unix_socket("{run}/s")).boot(sandbox)
    running.wait_ready(DEADLINE_S)
    with running.connect_blocking("{run}/s") as connection:
        assert connection.gettimeout() is None
        connection.sendall(b"hello")
        assert connection.recv(100) == b"HELLO"


def test_ready_when_a_port_accepts_and_reached_from_outside(sandbox: Sandbox) -> None:
    port = free_port()
    source = SERVER.format(unix=False, address=("127.0.0.1", port))
    running = CommandSystem([*PYTHON, "-c", source], ready=tcp(port)).boot(sandbox)
    running.wait_ready(DEADLINE_S)
    before = descriptors()

    async def talk() -> bytes:
        connection = await running.connect(("127.0.0.1", port))
        assert connection.gettimeout() is None
        assert connection.family == socket.AF_INET
        with connection:
            connection.sendall(b"hello")
            return connection.recv(100)

    assert anyio.run(talk) == b"HELLO"
    assert descriptors() == before
    if sandbox.tier == "namespaces":  # its loopback is its own
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)


def test_a_refused_connection_says_what_the_kernel_said(sandbox: Sandbox) -> None:
    running = started(sandbox, "echo up; sleep 60")
    before = descriptors()
    with pytest.raises(ConnectionRefusedError):
        running.connect_blocking(("127.0.0.1", free_port()))
    with pytest.raises(FileNotFoundError):
        running.connect_blocking("{run}/nobody")
    assert descriptors() == before


@pytest.mark.parametrize("ready", [tcp(1), unix_socket("{run}/s"), file_exists("{data}/x"), output_contains("x")])
def test_conditions_survive_pickling(ready: Any) -> None:
    assert pickle.loads(pickle.dumps(ready)) == ready


# --- starts that fail ----------------------------------------------------------------------


def test_a_program_that_is_never_ready_is_told_with_its_stderr(sandbox: Sandbox) -> None:
    running = boot(sandbox, "echo nearly there >&2; sleep 60", start_s=0.3)
    with pytest.raises(StartFailed, match=r"(?s)'sh'.*not ready within 0.3 s.*nearly there") as raised:
        running.wait_ready(DEADLINE_S)
    assert raised.value.stderr == "nearly there\n"


def test_a_program_that_exits_first_is_told_at_once(sandbox: Sandbox) -> None:
    running = boot(sandbox, "echo no config >&2; exit 3", start_s=60)
    with pytest.raises(StartFailed, match=r"(?s)exited with status 3 before it was ready.*no config"):
        running.wait_ready(DEADLINE_S)


@pytest.mark.parametrize(("number", "name"), [(9, "SIGKILL"), (11, "SIGSEGV"), (34, "34|SIGRTMIN")])
def test_a_program_that_is_killed_first_is_told_by_signal(sandbox: Sandbox, number: int, name: str) -> None:
    running = boot(sandbox, f"kill -{number} $$; sleep 60", start_s=60)
    with pytest.raises(StartFailed, match=f"exited with signal ({name})"):
        running.wait_ready(DEADLINE_S)


def test_a_program_that_is_not_there_is_told(sandbox: Sandbox) -> None:
    running = CommandSystem(
        ["no-such-program"], ready=file_exists("/"), start_s=60, env={"PATH": "/usr/bin:/bin"}
    ).boot(sandbox)
    eventually(lambda: catch_up(sandbox) and sandbox.exits, "the exec has failed")
    with pytest.raises(StartFailed, match=r"(?s)status 127.*cannot run 'no-such-program': No such file"):
        running.wait_ready(DEADLINE_S)


def test_a_program_that_may_not_be_run_is_told(sandbox: Sandbox) -> None:
    running = CommandSystem(["/etc/passwd"], ready=output_contains("never"), start_s=60).boot(sandbox)
    with pytest.raises(StartFailed, match=r"(?s)status 127.*cannot run '/etc/passwd': Permission denied"):
        running.wait_ready(DEADLINE_S)


def test_a_working_directory_that_is_not_there_is_told(sandbox: Sandbox) -> None:
    running = boot(sandbox, "sleep 60", cwd="{data}/missing", start_s=60)
    with pytest.raises(StartFailed, match=r"(?s)status 70.*FileNotFoundError.*missing"):
        running.wait_ready(DEADLINE_S)


@pytest.mark.parametrize("argv", ["redis-server", [], ["sh", 1], None])
def test_a_command_that_is_no_list_of_words_is_refused(argv: Any) -> None:
    with pytest.raises(InvalidSpecification, match="list of words"):
        CommandSystem(argv, ready=tcp(1))


def test_readiness_must_be_said() -> None:
    with pytest.raises(InvalidSpecification, match="ready="):
        CommandSystem(["true"], ready=None)  # type: ignore[arg-type]


# --- where and with what it runs -------------------------------------------------------------


def test_braces_are_expanded_and_others_left(sandbox: Sandbox) -> None:
    running = started(
        sandbox, 'echo "{data} {other} $EXTRA $(pwd)"; echo up; sleep 60', env={"EXTRA": "{home}!"}, cwd="{tmp}"
    )
    place = sandbox.place
    assert running.output().splitlines()[0] == f"{place.data} {{other}} {place.home}! {place.tmp}"


def test_standard_input_is_empty(sandbox: Sandbox) -> None:
    running = started(sandbox, "cat; echo up; sleep 60")
    assert running.output() == "up\n"


# --- restarts ------------------------------------------------------------------------------


def test_without_a_policy_the_end_is_the_end(sandbox: Sandbox) -> None:
    boot(sandbox, "exit 1")
    eventually(lambda: sandbox.pump(0.01) and sandbox.stopped, "it has ended")
    assert (sandbox.exits, sandbox.starts) == ([(1, False)], 1)


def test_a_failing_program_is_restarted_up_to_its_limit(sandbox: Sandbox) -> None:
    boot(sandbox, "echo again; exit 1", restarts=Restarts(limit=2, period_s=60))
    eventually(lambda: catch_up(sandbox) and sandbox.stopped, "it was given up")
    assert sandbox.exits == [(1, True), (1, True), (1, False)]
    assert sandbox.starts == 3
    assert sandbox.output() == "again\n" * 3  # output is kept over restarts


def test_no_restart_with_a_limit_of_none(sandbox: Sandbox) -> None:
    boot(sandbox, "exit 1", restarts=Restarts(limit=0))
    eventually(lambda: catch_up(sandbox) and sandbox.stopped, "it was given up")
    assert sandbox.starts == 1


def test_the_limit_counts_restarts_within_the_period_and_not_the_first_start(sandbox: Sandbox) -> None:
    """A program that ran for longer than the period and then crashes for good is restarted `limit` times."""
    script = "if [ ! -e first ]; then echo x > first; read x < wait; fi; exit 1"
    running = boot(sandbox, "mkfifo wait; " + script, restarts=Restarts(limit=2, period_s=1.0))
    eventually(lambda: os.path.exists(running.path("{data}/first")), "it runs")
    begun = time.monotonic()
    eventually(lambda: time.monotonic() > begun + 1.05, "the period is over")
    with open(running.path("{data}/wait"), "w"):
        pass
    eventually(lambda: catch_up(sandbox) and sandbox.stopped, "it was given up")
    assert sandbox.starts == 1 + 2


def test_an_orderly_exit_is_restarted_only_always(sandbox: Sandbox) -> None:
    boot(sandbox, "exit 0", restarts=Restarts(limit=5))
    eventually(lambda: catch_up(sandbox) and sandbox.stopped, "it has ended")
    assert sandbox.exits == [(0, False)]


def test_always_means_an_orderly_exit_too(sandbox: Sandbox) -> None:
    boot(sandbox, "exit 0", restarts=Restarts(limit=1, when="always"))
    eventually(lambda: catch_up(sandbox) and sandbox.stopped, "it was given up")
    assert sandbox.exits == [(0, True), (0, False)]


def test_a_restarted_program_is_quiet_when_it_is_ready_again(session: Session) -> None:
    with agent_in(session, restarts=Restarts(limit=3)) as agent:
        first = agent.sandbox.main_pid
        (main,) = agent.running.targets("agent")
        main.signal(signal.SIGKILL)
        assert main.wait(DEADLINE_S)
        main.close()
        assert anyio.run(agent.running.quiet, DEADLINE_S)
        assert agent.sandbox.main_pid not in (0, first)
        agent.running.connect_blocking("{run}/agent.sock").close()
        assert agent.sandbox.exits == [(-signal.SIGKILL, True)]


def test_the_output_of_an_earlier_start_makes_no_later_one_ready(sandbox: Sandbox) -> None:
    script = (
        "if [ -e begun ]; then while [ ! -e go ]; do sleep 0.01; done; fi; echo x > begun; echo up; sleep 60 & wait"
    )
    running = started(sandbox, script, restarts=Restarts(limit=3))
    (main,) = running.targets("sh")
    main.signal(signal.SIGKILL)
    assert main.wait(DEADLINE_S)
    main.close()
    assert not anyio.run(running.quiet, 0.2)
    Path(running.path("{data}/go")).touch()
    assert anyio.run(running.quiet, DEADLINE_S)


@pytest.mark.parametrize("bad", [{"when": "never"}, {"limit": -1}, {"period_s": 0}])
def test_a_policy_that_makes_no_sense_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Restarts"):
        Restarts(**bad)


# --- stopping ------------------------------------------------------------------------------


def test_stop_asks_and_waits(sandbox: Sandbox) -> None:
    running = started(sandbox, "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.01; done")
    assert running.stop(DEADLINE_S)
    assert sandbox.exits == [(0, False)]
    assert running.output().endswith("bye\n")
    assert running.stop(DEADLINE_S)  # twice is once


def test_a_stop_is_no_failure_to_restart(sandbox: Sandbox) -> None:
    running = started(sandbox, "echo up; exec sleep 60", restarts=Restarts(limit=5, when="always"))
    assert running.stop(DEADLINE_S)
    assert sandbox.exits == [(-signal.SIGTERM, False)]


def test_stop_gives_up_on_what_ignores_it(sandbox: Sandbox) -> None:
    running = started(sandbox, "trap '' TERM; echo up; while :; do sleep 0.01; done")
    assert not running.stop(0.2)
    assert "sh" in {process.command for process in sandbox.processes() if process.state != "Z"}


def test_stop_of_what_has_ended(sandbox: Sandbox) -> None:
    running = boot(sandbox, "exit 0")
    eventually(lambda: catch_up(sandbox) and sandbox.stopped, "it has ended")
    assert running.stop(DEADLINE_S)


# --- targets -------------------------------------------------------------------------------


@pytest.fixture
def family(session: Session) -> Iterator[Agent]:
    with agent_in(session) as agent:
        agent.do("fork('worker', idle); fork('helper', idle); daemon('stray')")
        yield agent


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("agent", {"main"}),
        ("agent/worker", {"worker"}),
        ("agent/*", {"worker", "helper", "stray"}),
        ("*", {"main", "worker", "helper", "stray"}),
        ("agent/nobody", set()),
        ("nobody", set()),
    ],
)
def test_targets_by_pattern(family: Agent, pattern: str, names: set[str]) -> None:
    before = descriptors()
    targets = family.running.targets(pattern)
    main = family.sandbox.main_pid
    found = ["main" if target.process.inner_pid == main else target.process.command for target in targets]
    assert sorted(found) == sorted(names)
    assert all(target.alive() for target in targets)
    for target in targets:
        target.close()
        target.close()
    assert descriptors() == before


def test_a_target_is_the_process_and_not_its_number(family: Agent) -> None:
    (target,) = family.running.targets("agent/worker")
    family.do(f"os.kill({target.process.inner_pid}, signal.SIGKILL); os.waitpid({target.process.inner_pid}, 0)")
    assert target.wait(DEADLINE_S)
    assert not target.alive()
    assert target.signal(signal.SIGTERM) is False
    target.close()


def test_what_is_dead_is_no_target(family: Agent) -> None:
    """A zombie takes every signal and does nothing."""
    worker = family.process("worker")
    os.kill(worker.pid, signal.SIGKILL)
    eventually(lambda: state_of(worker) == "Z", "it is a zombie")
    assert family.running.targets("agent/worker") == []
    assert family.sandbox.target(worker.inner_pid) is None


def test_the_topology_is_the_program() -> None:
    assert CommandSystem(["/usr/bin/thing", "-x"], ready=tcp(1)).topology() == ("thing",)
    assert CommandSystem(["thing"], ready=tcp(1), name="other").topology() == ("other",)


def test_errno_is_as_inside(agent: Agent) -> None:
    assert agent.refused("open('/no/such/file')") == errno.ENOENT
