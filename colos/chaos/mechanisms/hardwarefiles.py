"""What failing hardware looks like in /sys and /proc: pure functions from a healthy machine's files to a bad one's.

A tree is a directory's files by relative path.  Where a machine has no such device (a virtual one has no
sensors), one is added, with the names that common hardware has.

Sources: Documentation/hwmon/sysfs-interface, Documentation/ABI/testing/{sysfs-class-thermal,sysfs-class-power,
sysfs-devices-edac}, Documentation/scsi/scsi_mid_low_api (ioerr_cnt), Documentation/ABI/testing/sysfs-fs-ext4, proc(5).
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable, Mapping

__all__ = [
    "Tree",
    "battery_at",
    "bytes_of_meminfo",
    "disk_more",
    "edac_more",
    "fans_at",
    "ids_of",
    "list_of",
    "meminfo_of",
    "more",
    "read_tree",
    "sensors_at",
    "unplugged",
    "without_cpuinfo",
    "without_stat",
    "zones_at",
]

Tree = Mapping[str, bytes]

_MOST_BYTES = 4096  # of one attribute: sysfs gives a page at most
_KIB = 1024
_CRITICAL_PERCENT = 5
_FULL_UWH = 50_000_000
_DRAW_UW = 10_000_000


def read_tree(directory: str) -> Tree:
    """The attributes of each device in a class's directory; {} where there is no such directory."""
    tree: dict[str, bytes] = {}
    if not os.path.isdir(directory):
        return tree
    for device in sorted(os.listdir(directory)):
        place = os.path.join(directory, device)
        if not os.path.isdir(place):
            continue
        for name in sorted(os.listdir(place)):
            path = os.path.join(place, name)
            if os.path.isfile(path):
                try:
                    with open(path, "rb") as file:
                        tree[f"{device}/{name}"] = file.read(_MOST_BYTES)
                except OSError:
                    continue  # write-only, or its driver gives an error: not to be read on this machine anyway
    return tree


def _line(value: object) -> bytes:
    return f"{value}\n".encode()


def _matching(tree: Tree, pattern: str) -> list[str]:
    return [path for path in tree if fnmatch.fnmatchcase(path, pattern)]


def _device(place: str, /, **attributes: object) -> dict[str, bytes]:
    return {f"{place}/{attribute}": _line(value) for attribute, value in attributes.items()}


def _free_name(tree: Tree, prefix: str) -> str:
    taken = {path.partition("/")[0] for path in tree}
    return next(name for number in range(len(taken) + 1) if (name := f"{prefix}{number}") not in taken)


# --- heat and fans ------------------------------------------------------------------------


def sensors_at(tree: Tree, celsius: float) -> Tree:
    """Every temperature of /sys/class/hwmon reads so much; its unit is a thousandth of a degree."""
    reading = round(celsius * 1000)
    inputs = _matching(tree, "hwmon*/temp*_input")
    if not inputs:
        new = _device(
            _free_name(tree, "hwmon"),
            name="coretemp",
            temp1_label="Package id 0",
            temp1_input=reading,
            temp1_max=84_000,
            temp1_crit=100_000,
            temp1_crit_alarm=int(reading >= 100_000),
        )
        return {**tree, **new}
    changed = dict.fromkeys(inputs, _line(reading))
    for path in inputs:
        base = path.removesuffix("_input")
        limit, alarm = tree.get(f"{base}_crit", b"").strip(), f"{base}_crit_alarm"
        if alarm in tree and limit.isdigit():
            changed[alarm] = _line(int(reading >= int(limit)))
    return {**tree, **changed}


def zones_at(tree: Tree, celsius: float) -> Tree:
    """Every zone of /sys/class/thermal reads so much."""
    reading = round(celsius * 1000)
    zones = _matching(tree, "thermal_zone*/temp")
    if zones:
        return {**tree, **dict.fromkeys(zones, _line(reading))}
    return {
        **tree,
        **_device(
            _free_name(tree, "thermal_zone"),
            type="x86_pkg_temp",
            mode="enabled",
            temp=reading,
            trip_point_0_type="critical",
            trip_point_0_temp=100_000,
        ),
    }


