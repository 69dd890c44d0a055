"""Envelopes and their encoding: what travels over a ColOS socket.

A frame is a 24-byte header and a body.  Bodies are pickled with protocol 5, because that carries
any Python object and is in every Python; only processes of the same user can connect (see
`transport`).  Large buffers stand beside the pickle, never in it.  Nothing here touches a socket.
"""

from __future__ import annotations

import pickle
import struct
from typing import Any, Final, NamedTuple

from colos.errors import MessageTooLarge, NotPicklable, RemoteError

# Between processes.  `mark` of an answer: how many messages its sender had sent to the asker on a connection of its
# own; of a message: how many exit signals its sender had sent, which go through the root.
CALL: Final = 1  # (method, args, kwargs); answered by RESULT or FAILURE with the same request number
CAST: Final = 2  # (method, args, kwargs); never answered
RESULT: Final = 3  # the value
FAILURE: Final = 4  # an exception, see encode_failure
GOODBYE: Final = 5  # the process's exit reason; its request number is the last one it took from this connection
SEND: Final = 6  # any object, for the mailbox
IDENT: Final = 7  # who connects; the request number is its id
WATCH: Final = 8  # from now on, send TRACE frames: (direction, kind, other, what)
TRACE: Final = 9
ATTACH: Final = 10  # from now on this connection is a terminal; the request number says whether it may write
# Between a process and its node's root.
HELLO: Final = 16  # it listens, and waits for GO
GO: Final = 17  # begin; the body is what to run, where the process was not forked with it
READY: Final = 18  # it has begun; of an actor: init() has returned
STOP: Final = 19  # finish the current message, run terminate(), exit; from the process: it does so by itself
EXIT: Final = 20  # last words: (reason, traceback, crash report)
TRAP: Final = 21  # the request number says whether it traps exits now
NOTICE: Final = 22  # a signal: see Notice
BORN: Final = 23  # the request number is its pid; it is nobody yet, and waits for BE
BE: Final = 24  # who it is: (path, id, key of its plan or an empty string)

_KINDS: Final = frozenset(range(CALL, ATTACH + 1)) | frozenset(range(HELLO, BE + 1))
_HEADER: Final = struct.Struct("<2sBBIQQ")
_PREFIX: Final = struct.Struct("<2sBBI")
_MAGIC: Final = b"Co"
_BUFFERS: Final = struct.Struct("<II")
_LENGTH: Final = struct.Struct("<Q")
HEADER_BYTES: Final = _HEADER.size
FRAME_BYTES_MAX: Final = 64 << 20
"""The largest body: a bound on what one message can make the receiver hold."""
LARGE_BYTES: Final = 64 << 10
"""From this size on, bytes are kept out of the pickle, and a body is received in place."""


_TRACE_MAX: Final = 64 << 10


class ProtocolError(Exception):
    """The bytes are not ColOS frames: a stranger, whose connection is closed."""


Body = bytes | bytearray | memoryview
Parts = tuple[bytes | memoryview, ...]
"""A frame to be sent: the header with the pickle, then the buffers, if any."""


class Frame(NamedTuple):
    """One message: its kind, its request number, its mark, and its still pickled body."""

    kind: int
    request: int
    mark: int
    body: Body
    buffers: bool = False


def encode(kind: int, request: int = 0, body: bytes = b"", mark: int = 0) -> bytes:
    """The bytes of one frame; the caller has checked the body's size where it is not its own."""
    return _HEADER.pack(_MAGIC, kind, 0, len(body), request, mark) + body


class Parser:
    """Cuts a byte stream into frames.  Holds at most one unfinished frame.

    A small frame's body is a slice of what was read.  A large one is read in place: while
    `pending()` gives a buffer, bytes belong into it.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._large: bytearray | None = None
        self._filled = 0
        self._header = (0, 0, 0, 0)

    def pending(self) -> memoryview | None:
        """Where the next bytes belong, if a large frame is under way."""
        return None if self._large is None else memoryview(self._large)[self._filled :]

    def filled(self, count: int) -> list[Frame]:
        """`count` bytes were put into `pending()`; the frame, once it is whole."""
        self._filled += count
        body = self._large
        if body is None or self._filled < len(body):
            return []
        self._large = None
        kind, flags, request, mark = self._header
        return [Frame(kind, request, mark, body, bool(flags))]

    def feed(self, data: bytes) -> list[Frame]:
        """Take in bytes; return the frames that they complete.  Raises ProtocolError on garbage."""
        if self._large is not None:
            room = self.pending()
            assert room is not None
            count = min(len(room), len(data))
            room[:count] = data[:count]
            return self.filled(count) + (self.feed(data[count:]) if count < len(data) else [])
        if self._rest:
            data = self._rest + data
        frames: list[Frame] = []
        view = memoryview(data)
        start, size = 0, len(data)
        while size - start >= HEADER_BYTES:
            magic, kind, flags, length, request, mark = _HEADER.unpack_from(data, start)
            if magic != _MAGIC or kind not in _KINDS or flags > 1 or length > FRAME_BYTES_MAX:
                raise ProtocolError(f"not a ColOS frame: {data[start : start + HEADER_BYTES].hex()}")
            begin = start + HEADER_BYTES
            start = begin + length
            if start > size:
                if length >= LARGE_BYTES:
                    self._begin_large((kind, flags, request, mark), length, view[begin:])
                    self._rest = b""
                    return frames
                start = begin - HEADER_BYTES
                break
            frames.append(Frame(kind, request, mark, view[begin:start], flags == 1))
        self._rest = data[start:]
        if size - start >= _PREFIX.size:
            magic, kind, flags, length = _PREFIX.unpack_from(data, start)
            if magic != _MAGIC or kind not in _KINDS or flags > 1 or length > FRAME_BYTES_MAX:
                raise ProtocolError(f"not a ColOS frame: {data[start : start + HEADER_BYTES].hex()}")
        return frames

    def _begin_large(self, header: tuple[int, int, int, int], length: int, first: memoryview) -> None:
        self._header = header
        self._large = bytearray(length)
        self._filled = len(first)
        self._large[: len(first)] = first


# --- bodies ------------------------------------------------------------------------------


class _Large:
    """Stands in a pickle for bytes that travel beside it."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce__(self) -> tuple[object, ...]:
        return (bytes, (pickle.PickleBuffer(self.data),))


