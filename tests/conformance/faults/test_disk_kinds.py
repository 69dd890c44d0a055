"""Read-only disks, vanished and shut files, bit rot: as the system inside meets them."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from sandbox_bench import Agent, agent_in, descriptors, eventually, heal

from colos.chaos import BitRot, DiskReadOnly, FileVanished, PermissionLost
from colos.chaos.fault import Lease
from colos.chaos.sandbox.datadisk import DataDisk
from colos.chaos.sandbox.session import Session
from colos.chaos.sandbox.spec import NAMESPACES
from colos.errors import FaultUnavailable, HarnessBroken, InvalidSpecification


def contents(agent: Agent, path: str) -> bytes:
    return bytes(agent.ask(f"open({path!r}, 'rb').read()"))


# --- read-only -------------------------------------------------------------------------------


@pytest.fixture
def own(agent: Agent) -> Agent:
    """An agent whose disk has a mount of its own."""
    unavailable = DiskReadOnly.unavailable(agent.sandbox.session)
    if unavailable is not None:
        pytest.skip(": ".join(unavailable))
    return agent


@pytest.mark.parametrize(
    "source",
    [
        "open('new', 'w')",
        "open('old', 'r+')",
        "open(os.environ['COLOS_DATA'] + '/new', 'w')",
        "os.mkdir('new')",
        "os.rename('old', 'new')",
        "os.unlink('old')",
        "os.symlink('old', 'new')",
        "os.link('old', 'new')",
        "os.chmod('old', 0o644)",
        "os.truncate('old', 0)",
        "os.utime('old')",
    ],
)
def test_whatever_changes_the_disk_meets_erofs_until_it_is_healed(own: Agent, source: str) -> None:
    own.do("put('old', b'kept')")
    lease = own.inject("disk-read-only")
    assert lease.fired() == "a probe met EROFS"
    assert own.refused(source) == errno.EROFS
    assert contents(own, "old") == b"kept"
    heal(lease)
    assert own.refused(source) == 0


def test_a_file_that_is_open_for_reading_stays_readable(own: Agent) -> None:
    own.do("put('old', b'kept'); fd = os.open('old', os.O_RDONLY)")
    lease = own.inject("disk-read-only")
    assert own.ask("os.read(fd, 9)") == b"kept"
    heal(lease)


def test_while_a_file_is_open_for_writing_it_does_not_fire_and_changes_nothing(own: Agent) -> None:
    own.do("fd = os.open('log', os.O_CREAT | os.O_WRONLY)")
    lease = own.inject("disk-read-only", patience_ms=1)
    assert lease.fired() is None
    assert own.ask("os.write(fd, b'goes on')") == 7
    assert own.refused("put('new')") == 0
    heal(lease)
    assert lease.fired() is None


def test_it_waits_for_the_moment_when_the_last_writer_closes(own: Agent) -> None:
    own.do("fd = os.open('log', os.O_CREAT | os.O_WRONLY)")
    own.tell("time.sleep(0.15); os.close(fd)")
    lease = own.inject("disk-read-only", patience_ms=5000)
    own.hear()
    assert lease.fired()
    heal(lease)


@pytest.mark.parametrize("kind", ["disk-full", "disk-read-only"])
@pytest.mark.parametrize("resource", ["bytes", "inodes"])
def test_a_full_disk_may_be_read_only_too_and_neither_ends_the_other(own: Agent, kind: str, resource: str) -> None:
    before = os.statvfs(own.sandbox.outside("{data}"))
    leases = {"disk-full": own.inject("disk-full", resource=resource), "disk-read-only": own.inject("disk-read-only")}
    assert all(lease.fired() for lease in leases.values())
    assert own.refused("put('new')") == errno.EROFS
    heal(leases.pop(kind))
    assert own.refused("put('new')") == (errno.ENOSPC if kind == "disk-read-only" else errno.EROFS)
    for lease in leases.values():
        heal(lease)
    after = os.statvfs(own.sandbox.outside("{data}"))
    assert (after.f_blocks, after.f_files, after.f_flag) == (before.f_blocks, before.f_files, before.f_flag)


def test_a_read_only_disk_may_become_full_too(own: Agent) -> None:
    read_only = own.inject("disk-read-only")
    full = own.inject("disk-full")
    assert full.fired()
    assert own.refused("put('new')") == errno.EROFS
    heal(read_only)
    assert own.refused("put('new')") == errno.ENOSPC
    heal(full)
    assert own.refused("put('new')") == 0


def test_run_and_temporary_directories_stay_writable(own: Agent) -> None:
    lease = own.inject("disk-read-only")
    for place in ("COLOS_RUN", "TMPDIR", "HOME"):
        assert own.refused(f"put(os.environ[{place!r}] + '/file')") == 0
    heal(lease)


def test_a_healing_that_does_not_take_is_seen(own: Agent) -> None:
    lease = own.inject("disk-read-only")
    lease.heal()
    other = own.inject("disk-read-only")
    own.site.overlays.release(("disk", "read-only"), other)  # nobody answers for it any more
    assert not lease.is_healed()
    own.site.overlays.hold(("disk", "read-only"), other, 0, lambda: None)
    heal(other)
    assert lease.is_healed()


def test_a_bare_sandbox_has_no_mount_to_make_read_only(bare: Session) -> None:
    reason, cure = DiskReadOnly.unavailable(bare) or ("", "")
    assert "no mount of its own" in reason
    assert "namespaces" in cure
    with agent_in(bare) as agent, pytest.raises(FaultUnavailable):
        agent.inject("disk-read-only")


# --- vanished --------------------------------------------------------------------------------


def test_a_file_vanishes_and_comes_back_as_it_was(agent: Agent) -> None:
    agent.do("os.mkdir('d'); put('d/f', b'x' * 5000); os.chmod('d/f', 0o640); os.utime('d/f', (1, 2))")
    lease = agent.inject("file-vanished", path="d/*")
    assert lease.fired() == "d/f is gone (5000 bytes)"
    assert agent.refused("open('d/f')") == errno.ENOENT
    assert agent.ask("os.listdir('d')") == []
    heal(lease)
    assert contents(agent, "d/f") == b"x" * 5000
    assert agent.ask("oct(os.stat('d/f').st_mode)") == "0o100640"
    assert agent.ask("os.stat('d/f').st_mtime") == 2


def test_an_open_descriptor_goes_on_with_the_old_file(agent: Agent) -> None:
    agent.do("put('f', b'old'); fd = os.open('f', os.O_RDWR)")
    lease = agent.inject("file-vanished")
    assert agent.ask("os.pread(fd, 9, 0)") == b"old"
    assert agent.ask("os.pwrite(fd, b'new', 0)") == 3
    assert agent.ask("os.fstat(fd).st_nlink") == 0
    heal(lease)
    assert contents(agent, "f") == b"old"
    assert agent.ask("os.pread(fd, 9, 0)") == b"new"


def test_what_is_new_at_its_path_is_left_alone(agent: Agent) -> None:
    agent.do("put('f', b'old')")
    lease = agent.inject("file-vanished")
    agent.do("put('f', b'new')")
    heal(lease)
    assert contents(agent, "f") == b"new"


def test_where_its_directory_is_gone_it_stays_lost(agent: Agent) -> None:
    agent.do("os.mkdir('d'); put('d/f')")
    lease = agent.inject("file-vanished")
    agent.do("os.rmdir('d')")
    heal(lease)
    assert agent.ask("os.listdir('.')") == []


@pytest.mark.parametrize("kind", ["file-vanished", "permission-lost", "bit-rot"])
def test_a_glob_that_matches_nothing_is_a_miss(agent: Agent, kind: str) -> None:
    agent.do("put('f', b'kept'); os.symlink('f', 'link.log')")
    lease = agent.inject(kind, path="*.log")
    assert lease.fired() is None
    heal(lease)
    assert contents(agent, "f") == b"kept"


@pytest.mark.parametrize("kind", ["file-vanished", "permission-lost", "bit-rot"])
def test_the_seed_chooses_the_file_and_nothing_else_does(agent: Agent, kind: str) -> None:
    def victim(seed: int) -> str:
        agent.do("for name in 'abcdefgh': put(name, b'x' * 100); os.chmod(name, 0o600)")
        lease = agent.inject(kind, seed=seed)
        proof = lease.fired() or ""
        heal(lease)
        return proof[0]

    victims = [victim(seed) for seed in range(8)]
    assert [victim(seed) for seed in range(8)] == victims
    assert len(set(victims)) > 1


@pytest.mark.parametrize("kind", ["file-vanished", "permission-lost"])
def test_so_many_files_and_no_more(agent: Agent, kind: str) -> None:
    agent.do("for name in 'abcde': put(name)")
    lease = agent.inject(kind, count=3)
    refused = [agent.refused(f"open({name!r})") for name in "abcde"]
    assert sorted(map(bool, refused)) == [False, False, True, True, True]
    heal(lease)
    assert not any(agent.refused(f"open({name!r})") for name in "abcde")


@pytest.mark.parametrize("kind", ["file-vanished", "permission-lost", "bit-rot"])
def test_no_link_leads_out_of_the_disk(agent: Agent, kind: str) -> None:
    """A directory that is a link is no directory of this disk; what it points to is not the fault's."""
    agent.do("out = os.environ['COLOS_RUN'] + '/out'; os.mkdir(out); put(out + '/f', b'kept'); os.symlink(out, 'd')")
    lease = agent.inject(kind, path="*f", count=9) if kind != "bit-rot" else agent.inject(kind, path="*f")
    assert lease.fired() is None
    assert agent.ask("open(out + '/f', 'rb').read()") == b"kept"
    heal(lease)


