"""What these tests do once more as an ordinary user needs an interpreter and a project that such a user can read."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


@functools.cache
def why_not_as_nobody() -> str:
    source = f"import colos.errors; open({str(HERE / 'trapped.py')!r}).close()"
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[2]), "PYTHONDONTWRITEBYTECODE": "1"}
    tried = subprocess.run(
        [*NOBODY, sys.executable, "-c", source], env=environment, capture_output=True, text=True, timeout=30
    )
    return "" if tried.returncode == 0 else tried.stderr.strip().splitlines()[-1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        callspec = getattr(item, "callspec", None)
        params = callspec.params.values() if callspec is not None else ()
        wanted = "nobody" in params or item.get_closest_marker("as_nobody")
        if HERE in item.path.parents and wanted and os.geteuid() == 0:
            reason = why_not_as_nobody()
            if reason:
                item.add_marker(pytest.mark.skip(reason=f"an ordinary user cannot run this interpreter: {reason}"))
