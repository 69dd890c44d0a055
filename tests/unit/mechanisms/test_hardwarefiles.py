"""Failing hardware's files, from a healthy machine's: one that has such devices, and one that has none."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colos.chaos.mechanisms import hardwarefiles as files

SENSORS = {
    "hwmon0/name": b"coretemp\n",
    "hwmon0/temp1_input": b"41000\n",
    "hwmon0/temp1_crit": b"100000\n",
    "hwmon0/temp1_crit_alarm": b"0\n",
    "hwmon0/temp2_input": b"39000\n",
    "hwmon1/name": b"nct6775\n",
    "hwmon1/fan1_input": b"1210\n",
    "hwmon1/fan1_alarm": b"0\n",
    "hwmon1/fan2_input": b"900\n",
}
NOTEBOOK = {
    "ADP1/type": b"Mains\n",
    "ADP1/online": b"1\n",
    "BAT1/type": b"Battery\n",
    "BAT1/status": b"Full\n",
    "BAT1/capacity": b"97\n",
    "BAT1/charge_full": b"4000000\n",
    "BAT1/charge_now": b"3900000\n",
    "BAT1/current_now": b"0\n",
    "BAT1/uevent": b"POWER_SUPPLY_NAME=BAT1\nPOWER_SUPPLY_STATUS=Full\nPOWER_SUPPLY_CAPACITY=97\n",
}
MEMINFO = b"""MemTotal:       24684096 kB
MemFree:        21728940 kB
MemAvailable:   23356968 kB
Active(anon):       2644 kB
Cached:          1639848 kB
SwapTotal:       1000000 kB
HugePages_Total:       3
Hugepagesize:       2048 kB
"""


def changed(before: files.Tree, after: files.Tree) -> dict[str, bytes]:
    assert before.keys() <= after.keys(), "nothing goes away"
    return {path: data for path, data in after.items() if before.get(path) != data}


def test_every_sensor_that_is_there_is_hot_and_no_other_is_added() -> None:
    assert changed(SENSORS, files.sensors_at(SENSORS, 105.5)) == {
        "hwmon0/temp1_input": b"105500\n",
        "hwmon0/temp2_input": b"105500\n",
        "hwmon0/temp1_crit_alarm": b"1\n",
    }


def test_below_what_is_critical_no_alarm_is_given() -> None:
    assert changed(SENSORS, files.sensors_at(SENSORS, 95)).get("hwmon0/temp1_crit_alarm") is None


def test_every_fan_that_is_there_stops() -> None:
    assert changed(SENSORS, files.fans_at(SENSORS, 0)) == {
        "hwmon1/fan1_input": b"0\n",
        "hwmon1/fan2_input": b"0\n",
        "hwmon1/fan1_alarm": b"1\n",
    }


def test_a_machine_without_sensors_gets_one_beside_what_it_has() -> None:
    fans_only = {path: data for path, data in SENSORS.items() if "temp" not in path}
    hot = files.sensors_at(fans_only, 90)
    assert hot["hwmon2/temp1_input"] == b"90000\n"
    assert changed(fans_only, hot).keys() == {path for path in hot if path.startswith("hwmon2/")}
    assert files.fans_at({}, 0)["hwmon0/fan1_input"] == b"0\n"


def test_a_thermal_zone_that_is_there_is_hot() -> None:
    zone = {"thermal_zone0/temp": b"40000\n", "thermal_zone0/type": b"acpitz\n", "cooling_device0/type": b"Fan\n"}
    assert changed(zone, files.zones_at(zone, 101)) == {"thermal_zone0/temp": b"101000\n"}
    assert files.zones_at({}, 101)["thermal_zone0/temp"] == b"101000\n"


def test_the_battery_that_is_there_is_low_and_says_so_everywhere() -> None:
    assert changed(NOTEBOOK, files.battery_at(NOTEBOOK, 2)) == {
        "BAT1/status": b"Charging\n",
        "BAT1/capacity": b"2\n",
        "BAT1/charge_now": b"80000\n",
        "BAT1/uevent": b"POWER_SUPPLY_NAME=BAT1\nPOWER_SUPPLY_STATUS=Charging\nPOWER_SUPPLY_CAPACITY=2\n",
    }


def test_the_mains_that_are_there_go() -> None:
    after = changed(NOTEBOOK, files.unplugged(files.battery_at(NOTEBOOK, 2), 6))
    assert after["ADP1/online"] == b"0\n"
    assert after["BAT1/status"] == b"Discharging\n"
    assert after["BAT1/current_now"] == b"800000\n", "80 mAh in a tenth of an hour"
    assert b"STATUS=Discharging" in after["BAT1/uevent"]


def test_a_server_gets_a_battery_and_keeps_its_mains() -> None:
    server = {"ACAD/type": b"Mains\n", "ACAD/online": b"1\n"}
    after = files.unplugged(server, 10)
    assert after["ACAD/online"] == b"0\n"
    assert after["BAT0/status"] == b"Discharging\n"
    assert "AC/online" not in after


def test_memory_shrinks_with_its_parts_and_nothing_else_does() -> None:
    lines = files.meminfo_of(MEMINFO, 24684096 * 512, 4096 * 1024).decode().splitlines()
    assert lines[0] == "MemTotal:       12342048 kB", "in its column"
    assert lines[1].split() == ["MemFree:", "4096", "kB"]
    assert lines[2].split() == ["MemAvailable:", "4096", "kB"]
    assert lines[3].split() == ["Active(anon):", "1322", "kB"]
    assert lines[4].split() == ["Cached:", "819924", "kB"]
    assert "\n".join(lines[5:]) + "\n" == MEMINFO.decode().split("kB\n", 5)[5]


def test_no_more_is_available_than_the_machine_has() -> None:
    text = files.meminfo_of(b"MemTotal: 1000 kB\nMemAvailable: 10 kB\n", 500 * 1024, 400 * 1024)
    assert text == b"MemTotal:  500 kB\nMemAvailable: 10 kB\n"


def test_a_text_that_is_no_meminfo_stays() -> None:
    assert files.meminfo_of(b"nothing\n", 1 << 20, 1 << 20) == b"nothing\n"


@pytest.mark.parametrize(
    ("count", "by", "after"), [(b"7\n", 5, b"12\n"), (b"0x1f\n", 1, b"0x20\n"), (b"0x0\n", 16, b"0x10\n")]
)
def test_a_counter_goes_on_in_its_own_notation(count: bytes, by: int, after: bytes) -> None:
    assert files.more(count, by) == after


@given(st.sets(st.integers(0, 300), min_size=1))
def test_a_list_of_processors_is_read_as_it_was_written(ids: set[int]) -> None:
    assert files.ids_of(files.list_of(ids)) == sorted(ids)


def test_a_list_of_processors_is_written_as_the_kernel_does() -> None:
    assert files.list_of([0, 1, 2, 3, 8, 10, 11]) == b"0-3,8,10-11\n"
    assert files.ids_of(b"\n") == []


def test_processors_leave_both_tables() -> None:
    info = b"processor\t: 0\nflags\t: a\n\nprocessor\t: 1\nflags\t: a\n\nprocessor\t: 11\nflags\t: a\n\n"
    assert files.without_cpuinfo(info, [1]) == b"processor\t: 0\nflags\t: a\n\nprocessor\t: 11\nflags\t: a\n\n"
    stat = b"cpu  5 5\ncpu0 1 1\ncpu1 2 2\ncpu11 2 2\nintr 1 cpu1\nbtime 7\n"
    assert files.without_stat(stat, [1]) == b"cpu  5 5\ncpu0 1 1\ncpu11 2 2\nintr 1 cpu1\nbtime 7\n"


def test_a_class_is_read_through_its_links(tmp_path: Path) -> None:
    device = tmp_path / "devices" / "a"
    device.mkdir(parents=True)
    (device / "temp1_input").write_text("5\n")
    (device / "power").mkdir()
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "hwmon0").symlink_to(device)
    (tmp_path / "class" / "a file").write_text("x")
    assert files.read_tree(str(tmp_path / "class")) == {"hwmon0/temp1_input": b"5\n"}
    assert files.read_tree(str(tmp_path / "none")) == {}
