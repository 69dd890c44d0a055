"""Memory that cannot be had, and what takes it: as the system inside meets it."""

from __future__ import annotations

import errno
import os
import resource
import signal
from pathlib import Path

import pytest
from sandbox_bench import MIB, Agent, descriptors, eventually, gone, heal, state_of

from colos.chaos import MemoryLimit, MemoryPressure, OomKill, OomKillLookalike
from colos.chaos.mechanisms import memorycgroup
from colos.errors import InvalidSpecification

PAGE = os.sysconf("SC_PAGE_SIZE")
# Nothing but system calls between looking and asking, so that the interpreter's own needs stay out of it.
MAPPED = (
    "libc = ctypes.CDLL(None, use_errno=True); libc.mmap.restype = ctypes.c_void_p\n"
    "def maps(size):\n"
    "    at = libc.mmap(None, ctypes.c_size_t(size), 3, 0x22, -1, ctypes.c_long(0))\n"
    "    if at == ctypes.c_void_p(-1).value: return ctypes.get_errno()\n"
    "    libc.munmap(ctypes.c_void_p(at), ctypes.c_size_t(size))\n"
    "    return 0\n"
    "maps(4096)"
)


def limit_of(agent: Agent, command: str | None = None) -> tuple[int, int]:
    return resource.prlimit(agent.process(command).pid, resource.RLIMIT_AS)


# --- memory-limit ----------------------------------------------------------------------------


@pytest.mark.parametrize("free", [MIB, 8 * MIB])
def test_so_much_can_be_mapped_and_no_more(agent: Agent, free: int) -> None:
    agent.do(MAPPED)
    lease = agent.inject("memory-limit", "agent", free=free)
    assert "may map" in (lease.fired() or "")
    assert agent.ask(f"maps({free + PAGE})") == errno.ENOMEM
    assert agent.ask(f"maps({free // 2})") == 0
    heal(lease)
    assert agent.ask(f"maps({free + PAGE})") == 0


def test_python_meets_a_memory_error_and_goes_on(agent: Agent) -> None:
    lease = agent.inject("memory-limit", "agent", free=MIB)
    source = "try: bytearray(32 << 20)\nexcept MemoryError: result = 'MemoryError'\nelse: result = 'bytes'"
    assert agent.do(source) == "MemoryError"
    assert agent.refused("mmap.mmap(-1, 32 << 20)") == errno.ENOMEM
    heal(lease)
    assert agent.do(source) == "bytes"


def test_only_the_soft_limit_is_touched_and_comes_back(agent: Agent) -> None:
    before = limit_of(agent)
    lease = agent.inject("memory-limit", "agent")
    soft, hard = limit_of(agent)
    assert 0 < soft < 1 << 40
    assert hard == before[1]
    heal(lease)
    assert limit_of(agent) == before


def test_a_soft_limit_that_was_low_already_comes_back(agent: Agent) -> None:
    agent.do("resource.setrlimit(resource.RLIMIT_AS, (1 << 33, resource.getrlimit(resource.RLIMIT_AS)[1]))")
    lease = agent.inject("memory-limit", "agent")
    assert limit_of(agent)[0] < 1 << 33
    heal(lease)
    assert limit_of(agent)[0] == 1 << 33


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("frees", [(MIB, 64 * MIB), (64 * MIB, MIB)])
def test_the_tightest_of_two_leases_holds(agent: Agent, frees: tuple[int, int], order: tuple[int, int]) -> None:
    agent.do(MAPPED)
    before = limit_of(agent)
    leases = [agent.inject("memory-limit", "agent", free=free) for free in frees]
    assert agent.ask(f"maps({32 * MIB})") == errno.ENOMEM
    heal(leases[order[0]])
    assert agent.ask(f"maps({32 * MIB})") == (errno.ENOMEM if frees[order[1]] == MIB else 0)
    assert agent.ask(f"maps({128 * MIB})") == errno.ENOMEM
    heal(leases[order[1]])
    assert limit_of(agent) == before


