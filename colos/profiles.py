"""Profiles: how much work a run is given, by a name, as Hypothesis has them.  Plain data; imports nothing heavy.

A profile's line is ``NAME: KEY=NUMBER …``; one that bears a shipped name begins with what that one says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from colos.spelling import closest

__all__ = ["KEYS", "SHIPPED", "read"]

KEYS: Mapping[str, str] = {
    "examples": "examples of an exploration",
    "steps": "steps of an example",
    "minimise": "seconds for minimising a failure",
    "replay-runs": "runs of a saved scenario, at most",
}

SHIPPED: Mapping[str, Mapping[str, int]] = {
    "dev": {"examples": 10, "steps": 8, "minimise": 15, "replay-runs": 5},
    "ci": {},  # the machine's own settings and the defaults
    "nightly": {"examples": 500, "steps": 30, "minimise": 600, "replay-runs": 200},
}
"""The profiles that need no declaration."""

_DIGITS_MOST = 9


def read(lines: Sequence[str], chosen: str | None) -> Mapping[str, int]:
    """What the `chosen` profile says; `lines` declare more of them.  Raises `ValueError` with a sentence."""
    profiles = {name: dict(values) for name, values in SHIPPED.items()}
    for line in lines:
        name, colon, rest = (part.strip() for part in line.partition(":"))
        if not colon or not name or " " in name:
            raise ValueError(f"{line!r}: a profile is a line such as 'nightly: examples=500 steps=30'")
        profiles.setdefault(name, {}).update(_values(line, rest.split()))
    if chosen is None:
        return {}
    if chosen not in profiles:
        raise ValueError(f"there is no profile {chosen!r}; {closest(chosen, profiles)}")
    return profiles[chosen]


def _values(line: str, words: Sequence[str]) -> dict[str, int]:
    found = {}
    for word in words:
        key, _, value = word.partition("=")
        if key not in KEYS:
            raise ValueError(f"{line!r}: unknown key {key!r}; {closest(key, KEYS)}")
        if not (value.isascii() and value.isdecimal() and len(value) <= _DIGITS_MOST and int(value) > 0):
            raise ValueError(f"{line!r}: {word!r}: a whole number is needed, 1 or more")
        found[key] = int(value)
    return found
