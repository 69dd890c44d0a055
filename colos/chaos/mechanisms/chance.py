"""The one source of chance inside a fault: a hash of its seed and of what is decided (DESIGN law 6)."""

from __future__ import annotations

import hashlib

__all__ = ["chance", "digest"]


def digest(text: str) -> bytes:
    """Eight bytes that the text alone decides."""
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest()


def chance(seed: int, *key: object) -> float:
    """A number from 0 to below 1 that these alone decide."""
    return int.from_bytes(digest(repr((seed, *key))), "big") / (1 << 64)
