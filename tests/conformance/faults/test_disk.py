"""A full disk: of bytes and of inodes, in the tmpfs of namespaces and in the watchdog of bare."""

from __future__ import annotations

import errno
import os
from itertools import permutations
from pathlib import Path

import pytest
from sandbox_bench import MIB, Agent, agent_in, eventually, heal

from colos.chaos import DiskFull, Restarts
from colos.chaos.fault import Lease
from colos.chaos.sandbox.session import Session
from colos.errors import FaultUnavailable, InvalidSpecification

BLOCK = 4096
FILES = (
    "made = []\n"
    "try:\n"
    "    while len(made) < 50: os.mknod(f'node{len(made)}'); made.append(f'node{len(made)}')\n"
    "except OSError as error: result = (len(made), error.errno)\n"
    "else: result = (len(made), 0)\n"
    "finally: [os.unlink(name) for name in made]"
)


@pytest.fixture(autouse=True)
def _available(session: Session) -> None:
    unavailable = DiskFull.unavailable(session)
    if unavailable is not None:
        pytest.skip(": ".join(unavailable))


def room(agent: Agent, name: str = "room") -> int:
    """How many bytes still fit, found out by writing them; they are given back."""
    return int(
        agent.do(
            f"fd = os.open({name!r}, os.O_CREAT | os.O_WRONLY); result = 0\n"
            "try:\n"
            "    while result < 1 << 20: result += os.write(fd, bytes(10000))\n"
            "except OSError as error: assert error.errno == errno.ENOSPC\n"
            f"finally: os.close(fd); os.unlink({name!r})"
        )
    )


def exists_already(agent: Agent, name: str = "room") -> None:
    agent.do(f"os.close(os.open({name!r}, os.O_CREAT | os.O_WRONLY))")


# --- bytes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("free", [0, BLOCK, 3 * BLOCK])
@pytest.mark.parametrize("used", [0, 1, 100_000])
def test_so_many_bytes_are_left_and_no_more(agent: Agent, used: int, free: int) -> None:
    if used:
        agent.do(f"put('before', bytes({used}))")
    lease = agent.inject("disk-full", free=free)
    assert room(agent) == free
    assert eventually(lease.fired, "it was felt")
    assert room(agent) == free  # what was given back can be had again, and no more
    heal(lease)
    assert room(agent) >= MIB


def test_bytes_are_left_in_whole_pages(agent: Agent) -> None:
    lease = agent.inject("disk-full", free=BLOCK + 1)
    assert room(agent) == BLOCK
    heal(lease)


def test_a_write_ends_short_at_the_last_block_and_then_fails(agent: Agent) -> None:
    lease = agent.inject("disk-full", free=2 * BLOCK)
    agent.do("fd = os.open('short', os.O_CREAT | os.O_WRONLY)")
    assert agent.ask("os.write(fd, bytes(100))") == 100
    assert agent.ask(f"os.write(fd, bytes(5 * {BLOCK}))") == 2 * BLOCK - 100
    assert agent.refused("os.write(fd, b'x')") == errno.ENOSPC
    assert agent.ask("os.fstat(fd).st_size") == 2 * BLOCK
    heal(lease)
    assert agent.ask("os.write(fd, b'x')") == 1


def test_overwriting_in_place_needs_no_room(agent: Agent) -> None:
    agent.do("put('old', b'a' * 10000)")
    lease = agent.inject("disk-full")
    assert agent.ask("put('old', b'b' * 10000, os.O_WRONLY)") == 10000
    assert agent.ask("open('old').read() == 'b' * 10000")
    assert agent.refused("put('old', b'c', os.O_WRONLY | os.O_APPEND)") == 0  # the rest of its last block
    assert agent.ask(f"put('old', bytes({BLOCK}), os.O_WRONLY | os.O_APPEND)") < BLOCK
    assert agent.refused(f"put('old', bytes({BLOCK}), os.O_WRONLY | os.O_APPEND)") == errno.ENOSPC
    heal(lease)


def test_an_empty_disk_is_full_too(agent: Agent) -> None:
    assert agent.ask("os.listdir('.')") == []
    lease = agent.inject("disk-full")
    assert agent.refused("put('first')") == errno.ENOSPC
    assert eventually(lease.fired, "it was felt")
    heal(lease)
    assert agent.refused("put('first')") == 0


def test_removing_a_file_makes_room(agent: Agent) -> None:
    agent.do(f"put('old', bytes(2 * {BLOCK}))")
    lease = agent.inject("disk-full")
    assert agent.refused("put('new')") == errno.ENOSPC
    agent.do("os.unlink('old')")
    assert room(agent) == 2 * BLOCK
    heal(lease)


