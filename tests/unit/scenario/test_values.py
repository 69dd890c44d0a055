"""Argument values survive the file exactly: same value, same type, same bits."""

from __future__ import annotations

import dataclasses
import enum
import math
import signal
import struct
import sys
import tomllib
import zoneinfo
from collections import OrderedDict, namedtuple
from dataclasses import InitVar, dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePosixPath
from types import ModuleType
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colos.chaos.values import DecodeError, EncodeError, Ref, Unbuilt, built, decode, encode, refs


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Access(enum.Flag):
    READ = enum.auto()
    WRITE = enum.auto()


Point = namedtuple("Point", "x y")


@dataclass(frozen=True)
class Line:
    what: object
    count: int


@dataclass(slots=True)
class Order:
    who: str
    note: object = None
    lines: list[Line] = field(default_factory=list)


class Outer:
    @dataclass
    class Inner:
        size: int


def repr_short(value: object) -> str:
    return type(value).__name__ if not isinstance(value, str) else "why"


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
    if dataclasses.is_dataclass(kind):
        return kind, [canonical(getattr(value, field.name)) for field in dataclasses.fields(kind)]
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
    | st.datetimes()
    | st.datetimes(timezones=st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes))))
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
        | st.builds(Line, inner.filter(lambda value: not any(True for _ in refs(value))), st.integers())
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
        (datetime(2024, 10, 27, 1, fold=1), '{ "$datetime" = [2024-10-27T01:00:00, 1] }'),
        (
            datetime(2024, 10, 27, 1, fold=1, tzinfo=zoneinfo.ZoneInfo("Europe/Paris")),
            '{ "$datetime" = [2024-10-27T01:00:00, 1, "Europe/Paris"] }',
        ),
        (time(1, fold=1), '{ "$time" = [01:00:00, 1] }'),
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
        struct.unpack(">d", bytes.fromhex("fff8000000000123"))[0],
        Access.READ | Access.WRITE,
        Access(0),
        signal.SIGTERM,
    ],
    ids=repr_short,
)
def test_what_toml_cannot_say_still_comes_back(value):
    assert canonical(there_and_back(value)) == canonical(value)


def nested(depth: int) -> list[object]:
    value: list[object] = []
    for _ in range(depth):
        value = [value]
    return value


def cyclic() -> list[object]:
    value: list[object] = [1]
    value += [value, value]
    return value


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (Fraction(10**5000, 7), "TOML cannot say all of this Fraction"),
        (time(1, tzinfo=UTC), "TOML cannot say all of this time"),
        (datetime(2024, 1, 1, tzinfo=timezone(timedelta(seconds=30))), "all of this datetime"),
        (datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=1), "named")), "all of this datetime"),
        (OrderedDict(a=1), "there is none for collections.OrderedDict"),
        (PurePosixPath("/a"), r"there is none for pathlib\.PurePosixPath"),
        (range(3), "there is none for builtins.range"),
        ([lambda: None], "there is none for builtins.function"),
        (Point(1, 2), "there is none for .*Point"),
        (nested(60), "nests deeper than 30 levels"),
        (cyclic(), "holds itself"),
    ],
    ids=repr_short,
)
def test_what_has_no_safe_form_is_refused_or_shown(value, why):
    with pytest.raises(EncodeError, match=f"has no safe form in a scenario file: .*{why}"):
        encode(value)
    shown = encode(value, strict=False)
    assert '"$repr" = "' in shown
    with pytest.raises(DecodeError, match="for people"):
        decode(tomllib.loads(f"it = {shown}")["it"])


def test_long_values_that_begin_alike_are_shown_as_different():
    assert encode(range(10**200), strict=False) != encode(range(10**200 + 1), strict=False)


def test_a_list_that_holds_itself_has_no_refs():
    assert list(refs(cyclic())) == []


def test_a_repr_that_raises_or_goes_on_is_survived():
    class Rude:
        def __repr__(self) -> str:
            raise RuntimeError

    class Chatty:
        def __repr__(self) -> str:
            return "\ud800" * 10_000

    assert "Rude without a repr" in encode(Rude(), strict=False)
    assert len(encode(Chatty(), strict=False)) < 2_000


def test_a_subclass_of_a_plain_type_is_refused():
    class Local(int):
        pass

    with pytest.raises(EncodeError, match="Local"):
        encode(Local(3))


# --- dataclasses -------------------------------------------------------------------------

NAME = __name__
without_refs = values.filter(lambda value: not any(True for _ in refs(value)))


@given(
    st.builds(
        Order,
        any_text,
        values.filter(lambda value: not any(True for _ in refs(value))),
        st.lists(st.builds(Line, any_text, st.integers()), max_size=3),
    )
)
def test_a_dataclass_comes_back_with_its_fields(order):
    assert canonical(there_and_back(order)) == canonical(order)


def test_how_a_dataclass_reads():
    text = encode(Order("x", None, [Line("a", 2)]))
    assert text == (
        f'{{ "$dataclass" = "{NAME}:Order", who = "x", note = {{ "$none" = true }}, '
        f'lines = [{{ "$dataclass" = "{NAME}:Line", what = "a", count = 2 }}] }}'
    )
    assert there_and_back(Outer.Inner(1)) == Outer.Inner(1)


@dataclass
class Stateful:
    size: int
    done: int = field(default=0, init=False)
    cache: object = field(default_factory=object, init=False, compare=False)


@dataclass
class Doubling:
    size: int

    def __post_init__(self):
        self.size *= 2


@dataclass
class Positive:
    size: int = 1

    def __post_init__(self):
        if self.size < 1:
            raise ValueError("a size is positive")


