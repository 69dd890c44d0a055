from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio.from_thread
import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
sys.path[:0] = [str(HERE)]  # the cast and the scenes: a node's own interpreter imports them by these names

import otp_cast  # noqa: E402 - found by the line above
from otp_drive import DEADLINE_S, Otp, end_all  # noqa: E402

from colos.runtime import Node  # noqa: E402


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def otp(anyio_backend: str) -> Iterator[Otp]:
    """One node for a module's many small scenes; `otp.run(scene, ...)` plays one in a process of its own."""
    with (
        anyio.from_thread.start_blocking_portal(anyio_backend) as portal,
        portal.wrap_async_context_manager(Node(otp_cast.Stage, backend=anyio_backend)) as node,
    ):
        yield Otp(portal, node)


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `otp_programs.py NAME ARGS`; whatever is left of it and its descendants is killed afterwards."""
    token = f"{os.getpid()}-{tmp_path.name}"
    # In memory, where a node's run directory is by default: who ends must not wait for a slow disk.
    nodes = Path(tempfile.mkdtemp(prefix="colos-test-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path))
    started: list[subprocess.Popen[str]] = []

    def start(*args: object, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*prefix, sys.executable, str(HERE / "otp_programs.py"), *map(str, args)],
            env={
                **os.environ,
                "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}",
                "COLOS_TEST_TOKEN": token,
                "COLOS_RUN": str(nodes),
            },
            stdin=subprocess.PIPE,  # an open one: its end would be an order
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        process.token = token  # type: ignore[attr-defined] - by it, descendants are found
        started.append(process)
        return process

    yield start
    end_all(token)
    for process in started:
        process.kill()
        process.communicate(timeout=DEADLINE_S)
    shutil.rmtree(nodes)