@pytest.mark.parametrize(
    "source",
    [
        "os.posix_fallocate(fd, 0, 8192)",
        "os.pwrite(fd, b'x', 100000)",
        "os.writev(fd, [b'x', b'y'])",
        "os.sendfile(fd, source, 0, 100)",
    ],
)
def test_every_way_of_writing_is_refused(agent: Agent, source: str) -> None:
    agent.do(f"source = os.open({__file__!r}, os.O_RDONLY); fd = os.open('new', os.O_CREAT | os.O_WRONLY)")
    lease = agent.inject("disk-full")
    assert agent.refused(source) == errno.ENOSPC
    heal(lease)
    assert agent.refused(source) == 0


def test_a_child_and_a_daemon_are_refused_too(agent: Agent) -> None:
    lease = agent.inject("disk-full")
    agent.do(
        "def attempt():\n"
        "    try: put('theirs')\n"
        f"    except OSError as error: put({agent.sandbox.place.run + '/theirs'!r}, str(error.errno).encode())\n"
        "fork('child', lambda: (os.setsid(), attempt()))"
    )
    told = Path(agent.running.path("{run}/theirs"))
    assert eventually(lambda: told.exists() and told.read_text(), "the child has tried") == str(errno.ENOSPC)
    heal(lease)


def test_the_run_directory_and_home_are_not_full(agent: Agent) -> None:
    lease = agent.inject("disk-full")
    inodes = agent.inject("disk-full", resource="inodes")
    place = agent.sandbox.place
    for directory in (place.run, place.home, place.tmp):
        assert agent.ask(f"put({directory + '/works'!r}, bytes(100000))") == 100000
    agent.do("print('still heard', flush=True)")
    assert "still heard" in agent.running.output()
    agent.running.connect_blocking("{run}/agent.sock").close()
    heal(lease)
    heal(inodes)


def test_a_writer_at_full_speed_while_the_limit_comes_and_goes(agent: Agent) -> None:
    agent.do(
        "def write_on():\n"
        "    fd = os.open('grows', os.O_CREAT | os.O_WRONLY)\n"
        "    while True:\n"
        "        try:\n"
        "            os.write(fd, bytes(3000))\n"
        "            if os.fstat(fd).st_size > 8 << 20: os.ftruncate(fd, 0); os.lseek(fd, 0, 0)\n"
        "        except OSError: os.ftruncate(fd, 0); os.lseek(fd, 0, 0)\n"
        "fork('writer', write_on)"
    )
    grows = agent.running.path("{data}/grows")
    for _ in range(5):
        eventually(lambda: os.path.exists(grows) and os.stat(grows).st_size > 20000, "it writes")
        lease = agent.inject("disk-full")
        assert eventually(lease.fired, "it was felt")
        heal(lease)
    assert agent.ask("6 * 7") == 42


# --- inodes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("free", [0, 1, 5])
def test_so_many_inodes_are_left_and_no_more(agent: Agent, free: int) -> None:
    agent.do("put('before')")
    lease = agent.inject("disk-full", resource="inodes", free=free)
    assert agent.do(FILES) == (free, errno.ENOSPC)
    assert eventually(lease.fired, "it was felt")
    heal(lease)
    assert agent.do(FILES) == (50, 0)


@pytest.mark.parametrize("source", ["os.mkdir('new')", "os.symlink('x', 'new')", "open('new', 'w')", "os.mknod('new')"])
def test_whatever_needs_an_inode_is_refused(agent: Agent, source: str) -> None:
    lease = agent.inject("disk-full", resource="inodes")
    assert agent.refused(source) == errno.ENOSPC
    heal(lease)
    assert agent.refused(source) == 0


def test_without_inodes_there_is_room_in_old_files(agent: Agent) -> None:
    agent.do("put('old')")
    lease = agent.inject("disk-full", resource="inodes")
    assert agent.ask("put('old', bytes(100000))") == 100000
    agent.do("os.rename('old', 'renamed')")
    heal(lease)


# --- both, and several -------------------------------------------------------------------------


@pytest.mark.parametrize("bytes_first", [True, False])
@pytest.mark.parametrize("heal_bytes_first", [True, False])
@pytest.mark.parametrize("empty", [True, False])
def test_bytes_and_inodes_at_once(agent: Agent, bytes_first: bool, heal_bytes_first: bool, empty: bool) -> None:
    if not empty:
        agent.do("put('room', bytes(5000)); os.truncate('room', 0)")
    kinds = ("bytes", "inodes") if bytes_first else ("inodes", "bytes")
    leases = {name: agent.inject("disk-full", resource=name) for name in kinds}
    assert agent.refused("os.mkdir('new')") == errno.ENOSPC
    if not empty:
        assert agent.refused("put('room')") == errno.ENOSPC
    first, second = ("bytes", "inodes") if heal_bytes_first else ("inodes", "bytes")
    heal(leases[first])
    if first == "bytes":
        assert agent.refused("os.mkdir('new')") == errno.ENOSPC
        if not empty:
            assert room_in_old(agent) > BLOCK
    else:
        assert agent.do(FILES) == (50, 0)
        assert room(agent) == 0
    heal(leases[second])
    assert agent.do(FILES) == (50, 0)
    assert room(agent) >= MIB


