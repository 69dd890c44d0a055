from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
sys.path[:0] = [str(HERE)]  # runtime_actors: a node's own interpreter imports it by this name

from runtime_helpers import DEADLINE_S  # noqa: E402 - found by the line above


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a helper script beside the tests; whatever is left of it is killed afterwards."""
    started: list[subprocess.Popen[str]] = []

    def start(*args: object, prefix: tuple[str, ...] = (), **env: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*prefix, sys.executable, str(HERE / "runtime_scripts.py"), *map(str, args)],
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}", **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=DEADLINE_S)
