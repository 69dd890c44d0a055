"""Envelopes and their encoding: what travels over a ColOS socket.

A frame is a 16-byte header (magic, kind, body length, request number) and a body.  Bodies are
pickled with protocol 5, because that carries any Python object and is in every Python; only
processes of the same user can connect (see `transport`).  Nothing here touches a socket.
"""

from __future__ import annotations

import pickle
import struct
from typing import Any, Final, NamedTuple

from colos.errors import MessageTooLarge, NotPicklable, RemoteError

# Between actors and their clients.
CALL: Final = 1  # (method, args, kwargs); answered by RESULT or FAILURE with the same request number
CAST: Final = 2  # (method, args, kwargs); never answered
RESULT: Final = 3  # the pickled value
FAILURE: Final = 4  # an exception, see encode_failure
GOODBYE: Final = 5  # the actor's exit reason; its request number is the last one it took from this connection
# Between an actor and its supervisor.
HELLO: Final = 16  # the actor's pid; it listens, and waits for GO
GO: Final = 17  # construct the actor and run its init()
READY: Final = 18  # init() has returned
STOP: Final = 19  # finish the current message, run terminate(), exit; from the actor: it does so by itself
EXIT: Final = 20  # last words: (reason, traceback)

_KINDS: Final = frozenset((CALL, CAST, RESULT, FAILURE, GOODBYE, HELLO, GO, READY, STOP, EXIT))
_HEADER: Final = struct.Struct("<2sBxIQ")
_MAGIC: Final = b"Co"
HEADER_BYTES: Final = _HEADER.size
FRAME_BYTES_MAX: Final = 64 << 20
"""The largest body: a bound on what one message can make the receiver hold."""


class ProtocolError(Exception):
    """The bytes are not ColOS frames: a stranger, whose connection is closed."""


class Frame(NamedTuple):
    """One message: its kind, its request number and its still pickled body."""

    kind: int
    request: int
    body: bytes


def encode(kind: int, request: int = 0, body: bytes = b"") -> bytes:
    """The bytes of one frame; the caller has checked the body's size where it is not its own."""
    return _HEADER.pack(_MAGIC, kind, len(body), request) + body


class Parser:
    """Cuts a byte stream into frames.  Holds at most one unfinished frame and what came with it."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Take in bytes; return the frames that they complete.  Raises ProtocolError on garbage."""
        held = self._held
        held += data
        frames: list[Frame] = []
        start = 0
        while len(held) - start >= HEADER_BYTES:
            magic, kind, length, request = _HEADER.unpack_from(held, start)
            if magic != _MAGIC or kind not in _KINDS or length > FRAME_BYTES_MAX:
                raise ProtocolError(f"not a ColOS frame: {bytes(held[start : start + HEADER_BYTES]).hex()}")
            end = start + HEADER_BYTES + length
            if len(held) < end:
                break
            frames.append(Frame(kind, request, bytes(held[start + HEADER_BYTES : end])))
            start = end
        if start:
            del held[:start]
        return frames


def encode_request(
    kind: int, request: int, name: str, method: str, args: tuple[object, ...], kwargs: dict[str, object]
) -> bytes:
    """A CALL or CAST frame.  Raises NotPicklable or MessageTooLarge, both before anything is sent."""
    return _bounded(kind, request, _pickle((method, args, kwargs), name, method, "arguments"), name, method)


def encode_result(request: int, name: str, method: str, value: object) -> bytes:
    """A RESULT frame.  Raises NotPicklable or MessageTooLarge."""
    return _bounded(RESULT, request, _pickle(value, name, method, "result"), name, method)


def _pickle(value: object, name: str, method: str, what: str) -> bytes:
    try:
        return pickle.dumps(value, 5)
    except Exception as error:  # pickling runs the author's code, which may raise anything
        raise NotPicklable(name, method, f"{type(error).__name__}: {error}", what) from error


def _bounded(kind: int, request: int, body: bytes, name: str, method: str) -> bytes:
    if len(body) > FRAME_BYTES_MAX:
        raise MessageTooLarge(name, method, len(body), FRAME_BYTES_MAX)
    return encode(kind, request, body)


def decode(body: bytes) -> Any:
    """The object in a body.  Unpickling runs the author's code and may raise anything."""
    return pickle.loads(body)


def encode_failure(request: int, error: BaseException, traceback: str) -> bytes:
    """A FAILURE frame: type, text and traceback always; the exception itself where it pickles."""
    try:
        text = str(error)
    except Exception as broken:  # an exception's __str__ is the author's code
        text = f"<its text cannot be had: {type(broken).__name__}>"
    try:
        original: bytes | None = pickle.dumps(error, 5)
    except Exception:  # the reason does not matter: what follows is the complete fallback
        original = None
    fields = (type(error).__qualname__, text, traceback)
    body = pickle.dumps((*fields, original), 5)
    if len(body) > FRAME_BYTES_MAX:
        body = pickle.dumps((fields[0], text[:4096], traceback[-65536:], None), 5)
    return encode(FAILURE, request, body)


def decode_failure(body: bytes, name: str, method: str) -> BaseException:
    """The exception to raise in the caller: the original one, else a RemoteError that describes it."""
    type_name, text, traceback, original = pickle.loads(body)
    error: object = None
    if original is not None:
        try:
            error = pickle.loads(original)
        except Exception:  # pickles but does not unpickle, or its class is unknown here
            error = None
    if not isinstance(error, BaseException):
        error = RemoteError(name, method, type_name, text, traceback)
    if traceback:
        error.add_note(f"--- in actor {name!r}:\n{traceback.rstrip()}")
    return error