def room_in_old(agent: Agent) -> int:
    return int(agent.ask("put('room', bytes(50000))"))


@pytest.mark.parametrize("resource", ["bytes", "inodes"])
@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_the_tightest_of_several_holds_whatever_ends_first(agent: Agent, resource: str, order: tuple[int, ...]) -> None:
    unit = BLOCK if resource == "bytes" else 1
    frees = [2, 0, 1]
    leases: list[Lease] = [agent.inject("disk-full", resource=resource, free=free * unit) for free in frees]

    def left() -> int:
        return room(agent) if resource == "bytes" else int(agent.do(FILES)[0])

    standing = set(range(3))
    for at in order:
        assert left() == min(frees[i] for i in standing) * unit
        heal(leases[at])
        standing.remove(at)
    assert left() >= 50


def test_the_limit_of_an_earlier_lease_counts_from_its_own_beginning(agent: Agent) -> None:
    exists_already(agent, "grows")
    wide = agent.inject("disk-full", free=4 * BLOCK)
    agent.do(f"put('grows', bytes({BLOCK}))")
    tight = agent.inject("disk-full", free=BLOCK)
    assert room(agent) == BLOCK
    heal(tight)
    assert room(agent) == 3 * BLOCK
    heal(wide)


def test_each_lease_proves_itself_by_what_it_did(bare: Session) -> None:
    with agent_in(bare) as agent:
        inodes = agent.inject("disk-full", resource="inodes")
        size = agent.inject("disk-full", resource="bytes")
        assert (inodes.fired(), size.fired()) == (None, None)
        assert agent.refused("os.mkdir('new')") == errno.ENOSPC
        assert inodes.fired() == "ENOSPC given 1 times"
        assert size.fired() is None
        heal(inodes)
        assert inodes.fired() == "ENOSPC given 1 times"
        heal(size)
        assert size.fired() is None


# --- contained -----------------------------------------------------------------------------------


def test_the_hosts_disk_never_fills(bare: Session) -> None:
    with agent_in(bare) as agent:
        before = os.statvfs(agent.sandbox.place.data)
        lease = agent.inject("disk-full")
        agent.do("for n in range(20):\n  try: put(f'file{n}', bytes(1 << 20))\n  except OSError: pass")
        assert lease.fired()
        used = sum(
            os.stat(os.path.join(agent.sandbox.place.data, n)).st_blocks for n in os.listdir(agent.sandbox.place.data)
        )
        assert used == 0
        after = os.statvfs(agent.sandbox.place.data)
        assert (after.f_blocks, after.f_files) == (before.f_blocks, before.f_files)
        assert before.f_bfree - after.f_bfree < (8 * MIB) // before.f_frsize  # others write there too
        heal(lease)


def test_outside_of_data_a_bare_sandbox_is_not_limited(bare: Session) -> None:
    with agent_in(bare) as agent:
        lease = agent.inject("disk-full")
        assert agent.ask(f"put({agent.sandbox.place.home + '/free'!r}, bytes(100000))") == 100000
        heal(lease)


def test_a_restarted_program_meets_the_same_full_disk(session: Session) -> None:
    with agent_in(session, restarts=Restarts(limit=3)) as agent:
        lease = agent.inject("disk-full")
        (main,) = agent.running.targets("agent")
        main.signal(9)
        main.close()
        eventually(lambda: agent.sandbox.pump(0.01) or agent.sandbox.starts == 2, "it is started again")
        agent.running.wait_ready(10)
        line = agent.running.connect_blocking("{run}/agent.sock")
        with line, line.makefile("rwb") as stream:
            stream.write(repr("put('new')").encode() + b"\n")
            stream.flush()
            assert eval(stream.readline()) == ("OSError", errno.ENOSPC)
        heal(lease)


def test_where_nothing_can_be_trapped_it_is_unavailable(session: Session) -> None:
    with agent_in(session) as agent:
        if session.tier != "bare":
            pytest.skip("a disk of its own needs no trap")
        agent.sandbox.trapping = False
        with pytest.raises(FaultUnavailable, match="disk-full"):
            agent.inject("disk-full")


@pytest.mark.parametrize("bad", [{"resource": "luck"}, {"free": -1}, {"resource": "inodes", "free": -1}])
def test_what_makes_no_sense_is_refused(agent: Agent, bad: dict[str, object]) -> None:
    with pytest.raises(InvalidSpecification):
        agent.inject("disk-full", None, **bad)
    assert agent.refused("put('new')") == 0
