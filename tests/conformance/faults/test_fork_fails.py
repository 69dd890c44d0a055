"""No process and no thread more: EAGAIN where the target tries, exactly so many left, others unhindered."""

from __future__ import annotations

import errno
import resource

import pytest
from sandbox_bench import Agent, heal

from colos.chaos import ForkFails
from colos.chaos.mechanisms import processcount
from colos.chaos.sandbox.spec import NAMESPACES
from colos.errors import InvalidSpecification

FORKED = (
    "children = []\n"
    "try:\n"
    "    while len(children) < 20:\n"
    "        child = os.fork()\n"
    "        if child == 0: signal.pause(); os._exit(0)\n"
    "        children.append(child)\n"
    "except OSError as error: result = (len(children), error.errno)\n"
    "else: result = (len(children), 0)\n"
    "finally:\n"
    "    for child in children: os.kill(child, signal.SIGKILL); os.waitpid(child, 0)"
)
THREADED = (
    "import threading\n"
    "over = threading.Event(); threads = []\n"
    "try:\n"
    "    while len(threads) < 20:\n"
    "        thread = threading.Thread(target=over.wait); thread.start(); threads.append(thread)\n"
    "except RuntimeError as error: result = (len(threads), str(error))\n"
    "else: result = (len(threads), '')\n"
    "finally:\n"
    "    over.set(); [thread.join() for thread in threads]"
)


@pytest.fixture
def bound(agent: Agent) -> Agent:
    """An agent whom the limit binds."""
    unbound = processcount.probe()
    if unbound is not None:
        pytest.skip(f"{unbound}; what befalls root is tested at the end")
    return agent


@pytest.fixture
def counted(bound: Agent) -> Agent:
    """One whose user has no process anywhere else, so that what is left is exact."""
    if bound.sandbox.tier != NAMESPACES:
        pytest.skip("other processes of the same user come and go")
    return bound


def limit_of(agent: Agent, command: str | None = None) -> tuple[int, int]:
    return resource.prlimit(agent.process(command).pid, resource.RLIMIT_NPROC)


@pytest.mark.parametrize("free", [0, 1, 3])
def test_exactly_so_many_processes_are_left(counted: Agent, free: int) -> None:
    lease = counted.inject("fork-fails", "agent", free=free)
    assert "tasks of its user" in (lease.fired() or "")
    assert counted.do(FORKED) == (free, errno.EAGAIN)
    heal(lease)
    assert counted.do(FORKED) == (20, 0)


@pytest.mark.parametrize("free", [0, 2])
def test_exactly_so_many_threads_are_left(counted: Agent, free: int) -> None:
    counted.do("import threading")
    lease = counted.inject("fork-fails", "agent", free=free)
    assert counted.do(THREADED) == (free, "can't start new thread")
    heal(lease)
    assert counted.do(THREADED) == (20, "")


def test_fork_fails_among_strangers_too(bound: Agent) -> None:
    """In `bare` the user's other processes count: they may make a little room, but not for twenty."""
    lease = bound.inject("fork-fails", "agent")
    made, refused = bound.do(FORKED)
    assert refused == errno.EAGAIN
    assert made < 20
    heal(lease)
    assert bound.do(FORKED) == (20, 0)


def test_threads_of_the_system_count_too(counted: Agent) -> None:
    counted.do("import threading; over = threading.Event()")
    counted.do("threads = [threading.Thread(target=over.wait) for _ in range(3)]; [t.start() for t in threads]")
    lease = counted.inject("fork-fails", "agent", free=1)
    assert counted.do(FORKED) == (1, errno.EAGAIN)
    counted.do("over.set(); [t.join() for t in threads]")
    assert counted.do(FORKED) == (4, errno.EAGAIN), "what ends makes room"
    heal(lease)


def test_other_processes_of_the_system_go_on_forking(counted: Agent) -> None:
    counted.do(
        "def other():\n"
        "    signal.sigwait({signal.SIGUSR1}); child = os.fork()\n"
        "    if child == 0: os._exit(0)\n"
        "    os.waitpid(child, 0); put('forked')\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1}); child = fork('other', other)"
    )
    before = limit_of(counted, "other")
    lease = counted.inject("fork-fails", "agent")
    assert limit_of(counted, "other") == before
    counted.do("os.kill(child, signal.SIGUSR1); os.waitpid(child, 0)")
    assert counted.refused("open('forked')") == 0
    heal(lease)


def test_only_the_soft_limit_is_touched_and_comes_back(bound: Agent) -> None:
    before = limit_of(bound)
    lease = bound.inject("fork-fails", "agent")
    assert limit_of(bound) != before
    assert limit_of(bound)[1] == before[1]
    heal(lease)
    assert limit_of(bound) == before


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("frees", [(0, 2), (2, 0)])
def test_the_tightest_of_two_leases_holds(counted: Agent, frees: tuple[int, int], order: tuple[int, int]) -> None:
    before = limit_of(counted)
    leases = [counted.inject("fork-fails", "agent", free=free) for free in frees]
    assert counted.do(FORKED) == (0, errno.EAGAIN)
    heal(leases[order[0]])
    assert counted.do(FORKED) == (frees[order[1]], errno.EAGAIN)
    heal(leases[order[1]])
    assert limit_of(counted) == before


def test_children_forked_meanwhile_are_healed_too(counted: Agent) -> None:
    before = limit_of(counted)
    lease = counted.inject("fork-fails", "agent", free=1)
    counted.do("fork('heir', idle)")
    assert limit_of(counted, "heir")[0] != before[0]
    heal(lease)
    assert limit_of(counted, "heir") == before


def test_what_is_counted_is_what_the_kernel_counts(counted: Agent) -> None:
    def count() -> int:
        (value, counter), _ = counted.sandbox.join(processcount.CountTasks())
        processcount.await_end(counter)
        return int(value)

    first = count()
    counted.do("for name in ('one', 'two'): fork(name, idle)")
    assert count() == first + 2


@pytest.mark.parametrize("bad", [-1, "x", 0.5])
def test_less_than_none_is_refused(agent: Agent, bad: object) -> None:
    with pytest.raises(InvalidSpecification, match="0 or more"):
        agent.inject("fork-fails", "agent", free=bad)


# --- root, whom the limit does not bind -----------------------------------------------------


@pytest.fixture
def unbound(agent: Agent) -> Agent:
    """An agent whose calls have to be answered."""
    if processcount.probe() is None:
        pytest.skip("the limit binds this user")
    unavailable = ForkFails.unavailable(agent.sandbox.session)
    if unavailable is not None:
        pytest.skip(": ".join(unavailable))
    return agent


@pytest.mark.parametrize("free", [0, 2])
def test_root_too_can_fork_so_many_more_and_then_none(unbound: Agent, free: int) -> None:
    lease = unbound.inject("fork-fails", "agent", free=free)
    assert lease.fired() is None
    assert unbound.do(FORKED) == (free, errno.EAGAIN)
    assert lease.fired() == "clone ×1"
    assert unbound.do(THREADED) == (0, "can't start new thread")
    heal(lease)
    assert unbound.do(FORKED) == (20, 0)
    assert unbound.do(THREADED) == (20, "")
