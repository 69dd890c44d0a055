"""Argument values survive the file exactly: same value, same type, same bits."""

from __future__ import annotations

import enum
import math
import struct
import tomllib
import zoneinfo
from collections import OrderedDict, namedtuple
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePosixPath
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colos.chaos.values import DecodeError, EncodeError, Ref, decode, encode, refs


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Access(enum.Flag):
    READ = enum.auto()
    WRITE = enum.auto()


def there_and_back(value: object) -> object:
    text = encode(value)
    assert "\n" not in text
    return decode(tomllib.loads(f"it = {text}")["it"])


def canonical(value: object) -> object:
    """A stand-in that is equal only for equal values of equal types, nested, NaNs by their bits."""
    kind = type(value)
    if kind is float:
        return kind, struct.pack(">d", value)
    if kind is complex:
        return kind, canonical(value.real), canonical(value.imag)
    if kind in (list, tuple):
        return kind, [canonical(item) for item in value]
    if kind in (set, frozenset):
        return kind, sorted(repr(canonical(item)) for item in value)
    if kind is dict:
        return kind, [(canonical(key), canonical(item)) for key, item in value.items()]
    if kind is Decimal:
        return kind, value.as_tuple()
    if kind in (datetime, time):
        return kind, value.replace(tzinfo=None), value.fold, repr(value.tzinfo)
    return kind, value


any_text = st.text(st.characters(exclude_categories=())) | st.sampled_from(
    [
        '"',
        "\\",
        "'''",
        '"""',
        "\n",
        "\r\n",
        "\t",
        "\0",
        "\x7f",
        "\x85\u2028",
        "$none",
        "# no comment",
        "\ud800",
        "\ud83d\ude00",
    ]
)
hashable_atoms = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(2**63 - 2, 2**63 + 2)
    | st.floats(allow_nan=False)
    | any_text
    | st.binary(max_size=20)
    | st.dates()
    | st.uuids()
    | st.timedeltas()
    | st.fractions()
    | st.sampled_from([*Level, *Access, Access.READ | Access.WRITE, Access(0)])
    | st.builds(Ref, st.text(st.characters(codec="utf-8")))
)
atoms = (
    hashable_atoms
    | st.floats()
    | st.complex_numbers()
    | st.decimals()
    | st.datetimes(allow_imaginary=True, timezones=st.none() | st.timezones())
    | st.datetimes(
        timezones=st.just(UTC) | st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)))
    )
    | st.times()
    | st.builds(bytearray, st.binary(max_size=20))
)
values = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.sets(hashable_atoms, max_size=4)
        | st.frozensets(hashable_atoms, max_size=4)
        | st.dictionaries(any_text, inner, max_size=4)
        | st.dictionaries(hashable_atoms, inner, max_size=4)
    ),
    max_leaves=8,
)


@given(values)
def test_a_value_comes_back_exactly(value):
    assert canonical(there_and_back(value)) == canonical(value)


@given(values)
def test_a_text_is_the_same_each_time(value):
    assert encode(there_and_back(value)) == encode(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, '{ "$none" = true }'),
        (b"\x00\xff", '{ "$bytes" = "AP8=" }'),
        ((), '{ "$tuple" = [] }'),
        ((1, [2]), '{ "$tuple" = [1, [2]] }'),
        ({3, 1, 2}, '{ "$set" = [1, 2, 3] }'),
        ({}, "{}"),
        ([], "[]"),
        ("", '""'),
        ({"a b": 1, "c": {}}, '{ "a b" = 1, c = {} }'),
        ({1: 2}, '{ "$dict" = [[1, 2]] }'),
        ({"$none": True}, '{ "$dict" = [["$none", true]] }'),
        (-0.0, "-0.0"),
        (math.inf, "inf"),
        (math.nan, "nan"),
        (True, "true"),
        (2**63 - 1, "9223372036854775807"),
        (2**63, '{ "$int" = "9223372036854775808" }'),
        ("\ud800x", '{ "$text" = "\\\\ud800x" }'),
        ("naïve \u2028\t\x07", '"naïve \\u2028\\t\\u0007"'),
        (Decimal("1.50"), '{ "$decimal" = "1.50" }'),
        (Fraction(1, 3), '{ "$fraction" = "1/3" }'),
        (UUID(int=1), '{ "$uuid" = "00000000-0000-0000-0000-000000000001" }'),
        (date(2024, 2, 29), "2024-02-29"),
        (time(1, 2, 3, 4), "01:02:03.000004"),
        (datetime(2024, 1, 1, tzinfo=UTC), "2024-01-01T00:00:00+00:00"),
        (timedelta(days=1), '{ "$timedelta" = [1, 0, 0] }'),
        (1 + 2j, '{ "$complex" = [1.0, 2.0] }'),
        (Ref("jobs_0"), '{ "$ref" = "jobs_0" }'),
        (Level.HIGH, f'{{ "$enum" = "{Level.__module__}:Level.HIGH" }}'),
    ],
)
def test_how_a_value_reads(value, text):
    assert encode(value) == text
    assert canonical(there_and_back(value)) == canonical(value)


