"""Chaos testing: a system on a throwaway machine, real faults, properties, scenarios that replay.

Names are resolved when they are first used, so that importing the package costs little.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from colos.chaos.fault import Fault, Lease
    from colos.chaos.faults.cpu import CpuStarvation, StarvationIntervals
    from colos.chaos.faults.descriptors import DescriptorExhaustion
    from colos.chaos.faults.disk import DiskFull
    from colos.chaos.faults.node import NodeKill, RootKill, ZygoteKill
    from colos.chaos.faults.placement import CpuFewer, CpuPin, CpuPriority
    from colos.chaos.faults.process import Crash, Kill, Pause, PauseFor, Terminate
    from colos.chaos.faults.rival import CpuRival
    from colos.chaos.faults.storm import SignalStorm
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
    "CpuFewer",
    "CpuPin",
    "CpuPriority",
    "CpuRival",
    "CpuStarvation",
    "Crash",
    "DescriptorExhaustion",
    "DiskFull",
    "Fault",
    "Kill",
    "Lease",
    "NodeKill",
    "Pause",
    "PauseFor",
    "Restarts",
    "RootKill",
    "Scenario",
    "SignalStorm",
    "StarvationIntervals",
    "Terminate",
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
    "ActorSystem": "system",
    "ChaosMachine": "machine",
    "CommandSystem": "system",
    "CpuFewer": "faults.placement",
    "CpuPin": "faults.placement",
    "CpuPriority": "faults.placement",
    "CpuRival": "faults.rival",
    "CpuStarvation": "faults.cpu",
    "Crash": "faults.process",
    "DescriptorExhaustion": "faults.descriptors",
    "DiskFull": "faults.disk",
    "Fault": "fault",
    "Kill": "faults.process",
    "Lease": "fault",
    "NodeKill": "faults.node",
    "Pause": "faults.process",
    "PauseFor": "faults.process",
    "Restarts": "sandbox.spec",
    "RootKill": "faults.node",
    "Scenario": "scenario",
    "SignalStorm": "faults.storm",
    "StarvationIntervals": "faults.cpu",
    "Terminate": "faults.process",
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