def fans_at(tree: Tree, rpm: int) -> Tree:
    """Every fan of /sys/class/hwmon turns so often a minute, and those that have an alarm give it."""
    inputs = _matching(tree, "hwmon*/fan*_input")
    if not inputs:
        new = _device(
            _free_name(tree, "hwmon"), name="nct6775", fan1_label="CPU Fan", fan1_input=rpm, fan1_min=600, fan1_alarm=1
        )
        return {**tree, **new}
    alarms = [path for path in _matching(tree, "hwmon*/fan*_alarm") if f"{path.removesuffix('_alarm')}_input" in tree]
    return {**tree, **dict.fromkeys(inputs, _line(rpm)), **dict.fromkeys(alarms, _line(1))}


# --- power ---------------------------------------------------------------------------------


def _of_type(tree: Tree, kind: bytes) -> list[str]:
    return [path.partition("/")[0] for path in _matching(tree, "*/type") if tree[path].strip() == kind]


def _with_battery(tree: Tree) -> dict[str, bytes]:
    """A notebook's supplies, where the machine has no battery."""
    if _of_type(tree, b"Battery"):
        return dict(tree)
    battery = _device(
        "BAT0",
        type="Battery",
        present=1,
        status="Full",
        capacity=100,
        capacity_level="Full",
        technology="Li-ion",
        energy_full_design=_FULL_UWH,
        energy_full=_FULL_UWH,
        energy_now=_FULL_UWH,
        power_now=_DRAW_UW,
    )
    mains = {} if _of_type(tree, b"Mains") else _device("AC", type="Mains", online=1)
    return {**tree, **battery, **mains}


def _set(tree: dict[str, bytes], device: str, name: str, value: object) -> None:
    """An attribute that the device has, also where its uevent repeats it."""
    if f"{device}/{name}" not in tree:
        return
    tree[f"{device}/{name}"] = _line(value)
    event = f"{device}/uevent"
    if event in tree:
        key = f"POWER_SUPPLY_{name.upper()}"
        tree[event] = re.sub(rf"(?m)^{key}=.*$".encode(), f"{key}={value}".encode(), tree[event])


def _number(tree: Tree, path: str) -> int | None:
    text = tree.get(path, b"").strip()
    return int(text) if text.lstrip(b"-").isdigit() else None


def battery_at(tree: Tree, percent: float) -> Tree:
    """Every battery of /sys/class/power_supply holds so much of what it takes; whether it charges is left as it is."""
    changed = _with_battery(tree)
    for device in _of_type(changed, b"Battery"):
        _set(changed, device, "capacity", round(percent))
        _set(changed, device, "capacity_level", "Critical" if percent <= _CRITICAL_PERCENT else "Low")
        for what in ("energy", "charge"):
            full = _number(changed, f"{device}/{what}_full")
            if full is not None:
                _set(changed, device, f"{what}_now", round(full * percent / 100))
        if changed.get(f"{device}/status", b"").strip() == b"Full":
            _set(changed, device, "status", "Charging")
    return changed


def unplugged(tree: Tree, minutes: int) -> Tree:
    """The mains are gone; every battery is drained at a rate that empties it in so many minutes."""
    changed = _with_battery(tree)
    for device in _of_type(changed, b"Mains"):
        _set(changed, device, "online", 0)
    for device in _of_type(changed, b"Battery"):
        _set(changed, device, "status", "Discharging")
        for store, rate in (("energy_now", "power_now"), ("charge_now", "current_now")):
            left = _number(changed, f"{device}/{store}")
            if left is not None:
                _set(changed, device, rate, round(left * 60 / minutes))
    return changed


# --- memory --------------------------------------------------------------------------------

_MEMINFO = re.compile(rb"(?m)^(\w[\w()]*):(\s+)(\d+) kB$")
#: What is not a part of the memory that is there: address space, swap, promises, the sizes of pages.
_NOT_MEMORY = (b"Swap", b"Vmalloc", b"Commit", b"Huge", b"DirectMap", b"Zswap")


def bytes_of_meminfo(meminfo: bytes, name: bytes) -> int:
    """One of its numbers; 0 when it is not there."""
    return next((int(found[3]) * _KIB for found in _MEMINFO.finditer(meminfo) if found[1] == name), 0)


