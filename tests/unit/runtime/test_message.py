"""Frames, and what crosses a process border inside them."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from colos import errors
from colos.runtime import message
from colos.runtime.message import CALL, FRAME_BYTES_MAX, HEADER_BYTES, LARGE_BYTES, Frame, Parser, ProtocolError, encode


class KeywordOnlyError(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")


class WordlessError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Array:
    """What numpy's arrays do: their bytes are a buffer beside the pickle."""

    def __init__(self, data: object) -> None:
        self.data = data

    def __reduce_ex__(self, protocol: object) -> tuple[object, ...]:
        return (Array, (pickle.PickleBuffer(self.data),))


class Strided:
    def __reduce_ex__(self, protocol: object) -> tuple[object, ...]:
        return (bytes, (pickle.PickleBuffer(memoryview(bytearray(100))[::2]),))


def joined(frame: bytes | message.Parts) -> bytes:
    """A frame as it travels."""
    return frame if isinstance(frame, bytes) else b"".join(frame)


def parsed(frame: bytes | message.Parts, step: int = 1 << 30) -> Frame:
    parser, stream = Parser(), joined(frame)
    [only] = [got for at in range(0, len(stream), step) for got in parser.feed(stream[at : at + step])]
    return only


def stream_of(frames: Sequence[Frame]) -> bytes:
    stream = bytearray()
    for frame in frames:
        start = len(stream)
        stream += encode(frame.kind, frame.request, bytes(frame.body), frame.mark)
        stream[start + 3] = frame.buffers
    return bytes(stream)


def read_as_a_connection_does(stream: bytes, cuts: Sequence[int]) -> list[Frame]:
    """What the parser makes of a stream that arrives in such pieces, over and over."""
    parser, frames, at, turn = Parser(), list[Frame](), 0, 0
    least = len(stream) >> 10  # what is cut into more pieces takes time and shows no more
    while at < len(stream):
        size = max(least, cuts[turn % len(cuts)])
        turn += 1
        room = parser.pending()
        if room is None or turn % 3 == 0:  # a large frame may go through either
            frames += parser.feed(stream[at : at + size])
            at += size
        else:
            piece = stream[at : at + min(size, len(room))]
            room[: len(piece)] = piece
            frames += parser.filled(len(piece))
            at += len(piece)
    assert parser.pending() is None
    return frames


KINDS = st.sampled_from([*range(message.CALL, message.ATTACH + 1), *range(message.HELLO, message.NOTICE + 1)])
NUMBERS = st.integers(0, 2**64 - 1)
# Large ones one byte on either side of the border, and beyond what one read takes.
SIZES = st.integers(0, 300) | st.sampled_from([LARGE_BYTES - 1, LARGE_BYTES, LARGE_BYTES + 1, 300_000])
BODIES = st.builds(lambda size, byte: bytes([byte]) * size, SIZES, st.integers(0, 255))
FRAMES = st.lists(st.builds(Frame, KINDS, NUMBERS, NUMBERS, BODIES, st.booleans()), max_size=8)
CUTS = st.lists(st.integers(1, 100) | st.integers(1, 300_000), min_size=1, max_size=10)


def test_a_header_is_as_long_as_it_says() -> None:
    assert HEADER_BYTES == 24
    assert len(encode(CALL, 1, b"body", 2)) == 24 + 4


@given(FRAMES, CUTS)
def test_frames_survive_any_cut(frames: list[Frame], cuts: list[int]) -> None:
    assert read_as_a_connection_does(stream_of(frames), cuts) == frames


@pytest.mark.parametrize("step", [1, 7, 23, 24, 25, 1000])
def test_small_frames_survive_every_step(step: int) -> None:
    frames = [Frame(CALL, number, 2 * number, bytes(number % 40)) for number in range(50)]
    assert read_as_a_connection_does(stream_of(frames), [step]) == frames


def test_a_large_frame_is_read_in_place_and_a_small_one_never() -> None:
    parser = Parser()
    stream = encode(CALL, 1, bytes(LARGE_BYTES))
    assert parser.feed(stream[:30]) == []
    room = parser.pending()
    assert room is not None
    assert len(room) == len(stream) - 30
    assert parser.filled(10) == []
    assert len(parser.pending() or b"") == len(room) - 10
    assert len(parser.feed(stream[40:])) == 1
    assert parser.feed(encode(CALL, 1, bytes(LARGE_BYTES - 1))[:30]) == []
    assert parser.pending() is None


