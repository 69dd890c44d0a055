from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
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


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where all nodes of a test are, and nobody else's."""
    monkeypatch.setenv("COLOS_RUN", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TERM", "dumb")
    return str(tmp_path)


@pytest.fixture
def start(base: str) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command that goes on; whatever is left of it is killed afterwards."""
    with ExitStack() as stack:

        def begin(*args: str, **streams: int) -> subprocess.Popen[str]:
            pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE) | streams
            started = subprocess.Popen([sys.executable, "-m", "colos", *args], text=True, **pipes)  # type: ignore[call-overload]
            stack.enter_context(started)
            stack.callback(started.kill)
            return started

        yield begin
