"""Failing hardware: what psutil, glibc and a reader of the files see in the target, and what is there afterwards."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import psutil
import pytest
from sandbox_bench import MIB, Agent, agent_in, heal, snapshot

from colos.chaos import BatteryLow, CpuOffline, MemoryShrunk, Overheating
from colos.chaos.faults import fault_kinds
from colos.chaos.mechanisms import hardwarefiles as files
from colos.chaos.mechanisms import hardwareviews
from colos.chaos.mechanisms.overmounts import overmounts
from colos.chaos.sandbox.session import Session
from colos.errors import FaultUnavailable, InvalidSpecification

PSUTIL = str(Path(psutil.__file__).parents[1])
KINDS = (
    "battery-low",
    "cpu-offline",
    "disk-failing",
    "fan-stopped",
    "memory-errors",
    "memory-shrunk",
    "overheating",
    "power-lost",
)
FEW = len(files.ids_of(Path("/sys/devices/system/cpu/online").read_bytes())) < 2
#: What any program reads, and what no lease may leave changed.
LOOK = """
import glob
result = {path: os.listdir(path) for path in ('/sys', '/sys/class', '/sys/class/net', '/sys/devices/system',
    '/sys/devices/system/cpu', '/sys/devices/system/cpu/cpu1', '/sys/block', '/sys/class/power_supply',
    '/sys/class/hwmon', '/sys/devices/system/edac') if os.path.isdir(path)}
for path in ('/sys/devices/system/cpu/online', '/proc/cpuinfo', *glob.glob('/sys/fs/ext4/*/errors_count')):
    with open(path) as file: result[path] = [line for line in file if 'MHz' not in line]
