"""Sockets, shared memory and temporary files that stay: programs that really leave them, and some that may."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sandbox_bench import Agent, eventually, free_port

from colos.chaos.builtin import BUILTIN, Builtin
from colos.chaos.leaks import SOCKET_SLACK, DescriptorCount, dead_sockets
from colos.chaos.mechanisms import sockdiag
from colos.chaos.properties import Violation
from colos.chaos.remains import TEMPORARY_SLACK
from colos.chaos.sandbox.spec import BARE

MANY = SOCKET_SLACK + 1
LEAVE = (
    "import tempfile; files = [tempfile.mkstemp(prefix='planted') for _ in range({})]; "
    "[os.close(fd) for fd, _ in files]"
)


def judged(agent: Agent, builtin: Builtin) -> Violation | None:
    """As the executor does it at the end."""
    builtin.healed()
    builtin.settled()
    return builtin.of_the_running(lambda: None) or builtin.of_the_stopped(10, agent.running.stop(10))


@contextmanager
def clients(agent: Agent, count: int, address: str | tuple[str, int]) -> Iterator[list[socket.socket]]:
    """Connections that the agent has accepted and keeps."""
    kind = "socket.AF_UNIX" if isinstance(address, str) else "socket.AF_INET"
    agent.do(f"server = socket.socket({kind}); server.bind({address!r}); server.listen(50); kept = []")
    made = []
    try:
        for _ in range(count):
            made.append(agent.running.connect_blocking(address))
            agent.do("kept.append(server.accept()[0])")
        yield made
    finally:
        for client in made:
            client.close()


@pytest.fixture(params=["unix", "tcp"])
def address(request: pytest.FixtureRequest) -> str | tuple[str, int]:
    return "{data}/planted.sock" if request.param == "unix" else ("127.0.0.1", free_port())


def listen(agent: Agent, address: str | tuple[str, int]) -> str | tuple[str, int]:
    return agent.sandbox.place.expand(address) if isinstance(address, str) else address


def test_the_kernel_tells_of_unix_sockets() -> None:
    assert sockdiag.probe() is None


def test_a_server_that_never_closes_leaks_sockets(agent: Agent, address: str | tuple[str, int]) -> None:
    count = DescriptorCount(agent.sandbox)
    count.look()
    with clients(agent, MANY, listen(agent, address)):
        assert dead_sockets(agent.sandbox, count) is None, "they live at both ends"
    violation = dead_sockets(agent.sandbox, count)
    assert violation is not None
    assert violation.name == "builtin:no_socket_leak"
    assert f"(pid {agent.sandbox.main_pid} inside) holds {MANY} sockets whose other end is closed" in violation.detail
    assert ("planted.sock" if isinstance(address, str) else f"TCP port {address[1]}") in violation.detail
    agent.do("[one.close() for one in kept]")
    assert dead_sockets(agent.sandbox, count) is None


def test_a_few_dead_sockets_are_a_pool_s(agent: Agent, address: str | tuple[str, int]) -> None:
    count = DescriptorCount(agent.sandbox)
    count.look()
    with clients(agent, SOCKET_SLACK, listen(agent, address)):
        pass
    agent.do("files = [os.open('/dev/null', 0) for _ in range(5)]")
    assert len(count.grown(SOCKET_SLACK)) == 1, "it is looked at"
    assert dead_sockets(agent.sandbox, count) is None


def test_sockets_between_two_of_the_system_leak_too(agent: Agent) -> None:
    count = DescriptorCount(agent.sandbox)
    count.look()
    agent.do(f"pairs = [socket.socketpair() for _ in range({MANY})]; [pair[1].close() for pair in pairs]")
    violation = dead_sockets(agent.sandbox, count)
    assert violation is not None
    assert "Unix socket without a name" in violation.detail


def test_a_server_that_closes_a_moment_later_leaks_nothing(agent: Agent, address: str | tuple[str, int]) -> None:
    count = DescriptorCount(agent.sandbox)
    count.look()
    with clients(agent, MANY, listen(agent, address)):
        pass
    agent.tell("time.sleep(0.2); [one.close() for one in kept]")
    assert dead_sockets(agent.sandbox, count) is None
    agent.hear()


# --- what stays when it has stopped -------------------------------------------------------


def test_temporary_files_that_stay_are_a_leak(agent: Agent) -> None:
    builtin = Builtin(agent.running, (), None)
    agent.do(LEAVE.format(TEMPORARY_SLACK + 1))
    violation = judged(agent, builtin)
    assert violation is not None
    assert violation.name == "builtin:no_temporary_file_leak"
    assert violation.detail.startswith(f"{TEMPORARY_SLACK + 1} temporary files or directories")
    assert f"{agent.sandbox.place.tmp}/planted" in violation.detail
    assert "(by SIGTERM, which it does not handle)" in violation.detail


def test_a_cache_or_two_are_none(agent: Agent) -> None:
    builtin = Builtin(agent.running, (), None)
    agent.do(LEAVE.format(TEMPORARY_SLACK))
    assert judged(agent, builtin) is None


def test_a_directory_is_one_whatever_is_in_it(agent: Agent) -> None:
    builtin = Builtin(agent.running, (), None)
    agent.do("import tempfile; top = tempfile.mkdtemp(); [put(f'{top}/{n}') for n in range(20)]")
    assert judged(agent, builtin) is None


def test_a_directory_that_was_there_is_looked_into(agent: Agent) -> None:
    agent.do("import tempfile; top = tempfile.mkdtemp(); put(f'{top}/first')")
    builtin = Builtin(agent.running, (), None)
    agent.do("[put(f'{top}/{n}') for n in range(20)]")
    violation = judged(agent, builtin)
    assert violation is not None
    assert violation.detail.startswith("20 temporary files")
    assert "and 15 more" in violation.detail


def test_what_is_removed_in_time_is_none(agent: Agent) -> None:
    builtin = Builtin(agent.running, (), None)
    agent.do(
        LEAVE.format(TEMPORARY_SLACK + 1) + "\nkept = [tempfile.TemporaryFile() for _ in range(9)]\n"
        "def end(*_):\n  [os.unlink(name) for _, name in files]; os._exit(0)\nsignal.signal(signal.SIGTERM, end)"
    )
    assert judged(agent, builtin) is None


def test_what_the_killed_leave_is_nobody_s(agent: Agent) -> None:
    agent.do("fork('victim', lambda: idle())")
    builtin = Builtin(agent.running, (), None)
    agent.do(LEAVE.format(20))
    agent.inject("kill", "agent/victim")
    builtin.look(killed=True)
    agent.do("os.waitpid(-1, 0)")
    assert judged(agent, builtin) is None


def test_what_is_made_after_the_last_death_counts(agent: Agent) -> None:
    agent.do("fork('victim', lambda: idle())")
    builtin = Builtin(agent.running, (), None)
    agent.inject("kill", "agent/victim")
    agent.do("os.waitpid(-1, 0)")
    builtin.look()  # it is not told; it sees that somebody is missing
    died_at = builtin._died_at
    eventually(lambda: agent.ask(f"(put('clock'), os.stat('clock').st_ctime)[1] > {died_at!r}"), "the clock has ticked")
    agent.do(LEAVE.format(20))
    violation = judged(agent, builtin)
    assert violation is not None
    assert violation.detail.startswith("20 temporary files")


def test_shared_memory_that_stays_is_a_leak(agent: Agent) -> None:
    if agent.sandbox.tier == BARE:
        pytest.skip("in bare, /dev/shm is the host's")
    builtin = Builtin(agent.running, (), None)
    agent.do("put('/dev/shm/planted', b'x' * 4096)")
    violation = judged(agent, builtin)
    assert violation is not None
    assert violation.name == "builtin:no_shared_memory_leak"
    assert "/dev/shm/planted (4096 bytes, last changed 0." in violation.detail


SEGMENT = "libc = ctypes.CDLL(None, use_errno=True); segment = libc.shmget(0, 8192, 0o1600); assert segment >= 0"
REMOVE = "assert libc.shmctl(segment, 0, None) == 0"


def test_a_segment_that_stays_is_a_leak(agent: Agent) -> None:
    builtin = Builtin(agent.running, (), None)
    agent.do(SEGMENT)
    segment, main = agent.ask("segment"), agent.sandbox.main_pid
    try:
        assert segment in agent.sandbox.segments()
        violation = judged(agent, builtin)
        assert violation is not None
        assert violation.name == "builtin:no_shared_memory_leak"
        assert f"System V segment {segment} (key 0x0, 8192 bytes, made by pid {main} " in violation.detail
    finally:
        if agent.sandbox.tier == BARE:  # it is the host's: the test takes away what it planted
            import ctypes

            assert ctypes.CDLL(None).shmctl(segment, 0, None) == 0


def test_a_segment_that_is_removed_is_none(agent: Agent) -> None:
    builtin = Builtin(agent.running, (), None)
    agent.do(f"{SEGMENT}\n{REMOVE}")
    assert judged(agent, builtin) is None


def test_a_segment_of_somebody_else_s_is_none(agent: Agent) -> None:
    import ctypes

    builtin = Builtin(agent.running, (), None)
    segment = ctypes.CDLL(None).shmget(0, 4096, 0o1600)
    try:
        assert judged(agent, builtin) is None
    finally:
        assert ctypes.CDLL(None).shmctl(segment, 0, None) == 0


def test_whoever_outlives_the_system_may_use_what_is_there(agent: Agent) -> None:
    builtin = Builtin(agent.running, ("no_process_outlives_the_system",), None)
    agent.do("daemon('stray')")
    agent.do(LEAVE.format(20))
    assert judged(agent, builtin) is None


@pytest.mark.parametrize("name", ["no_socket_leak", "no_shared_memory_leak", "no_temporary_file_leak"])
def test_what_is_switched_off_is_silent(agent: Agent, name: str) -> None:
    assert name in BUILTIN
    builtin = Builtin(agent.running, (name, "no_descriptor_leak"), None)
    planted = {
        "no_socket_leak": f"pairs = [socket.socketpair() for _ in range({MANY})]; [pair[1].close() for pair in pairs]",
        "no_shared_memory_leak": "put('/dev/shm/planted') if os.environ['TMPDIR'] == '/tmp' else None",
        "no_temporary_file_leak": LEAVE.format(20),
    }
    agent.do(planted[name])
    assert judged(agent, builtin) is None
    assert not os.path.exists("/dev/shm/planted")
