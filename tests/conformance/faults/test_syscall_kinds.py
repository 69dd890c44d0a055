"""Faults call by call, in the target's own eyes: errors, delays, short and torn writes, cut reads, refused connects."""

from __future__ import annotations

import errno
import os
import signal
import time
from typing import Any

import pytest
from sandbox_bench import Agent, agent_in, eventually, heal

from colos.chaos.faults.systemcalls import SyscallDelay, SyscallError
from colos.chaos.mechanisms.syscalls import Trap
from colos.chaos.sandbox.session import Session
from colos.errors import FaultUnavailable, InvalidSpecification

WRITE = (
    "fd = os.open({path!r}, os.O_RDWR | os.O_CREAT, 0o600)\ntry: result = os.write(fd, {data!r})\nfinally: os.close(fd)"
)

THREAD = """
import _thread
try: _thread.start_new_thread(int, ()); result = 'made'
except RuntimeError as error: result = str(error)
"""


def write(agent: Agent, path: str, data: bytes = b"0123456789") -> int:
    return int(agent.do(WRITE.format(path=path, data=data)))


def errno_of_write(agent: Agent, path: str) -> int:
    return agent.refused(WRITE.format(path=path, data=b"0123456789"))


# --- errors by path, number and chance --------------------------------------------------------


@pytest.mark.parametrize("name", ["EIO", "EDQUOT", "ENOSPC"])
def test_writing_chosen_files_fails_and_the_others_are_written(agent: Agent, name: str) -> None:
    lease = agent.inject("io-error", "agent", errno=name, path="*.log")
    assert lease.fired() is None
    assert write(agent, "a.txt") == 10
    assert lease.fired() is None
    assert errno_of_write(agent, "a.log") == getattr(errno, name)
    assert agent.ask("os.path.getsize('a.log')") == 0
    assert lease.fired() == "write ×1"
    heal(lease)
    assert write(agent, "a.log") == 10
    assert lease.fired() == "write ×1"
    agent.do("os.unlink('a.txt'); os.unlink('a.log')")


@pytest.mark.parametrize(
    ("operation", "program"),
    [
        ("read", "fd = os.open('f', os.O_RDONLY)\ntry: os.read(fd, 5)\nfinally: os.close(fd)"),
        ("read", "fd = os.open('f', os.O_RDONLY)\ntry: os.pread(fd, 5, 0)\nfinally: os.close(fd)"),
        ("write", "fd = os.open('f', os.O_WRONLY)\ntry: os.writev(fd, [b'x', b'y'])\nfinally: os.close(fd)"),
        ("fsync", "fd = os.open('f', os.O_RDONLY)\ntry: os.fsync(fd)\nfinally: os.close(fd)"),
        ("fsync", "fd = os.open('f', os.O_RDONLY)\ntry: os.fdatasync(fd)\nfinally: os.close(fd)"),
        ("open", "os.close(os.open('f', os.O_RDONLY))"),
        ("open", "os.chdir('/'); os.close(os.open({data!r} + '/f', os.O_RDONLY))"),
        ("rename", "os.rename('f', 'g'); os.rename('g', 'f')"),
    ],
)
def test_each_operation_fails_alone(agent: Agent, operation: str, program: str) -> None:
    data = agent.sandbox.place.data
    program = f"{program.format(data=data)}\n"
    write(agent, "f")
    try:
        lease = agent.inject("io-error", "agent", operation=operation, path="f")
        others = [other for other in ("read", "write", "fsync", "open", "rename") if other != operation]
        assert agent.refused(program) == errno.EIO
        heal(lease)
        assert agent.refused(program) == 0
        for other in others:
            lease = agent.inject("io-error", "agent", operation=other, path="f")
            if other != "open":  # most programs open the file first
                assert agent.refused(program) == 0
            heal(lease)
    finally:
        agent.do(f"os.chdir({data!r}); os.unlink('f')")


def test_only_the_nth_call_fails(agent: Agent) -> None:
    lease = agent.inject("syscall-error", "agent", call="write", errno="ENOSPC", path="n", nth=3)
    seen = agent.do(
        "fd, result = os.open('n', os.O_WRONLY | os.O_CREAT), []\n"
        "for _ in range(5):\n"
        "    try: result.append(os.write(fd, b'xx'))\n"
        "    except OSError as error: result.append(-error.errno)\n"
        "os.close(fd); os.unlink('n')"
    )
    assert seen == [2, 2, -errno.ENOSPC, 2, 2]
    assert lease.fired() == "write ×1"
    heal(lease)


