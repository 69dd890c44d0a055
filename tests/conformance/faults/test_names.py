"""Host names and the time zone, as a running process and a new one see them; and files bound over others."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from sandbox_bench import Agent, agent_in, heal

from colos.chaos import NameLookupFails, NameLookupSlow, TimezoneChanged
from colos.chaos.faults import fault_kinds
from colos.chaos.mechanisms.overmounts import overmounts
from colos.chaos.mechanisms.resolver import hosts_in
from colos.chaos.sandbox.session import Session
from colos.errors import FaultUnavailable, InvalidSpecification

KINDS = ("name-lookup-fails", "name-lookup-slow", "timezone-changed")
LOOK_UP = """
begun = time.monotonic()
try:
    result = sorted({{found[4][0] for found in socket.getaddrinfo({name!r}, 1)}})
except socket.gaierror as error:
    result = error.errno
took = time.monotonic() - begun
"""
RUN = """
import subprocess, sys
ran = subprocess.run([sys.executable, '-ISc', {program!r}], capture_output=True)
result = (ran.stdout + ran.stderr).decode()
"""
LOCAL = "result = time.localtime(0)[:5]"
FILES = ("/etc/hosts", "/etc/resolv.conf", "/etc/nsswitch.conf")


@pytest.fixture(autouse=True)
def _files(namespaces: Session) -> None:
    """Where the machine lacks what is bound over, these faults are unavailable."""
    for kind in KINDS:
        reason = fault_kinds()[kind].unavailable(namespaces)
        if reason is not None:
            pytest.skip(": ".join(reason))


def look_up(agent: Agent, name: str = "localhost") -> Any:
    return agent.do(LOOK_UP.format(name=name))


def seen(agent: Agent, path: str) -> bytes:
    """A file as a process inside reads it."""
    return bytes(agent.do(f"with open({path!r}, 'rb') as file: result = file.read()"))


# --- look-ups ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "code"),
    [("failed", socket.EAI_AGAIN), ("unknown", socket.EAI_NONAME), ("silent", socket.EAI_AGAIN)],
)
def test_a_running_process_cannot_look_names_up(inside: Agent, how: str, code: int) -> None:
    before = look_up(inside)
    assert "127.0.0.1" in before
    files = {path: seen(inside, path) for path in FILES if os.path.exists(path)}
    lease = inside.inject("name-lookup-fails", how=how)
    assert lease.fired() is None, "nobody has asked yet"
    assert look_up(inside) == code
    assert "asked" in (lease.fired() or "")
    if how == "silent":
        assert inside.ask("took") >= 1, "it has waited for an answer"
    heal(lease)
    assert look_up(inside) == before
    assert {path: seen(inside, path) for path in files} == files


def test_what_needs_no_look_up_works(inside: Agent) -> None:
    lease = inside.inject("name-lookup-fails")
    assert look_up(inside, "127.0.0.1") == ["127.0.0.1"]
    assert lease.fired() is None
    heal(lease)


def test_a_new_process_cannot_look_names_up_either(inside: Agent) -> None:
    lease = inside.inject("name-lookup-fails", how="unknown")
    program = "import socket; socket.getaddrinfo('localhost', 1)"
    ran = inside.do(RUN.format(program=program))
    assert "gaierror" in ran
    assert lease.fired()
    heal(lease)


def test_a_slow_look_up_gives_what_the_hosts_file_says_and_late(inside: Agent) -> None:
    before = look_up(inside)
    lease = inside.inject("name-lookup-slow", delay_ms=150)
    assert lease.fired() is None
    assert look_up(inside) == before
    assert inside.ask("took") >= 0.15
    assert lease.fired()
    assert look_up(inside, "nowhere.invalid") == socket.EAI_AGAIN
    assert inside.ask("took") >= 0.15
    heal(lease)
    assert look_up(inside) == before


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_last_of_two_ways_holds_and_they_end_in_any_order(inside: Agent, order: tuple[int, int]) -> None:
    before = look_up(inside)
    leases = [inside.inject("name-lookup-slow", delay_ms=1), inside.inject("name-lookup-fails", how="unknown")]
    assert look_up(inside) == socket.EAI_NONAME
    assert leases[0].fired() is None
    heal(leases[order[0]])
    assert look_up(inside) == (socket.EAI_NONAME if order[0] == 0 else before)
    assert bool(leases[0].fired()) == (order[0] == 1)
    heal(leases[order[1]])
    assert look_up(inside) == before
    assert {path: seen(inside, path) for path in FILES if os.path.exists(path)} == {
        path: Path(path).read_bytes() for path in FILES if os.path.exists(path)
    }


def test_a_hosts_file_is_read_as_the_c_library_reads_it() -> None:
    known = hosts_in("127.0.0.1 localhost Box # a comment\n::1 localhost\n# 1.2.3.4 no\nrubbish here\n\n10.0.0.1\n")
    assert known == {
        "localhost": [bytes([127, 0, 0, 1]), bytes(15) + b"\1"],
        "box": [bytes([127, 0, 0, 1])],
    }


# --- the time zone -------------------------------------------------------------------------------


@pytest.mark.parametrize("minutes", [345, -720, 90])
def test_a_machine_moves_to_another_time_zone_and_back(inside: Agent, minutes: int) -> None:
    inside.do("os.environ.pop('TZ', None); time.tzset()")
    before = inside.do(LOCAL)
    lease = inside.inject("timezone-changed", minutes=minutes)
    assert str(minutes) in (lease.fired() or "")
    moved = time.gmtime(minutes * 60)[:5]
    assert inside.do("time.tzset()\n" + LOCAL) == moved
    later = inside.do(
        """