@pytest.mark.parametrize(
    "value",
    [
        10**5000,
        Fraction(10**5000, 7),
        struct.unpack(">d", bytes.fromhex("fff8000000000123"))[0],
        time(1, tzinfo=UTC),
        datetime(2024, 1, 1, tzinfo=timezone(timedelta(seconds=30))),
        datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=1), "named")),
        datetime(2024, 10, 27, 1, fold=1),
        datetime(2024, 1, 1, tzinfo=zoneinfo.ZoneInfo("UTC")),
        OrderedDict(a=1),
        PurePosixPath("/a"),
        range(3),
        Access.READ | Access.WRITE,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_toml_cannot_say_still_comes_back(value):
    assert canonical(there_and_back(value)) == canonical(value)


def test_a_pickled_value_shows_its_repr():
    assert '"$repr" = "PurePosixPath(\'/a\')"' in encode(PurePosixPath("/a"))


def test_deep_nesting_comes_back():
    value: list[object] = []
    for _ in range(60):
        value = [value]
    assert there_and_back(value) == value


def test_a_list_that_holds_itself_comes_back():
    value: list[object] = [1]
    value += [value, value]
    back = there_and_back(value)
    assert back[0] == 1
    assert back[1] is back
    assert list(refs(value)) == []


def test_an_unpicklable_value_is_refused_or_shown():
    with pytest.raises(EncodeError, match="cannot be pickled"):
        encode([lambda: None])
    shown = encode([lambda: None], strict=False)
    assert '"$repr" = "<function' in shown
    with pytest.raises(DecodeError, match="for people"):
        decode(tomllib.loads(f"it = {shown}")["it"])


def test_a_repr_that_raises_or_goes_on_is_survived():
    class Rude:
        def __repr__(self) -> str:
            raise RuntimeError

    class Chatty:
        def __repr__(self) -> str:
            return "\ud800" * 10_000

    assert "Rude without a repr" in encode(Rude(), strict=False)
    assert len(encode(Chatty(), strict=False)) < 2_000


def test_subclasses_keep_their_type():
    class Local(int):
        pass

    with pytest.raises(EncodeError):
        encode(Local(3))
    assert type(there_and_back(Point(1, 2))) is Point


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ('{ "$nonee" = true }', "did you mean '\\$none'"),
        ('{ "$bytes" = "!" }', "not valid"),
        ('{ "$bytes" = 3 }', "takes a str"),
        ('{ "$none" = true, a = 1 }', "no other key"),
        ('{ "$pickle" = "AAAA" }', "not valid"),
        ('{ "$pickle" = "AAAA", other = 1 }', "no other key"),
        ('{ "$enum" = "math:pi" }', "no member"),
        ('{ "$enum" = "no_such_module:A.B" }', "ModuleNotFoundError"),
        ('{ "$set" = [[1]] }', "unhashable"),
        ('{ "$complex" = [1, 2] }', "two floats"),
        ('[[{ "$int" = "x" }]]', "not valid"),
        ('{ "$dict" = [1] }', "not valid"),
    ],
)
def test_a_bad_tag_is_refused(toml, words):
    with pytest.raises(DecodeError, match=words):
        decode(tomllib.loads(f"it = {toml}")["it"])


def test_refs_are_found_however_deep():
    value = {"a": [Ref("x"), (Ref("y"), {1: {Ref("z")}})], Ref("k"): Ref("x")}
    assert sorted(refs(value)) == ["k", "x", "x", "y", "z"]
    assert list(refs("x")) == []