@dataclass
class Handmade:
    size: int = 0

    def __init__(self, wanted: int) -> None:
        self.size = wanted


@dataclass
class Told:
    size: int
    hint: InitVar[int]


@dataclass
class Listing(list):
    size: int = 0


def bad_positive():
    value = Positive()
    value.size = 0
    return value


def used():
    value = Stateful(1)
    value.done = 3
    return value


def local_dataclass():
    @dataclass
    class Local:
        size: int

    return Local(1)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (used(), "its 'done' is another one when it is built anew"),
        (Doubling(1), "its 'size' is another one"),
        (bad_positive(), "ValueError: a size is positive"),
        (Handmade(1), "cannot be built from these fields"),
        (Told(1, 2), "hint"),
        (Listing(), "more than its fields"),
        (local_dataclass(), "has no class local_dataclass"),
        (Line(Ref("x"), 1), "a \\$ref, which has no place in a dataclass"),
        (Line(object(), 1), "there is none for builtins.object"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_dataclass_that_its_fields_do_not_tell_is_refused(value, why):
    with pytest.raises(EncodeError, match=why):
        encode(value)
    encode(value, strict=False)


def test_fields_that_do_not_count_are_no_obstacle():
    assert there_and_back(Stateful(3)) == Stateful(3)


@pytest.mark.parametrize("text", ['"$enum" = "colos_later:Thing.ONE"', '"$dataclass" = "colos_later:Thing"'])
def test_nothing_is_imported_and_what_is_not_imported_waits(text, tmp_path, monkeypatch):
    """The module lies on the path, and its import would leave a trace."""
    (tmp_path / "colos_later.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    value = decode(tomllib.loads(f"it = [{{ a = {{ {text} }} }}, 1]")["it"])
    assert value == Unbuilt(f"[{{ a = {{ {text} }} }}, 1]", "colos_later")
    assert there_and_back(value) == value
    with pytest.raises(DecodeError, match="the module colos_later is not imported; reading a scenario imports nothing"):
        built(value)
    assert not (tmp_path / "ran").exists()


def test_what_waits_is_built_once_its_module_is_there(monkeypatch):
    raw = {"$dataclass": "colos_later:Line", "what": {"$none": True}, "count": 2}
    waiting = decode(raw)
    later = ModuleType("colos_later")
    later.Line = Line
    monkeypatch.setitem(sys.modules, "colos_later", later)
    assert built(waiting) == Line(None, 2) == built(decode(raw))
    assert built(3) == 3


def test_looking_a_class_up_runs_no_code_of_its_module(monkeypatch):
    module = ModuleType("colos_traps")

    class Meta(type):
        def __getattr__(cls, name):
            raise AssertionError(f"{name} was asked for")

    module.__getattr__ = Meta.__getattr__
    module.Trap = Meta("Trap", (), {"__module__": "colos_traps", "inner": property(Meta.__getattr__)})
    monkeypatch.setitem(sys.modules, "colos_traps", module)
    for name in ("Gone", "Trap.gone", "Trap.inner", "Trap.inner.deeper"):
        with pytest.raises(DecodeError, match=f"the module colos_traps has no class {name}"):
            decode({"$dataclass": f"colos_traps:{name}"})
    with pytest.raises(DecodeError, match="is no dataclass"):
        decode({"$dataclass": "colos_traps:Trap"})


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ('{ "$nonee" = true }', "did you mean '\\$none'"),
        ('{ "$bytes" = "!" }', "not valid"),
        ('{ "$bytes" = 3 }', "takes a str"),
        ('{ "$none" = true, a = 1 }', "no other key"),
        ('{ "$pickle" = "AAAA", "$repr" = "Thing()" }', "never read .shown as 'Thing.*write the value in a form"),
        ('[{ a = { "$pickle" = "AAAA" } }]', "would run any code"),
        ('{ "$repr" = "Thing()" }', "for people"),
        ('{ "$enum" = "math:pi" }', "the module math has no class pi"),
        ('{ "$enum" = "math.pi" }', "names no class; write it as 'module:Class'"),
        ('{ "$enum" = "subprocess:Popen.ls" }', "is no Enum"),
        ('{ "$enum" = "signal:Signals.SIGTREM" }', "no member 'SIGTREM'; did you mean 'SIGTERM'"),
        ('{ "$enum" = "signal:Signals.SIGTERM|SIGKILL" }', "no member 'SIGTERM.SIGKILL'"),
        ('{ "$enum" = 3 }', "takes a str"),
        ('{ "$dataclass" = "subprocess:Popen", args = "ls" }', "is no dataclass, and nothing else is built"),
        ('{ "$dataclass" = "builtins:eval" }', "has no class eval"),
        ('{ "$dataclass" = "builtins" }', "names no class"),
        ('{ "$dataclass" = 1 }', "takes a str"),
        ('{ "$dataclasss" = "a:b" }', "did you mean '.dataclass'"),
        (f'{{ "$dataclass" = "{__name__}:Line", wat = 1 }}', "takes no field 'wat'; did you mean 'what'"),
        (f'{{ "$dataclass" = "{__name__}:Line", what = 1 }}', "TypeError: .*count"),
        (f'{{ "$dataclass" = "{__name__}:Line", what = {{ "$ref" = "x" }}, count = 1 }}', "has no place"),
        ('{ "$set" = [[1]] }', "unhashable"),
        ('{ "$complex" = [1, 2] }', "two floats"),
        ('{ "$datetime" = [1, 2] }', "takes a time"),
        ('{ "$datetime" = [2024-10-27T01:00:00, 1, "../x"] }', "not valid"),
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
