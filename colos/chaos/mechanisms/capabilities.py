"""What a process may do besides what its user may: its effective capabilities.  capabilities(7), proc(5)."""

from __future__ import annotations

__all__ = ["effective", "overrides_modes"]

_DAC_OVERRIDE = 1 << 1
_DAC_READ_SEARCH = 1 << 2


def effective(pid: int) -> int:
    """The mask of its effective capabilities; 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            return next((int(line.split()[1], 16) for line in file if line.startswith("CapEff:")), 0)
    except (FileNotFoundError, ProcessLookupError):
        return 0


def overrides_modes(pid: int) -> bool:
    """Whether the permission bits of files do not bind it."""
    return bool(effective(pid) & (_DAC_OVERRIDE | _DAC_READ_SEARCH))
