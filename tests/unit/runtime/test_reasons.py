"""Exit reasons: plain data, and words about them."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from colos.errors import InvalidSpecification
from colos.runtime import reasons
from colos.runtime.reasons import Exit

SIMPLE = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
PLAIN = st.recursive(SIMPLE, lambda inner: st.lists(inner, max_size=3).map(tuple))


class Word(str):
    __slots__ = ()


class WordlessError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@given(PLAIN)
def test_plain_data_is_a_reason_and_ends_a_process(reason: object) -> None:
    assert reasons.checked(reason) is reason
    copy = pickle.loads(pickle.dumps(Exit(reason)))
    assert type(copy) is Exit
    assert copy.reason == reason


@given(PLAIN)
@example("two\nlines")
def test_its_text_is_one_line(reason: object) -> None:
    assert len(reasons.text(reason).splitlines()) <= 1


def test_words_stand_for_themselves_and_the_rest_as_python_writes_it() -> None:
    assert reasons.text("no such  account") == "no such  account"
    assert reasons.text(("shutdown", "idle", 3)) == "('shutdown', 'idle', 3)"
    assert reasons.text(None) == "None"
    assert reasons.text(7) == "7"


@pytest.mark.parametrize("reason", [["list"], {"a": 1}, ("shutdown", ["x"]), Word("x"), ValueError("x"), object])
def test_what_others_could_not_read_is_refused(reason: object) -> None:
    for make in (reasons.checked, Exit):
        with pytest.raises(InvalidSpecification, match="cannot be an exit reason"):
            make(reason)


def test_an_exit_without_a_reason_is_normal() -> None:
    assert Exit().reason == reasons.NORMAL


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("no such account"), "error: ValueError: no such account"),
        (ValueError(), "error: ValueError"),
        (ValueError("two\n  lines"), "error: ValueError: two lines"),
        (KeyError("a"), "error: KeyError: 'a'"),
        (SystemExit(3), "error: SystemExit: 3"),
    ],
)
def test_an_exception_gives_its_kind_and_its_words_in_one_line(error: BaseException, words: str) -> None:
    assert reasons.describe(error) == words
    assert reasons.checked(reasons.describe(error)) == words


def test_an_exception_of_too_many_words_or_none_that_can_be_had_is_described_all_the_same() -> None:
    assert len(reasons.describe(ValueError("x" * 1_000_000))) < 2000
    assert reasons.describe(WordlessError()).startswith("error: WordlessError")
