"""Failing hardware, as a program reads of it: heat, fans, batteries, memory, processors, counted errors.

Mechanism: files bound over /sys and /proc in the sandbox's own mount namespace, so `namespaces` only.
These are *views*.  The hardware and the kernel are well: nothing is hot, the memory and the processors
are all there and used.  What is real is that every program in the sandbox that asks the kernel's files,
as psutil, `sensors`, `free` or glibc do, is told otherwise, and acts on it.  Numbers under a view stand
still while it lasts.  Calls that do not read these files (sysinfo(2), sched_getaffinity(2)) tell the truth.

Where the machine has such a device, all of its kind are changed; where it has none, one is added.
Proof: the files, read through the sandbox's own mounts.
"""

from __future__ import annotations

import functools
import glob
import os
import string
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from hypothesis import strategies as st

from colos.chaos.fault import Fault, Lease, Site, count_of
from colos.chaos.mechanisms import hardwarefiles as files
from colos.chaos.mechanisms.hardwareviews import Edit, probe, views
from colos.chaos.sandbox.spec import NAMESPACES
from colos.errors import FaultUnavailable, InvalidSpecification

if TYPE_CHECKING:
    from colos.chaos.sandbox.session import Session

__all__ = [
    "BatteryLow",
    "CpuOffline",
    "DiskFailing",
    "FanStopped",
    "MemoryErrors",
    "MemoryShrunk",
    "Overheating",
    "PowerLost",
]

MIB = 1 << 20
_HWMON = "/sys/class/hwmon"
_THERMAL = "/sys/class/thermal"
_POWER = "/sys/class/power_supply"
_EDAC = "/sys/devices/system/edac"
_CPU = "/sys/devices/system/cpu"
_CURE = (
    "let ordinary users make user namespaces (Ubuntu: sysctl kernel.apparmor_restrict_unprivileged_userns=0; "
    "Docker: --security-opt seccomp=unconfined)"
)