"""


@pytest.fixture
def session(namespaces: Session) -> Session:
    """The one tier that has these."""
    return namespaces


@pytest.fixture
def inside(agent: Agent) -> Agent:
    """The agent, with psutil."""
    agent.do(f"sys.path.append({PSUTIL!r}) if {PSUTIL!r} not in sys.path else None; import psutil")
    return agent


def read(agent: Agent, path: str) -> str:
    return str(agent.ask(f"open({path!r}).read()")).strip()


# --- what the target sees ------------------------------------------------------------------------


def test_heat(inside: Agent) -> None:
    def hottest() -> list[float]:
        seen = inside.ask("[tuple(s)[:2] for each in psutil.sensors_temperatures().values() for s in each]")
        return [current for _, current in seen]

    before = hottest()
    lease = inside.inject("overheating", celsius=112)
    assert hottest()
    assert set(hottest()) == {112.0}
    zones = inside.ask(
        "[int(open(p).read()) for p in __import__('glob').glob('/sys/class/thermal/thermal_zone*/temp')]"
    )
    assert set(zones) == {112_000}
    assert "112 degrees" in (lease.fired() or "")
    heal(lease)
    assert len(hottest()) == len(before)
    assert 112.0 not in hottest()


@pytest.mark.parametrize("rpm", [0, 300])
def test_fans(inside: Agent, rpm: int) -> None:
    asked = "[fan.current for each in psutil.sensors_fans().values() for fan in each]"
    before = len(inside.ask(asked))
    lease = inside.inject("fan-stopped", rpm=rpm)
    assert set(inside.ask(asked)) == {rpm}
    heal(lease)
    assert len(inside.ask(asked)) == before


def battery(agent: Agent) -> Any:
    return agent.ask("(lambda b: b and tuple(map(float, b[:2])) + (b[2],))(psutil.sensors_battery())")


def test_a_battery_that_is_nearly_empty(inside: Agent) -> None:
    before = battery(inside)
    lease = inside.inject("battery-low", percent=3)
    assert battery(inside)[0] == 3
    assert battery(inside)[2] in (True, before and before[2])
    heal(lease)
    assert battery(inside) == before


def test_mains_that_are_gone(inside: Agent) -> None:
    before = battery(inside)
    lease = inside.inject("power-lost", minutes=7)
    _, seconds, plugged = battery(inside)
    assert plugged is False
    assert seconds == pytest.approx(420, abs=1)
    heal(lease)
    assert battery(inside) == before


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("last", [0, 1])
def test_low_battery_and_lost_mains_at_once(inside: Agent, order: tuple[int, int], last: int) -> None:
    before = battery(inside)
    steps = [("battery-low", {"percent": 4}), ("power-lost", {"minutes": 2})]
    leases = {at: inside.inject(steps[at][0], **steps[at][1]) for at in order}
    percent, seconds, plugged = battery(inside)
    assert (percent, plugged) == (4, False)
    assert seconds == pytest.approx(120, abs=1), "the rate follows from what is left"
    heal(leases[1 - last])
    percent, _, plugged = battery(inside)
    assert (percent == 4, plugged is False) == ((True, False) if last == 0 else (False, True))
    heal(leases[last])
    assert battery(inside) == before


def test_less_memory(inside: Agent) -> None:
    before = inside.ask("psutil.virtual_memory().total")
    lease = inside.inject("memory-shrunk", total_bytes=200 * MIB, available_bytes=3 * MIB)
    total, available, used, free, parts = inside.do(
        "m = psutil.virtual_memory();"
        "result = (m.total, m.available, m.used, m.free, max(m.cached, m.active, m.buffers))"
    )
    assert (total, available, used) == (200 * MIB, 3 * MIB, 197 * MIB)
    assert free <= available
    assert parts <= total
    assert inside.ask("len(bytearray(8 << 20))") == 8 * MIB, "a view: the kernel has the memory"
    heal(lease)
    assert inside.ask("psutil.virtual_memory().total") == before


def test_the_smallest_of_several_holds(inside: Agent) -> None:
    leases = [
        inside.inject("memory-shrunk", total_bytes=total * MIB, available_bytes=rest * MIB)
        for total, rest in ((400, 8), (200, 100), (300, 90))
    ]
    asked = "tuple(x >> 20 for x in psutil.virtual_memory()[:2])"
    assert inside.ask(asked) == (200, 8)
    heal(leases[1])
    assert inside.ask(asked) == (300, 8)
    heal(leases[0])
    assert inside.ask(asked) == (300, 90)
    heal(leases[2])


@pytest.mark.skipif(FEW, reason="this machine has one processor only")
def test_fewer_processors(inside: Agent) -> None:
    counts = "(os.cpu_count(), psutil.cpu_count(), len(psutil.cpu_times(percpu=True)))"
    processors = "open('/proc/cpuinfo').read().count('processor\\t:')"
    before, described, affinity = inside.ask(counts), inside.ask(processors), inside.ask("len(os.sched_getaffinity(0))")
    lease = inside.inject("cpu-offline", left=1)
    assert inside.ask(counts) == (1, 1, 1)
    assert inside.ask(processors) == 1
    assert read(inside, "/sys/devices/system/cpu/online") == "0"
    assert read(inside, "/sys/devices/system/cpu/offline")[0] == "1"
    assert inside.ask("os.listdir('/sys/devices/system/cpu/cpu1')") == ["online"]
    assert inside.ask("len(os.sched_getaffinity(0))") == affinity, "a view: the scheduler has them all"
    heal(lease)
    assert (inside.ask(counts), inside.ask(processors)) == (before, described)


COUNTERS = "{p: int(open(p).read(), 0) for g in PATTERNS for p in __import__('glob').glob(g)}"


@pytest.mark.parametrize(
    ("kind", "arguments", "patterns"),
    [
        (
            "memory-errors",
            {"corrected": 40, "uncorrected": 2},
            {"/sys/devices/system/edac/mc/mc*/ce_count": 40, "/sys/devices/system/edac/mc/mc*/ue_count": 2},
        ),
        (
            "disk-failing",
            {"errors": 9},
            {"/sys/block/*/device/ioerr_cnt": 9, "/sys/fs/ext4/*/errors_count": 9},
        ),
    ],
    ids=["memory-errors", "disk-failing"],
)
def test_counted_errors_add_up(inside: Agent, kind: str, arguments: Any, patterns: dict[str, int]) -> None:
    def counts() -> dict[str, int]:
        return dict(inside.ask(COUNTERS.replace("PATTERNS", repr(tuple(patterns)))))

    before = counts()
    first = inside.inject(kind, **arguments)
    once = counts()
    second = inside.inject(kind, **arguments)
    twice = counts()
    assert once
    assert set(once) == set(twice) >= set(before)
    for pattern, count in patterns.items():
        for path in once:
            if Path(path).match(pattern):
                assert once[path] - before.get(path, 0) == count
                assert twice[path] - once[path] == count
    heal(first)
    assert counts() == once
    heal(second)
    assert counts() == before


# --- together, and afterwards ----------------------------------------------------------------------


def test_all_at_once_leave_the_rest_of_the_machine_in_sight(inside: Agent) -> None:
    before = inside.do(LOOK)
    leases = [inside.inject(kind) for kind in KINDS if kind != "cpu-offline" or not FEW]
    seen = inside.do(LOOK)
    for directory in ("/sys", "/sys/class", "/sys/class/net", "/sys/devices/system", "/sys/block"):
        assert set(seen[directory]) >= set(before[directory])
    assert inside.ask("open('/sys/class/net/lo/type').read()") == "772\n", "links out of there lead on"
    for lease in leases:
        assert lease.fired()
    for lease in leases:
        heal(lease)
    assert inside.do(LOOK) == before


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_views_below_one_parent_end_in_any_order(inside: Agent, order: tuple[int, ...]) -> None:
    before, mounted = inside.do(LOOK), snapshot(inside.sandbox)
    leases = [inside.inject(kind) for kind in ("battery-low", "overheating", "memory-errors")]
    for at in order:
        assert not leases[at].is_healed()
        heal(leases[at])
    assert inside.do(LOOK) == before
    assert snapshot(inside.sandbox) == mounted


def test_the_target_cannot_change_what_it_is_shown(inside: Agent) -> None:
    lease = inside.inject("overheating")
    path = inside.ask("__import__('glob').glob('/sys/class/hwmon/hwmon*/temp*_input')[0]")
    assert inside.refused(f"os.chmod({path!r}, 0o600)") != 0
    assert inside.refused(f"open({os.path.dirname(path) + '/more'!r}, 'w')") != 0
    assert inside.refused("open('/proc/meminfo', 'w')") != 0
    assert inside.refused("os.mkdir('/sys/class/mine')") != 0
    heal(lease)


def test_nothing_is_left_in_the_temporary_directory(inside: Agent) -> None:
    lease = inside.inject("memory-errors")
    assert inside.ask("[name for name in os.listdir(os.environ['TMPDIR']) if name.startswith('.colos')]") == []
    heal(lease)


def test_the_host_sees_nothing(inside: Agent) -> None:
    looked = ("/proc/meminfo", "/sys/devices/system/cpu/online")
    total, online = (Path(path).read_bytes() for path in looked)
    classes = os.listdir("/sys/class")
    leases = [inside.inject(kind) for kind in KINDS if kind != "cpu-offline" or not FEW]
    name = b"MemTotal"
    assert files.bytes_of_meminfo(Path(looked[0]).read_bytes(), name) == files.bytes_of_meminfo(total, name)
    assert Path(looked[1]).read_bytes() == online
    assert os.listdir("/sys/class") == classes
    for lease in leases:
        heal(lease)


def test_healed_is_what_the_kernel_shows(inside: Agent) -> None:
    """Not what we remember: mounted behind our back, it is not healed."""
    lease = inside.inject("battery-low")
    heal(lease)
    parent = "/sys/class"
    inside.sandbox.join(hardwareviews.Plant(parent, ("anything",), inside.sandbox.place.tmp))
    try:
        assert lease.is_healed() is (hardwareviews.lacks("/sys/class/power_supply") is None)
    finally:
        inside.sandbox.join(hardwareviews.Uncover(parent, 1))
    assert lease.is_healed()


@pytest.mark.parametrize("kind", KINDS)
def test_a_sandbox_destroyed_meanwhile(namespaces: Session, kind: str) -> None:
    if fault_kinds()[kind].unavailable(namespaces):
        pytest.skip("this machine has one processor only")
    with agent_in(namespaces) as agent:
        first, second = agent.inject(kind), agent.inject(kind)
        agent.sandbox.destroy()
        heal(second)
        heal(first)


def test_a_view_that_is_not_seen_does_not_count_as_shown(inside: Agent) -> None:
    """Something else lies over it: the proof would be refused."""
    lease = inside.inject("memory-shrunk")
    views = hardwareviews.views(inside.sandbox)
    assert views.shows("/proc/meminfo")
    above = overmounts(inside.sandbox)
    ticket = above.over("/proc/meminfo", b"MemTotal: 1 kB\n")
    assert not views.shows("/proc/meminfo")
    above.off(ticket)
    assert views.shows("/proc/meminfo")
    heal(lease)


def test_bare_has_none_of_them(bare: Session) -> None:
    for kind in KINDS:
        reason, cure = fault_kinds()[kind].unavailable(bare) or ("", "")
        assert reason
        assert cure
    with agent_in(bare) as agent, pytest.raises(FaultUnavailable):
        agent.inject("overheating")


# --- bad parameters ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "arguments", "says"),
    [
        ("overheating", {"celsius": 251}, "from 0 to 250"),
        ("overheating", {"celsius": "hot"}, "from 0 to 250"),
        ("fan-stopped", {"rpm": -1}, "from 0 to 600"),
        ("fan-stopped", {"rpm": 1.5}, "whole number"),
        ("battery-low", {"percent": 21}, "from 0 to 20"),
        ("power-lost", {"minutes": 0}, "from 1 to 600"),
        ("memory-shrunk", {"total_bytes": 1 << 60}, "to below"),
        ("memory-shrunk", {"total_bytes": 0}, "total_bytes is from"),
        ("memory-shrunk", {"total_bytes": 64 * MIB, "available_bytes": 65 * MIB}, "at most total_bytes"),
        ("memory-errors", {"corrected": 0, "uncorrected": 0}, "at least one"),
        ("memory-errors", {"corrected": -1}, "from 0 to"),
        ("cpu-offline", {"left": 0}, "from 1 to|one processor only"),
        ("cpu-offline", {"left": 4096}, "from 1 to|one processor only"),
        ("disk-failing", {"errors": True}, "whole number"),
    ],
)
def test_impossible_parameters_are_refused_before_anything_is_done(
    inside: Agent, kind: str, arguments: dict[str, Any], says: str
) -> None:
    before = snapshot(inside.sandbox)
    with pytest.raises(InvalidSpecification, match=says):
        inside.inject(kind, **arguments)
    assert snapshot(inside.sandbox) == before


def test_impossible_declarations_are_refused() -> None:
    with pytest.raises(InvalidSpecification):
        Overheating(celsius=(400,))
    with pytest.raises(InvalidSpecification):
        BatteryLow(percents=(-1,))
    assert repr(MemoryShrunk()) == "MemoryShrunk()"
    assert CpuOffline().candidates(("a",)) == ()
