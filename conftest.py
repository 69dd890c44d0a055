"""The repository's own pytest set-up: `pytester`, Hypothesis's patience, and which folders are slow."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["pytester"]

TESTS = Path(__file__).parent / "tests"
#: Real kernels, whole pytest runs, whole systems: seconds each.  `-m "not slow"` leaves them out.
SLOW = tuple(TESTS / folder for folder in ("conformance", "end_to_end", "unit/plugin"))

# A test that fails because the machine is busy tells nothing; what takes how long is for benchmarks/.
settings.register_profile(
    "patient",
    settings.get_profile(settings.get_current_profile_name()),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("patient")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what stands in a slow folder."""
    for item in items:
        if any(folder in item.path.parents for folder in SLOW):
            item.add_marker(pytest.mark.slow)