GARBAGE = [
    b"GET / HTTP/1.1\r\n\r\n",
    b"Co\xff" + bytes(21),
    b"Co\x00" + bytes(21),
    b"Co\x01\x02" + bytes(20),
    encode(CALL)[:4] + (FRAME_BYTES_MAX + 1).to_bytes(4, "little") + bytes(16),
]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_is_refused_at_its_header(garbage: bytes) -> None:
    with pytest.raises(ProtocolError, match="not a ColOS frame"):
        Parser().feed(garbage)
    with pytest.raises(ProtocolError):  # nor does it have to be a whole header
        Parser().feed(garbage[:8])


def is_header(data: bytes) -> bool:
    fine = data[:2] == b"Co" and (1 <= data[2] <= 10 or 16 <= data[2] <= 22) and data[3] <= 1
    return fine and int.from_bytes(data[4:8], "little") <= FRAME_BYTES_MAX


@given(FRAMES, CUTS, st.sampled_from(GARBAGE) | st.binary(min_size=8).filter(lambda data: not is_header(data)))
def test_garbage_between_frames_is_refused_however_it_is_cut(
    frames: list[Frame], cuts: list[int], trash: bytes
) -> None:
    with pytest.raises(ProtocolError):
        read_as_a_connection_does(stream_of(frames) + trash, cuts)


@given(st.binary(max_size=200) | st.builds(lambda data: b"Co\x01\x00" + data, st.binary(max_size=200)), CUTS)
def test_whatever_comes_ends_in_frames_or_a_refusal(stream: bytes, cuts: list[int]) -> None:
    parser = Parser()
    try:
        frames = [frame for at in range(0, len(stream), cuts[0]) for frame in parser.feed(stream[at : at + cuts[0]])]
    except ProtocolError:
        return
    assert sum(HEADER_BYTES + len(frame.body) for frame in frames) <= len(stream)


# --- values ------------------------------------------------------------------------------


LARGE = st.sampled_from([LARGE_BYTES - 1, LARGE_BYTES, 400_000]).map(lambda size: b"\xa5" * size)
VALUES = st.none() | st.integers() | st.text(max_size=5) | st.binary(max_size=5) | LARGE
STEPS = st.sampled_from([4096, 100_000, 1 << 30])


@settings(max_examples=50)
@given(st.lists(VALUES, max_size=4).map(tuple), st.dictionaries(st.text(max_size=3), VALUES, max_size=3), STEPS)
def test_calls_arrive_as_they_were_made(args: tuple[object, ...], kwargs: dict[str, object], step: int) -> None:
    frame = parsed(message.encode_request(CALL, 5, "a/b", "add", args, kwargs), step)
    assert (frame.kind, frame.request) == (CALL, 5)
    assert message.decode(frame) == ("add", args, kwargs)


@settings(max_examples=50)
@given(VALUES | st.lists(VALUES, max_size=3), NUMBERS, STEPS)
def test_results_and_messages_arrive_as_they_were_given(value: object, mark: int, step: int) -> None:
    result = parsed(message.encode_result(5, "a/b", "add", value, mark), step)
    assert (result.kind, result.request, result.mark, message.decode(result)) == (message.RESULT, 5, mark, value)
    sent = parsed(message.encode_message("a/b", value), step)
    assert (sent.kind, message.decode(sent)) == (message.SEND, value)
    assert type(message.decode(sent)) is type(value)


def test_large_bytes_travel_beside_the_pickle_without_a_copy() -> None:
    large, small = bytes(LARGE_BYTES), bytes(LARGE_BYTES - 1)
    _, beside, more = message.encode_request(CALL, 1, "a/b", "add", (large, small), {"key": large})
    assert isinstance(beside, memoryview)
    assert beside.obj is large
    assert isinstance(more, memoryview)
    assert more.obj is large
    assert len(message.encode_message("a/b", large)) == len(message.encode_result(1, "a/b", "add", large)) == 2
    assert len(message.encode_message("a/b", small)) == 1


@pytest.mark.parametrize("size", [0, 1, LARGE_BYTES, 400_000])
@pytest.mark.parametrize("step", [4096, 1 << 30])
def test_buffers_arrive_as_writable_as_they_left_however_they_are_cut(size: int, step: int) -> None:
    parts = message.encode_message("a/b", [Array(bytearray(b"w" * size)), Array(b"r" * size)])
    assert len(parts) == 3
    writable, fixed = message.decode(parsed(parts, step))
    assert bytes(writable.data) == b"w" * size
    assert bytes(fixed.data) == b"r" * size
    assert not memoryview(writable.data).readonly
    assert memoryview(fixed.data).readonly


