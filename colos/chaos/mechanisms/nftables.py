"""Packet filters in a network namespace, by nf_tables' own netlink protocol; no `nft` program is needed.

A filter is one table with one chain on the way in, so that a packet that is dropped was sent without
an error, as on a wire.  Each rule counts.  Whatever several filters say, the strictest holds.

Sources: linux/netfilter/nf_tables.h, nft(8).
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from colos.chaos.mechanisms import kernel
from colos.chaos.mechanisms.netlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    Message,
    attribute,
    attributes,
    converse,
)

__all__ = ["CURE", "MILLION", "AddFilter", "CountHits", "RemoveFilter", "Rule", "probe"]

#: What makes it so where it is not.
CURE = "a kernel with CONFIG_NF_TABLES, NF_TABLES_INET, NFT_NUMGEN, NFT_HASH and NFT_REJECT_INET (modprobe nf_tables)"
#: A share of packets is given in millionths.
MILLION = 1_000_000

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 10
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NEW_TABLE, _DELETE_TABLE, _NEW_CHAIN, _NEW_RULE, _GET_RULE = 0, 2, 3, 6, 7
_INET = 1  # IPv4 and IPv6
_LOCAL_IN = 1
_CHAIN = "in"
_REGISTER = struct.pack(">I", 1)
_VERDICT_REGISTER = struct.pack(">I", 0)
_DROP = 0
_EQUAL, _LESS = 0, 2
_META_L4PROTO = 16
_TRANSPORT = 2
_SYN, _ACK = 0x02, 0x10
_RULE_EXPRESSIONS = 4
_COUNTER_PACKETS = 2


@dataclass(frozen=True)
class Rule:
    """Which packets, and what becomes of them: they are dropped, or with `reset` answered by a TCP reset.

    Ports mean TCP.  `opening` means the first packet of a TCP connection.  `share` millionths of the
    packets are meant, chosen by a hash over `seed` and the packet's number.
    """

    source: int | None = None
    destination: int | None = None
    opening: bool = False
    reset: bool = False
    share: int = MILLION
    seed: int = 0


@dataclass(frozen=True)
class AddFilter:
    """Put a filter of this name in force, all of it or nothing.  Raises `OSError`."""

    name: str
    rules: tuple[Rule, ...]

    def __call__(self) -> tuple[Any, tuple[int, ...]]:
        """Filter, inside."""
        table = attribute(1, self.name)
        hook = [attribute(1, _number(_LOCAL_IN)), attribute(2, _number(0))]
        chain = [table, attribute(3, _CHAIN), attribute(4, hook), attribute(7, "filter")]
        messages = [_message(_NEW_TABLE, table, NLM_F_CREATE), _message(_NEW_CHAIN, b"".join(chain), NLM_F_CREATE)]
        for rule in self.rules:
            body = table + attribute(2, _CHAIN) + attribute(_RULE_EXPRESSIONS, _expressions(rule))
            messages.append(_message(_NEW_RULE, body, NLM_F_CREATE | 0x800))  # NLM_F_APPEND
        _batch(messages)
        return None, ()


@dataclass(frozen=True)
class RemoveFilter:
    """Take a filter away; one that is not there is fine."""

    name: str

    def __call__(self) -> tuple[Any, tuple[int, ...]]:
        """Stop filtering, inside."""
        try:
            _batch([_message(_DELETE_TABLE, attribute(1, self.name))])
        except FileNotFoundError:
            pass  # it was taken away before
        return None, ()


@dataclass(frozen=True)
class CountHits:
    """How many packets each rule of a filter has met; None where there is no such filter."""

    name: str

    def __call__(self) -> tuple[Any, tuple[int, ...]]:
        """Count, inside."""
        body = struct.pack(">BBH", _INET, 0, 0) + attribute(1, self.name) + attribute(2, _CHAIN)
        request = Message(_SUBSYSTEM << 8 | _GET_RULE, NLM_F_REQUEST | NLM_F_DUMP, body)
        rules = [_hits(answer[4:]) for answer in converse(_NETLINK_NETFILTER, [request])]
        return rules or None, ()


def probe() -> str | None:
    """Filter in a throwaway network namespace of this (single-threaded) process's own; why it cannot be, else None."""
    rules = (Rule(source=1, destination=2), Rule(destination=3, opening=True, reset=True), Rule(share=1, seed=1))
    try:
        kernel.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWNET)
        AddFilter("probe", rules)()
        counted, _ = CountHits("probe")()
        RemoveFilter("probe")()
    except OSError as error:
        if error.errno in (errno.EPROTONOSUPPORT, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOENT):
            return f"this kernel has no nf_tables, or not all of it ({error.strerror})"
        return f"nf_tables cannot be used in a network namespace: {error.strerror}"
    return None if counted == [0, 0, 0] else f"nf_tables counts {counted!r} where nothing was sent"


