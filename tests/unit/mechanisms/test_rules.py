"""Which rule acts on which call: by name, subject, number and chance; and who belongs to a family of processes."""

from __future__ import annotations

import errno
import os
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colos.chaos.mechanisms import subjects
from colos.chaos.mechanisms.chance import chance
from colos.chaos.mechanisms.families import Families
from colos.chaos.mechanisms.rawcalls import NUMBERS
from colos.chaos.mechanisms.rules import Cut, Delay, Fail, Rule, Rules, Tear, errno_of, traps_for
from colos.chaos.mechanisms.syscalls import Notification, Trap, merged
from colos.chaos.sandbox.processes import read_process
from colos.errors import InvalidSpecification

EIO = Fail(errno.EIO)


def start_time(pid: int) -> int:
    process = read_process(pid)
    return 0 if process is None else process.start_time


def called(name: str, *args: int, pid: int | None = None) -> Notification:
    return Notification(1, pid or os.getpid(), name, (*args, *(6 - len(args)) * (0,)))


@pytest.fixture
def rules() -> Rules:
    return Rules(start_time)


# --- which calls ------------------------------------------------------------------------------


def test_only_the_named_calls_and_only_while_armed(rules: Rules) -> None:
    rules.arm(1, Rule(("fsync", "getrandom"), EIO))
    assert rules.judge(called("getrandom")) == (1, EIO, 0.0)
    assert rules.judge(called("getppid")) is None
    assert rules.hits(1) == {}
    rules.hit(1, "getrandom")
    assert rules.hits(1) == {"getrandom": 1}
    rules.disarm(1)
    rules.disarm(1)
    assert rules.judge(called("getrandom")) is None
    assert rules.hits(1) is None


@given(st.integers(1, 20), st.integers(0, 30))
def test_the_nth_of_the_matching_calls(nth: int, count: int) -> None:
    rules = Rules(start_time)
    rules.arm(1, Rule(("getrandom",), EIO, nth=nth))
    acted = [number for number in range(1, count + 1) if rules.judge(called("getrandom"))]
    assert acted == [nth] * (nth <= count)


@given(st.integers(), st.floats(0.01, 1))
def test_chance_is_a_function_of_seed_and_number(seed: int, probability: float) -> None:
    def acted() -> list[int]:
        rules = Rules(start_time)
        rules.arm(1, Rule(("getrandom",), EIO, probability=probability, seed=seed))
        return [number for number in range(50) if rules.judge(called("getrandom"))]

    assert acted() == acted()
    assert (probability < 1) or len(acted()) == 50
    assert all(0 <= chance(seed, "call", number) < 1 for number in range(50))


def test_chances_are_spread_evenly() -> None:
    drawn = [chance(seed, "call", number) for seed in range(20) for number in range(100)]
    assert 0.45 < sum(drawn) / len(drawn) < 0.55
    assert len(set(drawn)) == len(drawn)


def test_the_oldest_rule_acts(rules: Rules) -> None:
    rules.arm(1, Rule(("getrandom",), EIO, nth=2))
    rules.arm(2, Rule(("getrandom",), Fail(errno.EAGAIN)))
    acted = [rules.judge(called("getrandom")) for _ in range(3)]
    assert [one and one[0] for one in acted] == [2, 1, 2]


# --- what a call is about -----------------------------------------------------------------------


def test_a_descriptor_is_about_its_file(rules: Rules, tmp_path) -> None:
    fd = os.open(tmp_path / "wal.log", os.O_CREAT | os.O_WRONLY)
    try:
        rules.arm(1, Rule(("write",), EIO, subject=f"{os.path.realpath(tmp_path)}/*.log"))
        assert rules.judge(called("write", fd)) is not None
        assert rules.judge(called("write", 1)) is None
        os.unlink(tmp_path / "wal.log")
        assert rules.judge(called("write", fd)) is not None  # it is deleted, and still that file
        assert rules.judge(called("write", 9999)) is None
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("family", "raw", "text"),
    [
        ("unix", b"/run/x.sock\0", "unix:/run/x.sock"),
        ("unix", b"\0hidden", "unix:@hidden"),
        ("inet", struct.pack(">H4s8x", 6379, socket.inet_aton("127.0.0.1")), "inet:127.0.0.1:6379"),
        ("inet6", struct.pack(">HI16sI", 80, 0, socket.inet_pton(socket.AF_INET6, "::1"), 0), "inet:::1:80"),
        ("other", b"", "family:16"),
    ],
)
def test_addresses(family: str, raw: bytes, text: str) -> None:
    number = {"unix": socket.AF_UNIX, "inet": socket.AF_INET, "inet6": socket.AF_INET6, "other": 16}[family]
    assert subjects._address(struct.pack("=H", number) + raw) == text


def test_a_cut_off_address_is_nothing() -> None:
    assert subjects._address(b"") == ""
    assert subjects._address(struct.pack("=H", socket.AF_INET)) == "family:2"


def test_every_call_with_a_layout_can_be_trapped() -> None:
    assert {*subjects._DESCRIPTORS, *subjects._PATHS} <= NUMBERS.keys()


# --- whose --------------------------------------------------------------------------------------


@contextmanager
def child() -> Iterator[int]:
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_descendant_belongs_to_the_family_and_a_stranger_does_not() -> None:
    families = Families(start_time)
    me = ((os.getpid(), start_time(os.getpid())),)
    with child() as pid:
        its = ((pid, start_time(pid)),)
        for _ in range(2):  # found out, and remembered
            assert families.holds(os.getpid(), me)
            assert families.holds(pid, me)
            assert families.holds(pid, its)
            assert not families.holds(os.getpid(), its)
        assert not families.holds(pid, ((pid, 1),))  # another process had that number once


def test_what_is_remembered_ends_with_the_thread() -> None:
    families = Families(start_time)
    me = ((os.getpid(), start_time(os.getpid())),)
    with child() as pid:
        assert families.holds(pid, me)
    with pytest.raises(OSError):
        families.holds(pid, me)


def test_no_more_is_remembered_than_its_bound() -> None:
    families = Families(start_time)
    me = ((os.getpid(), start_time(os.getpid())),)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(260):
        with child() as pid:
            assert families.holds(pid, me)
    assert len(os.listdir("/proc/self/fd")) <= before + 256
    families.close()
    assert len(os.listdir("/proc/self/fd")) == before


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: Rule((), EIO),
        lambda: Rule(("no_such_call",), EIO),
        lambda: Rule(("write",), EIO, nth=-1),
        lambda: Rule(("write",), EIO, nth=True),
        lambda: Rule(("write",), EIO, probability=0),
        lambda: Rule(("write",), EIO, probability=1.01),
        lambda: Delay(-1, 1),
        lambda: Delay(2, 1),
        lambda: Delay(0, 61),
        lambda: Cut(0),
        lambda: Cut(1),
        lambda: Tear(2, errno.EIO),
        lambda: errno_of("EFOO"),
        lambda: errno_of(5),
        lambda: traps_for(["no_such_call"]),
    ],
)
def test_what_means_nothing_is_refused(make) -> None:
    with pytest.raises(InvalidSpecification):
        make()


def test_each_call_is_trapped_once_and_without_a_condition_where_two_differ() -> None:
    traps = merged([Trap("openat", 2, 64), Trap("write"), Trap("openat"), Trap("write"), Trap("open", 1, 64)])
    assert traps == (Trap("openat"), Trap("write"), Trap("open", 1, 64))