def refused(value: object, error: type[Exception], match: str) -> None:
    makers: list[Callable[[], object]] = [
        lambda: message.encode_request(CALL, 1, "a/b", "add", (value,), {}),
        lambda: message.encode_request(CALL, 1, "a/b", "add", (), {"key": value}),
        lambda: message.encode_result(1, "a/b", "add", value),
        lambda: message.encode_message("a/b", value),
    ]
    for make in makers:
        with pytest.raises(error, match=match):
            make()


def test_what_cannot_be_pickled_or_is_too_large_is_refused_before_sending() -> None:
    with pytest.raises(errors.NotPicklable, match="arguments of 'add'"):
        message.encode_request(CALL, 1, "a/b", "add", (lambda: None,), {})
    with pytest.raises(errors.NotPicklable, match="result of 'add'"):
        message.encode_result(1, "a/b", "add", lambda: None)
    with pytest.raises(errors.NotPicklable, match="message of 'send'"):
        message.encode_message("a/b", lambda: None)
    refused(Strided(), errors.NotPicklable, "contiguous")
    refused(bytes(FRAME_BYTES_MAX), errors.MessageTooLarge, "put it in a file")
    refused([bytes(FRAME_BYTES_MAX)], errors.MessageTooLarge, "put it in a file")


@given(st.binary(max_size=100))
@example((2**32 - 1).to_bytes(4, "little") + bytes(4))
def test_a_lying_table_of_buffers_is_an_error_not_a_hang(body: bytes) -> None:
    with pytest.raises(Exception):  # noqa: B017 - as unpickling may: anything, but soon
        message.decode(Frame(CALL, 1, 0, body + b"\0", buffers=True))


# --- failures ----------------------------------------------------------------------------


def failure(error: BaseException) -> BaseException:
    frame = parsed(message.encode_failure(1, error, "Traceback: somewhere", 7))
    assert (frame.kind, frame.request, frame.mark) == (message.FAILURE, 1, 7)
    return message.decode_failure(frame, "ledger/writer", "add")


def test_an_exception_arrives_as_itself_with_its_traceback_as_a_note() -> None:
    error = failure(KeyError("a"))
    assert type(error) is KeyError
    assert error.args == ("a",)
    assert error.__notes__ == ["--- in actor 'ledger/writer':\nTraceback: somewhere"]


@pytest.mark.parametrize("error", [KeywordOnlyError(code=7), type("LocalError", (Exception,), {})("code 7")])
def test_an_exception_that_cannot_be_rebuilt_arrives_described(error: Exception) -> None:
    described = failure(error)
    assert isinstance(described, errors.RemoteError)
    assert described.text == "code 7"
    assert described.type_name == type(error).__qualname__


def test_an_exception_without_words_or_with_too_many_arrives_all_the_same() -> None:
    assert type(failure(WordlessError())) is WordlessError
    described = failure(ValueError(bytes(FRAME_BYTES_MAX)))
    assert isinstance(described, errors.RemoteError)
    assert described.type_name == "ValueError"


@pytest.mark.parametrize(
    "error",
    [
        errors.NoSuchActor("a", "why"),
        errors.NameTaken("a", "b (#1) has it"),
        errors.NoSuchNode("/run"),
        errors.NoSuchMethod("a", "m", ("x", "y"), "x"),
        errors.ActorExited("a", "normal"),
        errors.ActorExited("a", ("shutdown", 1)),
        errors.ConnectionLost("a", "m", "r"),
        errors.CallTimeout("a", "m", 5.0),
        errors.MailboxFull("a"),
        errors.MessageTooLarge("a", "m", 2, 1),
        errors.NotPicklable("a", "m", "d", "result"),
        errors.RemoteError("a", "m", "T", "text", "trace"),
        errors.StartFailed("a", "r", "stderr"),
        errors.InvalidSpecification("x"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_our_own_exceptions_survive_the_journey(error: errors.ColosError) -> None:
    copy = pickle.loads(pickle.dumps(error, 5))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_last_words_keep_the_end_of_a_long_traceback() -> None:
    frame = parsed(message.encode_last_words(("shutdown", 1), "x" * 100_000 + "the end", "report"))
    reason, trace, report = message.decode(frame)
    assert (frame.kind, reason, report) == (message.EXIT, ("shutdown", 1), "report")
    assert trace.endswith("xthe end")
    assert len(trace) < 100_000