import datetime, zoneinfo
with open('/etc/localtime', 'rb') as file: zone = zoneinfo.ZoneInfo.from_file(file)
result = datetime.datetime(2040, 1, 1, tzinfo=zone).utcoffset().total_seconds()
"""
    )
    assert later == minutes * 60, "also by the rule for what comes after the table"
    program = "import time; print(time.localtime(0)[:5], time.tzname[0], time.time())"
    ran = inside.do(RUN.format(program=program))
    assert ran.startswith(f"{moved} COLOS "), ran
    assert abs(float(ran.split()[-1]) - time.time()) < 60, "the clock itself stays"
    heal(lease)
    assert inside.do("time.tzset()\n" + LOCAL) == before


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_last_of_two_moves_holds(inside: Agent, order: tuple[int, int]) -> None:
    inside.do("os.environ.pop('TZ', None); time.tzset()")
    before = inside.do(LOCAL)
    leases = [inside.inject("timezone-changed", minutes=minutes) for minutes in (60, 120)]
    assert inside.do("time.tzset()\n" + LOCAL) == (1970, 1, 1, 2, 0)
    heal(leases[order[0]])
    assert inside.do("time.tzset()\n" + LOCAL) == (1970, 1, 1, 2 if order[0] == 0 else 1, 0)
    heal(leases[order[1]])
    assert inside.do("time.tzset()\n" + LOCAL) == before


# --- files bound over others ---------------------------------------------------------------------


def test_what_was_bound_last_shows_and_it_ends_in_any_order(inside: Agent) -> None:
    register, original = overmounts(inside.sandbox), seen(inside, "/etc/hosts")
    assert overmounts(inside.sandbox) is register
    one, two, three = (register.over("/etc/hosts", word) for word in (b"one", b"two", b"three"))
    assert seen(inside, "/etc/hosts") == b"three"
    assert [register.is_shown(ticket) for ticket in (one, two, three)] == [False, False, True]
    register.off(two)
    assert seen(inside, "/etc/hosts") == b"three"
    register.off(three)
    register.off(three)
    assert seen(inside, "/etc/hosts") == b"one"
    assert register.is_shown(one)
    assert register.is_over("/etc/hosts")
    register.off(one)
    assert seen(inside, "/etc/hosts") == original
    assert not register.is_over("/etc/hosts")
    assert not any(register.is_shown(ticket) for ticket in (one, two, three))


def test_a_directory_is_shown_with_other_files(inside: Agent) -> None:
    register = overmounts(inside.sandbox)
    before = inside.ask("sorted(os.listdir('/sys/class'))")
    ticket = register.over("/sys/class", {"power_supply/BAT0/capacity": b"2\n", "x": b""})
    assert inside.ask("sorted(os.listdir('/sys/class'))") == ["power_supply", "x"]
    assert seen(inside, "/sys/class/power_supply/BAT0/capacity") == b"2\n"
    assert inside.refused("open('/sys/class/x', 'w')")
    assert inside.refused("open('/sys/class/y', 'w')")
    register.off(ticket)
    assert inside.ask("sorted(os.listdir('/sys/class'))") == before


def test_what_is_bound_cannot_be_written_and_leaves_nothing_behind(inside: Agent) -> None:
    register = overmounts(inside.sandbox)
    before = inside.ask("sorted(os.listdir(os.environ['TMPDIR']))")
    ticket = register.over("/proc/meminfo", b"MemTotal: 1 kB\n")
    assert seen(inside, "/proc/meminfo") == b"MemTotal: 1 kB\n"
    assert inside.refused("open('/proc/meminfo', 'w')")
    assert inside.refused("os.chmod('/proc/meminfo', 0o666)")
    assert inside.ask("sorted(os.listdir(os.environ['TMPDIR']))") == before
    register.off(ticket)
    assert b"MemFree" in seen(inside, "/proc/meminfo")


def test_nothing_can_be_bound_where_nothing_is(inside: Agent) -> None:
    register = overmounts(inside.sandbox)
    with pytest.raises(FileNotFoundError):
        register.over("/etc/there-is-no-such-file", b"")
    with pytest.raises(NotADirectoryError):
        register.over("/etc/hosts", {"x": b""})
    assert not register.is_over("/etc/hosts")
    assert inside.ask("[name for name in os.listdir(os.environ['TMPDIR']) if 'colos-' in name]") == []


# --- ends, limits --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_end_of_the_sandbox_heals(inside: Agent, kind: str) -> None:
    lease = inside.inject(kind)
    inside.sandbox.destroy()
    heal(lease)


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_of_the_host_are_never_touched(bare: Session, namespaces: Session, kind: str) -> None:
    reason, cure = fault_kinds()[kind].unavailable(bare) or ("", "")
    assert "host's" in reason
    assert cure
    with agent_in(bare) as agent, pytest.raises(FaultUnavailable):
        agent.inject(kind)
    before = {path: Path(path).read_bytes() for path in (*FILES, "/etc/localtime") if os.path.exists(path)}
    with agent_in(namespaces) as agent:
        lease = agent.inject(kind)
        assert {path: Path(path).read_bytes() for path in before} == before
        heal(lease)


@pytest.mark.parametrize(
    "make",
    [
        lambda: NameLookupFails(how=["maybe"]),
        lambda: NameLookupSlow(delays_ms=[0]),
        lambda: NameLookupSlow(delays_ms=[60000]),
        lambda: TimezoneChanged(minutes=[0]),
        lambda: TimezoneChanged(minutes=[1440]),
        lambda: TimezoneChanged(minutes=[1.5]),
    ],
)
def test_bad_parameters_are_refused_where_they_are_made(make: Any) -> None:
    with pytest.raises(InvalidSpecification):
        make()


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("name-lookup-fails", {"how": 1}),
        ("name-lookup-slow", {"delay_ms": -5}),
        ("timezone-changed", {"minutes": True}),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_done(inside: Agent, kind: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpecification):
        inside.inject(kind, **arguments)
    assert not any(overmounts(inside.sandbox).is_over(path) for path in (*FILES, "/etc/localtime"))