def test_children_forked_meanwhile_are_healed_too(agent: Agent) -> None:
    before = limit_of(agent)
    lease = agent.inject("memory-limit", "agent", free=16 * MIB)
    agent.do("child = fork('heir', idle)")
    assert limit_of(agent, "heir") == limit_of(agent) != before
    heal(lease)
    assert limit_of(agent, "heir") == limit_of(agent) == before


def test_other_processes_keep_their_memory(agent: Agent) -> None:
    agent.do("fork('other', idle)")
    before = limit_of(agent, "other")
    lease = agent.inject("memory-limit", "agent")
    assert limit_of(agent, "other") == before
    heal(lease)


def test_a_healing_that_does_not_take_is_seen(agent: Agent) -> None:
    process, (soft, hard) = agent.process(), limit_of(agent)
    lease = agent.inject("memory-limit", "agent", free=16 * MIB)
    low = limit_of(agent)[0]
    lease.heal()
    resource.prlimit(process.pid, resource.RLIMIT_AS, (low, hard))
    assert not lease.is_healed()
    resource.prlimit(process.pid, resource.RLIMIT_AS, (soft, hard))
    assert lease.is_healed()


@pytest.mark.parametrize("bad", [-1, 1.5, "much", True])
def test_a_size_that_is_none_is_refused(agent: Agent, bad: object) -> None:
    with pytest.raises(InvalidSpecification, match="0 or more"):
        agent.inject("memory-limit", "agent", free=bad)
    with pytest.raises(InvalidSpecification, match="0 or more"):
        MemoryLimit(frees=(bad,))  # type: ignore[arg-type]


# --- oom-kill-lookalike ------------------------------------------------------------------------


def test_the_one_with_the_most_memory_is_killed_and_nobody_else(agent: Agent) -> None:
    agent.do("fork('small', idle); fork('other', idle)")
    agent.do(f"def big(): kept = bytearray(b'x') * {32 * MIB}; idle()\nchild = fork('big', big)")
    big, small, other = (agent.process(name) for name in ("big", "small", "other"))
    eventually(lambda: _resident(big.pid) >= 32 * MIB, "it is big")
    lease = agent.inject("oom-kill-lookalike", "agent/*")
    assert not lease.lasting
    assert (lease.fired() or "").startswith(f"SIGKILL to big[{big.inner_pid}], the largest of 3 with ")
    assert agent.ask("os.WTERMSIG(os.waitpid(child, 0)[1])") == signal.SIGKILL
    assert {state_of(small), state_of(other)} <= {"R", "S"}
    heal(lease)


def test_it_is_the_largest_of_those_that_match(agent: Agent) -> None:
    agent.do("fork('small', idle)")
    agent.do(f"def big(): kept = bytearray(b'x') * {32 * MIB}; idle()\nfork('big', big)")
    big, small = agent.process("big"), agent.process("small")
    eventually(lambda: _resident(big.pid) >= 32 * MIB, "it is big")
    assert "small" in (agent.inject("oom-kill-lookalike", "agent/small").fired() or "")
    assert state_of(big) in ("R", "S")
    assert state_of(small) in ("Z", "X") or gone(small)


def test_whoever_the_kernel_would_spare_is_spared(agent: Agent) -> None:
    agent.do("fork('exempt', idle)")
    exempt = agent.process("exempt")
    try:
        Path(f"/proc/{exempt.pid}/oom_score_adj").write_text("-1000")
    except PermissionError:
        pytest.skip("only who has CAP_SYS_RESOURCE may exempt a process")
    assert agent.inject("oom-kill-lookalike", "agent/exempt").fired() is None
    assert state_of(exempt) in ("R", "S")


def test_it_costs_one_death_at_most() -> None:
    assert OomKillLookalike().deaths("*", ("a", "b")) == 1
    assert OomKillLookalike().deaths("c", ("a", "b")) == 0


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


# --- the memory cgroup ---------------------------------------------------------------------------


@pytest.fixture
def grouped(agent: Agent) -> Agent:
    unavailable = OomKill.unavailable(agent.sandbox.session)
    if unavailable is not None:
        pytest.skip(": ".join(unavailable))
    return agent


