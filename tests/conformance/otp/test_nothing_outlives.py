"""Promise 17, and what users of others complain about: nothing is left, however a node ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from otp_drive import DEADLINE_S, descendants, end_all, line_of, picture, wait_until

Program = Callable[..., subprocess.Popen[str]]


def children(pid: int) -> list[int]:
    """A process's children."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def token(process: subprocess.Popen[str]) -> str:
    return str(process.token)  # type: ignore[attr-defined] - see the fixture


def left(process: subprocess.Popen[str], but: set[int] = frozenset()) -> dict[int, str]:  # type: ignore[assignment]
    """Which descendants are left of a program at the deadline, and what they do."""

    def none() -> bool:
        return not set(descendants(token(process))) - but

    wait_until(none)
    return {pid: picture(pid) for pid in descendants(token(process)) if pid not in but}


def heart_of(process: subprocess.Popen[str]) -> int:
    """The first process of the node that a program started."""
    [heart] = children(process.pid)
    return heart


def root_of(process: subprocess.Popen[str]) -> int:
    """Its root."""
    [root] = children(heart_of(process))
    return root


@pytest.mark.parametrize("first", [root_of, heart_of])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV], ids=lambda number: number.name)
def test_nothing_outlives_a_root_or_a_heart_that_dies(
    program: Program, anyio_backend: str, number: signal.Signals, first: Callable[[subprocess.Popen[str]], int]
) -> None:
    """Promise 17; Ray #2005 #42861, supervisor #1101: however the root ends, its actors, those who are deaf and
    those whose loop stands still, their forks, programs, sessions and daemons end too."""
    holder = program("hold", "", anyio_backend)
    assert line_of(holder) == "ready"
    assert len(descendants(token(holder))) >= 11  # program, root, four actors, five of the ewe's
    os.kill(first(holder), number)
    assert left(holder, {holder.pid}) == {}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_nothing_outlives_the_program_that_started_it(
    program: Program, anyio_backend: str, number: signal.Signals
) -> None:
    """Promise 17; dramatiq #788: the node of a killed program ends."""
    holder = program("hold", "", anyio_backend)
    assert line_of(holder) == "ready"
    holder.send_signal(number)
    assert left(holder) == {}


def test_nothing_outlives_a_stopped_root_whose_program_dies(program: Program, anyio_backend: str) -> None:
    """Promise 17: a root that cannot act, as it is stopped, is no excuse."""
    holder = program("hold", "", anyio_backend)
    assert line_of(holder) == "ready"
    os.kill(root_of(holder), signal.SIGSTOP)
    holder.kill()
    assert left(holder) == {}


@pytest.mark.parametrize("whom", ["root", "heart"])
def test_nothing_outlives_a_program_killed_with_root_or_heart(program: Program, anyio_backend: str, whom: str) -> None:
    """Promise 17: nobody of the first two generations is there to do anything."""
    holder = program("hold", "", anyio_backend)
    assert line_of(holder) == "ready"
    root, heart = root_of(holder), heart_of(holder)
    holder.send_signal(signal.SIGSTOP)
    os.kill(root if whom == "root" else heart, signal.SIGKILL)
    holder.kill()
    assert left(holder) == {}


@pytest.mark.parametrize("size", range(2, 9))
def test_nothing_outlives_a_program_killed_while_its_node_starts(
    program: Program, anyio_backend: str, size: int
) -> None:
    """Promise 17: at no moment of the start is there a process that nobody ends."""
    holder = program("hold", "", anyio_backend)
    assert wait_until(lambda: len(descendants(token(holder))) >= size)
    holder.kill()
    assert left(holder) == {}


def test_nothing_outlives_a_node_that_stops_in_order(program: Program, anyio_backend: str, tmp_path: Path) -> None:
    """Promise 17; tractor's documentation excludes it: what actors left behind ends with the node."""
    holder = program("hold", tmp_path / "run", anyio_backend)
    assert line_of(holder) == "ready"
    assert holder.stdin is not None
    holder.stdin.write("stop\n")
    holder.stdin.flush()
    assert line_of(holder) == "over"
    assert holder.wait(DEADLINE_S) == 0
    assert left(holder) == {}


