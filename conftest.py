"""The repository's own pytest set-up: `pytester`, which runs pytest in a project of a test's own."""

from __future__ import annotations

pytest_plugins = ["pytester"]
