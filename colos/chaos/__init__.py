"""Chaos testing: a system on a throwaway machine, real faults, properties, scenarios that replay.

Names are resolved when they are first used, so that importing the package costs little.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from colos.chaos.fault import Fault, Lease
    from colos.chaos.faults.connections import ConnectionReset
    from colos.chaos.faults.cpu import CpuStarvation
    from colos.chaos.faults.descriptors import DescriptorExhaustion
    from colos.chaos.faults.disk import DiskFull
    from colos.chaos.faults.loopback import LoopbackDown, PacketDelay, SlowLink
    from colos.chaos.faults.names import NameLookupFails, NameLookupSlow, TimezoneChanged
    from colos.chaos.faults.packets import ConnectionRefused, HalfOpen, PacketLoss, Partition
    from colos.chaos.faults.process import Kill
    from colos.chaos.machine import ChaosMachine
    from colos.chaos.properties import always, eventually, sometimes
    from colos.chaos.ready import file_exists, output_contains, tcp, unix_socket
    from colos.chaos.sandbox.spec import Restarts
    from colos.chaos.scenario import Scenario
    from colos.chaos.system import ActorSystem, CommandSystem

__all__ = [
    "ActorSystem",
    "ChaosMachine",
    "CommandSystem",
    "ConnectionRefused",
    "ConnectionReset",
    "CpuStarvation",
    "DescriptorExhaustion",
    "DiskFull",
    "Fault",
    "HalfOpen",
    "Kill",
    "Lease",
    "LoopbackDown",
    "NameLookupFails",
    "NameLookupSlow",
    "PacketDelay",
    "PacketLoss",
    "Partition",
    "Restarts",
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
    "ChaosMachine": "machine",
    "CommandSystem": "system",
    "ConnectionRefused": "faults.packets",
    "ConnectionReset": "faults.connections",
    "CpuStarvation": "faults.cpu",
    "DescriptorExhaustion": "faults.descriptors",
    "DiskFull": "faults.disk",
    "Fault": "fault",
    "HalfOpen": "faults.packets",
    "Kill": "faults.process",
    "Lease": "fault",
    "LoopbackDown": "faults.loopback",
    "NameLookupFails": "faults.names",
    "NameLookupSlow": "faults.names",
    "PacketDelay": "faults.loopback",
    "PacketLoss": "faults.packets",
    "Partition": "faults.packets",
    "Restarts": "sandbox.spec",
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