def test_the_kernel_kills_who_uses_more(grouped: Agent) -> None:
    before = descriptors()
    grouped.do("child = fork('victim', idle)")
    lease = grouped.inject("oom-kill", "agent/victim", free=MIB)
    assert lease.fired() is None, "nobody has used more yet"
    victim = grouped.process("victim")
    grouped.do(
        f"def grow(*_):\n    kept = bytearray(b'x') * {16 * MIB}; idle()\n"
        "signal.signal(signal.SIGUSR1, grow)\nos.kill(child, signal.SIGKILL); os.waitpid(child, 0)\n"
        "child = fork('grower', idle)"
    )
    assert gone(victim)
    second = grouped.inject("oom-kill", "agent/grower", free=MIB)
    grouped.do("os.kill(child, signal.SIGUSR1)")
    assert grouped.ask("os.WTERMSIG(os.waitpid(child, 0)[1])") == signal.SIGKILL
    assert "oom_kill counted" in (second.fired() or "")
    heal(lease)
    heal(second)
    assert second.fired()
    assert descriptors() == before


def test_the_kernel_throttles_who_uses_more(grouped: Agent) -> None:
    process = grouped.process()
    home = memorycgroup.origin_of(process.pid)
    lease = grouped.inject("memory-pressure", "agent", free=MIB)
    assert memorycgroup.origin_of(process.pid) != home
    grouped.tell(f"kept = bytearray(b'x') * {4 * MIB}; result = len(kept)")
    eventually(lease.fired, "it was throttled")
    heal(lease)
    assert memorycgroup.origin_of(process.pid) == home
    assert grouped.hear() == 4 * MIB


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_groups_end_in_any_order_and_everybody_is_home(grouped: Agent, order: tuple[int, int]) -> None:
    process = grouped.process()
    home = memorycgroup.origin_of(process.pid)
    leases = [grouped.inject("memory-pressure", "agent", free=64 * MIB) for _ in range(2)]
    grouped.do("fork('heir', idle)")
    for at in order:
        heal(leases[at])
    assert memorycgroup.origin_of(process.pid) == memorycgroup.origin_of(grouped.process("heir").pid) == home


MOUNTED = "35 30 0:26 / {top} rw - cgroup2 cgroup2 rw\n"


def delegated(top: Path, *names: str) -> None:
    """Files as the kernel shows them, where `names` hand the memory controller on."""
    for directory in (top, top / "user", top / "user" / "run"):
        directory.mkdir(exist_ok=True)
        (directory / "cgroup.controllers").write_text("cpu memory pids\n")
        (directory / "cgroup.procs").write_text("")
        (directory / "cgroup.subtree_control").write_text("cpu memory\n" if directory.name in names else "cpu\n")


def test_a_group_is_made_under_the_nearest_cgroup_that_hands_memory_on(tmp_path: Path) -> None:
    mounts, own = MOUNTED.format(top=tmp_path), "4:memory:/old\n0::/user/run\n"
    delegated(tmp_path, "user")
    assert memorycgroup.place_for(mounts, own) == f"{tmp_path}/user"
    delegated(tmp_path, "user", "run")
    assert memorycgroup.place_for(mounts, own) == f"{tmp_path}/user/run"
    delegated(tmp_path)
    assert "hands the memory controller on" in memorycgroup.place_for(mounts, own)


def test_where_there_is_no_controller_it_says_so(tmp_path: Path) -> None:
    delegated(tmp_path, "user")
    (tmp_path / "cgroup.controllers").write_text("cpu pids\n")
    assert "no memory controller" in memorycgroup.place_for(MOUNTED.format(top=tmp_path), "0::/user\n")
    assert "no cgroup v2" in memorycgroup.place_for("35 30 0:26 / /x rw - cgroup cgroup rw,memory\n", "0::/user\n")
    assert "in no cgroup" in memorycgroup.place_for(MOUNTED.format(top=tmp_path), "4:memory:/old\n")


@pytest.mark.parametrize("kind", [MemoryPressure, OomKill])
@pytest.mark.parametrize("bad", [0, 65535, -1, 1.5])
def test_less_than_a_process_needs_to_be_stopped_in_is_refused(kind: type[OomKill], bad: int) -> None:
    with pytest.raises(InvalidSpecification, match="or more"):
        kind(frees=(bad,))
