"""``python -m http.server``, which is wherever Python is: reached through the sandbox's own loopback."""

from __future__ import annotations

import http.client
import socket
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.stateful import rule

from colos.chaos import (
    ChaosMachine,
    CommandSystem,
    CpuStarvation,
    DescriptorExhaustion,
    DiskFull,
    Kill,
    Restarts,
    eventually,
    tcp,
)


def free_port() -> int:
    """In a bare sandbox the loopback is the host's, so a port must be free there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


PORT = free_port()


@settings(max_examples=20)
class TestHttpServer(ChaosMachine):
    system = CommandSystem(
        ["python", "-u", "-m", "http.server", str(PORT), "--bind", "127.0.0.1", "--directory", "{data}"],
        ready=tcp(PORT),
        restarts=Restarts(limit=50),
        name="http",
    )
    faults = (Kill("http"), DiskFull(), DescriptorExhaustion("http"), CpuStarvation("http"))
    unknowns = (TimeoutError, http.client.BadStatusLine)

    def __init__(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        super().__init__()
        assert tmp_path_factory.getbasetemp().exists()  # a fixture, asked for by name

    async def get(self, path: str) -> int:
        sock = await self.system.connect(("127.0.0.1", PORT))
        sock.settimeout(0.5)
        client = http.client.HTTPConnection("127.0.0.1", PORT)
        client.sock = sock
        try:
            client.request("GET", path)
            response: Any = client.getresponse()
            response.read()
            return int(response.status)
        finally:
            client.close()

    @rule()
    async def list_the_directory(self) -> None:
        assert await self.get("/") in (200, 404)  # 404 is how it says that it cannot read

    @rule()
    async def ask_for_what_is_not_there(self) -> None:
        assert await self.get("/nothing") == 404

    @eventually(within=5.0)
    async def the_directory_is_served_again(self) -> None:
        assert await self.get("/") == 200