def test_files_are_reached_on_a_read_only_disk_too(own: Agent) -> None:
    own.do("put('f', b'x' * 100)")
    read_only = own.inject("disk-read-only")
    vanished = own.inject("file-vanished")
    assert own.refused("open('f')") == errno.ENOENT
    heal(vanished)
    assert contents(own, "f") == b"x" * 100
    assert own.inject("bit-rot").fired()
    assert contents(own, "f") != b"x" * 100
    heal(read_only)


# --- permission ------------------------------------------------------------------------------


def test_a_file_is_shut_for_its_owner_too_and_opened_again(agent: Agent) -> None:
    agent.do("put('f', b'kept'); os.chmod('f', 0o640); fd = os.open('f', os.O_RDONLY)")
    lease = agent.inject("permission-lost")
    assert lease.fired() == "f has mode 0"
    assert agent.refused("open('f')") == errno.EACCES
    assert agent.refused("open('f', 'w')") == errno.EACCES
    assert not agent.ask("os.access('f', os.R_OK)")
    assert agent.ask("os.read(fd, 9)") == b"kept"
    heal(lease)
    assert agent.ask("oct(os.stat('f').st_mode)") == "0o100640"
    assert contents(agent, "f") == b"kept"


def test_a_directory_is_shut_with_all_that_is_below(agent: Agent) -> None:
    agent.do("os.mkdir('d', 0o750); put('d/f')")
    lease = agent.inject("permission-lost", path="d")
    assert agent.refused("open('d/f')") == errno.EACCES
    assert agent.refused("os.listdir('d')") == errno.EACCES
    assert agent.refused("open('d/g', 'w')") == errno.EACCES
    heal(lease)
    assert agent.ask("oct(os.stat('d').st_mode)") == "0o40750"
    assert agent.refused("open('d/f')") == 0


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("paths", [("d", "d/f"), ("d/f", "d"), ("d", "d")])
def test_shut_directories_and_what_is_in_them_open_in_any_order(
    agent: Agent, paths: tuple[str, str], order: tuple[int, int]
) -> None:
    agent.do("os.mkdir('d'); put('d/f')")
    before = descriptors()
    leases = [agent.inject("permission-lost", path=path) for path in paths]
    for at in order:
        heal(leases[at])
    assert agent.refused("open('d/f')") == 0
    assert descriptors() == before