def failures(agent: Agent, seed: int, probability: float = 0.5) -> list[int]:
    lease = agent.inject("syscall-error", "agent", call="write", path="p", probability=probability, seed=seed)
    seen: list[int] = agent.do(
        "fd, result = os.open('p', os.O_WRONLY | os.O_CREAT), []\n"
        "for number in range(40):\n"
        "    try: os.write(fd, b'x')\n"
        "    except OSError: result.append(number)\n"
        "os.close(fd); os.unlink('p')"
    )
    heal(lease)
    return seen


def test_chance_follows_from_the_seed_alone(agent: Agent) -> None:
    first = failures(agent, seed=7)
    assert 5 < len(first) < 35
    assert failures(agent, seed=7) == first
    assert failures(agent, seed=8) != first
    assert len(failures(agent, seed=7, probability=0.1)) < len(first)


# --- whose calls --------------------------------------------------------------------------------


def test_children_are_meant_and_others_are_not(agent: Agent) -> None:
    child = (
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    try: os.write(os.open('c', os.O_WRONLY | os.O_CREAT), b'x'); code = 0\n"
        "    except OSError as error: code = error.errno\n"
        "    os._exit(code)\n"
        "result = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n"
        "os.path.exists('c') and os.unlink('c')"
    )
    lease = agent.inject("io-error", "agent", errno="EIO", path="c")
    assert agent.do(child) == errno.EIO
    heal(lease)
    agent.do("fork('victim', idle)")
    lease = agent.inject("io-error", "agent/victim", errno="EIO", path="c")
    assert agent.do(child) == 0
    assert lease.fired() is None
    heal(lease)


# --- delays -------------------------------------------------------------------------------------


def test_a_call_waits_while_the_others_go_on_and_healing_lets_it_go(agent: Agent) -> None:
    lease = agent.inject("syscall-delay", "agent", call="fsync", seconds=60.0)
    agent.do("fork('waits', lambda: os.fsync(os.open('d', os.O_WRONLY | os.O_CREAT)))")
    eventually(lambda: lease.fired() == "fsync ×1", "the call waits")
    assert write(agent, "other") == 10
    begun = time.monotonic()
    heal(lease)
    agent.do("os.wait()")
    assert time.monotonic() - begun < 30
    agent.do("os.unlink('d'); os.unlink('other')")


def test_healing_finds_nobody_where_all_have_died_that_were_kept_waiting(agent: Agent) -> None:
    lease = agent.inject("syscall-delay", "agent", call="fsync", seconds=60.0)
    agent.do("fork('waits', lambda: os.fsync(os.open('d', os.O_WRONLY | os.O_CREAT)))")
    eventually(lambda: lease.fired() == "fsync ×1", "the call waits")
    for process in (agent.process("waits"), agent.process()):
        os.kill(process.pid, signal.SIGKILL)
    eventually(lambda: not agent.sandbox.processes(), "all are gone, and their filter with them")
    for _ in range(2):  # a turn of the keeper's, which sees that
        assert agent.sandbox.trap("troubles") == {}
    heal(lease)


def test_a_slow_disk_is_as_slow_as_it_was_asked_to_be(agent: Agent) -> None:
    lease = agent.inject("slow-disk", "agent", operation="fsync", seconds=0.03)
    took = agent.do(
        "fd = os.open('s', os.O_WRONLY | os.O_CREAT); begun = time.monotonic(); os.fsync(fd)\n"
        "result = time.monotonic() - begun; os.close(fd); os.unlink('s')"
    )
    assert took >= 0.03
    heal(lease)


# --- parts --------------------------------------------------------------------------------------


def test_a_short_write_writes_and_says_a_part(agent: Agent) -> None:
    lease = agent.inject("short-write", "agent", share=0.3, path="*")
    assert write(agent, "w", b"x" * 1000) == 300
    assert agent.ask("os.path.getsize('w')") == 300
    assert write(agent, "one", b"x") == 1
    assert lease.fired() == "write ×1"
    heal(lease)
    assert write(agent, "w", b"y" * 1000) == 1000
    agent.do("os.unlink('w'); os.unlink('one')")


def test_a_torn_write_leaves_a_part_and_an_error(agent: Agent) -> None:
    lease = agent.inject("torn-write", "agent", share=0.5, path="t")
    assert errno_of_write(agent, "t") == errno.EIO
    assert agent.ask("open('t', 'rb').read()") == b"01234"
    assert lease.fired() == "write ×1"
    heal(lease)
    agent.do("os.unlink('t')")