def meminfo_of(meminfo: bytes, total: int, available: int) -> bytes:
    """/proc/meminfo of the same machine with less memory: the parts shrink with the whole."""
    first = bytes_of_meminfo(meminfo, b"MemTotal")
    if not first:
        return meminfo
    share = min(1.0, total / first)
    exact = {b"MemTotal": min(total, first), b"MemAvailable": available}

    def shrunk(found: re.Match[bytes]) -> bytes:
        name, size = found[1], int(found[3]) * _KIB
        if name in exact:
            size = min(size, exact[name])
        elif name == b"MemFree":
            size = min(int(size * share), available)
        elif not name.startswith(_NOT_MEMORY):
            size = int(size * share)
        return b"%s:%s kB" % (name, str(size // _KIB).encode().rjust(len(found[2]) + len(found[3])))

    return _MEMINFO.sub(shrunk, meminfo)


def edac_more(tree: Tree, corrected: int, uncorrected: int) -> Tree:
    """/sys/devices/system/edac of a machine whose one memory controller has counted so many errors more."""
    if not tree:
        size = {"mc_name": "skx_edac", "size_mb": 16384, "seconds_since_reset": 86400}
        tree = _device("mc/mc0", **size, ce_count=0, ce_noinfo_count=0, ue_count=0, ue_noinfo_count=0)
    counts = {"mc/mc0/ce_count": corrected, "mc/mc0/ue_count": uncorrected}
    return {**tree, **{path: more(tree[path], by) for path, by in counts.items()}}


def more(count: bytes, by: int) -> bytes:
    """A counter that has gone on: decimal, or hexadecimal as SCSI writes it."""
    text = count.strip().decode()
    return f"{int(text, 16) + by:#x}\n".encode() if text.startswith("0x") else _line(int(text or 0) + by)


# --- processors ----------------------------------------------------------------------------


def ids_of(text: bytes) -> list[int]:
    """A list of CPUs as the kernel writes it: ``0-3,8``.  cpuset(7)."""
    ids: list[int] = []
    for part in text.decode().strip().split(","):
        first, _, last = part.partition("-")
        if first:
            ids += range(int(first), int(last or first) + 1)
    return ids


def list_of(ids: Iterable[int]) -> bytes:
    """The inverse of `ids_of`."""
    ranges: list[list[int]] = []
    for number in sorted(ids):
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1][1:] = [number]
        else:
            ranges.append([number])
    return _line(",".join("-".join(map(str, each)) for each in ranges))


def without_cpuinfo(cpuinfo: bytes, gone: Iterable[int]) -> bytes:
    """/proc/cpuinfo without some processors' paragraphs."""
    numbers = set(gone)
    kept = []
    for paragraph in cpuinfo.split(b"\n\n"):
        found = re.match(rb"processor\s*:\s*(\d+)", paragraph.lstrip())
        if found is None or int(found[1]) not in numbers:
            kept.append(paragraph)
    return b"\n\n".join(kept)


def without_stat(stat: bytes, gone: Iterable[int]) -> bytes:
    """/proc/stat without some processors' lines; the sum goes on counting what they did, as the kernel's does."""
    names = {b"cpu%d" % number for number in gone}
    return b"".join(line for line in stat.splitlines(keepends=True) if line.partition(b" ")[0] not in names)


# --- disks ---------------------------------------------------------------------------------


def disk_more(tree: Tree, errors: int) -> Tree:
    """A disk of 1 TB under /sys/block that has failed so many requests more."""
    if not tree:
        tree = _device("device", vendor="ATA     ", model="ST1000DM010     ", type=0, state="running") | {
            "device/iorequest_cnt": b"0x186a0\n",
            "device/iodone_cnt": b"0x186a0\n",
            "device/ioerr_cnt": b"0x0\n",
            "queue/rotational": b"1\n",
            "size": b"1953525168\n",
            "removable": b"0\n",
            "ro": b"0\n",
        }
    return {**tree, "device/ioerr_cnt": more(tree["device/ioerr_cnt"], errors)}
