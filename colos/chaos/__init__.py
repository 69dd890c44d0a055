"""Chaos testing: a system on a throwaway machine, real faults, properties, scenarios that replay.

Names are resolved when they are first used, so that importing the package costs little.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from colos.chaos.actor_system import ActorSystem
    from colos.chaos.command_system import CommandSystem
    from colos.chaos.fault import Fault, Lease
    from colos.chaos.faults.cgroupmemory import MemoryPressure, OomKill
    from colos.chaos.faults.clock import ClockDrift, ClockJump, ClockStopped, RuntimeClock
    from colos.chaos.faults.connections import ConnectionReset
    from colos.chaos.faults.cpu import CpuStarvation, StarvationIntervals
    from colos.chaos.faults.descriptors import DescriptorExhaustion
    from colos.chaos.faults.disk import DiskFull
    from colos.chaos.faults.diskio import IoError, ShortWrite, SlowDisk, TornWrite
    from colos.chaos.faults.entropy import NoEntropy
    from colos.chaos.faults.files import FileVanished, PermissionLost
    from colos.chaos.faults.forking import ForkFails
    from colos.chaos.faults.hardware import (
        BatteryLow,
        CpuOffline,
        DiskFailing,
        FanStopped,
        MemoryErrors,
        MemoryShrunk,
        Overheating,
        PowerLost,
    )
    from colos.chaos.faults.loopback import LoopbackDown, PacketDelay, SlowLink
    from colos.chaos.faults.memory import MemoryLimit
    from colos.chaos.faults.names import NameLookupFails, NameLookupSlow, TimezoneChanged
    from colos.chaos.faults.node import NodeKill, RootKill, ZygoteKill
    from colos.chaos.faults.oomlookalike import OomKillLookalike
    from colos.chaos.faults.packets import ConnectionRefused, HalfOpen, PacketLoss, Partition
    from colos.chaos.faults.perturbation import SchedulingDelays
    from colos.chaos.faults.placement import CpuFewer, CpuPin, CpuPriority
    from colos.chaos.faults.process import Crash, Kill, Pause, PauseFor, Terminate
    from colos.chaos.faults.readonly import DiskReadOnly
    from colos.chaos.faults.rival import CpuRival
    from colos.chaos.faults.rot import BitRot
    from colos.chaos.faults.socketcalls import ConnectFails, CutReads, SlowNetwork
    from colos.chaos.faults.storm import SignalStorm
    from colos.chaos.faults.systemcalls import InterruptedCalls, SyscallDelay, SyscallError
    from colos.chaos.faults.tables import FileTableFull, ThreadFails
    from colos.chaos.machine import ChaosMachine
    from colos.chaos.properties import always, eventually, sometimes
    from colos.chaos.ready import file_exists, output_contains, tcp, unix_socket
    from colos.chaos.sandbox.spec import Restarts
    from colos.chaos.scenario import Scenario

__all__ = [
    "ActorSystem",
    "BatteryLow",
    "BitRot",
    "ChaosMachine",
    "ClockDrift",
    "ClockJump",
    "ClockStopped",
    "CommandSystem",
    "ConnectFails",
    "ConnectionRefused",
    "ConnectionReset",
    "CpuFewer",
    "CpuOffline",
    "CpuPin",
    "CpuPriority",
    "CpuRival",
    "CpuStarvation",
    "Crash",
    "CutReads",
    "DescriptorExhaustion",
    "DiskFailing",
    "DiskFull",
    "DiskReadOnly",
    "FanStopped",
    "Fault",
    "FileTableFull",
    "FileVanished",
    "ForkFails",
    "HalfOpen",
    "InterruptedCalls",
    "IoError",
    "Kill",
    "Lease",
    "LoopbackDown",
    "MemoryErrors",
    "MemoryLimit",
    "MemoryPressure",
    "MemoryShrunk",
    "NameLookupFails",
    "NameLookupSlow",
    "NoEntropy",
    "NodeKill",
    "OomKill",
    "OomKillLookalike",
    "Overheating",
    "PacketDelay",
    "PacketLoss",
    "Partition",
    "Pause",
    "PauseFor",
    "PermissionLost",
    "PowerLost",
    "Restarts",
    "RootKill",
    "RuntimeClock",
    "Scenario",
    "SchedulingDelays",
    "ShortWrite",
    "SignalStorm",
    "SlowDisk",
    "SlowLink",
    "SlowNetwork",
    "StarvationIntervals",
    "SyscallDelay",
    "SyscallError",
    "Terminate",
    "ThreadFails",
    "TimezoneChanged",
    "TornWrite",
    "ZygoteKill",
    "always",
    "eventually",
    "file_exists",
    "output_contains",
    "sometimes",
    "tcp",
    "unix_socket",
]

_WHERE = {
    "ActorSystem": "actor_system",
    "BatteryLow": "faults.hardware",
    "BitRot": "faults.rot",
    "ChaosMachine": "machine",
    "ClockDrift": "faults.clock",
    "ClockJump": "faults.clock",
    "ClockStopped": "faults.clock",
    "CommandSystem": "command_system",
    "ConnectFails": "faults.socketcalls",
    "ConnectionRefused": "faults.packets",
    "ConnectionReset": "faults.connections",
    "CpuFewer": "faults.placement",
    "CpuOffline": "faults.hardware",
    "CpuPin": "faults.placement",
    "CpuPriority": "faults.placement",
    "CpuRival": "faults.rival",
    "CpuStarvation": "faults.cpu",
    "Crash": "faults.process",
    "CutReads": "faults.socketcalls",
    "DescriptorExhaustion": "faults.descriptors",
    "DiskFailing": "faults.hardware",
    "DiskFull": "faults.disk",
    "DiskReadOnly": "faults.readonly",
    "FanStopped": "faults.hardware",
    "Fault": "fault",
    "FileTableFull": "faults.tables",
    "FileVanished": "faults.files",
    "ForkFails": "faults.forking",
    "HalfOpen": "faults.packets",
    "InterruptedCalls": "faults.systemcalls",
    "IoError": "faults.diskio",
    "Kill": "faults.process",
    "Lease": "fault",
    "LoopbackDown": "faults.loopback",
    "MemoryErrors": "faults.hardware",
    "MemoryLimit": "faults.memory",
    "MemoryPressure": "faults.cgroupmemory",
    "MemoryShrunk": "faults.hardware",
    "NameLookupFails": "faults.names",
    "NameLookupSlow": "faults.names",
    "NoEntropy": "faults.entropy",
    "NodeKill": "faults.node",
    "OomKill": "faults.cgroupmemory",
    "OomKillLookalike": "faults.oomlookalike",
    "Overheating": "faults.hardware",
    "PacketDelay": "faults.loopback",
    "PacketLoss": "faults.packets",
    "Partition": "faults.packets",
    "Pause": "faults.process",
    "PauseFor": "faults.process",
    "PermissionLost": "faults.files",
    "PowerLost": "faults.hardware",
    "Restarts": "sandbox.spec",
    "RootKill": "faults.node",
    "RuntimeClock": "faults.clock",
    "Scenario": "scenario",
    "SchedulingDelays": "faults.perturbation",
    "ShortWrite": "faults.diskio",
    "SignalStorm": "faults.storm",
    "SlowDisk": "faults.diskio",
    "SlowLink": "faults.loopback",
    "SlowNetwork": "faults.socketcalls",
    "StarvationIntervals": "faults.cpu",
    "SyscallDelay": "faults.systemcalls",
    "SyscallError": "faults.systemcalls",
    "Terminate": "faults.process",
    "ThreadFails": "faults.tables",
    "TimezoneChanged": "faults.names",
    "TornWrite": "faults.diskio",
    "ZygoteKill": "faults.node",
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
