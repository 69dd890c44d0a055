"""Descriptor exhaustion: EMFILE where the target tries, exactly so many left, children healed too."""

from __future__ import annotations

import errno
import resource

import pytest
from sandbox_bench import Agent, eventually, heal, read_process, state_of

from colos.errors import InvalidSpecification

OPENED = (
    "held = []\n"
    "try:\n"
    "    while len(held) < 50: held.append(os.open('/dev/null', os.O_RDONLY))\n"
    "except OSError as error: result = (len(held), error.errno)\n"
    "else: result = (len(held), 0)\n"
    "finally: [os.close(fd) for fd in held]"
)


def limit_of(agent: Agent, command: str | None = None) -> tuple[int, int]:
    return resource.prlimit(agent.process(command).pid, resource.RLIMIT_NOFILE)


@pytest.mark.parametrize("free", [0, 1, 3, 7])
def test_exactly_so_many_are_left(agent: Agent, free: int) -> None:
    lease = agent.inject("descriptor-exhaustion", "agent", free=free)
    assert lease.fired()
    assert agent.do(OPENED) == (free, errno.EMFILE)
    heal(lease)
    assert agent.do(OPENED) == (50, 0)


@pytest.mark.parametrize("free", [0, 1, 2, 3, 4, 6])
def test_exactly_so_many_are_left_between_others(agent: Agent, free: int) -> None:
    """The limit bounds the number: the ones that are used above the lowest unused one count too."""
    agent.do("for number in (8, 10, 13): os.dup2(0, number)")
    lease = agent.inject("descriptor-exhaustion", "agent", free=free)
    assert agent.do(OPENED) == (free, errno.EMFILE)
    heal(lease)


@pytest.mark.parametrize(
    "source",
    [
        "open('/dev/null')",
        "open('new', 'w')",
        "socket.socket()",
        "os.pipe()",
        "os.dup(0)",
        "socket.socketpair()",
        "os.listdir('.')",
        "os.memfd_create('x')",
    ],
)
def test_whatever_needs_one_meets_emfile(agent: Agent, source: str) -> None:
    lease = agent.inject("descriptor-exhaustion", "agent")
    assert agent.refused(source) == errno.EMFILE
    heal(lease)
    assert agent.refused(source) == 0


def test_accept_meets_emfile_and_takes_the_client_once_healed(agent: Agent) -> None:
    agent.do("server = socket.socket(socket.AF_UNIX); server.bind('s'); server.listen(); server.settimeout(5)")
    lease = agent.inject("descriptor-exhaustion", "agent")
    with agent.running.connect_blocking("{data}/s"):
        assert agent.refused("server.accept()") == errno.EMFILE
        heal(lease)
        assert agent.refused("server.accept()") == 0


def test_what_is_open_stays_open(agent: Agent) -> None:
    agent.do("high = os.dup2(os.open('kept', os.O_CREAT | os.O_RDWR), 40)")
    lease = agent.inject("descriptor-exhaustion", "agent")
    assert agent.ask("os.write(high, b'works')") == 5
    heal(lease)


def test_only_the_soft_limit_is_touched_and_comes_back(agent: Agent) -> None:
    before = limit_of(agent)
    lease = agent.inject("descriptor-exhaustion", "agent", free=2)
    soft, hard = limit_of(agent)
    assert soft < before[0]
    assert hard == before[1]
    heal(lease)
    assert limit_of(agent) == before


def test_a_soft_limit_that_was_low_already_comes_back_and_heals(agent: Agent) -> None:
    agent.do("resource.setrlimit(resource.RLIMIT_NOFILE, (9, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))")
    lease = agent.inject("descriptor-exhaustion", "agent", free=30)
    heal(lease)
    assert limit_of(agent)[0] == 9


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("frees", [(0, 3), (3, 0)])
def test_the_tightest_of_two_leases_holds(agent: Agent, frees: tuple[int, int], order: tuple[int, int]) -> None:
    before = limit_of(agent)
    leases = [agent.inject("descriptor-exhaustion", "agent", free=free) for free in frees]
    assert agent.do(OPENED) == (0, errno.EMFILE)
    heal(leases[order[0]])
    assert agent.do(OPENED) == (frees[order[1]], errno.EMFILE)
    heal(leases[order[1]])
    assert limit_of(agent) == before


@pytest.mark.parametrize("parent_dies", [False, True], ids=["child", "orphan"])
def test_children_forked_meanwhile_are_healed_too(agent: Agent, parent_dies: bool) -> None:
    before = limit_of(agent)
    agent.do("begun, begin = os.pipe()")
    lease = agent.inject("descriptor-exhaustion", "agent")
    if parent_dies:
        agent.do(
            "child = os.fork()\nif child == 0:\n  os.setsid()\n  if os.fork(): os._exit(0)\n"
            "  ctypes.CDLL(None).prctl(15, b'heir', 0, 0, 0); signal.pause()\nos.waitpid(child, 0)"
        )
    else:
        agent.do("child = os.fork()\nif child == 0:\n  ctypes.CDLL(None).prctl(15, b'heir', 0, 0, 0); signal.pause()")
    eventually(lambda: any(p.command == "heir" for p in agent.sandbox.processes()), "it is forked")
    assert limit_of(agent, "heir")[0] < before[0]
    heal(lease)
    assert limit_of(agent, "heir") == before


def test_other_processes_of_the_system_keep_theirs(agent: Agent) -> None:
    agent.do("fork('other', idle)")
    before = limit_of(agent, "other")
    lease = agent.inject("descriptor-exhaustion", "agent")
    assert limit_of(agent, "other") == before
    heal(lease)
    assert limit_of(agent, "other") == before


def test_a_pattern_exhausts_all(agent: Agent) -> None:
    agent.do("fork('one', idle); fork('two', idle)")
    before = limit_of(agent, "one")
    lease = agent.inject("descriptor-exhaustion", "agent/*")
    proof = lease.fired() or ""
    assert "one[" in proof
    assert "two[" in proof
    assert limit_of(agent, "one")[0] < before[0]
    heal(lease)
    assert limit_of(agent, "one") == limit_of(agent, "two") == before


def test_a_stopped_process_is_exhausted_too(agent: Agent) -> None:
    stop = agent.inject("kill", "agent", signal="SIGSTOP")
    lease = agent.inject("descriptor-exhaustion", "agent")
    assert lease.fired()
    assert state_of(agent.process()) == "T"
    heal(stop)
    assert agent.do(OPENED) == (0, errno.EMFILE)
    heal(lease)
    assert read_process(agent.process().pid)


def test_a_healing_that_does_not_take_is_seen(agent: Agent) -> None:
    process = agent.process()
    soft, hard = limit_of(agent)
    lease = agent.inject("descriptor-exhaustion", "agent")
    low = limit_of(agent)[0]
    lease.heal()
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (low, hard))
    assert not lease.is_healed()
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (soft, hard))
    assert lease.is_healed()


def test_less_than_none_is_refused(agent: Agent) -> None:
    with pytest.raises(InvalidSpecification, match="-1"):
        agent.inject("descriptor-exhaustion", "agent", free=-1)