def test_a_blocked_signal_mask_is_not_inherited(program: Program, anyio_backend: str) -> None:
    """dramatiq #465: a program that blocks all signals, and ignores SIGCHLD and SIGTERM, has actors that do neither;
    their exit statuses are theirs, and their own children's are right."""
    holder = program("masked", "", anyio_backend)
    said = json.loads(line_of(holder))
    assert said["blocked"] == []
    assert said["status"] == 5
    assert said["leave"] == "exited with status 3"
    assert said["SIGTERM"]  # it ended, whatever it calls that
    assert line_of(holder) == "over"
    assert left(holder) == {}


def test_what_the_last_run_left_is_in_nobodys_way(program: Program, anyio_backend: str, tmp_path: Path) -> None:
    """tractor: a stale socket or lock.  A node is killed with all it has, more is left there, the next one starts."""
    run_dir = tmp_path / "run"
    for _ in range(2):
        holder = program("hold", run_dir, anyio_backend)
        assert line_of(holder) == "ready"
        end_all(token(holder))
        holder.communicate(timeout=DEADLINE_S)
        assert list(run_dir.iterdir()), "it left nothing, so nothing was tested"
        (run_dir / "sock").unlink(missing_ok=True)
        directory = os.open(run_dir, os.O_RDONLY)
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(f"/proc/self/fd/{directory}/sock")  # its own path may be too long
        os.close(directory)
    last = program("hold", run_dir, anyio_backend)
    assert line_of(last) == "ready"
    last.communicate("stop\n", timeout=2 * DEADLINE_S)
    assert last.returncode == 0
    assert left(last) == {}


# --- as PID 1 ----------------------------------------------------------------------------


@pytest.fixture
def namespace() -> tuple[str, ...]:
    """What runs a program as PID 1 of a namespace of its own."""
    enter = ("unshare", "-pf", "--mount-proc") if os.geteuid() == 0 else ("unshare", "-Urpf", "--mount-proc")
    if subprocess.run([*enter, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine gives nobody a PID namespace of his own")
    return enter


def inspected(process: subprocess.Popen[str], out: Path) -> dict[str, object]:
    """What the inspector in a node of PID 1 found; then the node is stopped in order, as `docker stop` does."""
    assert line_of(process) == "ready 1"
    assert wait_until(out.exists, 4 * DEADLINE_S)
    [one] = children(process.pid)
    os.kill(one, signal.SIGTERM)
    assert line_of(process) == "foreign 7"
    assert process.wait(DEADLINE_S) == 0
    return json.loads(out.read_text())  # type: ignore[no-any-return]


def test_as_pid_1_it_reaps_its_own_and_nobody_elses(
    program: Program, anyio_backend: str, namespace: tuple[str, ...], tmp_path: Path
) -> None:
    """Promise 17, no zombie; gunicorn #3689: waitpid(-1) eats the status of a child that somebody else waits for."""
    out = tmp_path / "out"
    process = program("first", "reaping", out, tmp_path / "run", anyio_backend, prefix=namespace)
    assert inspected(process, out) == {
        "statuses": [0, 1, 2, 3, 4, *(f"exited with status {number}" for number in range(5))],
        "left": 0,
    }


def test_a_pid_that_is_used_again_confuses_nobody(
    program: Program, anyio_backend: str, namespace: tuple[str, ...], tmp_path: Path
) -> None:
    """Promise 17.  Erlang Reference Manual, Data Types, Pid: a reference means one process; here the kernel's pid comes
    back at once, as a stranger's and as another actor's, and signals, messages and calls to the dead reach neither."""
    out = tmp_path / "out"
    process = program("first", "reuse", out, tmp_path / "run", anyio_backend, prefix=namespace)
    said = inspected(process, out)
    if not said["stranger"]:
        pytest.skip("this machine lets nobody choose a pid (/proc/sys/kernel/ns_last_pid)")
    assert said["stranger lives"]
    assert said["actor"], "no actor got the pid, so nothing was tested"
    assert said["told"] == ["noproc", "gone"]
    assert said["actor lives"]
