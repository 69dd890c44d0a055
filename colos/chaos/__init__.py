"""Chaos testing: a system on a throwaway machine, real faults, properties, scenarios that replay.

Names are resolved when they are first used, so that importing the package costs little.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from colos.chaos.fault import Fault, Lease
    from colos.chaos.faults.cgroupmemory import MemoryPressure, OomKill
    from colos.chaos.faults.cpu import CpuStarvation
    from colos.chaos.faults.descriptors import DescriptorExhaustion
    from colos.chaos.faults.disk import DiskFull
    from colos.chaos.faults.files import FileVanished, PermissionLost
    from colos.chaos.faults.forking import ForkFails
    from colos.chaos.faults.memory import MemoryLimit
    from colos.chaos.faults.oomlookalike import OomKillLookalike
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
    "BitRot",
    "ChaosMachine",
    "CommandSystem",
    "CpuStarvation",
    "DescriptorExhaustion",
    "DiskFull",
    "DiskReadOnly",
    "Fault",
    "FileVanished",
    "ForkFails",
    "Kill",
    "Lease",
    "MemoryLimit",
    "MemoryPressure",
    "OomKill",
    "OomKillLookalike",
    "PermissionLost",
    "Restarts",
    "Scenario",
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
    "BitRot": "faults.rot",
    "ChaosMachine": "machine",
    "CommandSystem": "system",
    "CpuStarvation": "faults.cpu",
    "DescriptorExhaustion": "faults.descriptors",
    "DiskFull": "faults.disk",
    "DiskReadOnly": "faults.readonly",
    "Fault": "fault",
    "FileVanished": "faults.files",
    "ForkFails": "faults.forking",
    "Kill": "faults.process",
    "Lease": "fault",
    "MemoryLimit": "faults.memory",
    "MemoryPressure": "faults.cgroupmemory",
    "OomKill": "faults.cgroupmemory",
    "OomKillLookalike": "faults.oomlookalike",
    "PermissionLost": "faults.files",
    "Restarts": "sandbox.spec",
    "Scenario": "scenario",
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