def test_reads_from_a_socket_come_in_pieces_and_nothing_is_lost(agent: Agent) -> None:
    lease = agent.inject("cut-reads", "agent")
    pieces = agent.do(
        "a, b = socket.socketpair(); a.sendall(b'hello'); a.close(); result = []\n"
        "while piece := b.recv(100): result.append(piece)\n"
        "b.close()"
    )
    assert pieces == [b"h", b"e", b"l", b"l", b"o"]
    assert "recvfrom" in str(lease.fired())
    heal(lease)
    assert (
        agent.do("a, b = socket.socketpair(); a.sendall(b'hello'); result = b.recv(100); a.close(); b.close()")
        == b"hello"
    )


# --- the other kinds ----------------------------------------------------------------------------


def test_connecting_is_refused_by_address(agent: Agent) -> None:
    listen = (
        "s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(); result = s.getsockname()[1]; globals()['s'] = s"
    )
    port = agent.do(listen)
    connect = f"socket.create_connection(('127.0.0.1', {port})).close()"
    lease = agent.inject("connect-fails", "agent", address="inet:127.0.0.1:1")
    assert agent.refused(connect) == 0
    heal(lease)
    lease = agent.inject("connect-fails", "agent", address=f"inet:*:{port}")
    assert agent.refused(connect) == errno.ECONNREFUSED
    assert lease.fired() == "connect ×1"
    heal(lease)
    lease = agent.inject("connect-fails", "agent", address="unix:*", errno="EAGAIN")
    assert agent.refused("socket.socket(socket.AF_UNIX).connect('nowhere')") == errno.EAGAIN
    heal(lease)
    assert agent.refused("socket.socket(socket.AF_UNIX).connect('nowhere')") == errno.ENOENT
    agent.do("s.close()")


def test_there_are_no_random_numbers(agent: Agent) -> None:
    lease = agent.inject("no-entropy", "agent")
    assert agent.refused("os.getrandom(8)") == errno.EAGAIN
    heal(lease)
    assert len(agent.ask("os.getrandom(8)")) == 8


def test_the_file_table_is_full_and_threads_cannot_be_made(agent: Agent) -> None:
    lease = agent.inject("file-table-full", "agent")
    assert agent.refused("os.open('/dev/null', os.O_RDONLY)") == errno.ENFILE
    assert agent.refused("socket.socket()") == errno.ENFILE
    heal(lease)
    lease = agent.inject("thread-fails", "agent")
    assert agent.do(THREAD) == "can't start new thread"
    assert agent.do("pid = os.fork()\nif pid == 0: os._exit(0)\nresult = os.waitpid(pid, 0)[1]") == 0
    heal(lease)
    assert agent.do(THREAD) == "made"


def test_interrupted_calls_are_repeated_by_python_and_counted(agent: Agent) -> None:
    lease = agent.inject("interrupted-calls", "agent", probability=0.5, seed=1)
    assert write(agent, "i", b"x" * 50) == 50
    assert agent.ask("6 * 7") == 42
    assert eventually(lease.fired, "something was interrupted")
    heal(lease)
    agent.do("os.unlink('i')")


# --- the edges ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: SyscallError("wriet", "EIO"),
        lambda: SyscallError("write", "EOI"),
        lambda: SyscallError("write", "EIO", nth=-1),
        lambda: SyscallError("write", "EIO", probability=1.5),
        lambda: SyscallError("write", "EIO", probability=0),
        lambda: SyscallDelay("write", -1),
        lambda: SyscallDelay("write", 1e6),
    ],
)
def test_what_means_nothing_is_refused_where_it_is_made(make: Any) -> None:
    with pytest.raises(InvalidSpecification):
        make()


def test_a_mistaken_name_is_answered_with_the_right_one() -> None:
    with pytest.raises(InvalidSpecification, match="did you mean 'write'"):
        SyscallError("wriet", "EIO")


def test_a_call_that_is_not_trapped_says_how_it_would_be(session: Session) -> None:
    with (
        agent_in(session, traps=(Trap("getppid"),)) as agent,
        pytest.raises(FaultUnavailable, match="declare this fault"),
    ):
        agent.inject("no-entropy", "agent")


def test_the_oldest_of_two_rules_acts_and_either_may_end_first(agent: Agent) -> None:
    for first_out in (0, 1):
        leases = [agent.inject("io-error", "agent", errno=name, path="o") for name in ("EIO", "EDQUOT")]
        assert errno_of_write(agent, "o") == errno.EIO
        heal(leases[first_out])
        assert errno_of_write(agent, "o") == (errno.EDQUOT if first_out == 0 else errno.EIO)
        heal(leases[1 - first_out])
        assert write(agent, "o") == 10
    agent.do("os.unlink('o')")


def test_no_system_calls_of_ours_are_trapped(agent: Agent) -> None:
    lease = agent.inject("io-error", "agent", path="*")
    assert os.write(os.open(os.devnull, os.O_WRONLY), b"x") == 1
    heal(lease)
