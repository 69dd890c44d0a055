"""Debian's redis-server with its PyPI client: a program and a client that nobody here wrote."""

from __future__ import annotations

import shutil

import hypothesis.strategies as st
import pytest
import redis
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
    always,
    eventually,
    unix_socket,
)

SOCKET = "{run}/redis.sock"
SERVER = ["redis-server", "--port", "0", "--unixsocket", SOCKET, "--dir", "{data}", "--save", "", "--databases", "1"]
DURABLE = ["--appendonly", "yes", "--appendfsync", "always"]


@settings(max_examples=20)
@pytest.mark.skipif(
    shutil.which("redis-server") is None, reason="redis-server is not installed (apt install redis-server)"
)
class TestRedis(ChaosMachine):
    """With ``appendfsync always``, a write that was acknowledged survives whatever happens."""

    system = CommandSystem([*SERVER, *DURABLE], ready=unix_socket(SOCKET), restarts=Restarts(limit=50))
    faults = (Kill(), DiskFull(), DescriptorExhaustion(), CpuStarvation())
    refusals = (redis.ResponseError,)
    unknowns = (redis.ConnectionError, redis.TimeoutError)

    def __init__(self) -> None:
        super().__init__()
        self.acknowledged: dict[str, set[str]] = {}

    def client(self) -> redis.Redis:
        return redis.Redis(
            unix_socket_path=self.system.path(SOCKET), socket_timeout=0.5, decode_responses=True, retry=None
        )

    @rule(key=st.sampled_from("abc"), value=st.text("xyz", min_size=1, max_size=5), times=st.integers(1, 900))
    def set(self, key: str, value: str, times: int) -> None:
        # Until the server has answered, either value may be the one that is kept.
        before = self.acknowledged.get(key, {""})
        self.acknowledged[key] = before | {value * times}
        with self.client() as client:
            client.set(key, value * times)
        self.acknowledged[key] = {value * times}

    @always
    def no_acknowledged_write_is_lost(self) -> None:
        with self.client() as client:
            for key, allowed in self.acknowledged.items():
                kept = client.get(key) or ""
                assert kept in allowed, f"{key} is {kept[:20]!r}, not one of {sorted(v[:20] for v in allowed)}"

    @eventually(within=10.0)
    def writes_are_accepted_again(self) -> None:
        with self.client() as client:
            client.set("probe", "1")