# --- the protocol ---------------------------------------------------------------------------


def _number(value: int) -> bytes:
    return struct.pack(">I", value)


def _message(kind: int, body: bytes, flags: int = 0) -> Message:
    header = struct.pack(">BBH", _INET, 0, 0)
    return Message(_SUBSYSTEM << 8 | kind, NLM_F_REQUEST | NLM_F_ACK | flags, header + body)


def _batch(messages: Sequence[Message]) -> None:
    edge = struct.pack(">BBH", socket.AF_UNSPEC, 0, _SUBSYSTEM)
    begin, end = (Message(kind, NLM_F_REQUEST, edge) for kind in (_BATCH_BEGIN, _BATCH_END))
    converse(_NETLINK_NETFILTER, [begin, *messages, end])


def _hits(rule: bytes) -> int:
    for kind, value in attributes(rule):
        if kind == _RULE_EXPRESSIONS:
            for _, expression in attributes(value):
                parts = dict(attributes(expression))
                if parts[1] == b"counter\0":
                    return int(struct.unpack(">Q", dict(attributes(parts[2]))[_COUNTER_PACKETS])[0])
    return 0


def _expression(name: str, *parts: bytes) -> bytes:
    return attribute(1, [attribute(1, name), attribute(2, parts)])


def _compare(operation: int, value: bytes) -> bytes:
    return _expression(
        "cmp", attribute(1, _REGISTER), attribute(2, _number(operation)), attribute(3, [attribute(1, value)])
    )


def _field(offset: int, size: int) -> bytes:
    """Load `size` bytes of the transport header."""
    parts = (_TRANSPORT, offset, size)
    return _expression(
        "payload", attribute(1, _REGISTER), *(attribute(kind, _number(part)) for kind, part in enumerate(parts, 2))
    )


def _expressions(rule: Rule) -> list[bytes]:
    """The rule as the kernel's own small programs have it: load, compare, count, decide."""
    found: list[bytes] = []
    if rule.opening or rule.reset or rule.source is not None or rule.destination is not None:
        found += [
            _expression("meta", attribute(1, _REGISTER), attribute(2, _number(_META_L4PROTO))),
            _compare(_EQUAL, bytes([socket.IPPROTO_TCP])),
        ]
    for offset, port in ((0, rule.source), (2, rule.destination)):
        if port is not None:
            found += [_field(offset, 2), _compare(_EQUAL, struct.pack(">H", port))]
    if rule.opening:
        found += [_field(13, 1), _masked(bytes([_SYN | _ACK])), _compare(_EQUAL, bytes([_SYN]))]
    if rule.share < MILLION:
        found += [*_drawn(rule.seed), _compare(_LESS, _number(rule.share))]
    return [*found, _expression("counter"), _reset() if rule.reset else _drop()]


def _masked(mask: bytes) -> bytes:
    return _expression(
        "bitwise",
        attribute(1, _REGISTER),
        attribute(2, _REGISTER),
        attribute(3, _number(len(mask))),
        attribute(4, [attribute(1, mask)]),
        attribute(5, [attribute(1, bytes(len(mask)))]),
    )


def _drawn(seed: int) -> list[bytes]:
    """A number below a million: Jenkins's hash over the seed and how many packets came before."""
    register = [attribute(1, _REGISTER), attribute(2, _REGISTER)]
    return [
        _expression("numgen", attribute(1, _REGISTER), attribute(2, _number(0xFFFFFFFF)), attribute(3, _number(0))),
        _expression(
            "hash",
            *register,
            attribute(3, _number(4)),
            attribute(4, _number(MILLION)),
            attribute(5, _number(seed)),
            attribute(7, _number(0)),
        ),
        _expression(
            "byteorder", *register, attribute(3, _number(1)), attribute(4, _number(4)), attribute(5, _number(4))
        ),
    ]


def _drop() -> bytes:
    verdict = attribute(2, [attribute(1, _number(_DROP))])
    return _expression("immediate", attribute(1, _VERDICT_REGISTER), attribute(2, [verdict]))


def _reset() -> bytes:
    return _expression("reject", attribute(1, _number(1)), attribute(2, b"\0"))