def _lifted(value: object) -> object:
    return _Large(value) if type(value) is bytes and len(value) >= LARGE_BYTES else value


def encode_request(
    kind: int, request: int, name: str, method: str, args: tuple[object, ...], kwargs: dict[str, object], mark: int = 0
) -> Parts:
    """A CALL or CAST frame.  Raises NotPicklable or MessageTooLarge, both before anything is sent."""
    for value in args:
        if type(value) is bytes and len(value) >= LARGE_BYTES:
            args = tuple(map(_lifted, args))
            break
    if kwargs:
        kwargs = {key: _lifted(value) for key, value in kwargs.items()}
    return _encode_value(kind, request, (method, args, kwargs), name, method, "arguments", mark)


def encode_result(request: int, name: str, method: str, value: object, mark: int = 0) -> Parts:
    """A RESULT frame.  Raises NotPicklable or MessageTooLarge."""
    return _encode_value(RESULT, request, _lifted(value), name, method, "result", mark)


def encode_message(name: str, value: object, mark: int = 0) -> Parts:
    """A SEND frame.  Raises NotPicklable or MessageTooLarge."""
    return _encode_value(SEND, 0, _lifted(value), name, "send", "message", mark)


def _encode_value(kind: int, request: int, value: object, name: str, method: str, what: str, mark: int = 0) -> Parts:
    buffers: list[pickle.PickleBuffer] = []
    try:
        body = pickle.dumps(value, 5, buffer_callback=buffers.append)
    except Exception as error:  # pickling runs the author's code, which may raise anything
        raise NotPicklable(name, method, f"{type(error).__name__}: {error}", what) from error
    if not buffers:
        length = len(body)
        if length > FRAME_BYTES_MAX:
            raise MessageTooLarge(name, method, length, FRAME_BYTES_MAX)
        return (_HEADER.pack(_MAGIC, kind, 0, length, request, mark) + body,)
    raws = [_raw(buffer, name, method, what) for buffer in buffers]
    table = _BUFFERS.pack(len(raws), len(body)) + b"".join(_LENGTH.pack(len(raw)) for raw in raws)
    length = len(table) + len(body) + sum(map(len, raws))
    if length > FRAME_BYTES_MAX:
        raise MessageTooLarge(name, method, length, FRAME_BYTES_MAX)
    return (_HEADER.pack(_MAGIC, kind, 1, length, request, mark) + table + body, *raws)


def _raw(buffer: pickle.PickleBuffer, name: str, method: str, what: str) -> memoryview:
    try:
        return buffer.raw()
    except BufferError as error:
        raise NotPicklable(name, method, f"a buffer is not contiguous: {error}", what) from error


def decode(frame: Frame) -> Any:
    """The object in a frame.  Unpickling runs the author's code and may raise anything."""
    if not frame.buffers:
        return pickle.loads(frame.body)
    view = memoryview(frame.body)
    if view.readonly:  # what was writable stays so; what was not, pickle makes so again
        view = memoryview(bytearray(view))
    count, length = _BUFFERS.unpack_from(view)
    at = _BUFFERS.size
    sizes = [_LENGTH.unpack_from(view, at + 8 * index)[0] for index in range(count)]
    at += 8 * count
    body = view[at : at + length]
    at += length
    buffers = []
    for size in sizes:
        buffers.append(view[at : at + size])
        at += size
    return pickle.loads(body, buffers=buffers)


def encode_plain(kind: int, value: object, request: int = 0) -> bytes:
    """A frame of the runtime's own: a small value that certainly pickles."""
    return encode(kind, request, pickle.dumps(value, 5))


def encode_last_words(reason: object, trace: str, report: str = "") -> bytes:
    """The EXIT frame."""
    return encode_plain(EXIT, (reason, trace[-_TRACE_MAX:], report))


def encode_failure(request: int, error: BaseException, traceback: str, mark: int = 0) -> bytes:
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
    return encode(FAILURE, request, body, mark)


def decode_failure(frame: Frame, name: str, method: str) -> BaseException:
    """The exception to raise in the caller: the original one, else a RemoteError that describes it."""
    type_name, text, traceback, original = pickle.loads(frame.body)
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


# --- signals -----------------------------------------------------------------------------


class Notice(NamedTuple):
    """What the root tells a process: `what` is "exit", "link" (an exit through a link) or "down".

    Everything that the sender sent before comes first: up to its `mark`-th frame where it lives on,
    all there is where it is dead (mark -1).
    """

    what: str
    path: str
    id: int
    reason: object
    mark: int = -1
    monitor: int = 0
    node: str = ""
    """The sender's, where it is not the node of the root that tells this."""
