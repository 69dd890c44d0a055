"""Chaos testing: a system on a throwaway machine, real faults, properties, scenarios that replay.

Names are resolved when they are first used, so that importing the package costs little.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from colos.chaos.fault import Fault, Lease
    )
        BatteryLow,
        CpuOffline,
        DiskFailing,
        FanStopped,
        MemoryErrors,
        MemoryShrunk,
        Overheating,
        PowerLost,
    from colos.chaos.faults.cgroupmemory import MemoryPressure, OomKill
    from colos.chaos.faults.clock import ClockDrift, ClockJump, ClockStopped, RuntimeClock
    from colos.chaos.faults.connections import ConnectionReset
    from colos.chaos.faults.cpu import CpuStarvation
    from colos.chaos.faults.descriptors import DescriptorExhaustion
    from colos.chaos.faults.disk import DiskFull
    from colos.chaos.faults.files import FileVanished, PermissionLost
    from colos.chaos.faults.forking import ForkFails
    from colos.chaos.faults.hardware import (
    from colos.chaos.faults.loopback import LoopbackDown, PacketDelay, SlowLink
    from colos.chaos.faults.memory import MemoryLimit
    from colos.chaos.faults.names import NameLookupFails, NameLookupSlow, TimezoneChanged
    from colos.chaos.faults.oomlookalike import OomKillLookalike
    from colos.chaos.faults.packets import ConnectionRefused, HalfOpen, PacketLoss, Partition
    from colos.chaos.faults.process import Kill
    from colos.chaos.faults.readonly import DiskReadOnly
    from colos.chaos.faults.rot import BitRot
    from colos.chaos.machine import ChaosMachine
    from colos.chaos.properties import always, eventually, sometimes
    from colos.chaos.ready import file_exists, output_contains, tcp, unix_socket
    from colos.chaos.sandbox.spec import Restarts
    from colos.chaos.scenario import Scenario
    from colos.chaos.system import ActorSystem, CommandSystem

__all__ = [
    "ActorSystem",
    "BatteryLow",
    "BitRot",
    "ChaosMachine",
    "ClockDrift",
    "ClockJump",
    "ClockStopped",
    "CommandSystem",
    "ConnectionRefused",
    "ConnectionReset",
    "CpuOffline",
    "CpuStarvation",
    "DescriptorExhaustion",
    "DiskFailing",
    "DiskFull",
    "DiskReadOnly",
    "FanStopped",
    "Fault",
    "FileVanished",
    "ForkFails",
    "HalfOpen",
    "Kill",
    "Lease",
    "LoopbackDown",
    "MemoryErrors",
    "MemoryLimit",
    "MemoryPressure",
    "MemoryShrunk",
    "NameLookupFails",
    "NameLookupSlow",
    "OomKill",
    "OomKillLookalike",
    "Overheating",
    "PacketDelay",
    "PacketLoss",
    "Partition",
    "PermissionLost",
    "PowerLost",
    "Restarts",
    "RuntimeClock",
    "Scenario",
    "SlowLink",
    "TimezoneChanged",
    "always",
    "eventually",
    "file_exists",
    "output_contains",
    "sometimes",
    "tcp",
    "unix_socket",
]

_WHERE = {
    "ActorSystem": "system",
    "BatteryLow": "faults.hardware",
    "BitRot": "faults.rot",
    "ChaosMachine": "machine",
    "ClockDrift": "faults.clock",
    "ClockJump": "faults.clock",
    "ClockStopped": "faults.clock",
    "CommandSystem": "system",
    "ConnectionRefused": "faults.packets",
    "ConnectionReset": "faults.connections",
    "CpuOffline": "faults.hardware",
    "CpuStarvation": "faults.cpu",
    "DescriptorExhaustion": "faults.descriptors",
    "DiskFailing": "faults.hardware",
    "DiskFull": "faults.disk",
    "DiskReadOnly": "faults.readonly",
    "FanStopped": "faults.hardware",
    "Fault": "fault",
    "FileVanished": "faults.files",
    "ForkFails": "faults.forking",
    "HalfOpen": "faults.packets",
    "Kill": "faults.process",
    "Lease": "fault",
    "LoopbackDown": "faults.loopback",
    "MemoryErrors": "faults.hardware",
    "MemoryLimit": "faults.memory",
    "MemoryPressure": "faults.cgroupmemory",
    "MemoryShrunk": "faults.hardware",
    "NameLookupFails": "faults.names",
    "NameLookupSlow": "faults.names",
    "OomKill": "faults.cgroupmemory",
    "OomKillLookalike": "faults.oomlookalike",
    "Overheating": "faults.hardware",
    "PacketDelay": "faults.loopback",
    "PacketLoss": "faults.packets",
    "Partition": "faults.packets",
    "PermissionLost": "faults.files",
    "PowerLost": "faults.hardware",
    "Restarts": "sandbox.spec",
    "RuntimeClock": "faults.clock",
    "Scenario": "scenario",
    "SlowLink": "faults.loopback",
    "TimezoneChanged": "faults.names",
    "always": "properties",
    "eventually": "properties",
    "file_exists": "ready",
    "output_contains": "ready",
    "sometimes": "properties",
    "tcp": "ready",
    "unix_socket": "ready",
}


def __getattr__(name: str) -> object:
    if name in _WHERE:
        value = getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