def test_two_leases_hold_until_both_are_healed(agent: Agent) -> None:
    agent.do("put('f')")
    leases = [agent.inject("permission-lost") for _ in range(2)]
    heal(leases[0])
    assert agent.refused("open('f')") == errno.EACCES
    heal(leases[1])
    assert agent.refused("open('f')") == 0


def test_a_mode_that_somebody_else_has_set_stays(agent: Agent) -> None:
    agent.do("put('f')")
    lease = agent.inject("permission-lost")
    agent.do("os.chmod('f', 0o444)")
    heal(lease)
    assert agent.ask("oct(os.stat('f').st_mode)") == "0o100444"


def test_a_file_that_was_removed_and_made_again_is_another(agent: Agent) -> None:
    agent.do("put('f')")
    lease = agent.inject("permission-lost")
    agent.do("os.unlink('f'); os.close(os.open('f', os.O_CREAT, 0))")
    heal(lease)
    assert agent.ask("oct(os.stat('f').st_mode)") == "0o100000"


def test_an_opening_that_does_not_take_is_seen(agent: Agent) -> None:
    agent.do("put('f')")
    lease = agent.inject("permission-lost")
    lease.heal()
    agent.do("os.chmod('f', 0)")
    assert not lease.is_healed()
    agent.do("os.chmod('f', 0o600)")
    assert lease.is_healed()