def _within(value: object, low: float, high: float, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InvalidSpecification(f"{what} is a number from {low:g} to {high:g}, not {value!r}")
    return value


def _whole(value: object, low: int, high: int, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidSpecification(f"{what} is a whole number from {low} to {high}, not {value!r}")
    return value


class _Hardware(Fault):
    """What all of the family share: where they can be, and how they are shown."""

    family = "hardware"
    uses = "bind-mount"
    targeted = False
    proof = "the files, read through the sandbox's own mounts"

    def __init__(self) -> None:
        super().__init__()

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    @classmethod
    def unavailable(cls, session: Session) -> tuple[str, str] | None:
        """A mount namespace of the sandbox's own, and something in /sys and /proc to bind over."""
        if session.tier != NAMESPACES:
            return "files are bound over /sys and /proc, which in a bare sandbox are the host's", _CURE
        reason = probe()
        return (reason, "mount /proc and /sys (in a container: do not mask them)") if reason else None

    @classmethod
    @abstractmethod
    def edits(cls, arguments: Mapping[str, Any]) -> tuple[str, dict[str, Edit]]:
        """What is shown, in words and by path.  Raises `InvalidSpecification` for what cannot be."""

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Show it to everything in the sandbox."""
        del target
        says, edits = cls.edits(cls.complete(arguments))
        if site.sandbox.tier != NAMESPACES:
            raise FaultUnavailable(cls.kind, "a bare sandbox has no mounts of its own", _CURE)
        return _Shown(site, says, edits)


class _Shown(Lease):
    mechanism = "bind-mount"

    def __init__(self, site: Site, says: str, edits: dict[str, Edit]) -> None:
        self._views = views(site.sandbox)
        self._edits = edits
        self._views.show(self, edits)
        seen = [path for path in edits if self._views.shows(path)]
        self._proof = f"{says}: read in {', '.join(seen)}" if len(seen) == len(edits) else None

    def fired(self) -> str | None:
        return self._proof

    def heal(self) -> None:
        self._views.hide(self)

    def is_healed(self) -> bool:
        return self._views.is_hidden(self, self._edits)


# --- heat, fans, power ----------------------------------------------------------------------


class Overheating(_Hardware):
    """Every temperature sensor reads `celsius` degrees (0 to 250).  Documentation/hwmon/sysfs-interface.

    hwmon's sensors and the thermal zones both.  The kernel does not throttle: nothing is hot.  Of several
    leases the hottest holds.
    """

    kind = "overheating"
    summary = "every sensor under /sys/class/hwmon and /sys/class/thermal reads so many degrees; nothing is hot"
    sees = "psutil.sensors_temperatures(), `sensors`"
    parameters: ClassVar[Mapping[str, object]] = {"celsius": 105}

    def __init__(self, *, celsius: Sequence[float] = (95, 105)) -> None:
        super().__init__()
        self.celsius = tuple(_within(value, 0, 250, "a temperature in degrees Celsius") for value in celsius)

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """One of the declared temperatures."""
        return st.fixed_dictionaries({"celsius": st.sampled_from(self.celsius)})

    @classmethod
    def edits(cls, arguments: Mapping[str, Any]) -> tuple[str, dict[str, Edit]]:
        """Sensors and zones."""
        celsius = _within(arguments["celsius"], 0, 250, "a temperature in degrees Celsius")
        return f"{celsius:g} degrees Celsius", {
            _HWMON: Edit(celsius, lambda tree: files.sensors_at(tree, celsius)),
            _THERMAL: Edit(celsius, lambda tree: files.zones_at(tree, celsius)),
        }


class FanStopped(_Hardware):
    """Every fan turns `rpm` times a minute (0, stopped, to 600, far too slow), and its alarm is on.

    Documentation/hwmon/sysfs-interface.  Of several leases the slowest holds.
    """

    kind = "fan-stopped"
    summary = "every fan under /sys/class/hwmon reads 0 rpm, or as slow as said, and gives its alarm; fans turn on"
    sees = "psutil.sensors_fans(), `sensors`"
    parameters: ClassVar[Mapping[str, object]] = {"rpm": 0}

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """Slow, or stopped."""
        return st.fixed_dictionaries({"rpm": st.sampled_from((300, 0))})

    @classmethod
    def edits(cls, arguments: Mapping[str, Any]) -> tuple[str, dict[str, Edit]]:
        """The sensors' directory."""
        rpm = _whole(arguments["rpm"], 0, 600, "a failing fan's speed in rpm")
        return f"{rpm} rpm", {_HWMON: Edit(-rpm, lambda tree: files.fans_at(tree, rpm))}


class BatteryLow(_Hardware):
    """Every battery holds `percent` of what it takes (0 to 20).  Documentation/ABI/testing/sysfs-class-power.

    Whether the mains are there is left as it is: see `power-lost`, with which it composes.  Of several
    leases the lowest holds.
    """

    kind = "battery-low"
    summary = "every battery under /sys/class/power_supply is nearly empty; the machine goes on running"
    sees = "psutil.sensors_battery().percent"
    parameters: ClassVar[Mapping[str, object]] = {"percent": 2}

    def __init__(self, *, percents: Sequence[float] = (10, 2)) -> None:
        super().__init__()
        self.percents = tuple(_within(value, 0, 20, "a low battery's charge in percent") for value in percents)

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """One of the declared charges."""
        return st.fixed_dictionaries({"percent": st.sampled_from(self.percents)})

    @classmethod
    def edits(cls, arguments: Mapping[str, Any]) -> tuple[str, dict[str, Edit]]:
        """The supplies' directory."""
        percent = _within(arguments["percent"], 0, 20, "a low battery's charge in percent")
        return f"{percent:g} percent", {_POWER: Edit(-percent, lambda tree: files.battery_at(tree, percent))}


class PowerLost(_Hardware):
    """The mains are gone, and the battery, at the rate it is drained, lasts `minutes` (1 to 600) more.

    Documentation/ABI/testing/sysfs-class-power.  Of several leases the shortest holds.
    """

    kind = "power-lost"
    summary = "the mains under /sys/class/power_supply are off and the battery is draining; the machine goes on running"
    sees = "psutil.sensors_battery().power_plugged and .secsleft"
    parameters: ClassVar[Mapping[str, object]] = {"minutes": 10}

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """How long the battery lasts."""
        return st.fixed_dictionaries({"minutes": st.sampled_from((60, 10, 1))})

    @classmethod
    def edits(cls, arguments: Mapping[str, Any]) -> tuple[str, dict[str, Edit]]:
        """The supplies' directory; after every `battery-low`, from whose charge the rate follows."""
        minutes = _whole(arguments["minutes"], 1, 600, "how long the battery lasts in minutes")
        return f"no mains, {minutes} min left", {
            _POWER: Edit(1000 - minutes, lambda tree: files.unplugged(tree, minutes)),
        }


# --- memory ---------------------------------------------------------------------------------


class MemoryShrunk(_Hardware):
    """The machine has `total_bytes` of memory, `available_bytes` of them unused.  proc_meminfo(5).

    The total must be below what the machine has, and what is available at most the total.  The kernel still
    has all its memory and gives it out: the program reads that it has not.  sysinfo(2) tells the truth.
    The swap is left as it is.  Of several leases the smallest total and the smallest rest hold.
    """

    kind = "memory-shrunk"
    summary = "/proc/meminfo shows a machine with less memory; the kernel still has it and gives it out"
    sees = "psutil.virtual_memory(), `free`"
    parameters: ClassVar[Mapping[str, object]] = {"total_bytes": 256 * MIB, "available_bytes": 16 * MIB}

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """A small machine with some memory left, or with nearly none."""
        return st.fixed_dictionaries(
            {"total_bytes": st.just(256 * MIB), "available_bytes": st.sampled_from((128 * MIB, 16 * MIB, MIB))}
        )

    @classmethod
    def edits(cls, arguments: Mapping[str, Any]) -> tuple[str, dict[str, Edit]]:
        """/proc/meminfo."""
        total = count_of(arguments["total_bytes"], "the memory of a machine in bytes")
        available = count_of(arguments["available_bytes"], "the available memory in bytes")
        with open("/proc/meminfo", "rb") as file:
            has = files.bytes_of_meminfo(file.read(), b"MemTotal")
        if not MIB <= total < has:
            raise InvalidSpecification(f"total_bytes is from {MIB} to below {has}, which it has here, not {total}")
        if available > total:
            raise InvalidSpecification(f"available_bytes is at most total_bytes ({total}), not {available}")
        return f"{available >> 10} of {total >> 10} KiB available", {
            "/proc/meminfo": Edit(-available, lambda text: files.meminfo_of(text, total, available)),
        }


class MemoryErrors(_Hardware):
    """The memory controllers have counted `corrected` and `uncorrected` ECC errors (0 to a million) more.

    Documentation/ABI/testing/sysfs-devices-edac.  No bit has flipped.  Of several leases the errors add up.
    """

    kind = "memory-errors"
    summary = "the ECC counters under /sys/devices/system/edac have gone up; no bit has flipped"
    sees = "ce_count and ue_count, `edac-util`"
    parameters: ClassVar[Mapping[str, object]] = {"corrected": 100, "uncorrected": 0}

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """A few or many corrected ones, perhaps with one that was not."""
        return st.fixed_dictionaries({"corrected": st.sampled_from((1, 100, 10_000)), "uncorrected": st.integers(0, 1)})

    @classmethod
    def edits(cls, arguments: Mapping[str, Any]) -> tuple[str, dict[str, Edit]]:
        """Each controller's two counters."""
        corrected = _whole(arguments["corrected"], 0, 10**6, "a count of corrected errors")
        uncorrected = _whole(arguments["uncorrected"], 0, 10**6, "a count of uncorrected errors")
        if not corrected + uncorrected:
            raise InvalidSpecification("there is at least one error: corrected or uncorrected must be above 0")
        edits = {
            path: Edit(0, functools.partial(files.more, by=count))
            for name, count in (("ce_count", corrected), ("ue_count", uncorrected))
            for path in glob.glob(f"{_EDAC}/mc/mc[0-9]*/{name}")
        }
        if not edits:
            edits = {_EDAC: Edit(0, lambda tree: files.edac_more(tree, corrected, uncorrected))}
        return f"{corrected} corrected errors and {uncorrected} others", edits


# --- processors and disks -------------------------------------------------------------------


class CpuOffline(_Hardware):
    """Only `left` processors are online: 1, or up to all but one of those that are.

    /sys/devices/system/cpu (Documentation/core-api/cpu_hotplug), /proc/cpuinfo, /proc/stat.  The scheduler
    still uses all of them, and sched_getaffinity(2) says so.  Of several leases the fewest hold.
    """

    kind = "cpu-offline"
    summary = "/sys/devices/system/cpu, /proc/cpuinfo and /proc/stat show fewer processors; the scheduler uses all"
    sees = "os.cpu_count(), psutil.cpu_count(), `nproc --all`, `lscpu`"
    parameters: ClassVar[Mapping[str, object]] = {"left": 1}

    @classmethod
    def unavailable(cls, session: Session) -> tuple[str, str] | None:
        """At least one to lose."""
        if os.path.exists(f"{_CPU}/online") and len(_online()) < 2:
            return "this machine has one processor only", "a machine with two or more"
        return super().unavailable(session)

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """One less, or only one."""
        return st.fixed_dictionaries({"left": st.sampled_from(sorted({max(1, len(_online()) - 1), 1}, reverse=True))})

    @classmethod
    def edits(cls, arguments: Mapping[str, Any]) -> tuple[str, dict[str, Edit]]:
        """The lists, the two tables, and the directory of each that has gone."""
        online = _online()
        if len(online) < 2:
            raise InvalidSpecification("this machine has one processor only: none can go")
        left = _whole(arguments["left"], 1, len(online) - 1, "how many processors stay online")
        kept, gone = online[:left], online[left:]
        edits = {
            f"{_CPU}/online": Edit(-left, lambda _: files.list_of(kept)),
            "/proc/cpuinfo": Edit(-left, lambda text: files.without_cpuinfo(text, gone)),
            "/proc/stat": Edit(-left, lambda text: files.without_stat(text, gone)),
            **{f"{_CPU}/cpu{number}": Edit(-left, lambda _: {"online": b"0\n"}) for number in gone},
        }
        if os.path.exists(f"{_CPU}/offline"):
            edits[f"{_CPU}/offline"] = Edit(
                -left, lambda text: files.list_of(sorted({*gone, *files.ids_of(text)} - {*kept}))
            )
        return f"{left} of {len(online)} processors online", edits


def _online() -> list[int]:
    try:
        with open(f"{_CPU}/online", "rb") as file:
            return files.ids_of(file.read())
    except OSError:
        return [0]


class DiskFailing(_Hardware):
    """Disks have failed `errors` requests (1 to a million) more, and ext4 has found as many errors.

    SCSI's and SATA's `ioerr_cnt`, ext4's `errors_count` (Documentation/ABI/testing/sysfs-fs-ext4).  Where no
    disk counts its errors, a disk that does is added under /sys/block.  Nothing fails: see the disk family for
    that.  SMART is not covered: it is asked of the device itself.  Of several leases the errors add up.
    """

    kind = "disk-failing"
    summary = (
        "the counters of failed requests under /sys/block and of errors under /sys/fs/ext4 go up; no request fails"
    )
    sees = "/sys/block/*/device/ioerr_cnt, /sys/fs/ext4/*/errors_count"
    parameters: ClassVar[Mapping[str, object]] = {"errors": 16}

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """One, some, many."""
        return st.fixed_dictionaries({"errors": st.sampled_from((1, 16, 1000))})

    @classmethod
    def edits(cls, arguments: Mapping[str, Any]) -> tuple[str, dict[str, Edit]]:
        """Each counter where it really is, below the links of /sys/block."""
        errors = _whole(arguments["errors"], 1, 10**6, "a count of failed requests")
        counters = glob.glob("/sys/block/*/device/ioerr_cnt")
        edits = {
            os.path.realpath(path): Edit(0, lambda text: files.more(text, errors))
            for path in (*counters, *glob.glob("/sys/fs/ext4/*/errors_count"))
        }
        if not counters:
            letter = next(letter for letter in string.ascii_lowercase if not os.path.exists(f"/sys/block/sd{letter}"))
            edits[f"/sys/block/sd{letter}"] = Edit(0, lambda tree: files.disk_more(tree, errors))
        return f"{errors} errors more", edits
