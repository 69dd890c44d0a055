"""Frames, and what crosses a process border inside them."""

from __future__ import annotations

import pickle

import pytest

from colos import errors
from colos.runtime import message
from colos.runtime.message import CALL, FRAME_BYTES_MAX, Frame, Parser, ProtocolError, encode


class KeywordOnlyError(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")


@pytest.mark.parametrize("step", [1, 7, 16, 17, 1000])
def test_frames_survive_any_cut(step: int) -> None:
    frames = [Frame(CALL, number, bytes(number % 40)) for number in range(50)]
    stream = b"".join(encode(*frame) for frame in frames)
    parser = Parser()
    got = [frame for start in range(0, len(stream), step) for frame in parser.feed(stream[start : start + step])]
    assert got == frames


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"Co\xff" + bytes(13),
        encode(CALL)[:4] + (FRAME_BYTES_MAX + 1).to_bytes(4, "little") + bytes(8),
    ],
)
def test_garbage_is_refused_at_its_header(garbage: bytes) -> None:
    with pytest.raises(ProtocolError):
        Parser().feed(garbage)


def failure(error: BaseException) -> BaseException:
    frame = message.encode_failure(1, error, "Traceback: somewhere")
    [parsed] = Parser().feed(frame)
    return message.decode_failure(parsed.body, "ledger/writer", "add")


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


def test_what_cannot_be_pickled_or_is_too_large_is_refused_before_sending() -> None:
    with pytest.raises(errors.NotPicklable, match="arguments of 'add'"):
        message.encode_request(CALL, 1, "a/b", "add", (lambda: None,), {})
    with pytest.raises(errors.NotPicklable, match="result of 'add'"):
        message.encode_result(1, "a/b", "add", lambda: None)
    with pytest.raises(errors.MessageTooLarge, match="put it in a file"):
        message.encode_request(CALL, 1, "a/b", "add", (bytes(FRAME_BYTES_MAX),), {})


@pytest.mark.parametrize(
    "error",
    [
        errors.NoSuchActor("a", "why"),
        errors.NoSuchNode("/run"),
        errors.NoSuchMethod("a", "m", ("x", "y"), "x"),
        errors.ActorExited("a", "normal"),
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