# --- bit rot ---------------------------------------------------------------------------------


def bits(a: bytes, b: bytes) -> int:
    return sum((x ^ y).bit_count() for x, y in zip(a, b, strict=True))


def test_one_bit_flips(agent: Agent) -> None:
    agent.do("put('f', bytes(range(256)) * 8); os.utime('f', (1, 2)); fd = os.open('f', os.O_RDONLY)")
    lease = agent.inject("bit-rot")
    assert not lease.lasting
    damaged = contents(agent, "f")
    assert bits(damaged, bytes(range(256)) * 8) == 1
    assert agent.ask("os.pread(fd, 9999, 0)") == damaged
    assert agent.ask("os.stat('f').st_mtime") == 2, "a disk tells nobody"
    heal(lease)
    assert contents(agent, "f") == damaged, "nothing heals it"
    assert "flipped" in (lease.fired() or "")


@pytest.mark.parametrize("size", [1, 300, 512, 513, 5000])
def test_one_block_is_garbled(agent: Agent, size: int) -> None:
    agent.do(f"put('f', b'x' * {size})")
    assert agent.inject("bit-rot", mode="garbage").fired()
    damaged = contents(agent, "f")
    assert len(damaged) == size
    wrong = [at // 512 for at in range(size) if damaged[at : at + 1] != b"x"]
    assert len(set(wrong)) == 1


@pytest.mark.parametrize("size", [1, 2, 5000])
def test_a_tail_is_cut_off(agent: Agent, size: int) -> None:
    agent.do(f"put('f', bytes(i % 251 for i in range({size})))")
    assert agent.inject("bit-rot", mode="truncate").fired()
    damaged = contents(agent, "f")
    assert len(damaged) < size
    assert damaged == bytes(i % 251 for i in range(size))[: len(damaged)]


def test_an_older_version_comes_back(agent: Agent) -> None:
    agent.do("put('f', b'first, and longer')")
    first = agent.inject("bit-rot", mode="stale")
    assert first.fired() is None, "there is no older one yet"
    assert contents(agent, "f") == b"first, and longer"
    agent.do("put('f', b'second')")
    second = agent.inject("bit-rot", mode="stale")
    assert "as it was before" in (second.fired() or "")
    assert contents(agent, "f") == b"first, and longer"


def test_a_version_that_is_no_older_is_no_proof(agent: Agent) -> None:
    agent.do("put('f', b'same')")
    assert [agent.inject("bit-rot", mode="stale").fired() for _ in range(3)] == [None] * 3
    assert contents(agent, "f") == b"same"


def test_older_versions_belong_to_one_run(agent: Agent, session: Session) -> None:
    agent.do("put('f', b'here')")
    agent.inject("bit-rot", mode="stale")
    with agent_in(session) as other:
        other.do("put('f', b'there')")
        assert other.inject("bit-rot", mode="stale").fired() is None
        assert contents(other, "f") == b"there"


@pytest.mark.parametrize("mode", ["flip", "garbage", "truncate"])
def test_the_same_seed_does_the_same_damage(agent: Agent, mode: str) -> None:
    def damage(seed: int) -> bytes:
        agent.do("put('f', b'x' * 5000)")
        agent.inject("bit-rot", mode=mode, seed=seed)
        return contents(agent, "f")

    assert [damage(seed) for seed in range(4)] == [damage(seed) for seed in range(4)]
    assert len({damage(seed) for seed in range(4)}) > 1


def test_empty_files_and_directories_do_not_rot(agent: Agent) -> None:
    agent.do("put('f', b''); os.mkdir('d')")
    assert agent.inject("bit-rot").fired() is None


# --- whose disk ------------------------------------------------------------------------------


@pytest.fixture
def foreign() -> Iterator[str]:
    """A directory of the host's."""
    directory = tempfile.mkdtemp(prefix="not-a-sandbox-")
    yield directory
    shutil.rmtree(directory)


class Elsewhere:
    """A sandbox that takes the wrong directory for its data disk."""

    def __init__(self, agent: Agent, directory: str) -> None:
        self.tier = agent.sandbox.tier
        self.place = SimpleNamespace(data=directory)
        self._agent = agent
        self._directory = directory

    def join(self, request: Any) -> tuple[None, list[int]]:
        """Give what a mount of the host's would give."""
        del request
        return None, [os.open(self._directory, os.O_PATH | os.O_DIRECTORY)]

    def outside(self, path: str) -> str:
        return path.replace("{data}", self._directory)

    def processes(self) -> list[Any]:
        return self._agent.sandbox.processes()


@pytest.mark.parametrize("kind", ["disk-full", "disk-read-only", "file-vanished", "permission-lost", "bit-rot"])
def test_a_disk_that_is_not_the_sandboxs_own_is_refused_before_the_first_byte(
    agent: Agent, foreign: str, kind: str
) -> None:
    if agent.sandbox.tier != NAMESPACES and kind in ("disk-full", "disk-read-only"):
        pytest.skip("it touches no disk in this tier")
    with open(f"{foreign}/file", "wb") as file:
        file.write(b"x" * 1000)
    before, opened = os.stat(f"{foreign}/file"), descriptors()
    agent.site.sandbox = Elsewhere(agent, foreign)  # type: ignore[assignment]
    with pytest.raises(HarnessBroken, match="not the sandbox's own"):
        agent.inject(kind)
    after = os.stat(f"{foreign}/file")
    assert (after.st_mode, after.st_mtime_ns, after.st_ctime_ns) == (
        before.st_mode,
        before.st_mtime_ns,
        before.st_ctime_ns,
    )
    assert descriptors() == opened


def test_its_own_disk_is_not_refused(agent: Agent) -> None:
    before = descriptors()
    with DataDisk(agent.sandbox) as disk:
        assert disk.entries("*") == []
    assert descriptors() == before


# --- the end, and bad input --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["disk-full", "disk-read-only", "file-vanished", "permission-lost", "bit-rot"])
def test_a_sandbox_that_ends_while_the_fault_acts(session: Session, kind: str) -> None:
    if session.tier != NAMESPACES and kind in ("disk-full", "disk-read-only"):
        pytest.skip("it is the watchdog's")
    before = descriptors()
    with agent_in(session) as agent:
        agent.do("put('f', b'x' * 100)")
        lease: Lease = agent.inject(kind)
        assert lease.fired()
        agent.sandbox.destroy()
        heal(lease)
    eventually(lambda: descriptors() == before, "no descriptor is left")


@pytest.mark.parametrize("bad", ["", "/etc/passwd", "../x", "a/../../b", 3, None])
@pytest.mark.parametrize("kind", [FileVanished, PermissionLost, BitRot])
def test_a_path_that_could_lead_off_the_disk_is_refused(agent: Agent, kind: Any, bad: object) -> None:
    with pytest.raises(InvalidSpecification, match="below the data directory"):
        kind(paths=(bad,))
    with pytest.raises(InvalidSpecification, match="below the data directory"):
        agent.inject(kind.kind, path=bad)


@pytest.mark.parametrize(
    ("kind", "arguments", "said"),
    [
        ("bit-rot", {"mode": "melt"}, "flip, garbage, truncate, stale"),
        ("bit-rot", {"seed": -1}, "0 or more"),
        ("file-vanished", {"count": 0}, "1 to 64"),
        ("permission-lost", {"count": 65}, "1 to 64"),
        ("permission-lost", {"seed": "x"}, "0 or more"),
        ("disk-read-only", {"patience_ms": 5001}, "at most 5000"),
        ("disk-read-only", {"patience_ms": -1}, "0 or more"),
    ],
)
def test_bad_arguments_are_refused(agent: Agent, kind: str, arguments: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidSpecification, match=said):
        agent.inject(kind, **arguments)
    with pytest.raises(InvalidSpecification):
        BitRot(modes=("melt",))
