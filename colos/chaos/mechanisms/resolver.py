"""A name server inside a sandbox that answers late, wrongly or not at all.

Its socket is made inside, where its port is free, and passed out; a thread of the harness answers.
What it is asked is counted: that is what a look-up looks like from the other side.

Sources: RFC 1035 (messages), resolv.conf(5), hosts(5).
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["NOT_KNOWN", "SERVER_FAILED", "SILENT", "OpenResolver", "Resolver", "hosts_in"]

#: What it may answer: a response code, or none.
SERVER_FAILED, NOT_KNOWN, SILENT = 2, 3, -1

_PORT = 53
_HEADER = struct.Struct(">6H")
_RESPONSE = 0x8180  # an answer; recursion was asked for and is available
_A, _AAAA = 1, 28
_MOST_BYTES = 1500
_MOST_WAITING = 1000
_JOIN_S = 2.0


@dataclass(frozen=True)
class OpenResolver:
    """A bound, non-blocking UDP socket at this address of the sandbox's loopback, port 53."""

    address: str

    def __call__(self) -> tuple[Any, tuple[int, ...]]:
        """Bind it, inside, where the caller is root."""
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind((self.address, _PORT))
        server.setblocking(False)
        return None, (server.detach(),)


def hosts_in(text: str) -> dict[str, list[bytes]]:
    """The addresses of each name in a hosts file, packed."""
    known: dict[str, list[bytes]] = {}
    for line in text.splitlines():
        address, *names = line.partition("#")[0].split() or [""]
        for family in (socket.AF_INET, socket.AF_INET6):
            try:
                packed = socket.inet_pton(family, address)
            except OSError:
                continue
            for name in names:
                known.setdefault(name.lower(), []).append(packed)
    return known


class Resolver:
    """Answers on `server` from a thread: with what it knows, or with `code`, and `delay_s` late."""

    def __init__(self, server: int, known: Mapping[str, list[bytes]], code: int, delay_s: float = 0.0) -> None:
        self._server = socket.socket(fileno=server)
        self._known = known
        self._code = code
        self._delay_s = delay_s
        #: How many questions came, and how many of them have been answered.
        self.asked = 0
        self.answered = 0
        self._wake, self._woken = os.pipe()
        self._thread = threading.Thread(target=self._serve, name="colos-resolver", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering.  May be called twice."""
        if self._woken >= 0:
            os.close(self._woken)
            self._woken = -1
            self._thread.join(_JOIN_S)

    def closed(self) -> bool:
        """Whether nobody listens there any more."""
        return not self._thread.is_alive() and self._server.fileno() < 0

    def _serve(self) -> None:
        waiting: list[tuple[float, bytes, Any]] = []
        server = self._server.fileno()
        try:
            while True:
                patience = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
                readable, _, _ = select.select([server, self._wake], [], [], patience)
                if self._wake in readable:
                    return
                if server in readable and len(waiting) < _MOST_WAITING:
                    waiting += self._take()
                while waiting and waiting[0][0] <= time.monotonic():
                    self._send(*waiting.pop(0)[1:])
        finally:
            self._server.close()
            os.close(self._wake)

    def _take(self) -> list[tuple[float, bytes, Any]]:
        try:
            question, sender = self._server.recvfrom(_MOST_BYTES)
        except OSError:
            return []  # an answer that nobody waited for any more
        self.asked += 1
        answer = _answer(question, self._known, self._code) if self._code != SILENT else None
        return [(time.monotonic() + self._delay_s, answer, sender)] if answer is not None else []

    def _send(self, answer: bytes, sender: Any) -> None:
        try:
            self._server.sendto(answer, sender)
            self.answered += 1
        except OSError:
            pass  # as on a wire: whoever asked is gone, or the network is down


def _answer(question: bytes, known: Mapping[str, list[bytes]], code: int) -> bytes | None:
    """The answer to a question; None to what is no question."""
    try:
        identity, _, questions, *_ = _HEADER.unpack_from(question)
        labels, at = [], _HEADER.size
        while (size := question[at]) and questions == 1:
            labels.append(question[at + 1 : at + 1 + size].decode("ascii", "replace"))
            at += 1 + size
        end = at + 5
        (kind,) = struct.unpack_from(">H", question, at + 1)
    except (IndexError, struct.error):
        return None
    addresses = known.get(".".join(labels).lower())
    code = code if addresses is None else 0
    size = {_A: 4, _AAAA: 16}.get(kind, 0)
    records = [
        struct.pack(">HHHIH", 0xC000 | _HEADER.size, kind, 1, 0, size) + address
        for address in addresses or ()
        if len(address) == size
    ]
    header = _HEADER.pack(identity, _RESPONSE | code, 1, len(records), 0, 0)
    return header + question[_HEADER.size : end] + b"".join(records)
