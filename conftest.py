"""The repository's own pytest set-up: `pytester`, and which folders are slow by what they are for."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

TESTS = Path(__file__).parent / "tests"
#: Real kernels, whole pytest runs, whole systems: seconds each.  `-m "not slow"` leaves them out.
SLOW = tuple(TESTS / folder for folder in ("conformance", "end_to_end", "unit/plugin"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what stands in a slow folder."""
    for item in items:
        if any(folder in item.path.parents for folder in SLOW):
            item.add_marker(pytest.mark.slow)
