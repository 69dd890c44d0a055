"""The fault kinds, one file each or one for a close family.  Nothing here imports another of them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping

from colos.chaos.fault import REGISTRY, Fault

__all__ = ["fault_kinds"]


def fault_kinds() -> Mapping[str, type[Fault]]:
    """Every kind there is, by name: a new file in this folder is found by itself."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return REGISTRY
