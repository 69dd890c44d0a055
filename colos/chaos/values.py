"""Argument values as TOML text, and back again, exactly.  docs/scenarios.md lists every form.

TOML knows strings, 64-bit integers, floats, booleans, dates, times, lists and tables with text
keys.  Everything else becomes a *tag*: an inline table with a key that begins with ``$``, such as
``{ "$none" = true }`` or ``{ "$tuple" = [1, 2] }``.  What has no tag cannot be in a file.

Reading a file imports nothing.  An enum or a dataclass is looked up by name among the modules that
are imported already; a dataclass is built by calling it with its fields, so its own ``__init__``
and ``__post_init__`` are the only code that runs.  Where the module is not imported (yet), the
value is an `Unbuilt`, which `built` turns into the value later.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import math
import re
import struct
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag
from fractions import Fraction
from uuid import UUID
from zoneinfo import ZoneInfo

from colos.chaos.value_classes import DecodeError, NotImported, find_class, find_enum
from colos.spelling import closest

__all__ = [
    "DecodeError",
    "EncodeError",
    "Ref",
    "Unbuilt",
    "built",
    "decode",
    "encode",
    "quote",
    "refs",
    "table",
]


@dataclass(frozen=True)
class Ref:
    """An argument that is a bundle value, named symbolically: the result of an earlier op."""

    name: str


@dataclass(frozen=True)
class Unbuilt:
    """A value that waits for a module to be imported, as the TOML `text` that it stands as in the file."""

    text: str
    module: str


class EncodeError(ValueError):
    """A value that no scenario file can carry, because it has no safe form."""


# --- writing -----------------------------------------------------------------------------

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SURROGATE = re.compile("[\ud800-\udfff]")
_SHORT_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r", "\b": "\\b", "\f": "\\f"}
_INT64 = range(-(2**63), 2**63)
_NAN = struct.pack(">d", math.nan)
_DEPTH_MAX = 30  # nesting; tomllib recurses, and from 3.13 on refuses deep nesting by itself
_REPR_MAX = 120  # characters


def quote(text: str) -> str:
    """`text` as a TOML basic string on one line.  Raises `EncodeError` for a lone surrogate, which UTF-8 lacks."""
    if _SURROGATE.search(text):
        raise EncodeError(f"{text!a} holds a lone surrogate, which no TOML file can")
    return '"' + "".join(map(_quote_character, text)) + '"'


def _quote_character(character: str) -> str:
    if character in _SHORT_ESCAPES:
        return _SHORT_ESCAPES[character]
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def table(entries: Mapping[str, str]) -> str:
    """An inline table of keys and values that are TOML already."""
    pairs = (f"{key if _BARE_KEY.fullmatch(key) else quote(key)} = {text}" for key, text in entries.items())
    return "{ " + ", ".join(pairs) + " }" if entries else "{}"


def encode(value: object, *, strict: bool = True) -> str:
    """`value` as TOML on one line, such that `decode` gives an equal value of the same type.

    Raises `EncodeError` for what has no safe form.  Not `strict`: never raises, and writes such a
    value as a ``$repr`` that a person can read and `decode` refuses; good for comparing and showing.
    """
    try:
        return _Writer(strict).write(value)
    except _Unnestable:
        return _Writer(strict).opaque(value, f"it nests deeper than {_DEPTH_MAX} levels, or holds itself")


class _Unnestable(Exception):
    """A value nests too deeply for TOML readers, or contains itself."""


class _Writer:
    def __init__(self, strict: bool) -> None:
        self._strict = strict
        self._depth = 0  # of containers around the value being written

    def write(self, value: object) -> str:
        kind = type(value)
        if kind in _NESTING:
            return self._nested(value)
        if kind in _ATOMS:
            return _ATOMS[kind](value) or self.opaque(value, f"TOML cannot say all of this {kind.__name__}")
        if isinstance(value, Enum):
            return _enum(value) or self.opaque(value, "its class cannot be found by its name")
        if dataclasses.is_dataclass(kind):
            return self._nested(value)
        return self.opaque(value, f"there is none for {_full_name(kind)}")

    def _nested(self, value: object) -> str:
        if self._depth == _DEPTH_MAX:
            raise _Unnestable
        self._depth += 1
        try:
            if type(value) not in _NESTING:
                return self._dataclass(value)
            match value:
                case dict():
                    return self._dict(value)
                case set() | frozenset():
                    # Sorted, because a set's own order differs from run to run.
                    items = self._array(sorted(map(self.write, value)))
                case list() | tuple():
                    items = self._array(map(self.write, value))
                case _:  # pragma: no cover - `_NESTING` names no other type
                    raise TypeError(type(value))
            return items if type(value) is list else table({f"${type(value).__name__}": items})
        finally:
            self._depth -= 1

    def _dict(self, value: dict[object, object]) -> str:
        if all(type(key) is str and not key.startswith("$") and not _SURROGATE.search(key) for key in value):
            return table({str(key): self.write(item) for key, item in value.items()})
        pairs = (self._array((self.write(key), self.write(item))) for key, item in value.items())
        return table({"$dict": self._array(pairs)})

    @staticmethod
    def _array(texts: Iterator[str] | Collection[str]) -> str:
        return "[" + ", ".join(texts) + "]"

    def _dataclass(self, value: object) -> str:
        """By the fields that its class is called with; strictly, only if that gives an equal one."""
        cls = type(value)
        name = f"{cls.__module__}:{cls.__qualname__}"
        try:
            if find_class(name) is not cls:
                return self.opaque(value, f"{name} is another class")
            if isinstance(value, _BUILTINS):
                return self.opaque(value, "its class holds more than its fields")
            fields = {field.name: getattr(value, field.name) for field in _fields(cls) if field.init}
        except Exception as error:  # not only ours: a field may be a property of the author's, which may raise anything
            return self.opaque(value, str(error))
        text = table({"$dataclass": quote(name)} | {key: self.write(item) for key, item in fields.items()})
        problem = _differs(value, text) if self._strict else ""
        return self.opaque(value, problem) if problem else text

    def opaque(self, value: object, why: str) -> str:
        """The last resort: for people only, or refused."""
        if self._strict:
            raise EncodeError(f"{_short_repr(value)} has no safe form in a scenario file: {why}")
        return table({"$repr": quote(_short_repr(value))})


def _differs(value: object, text: str) -> str:
    """Why the dataclass that is built from its text is not the same; empty if it is."""
    try:
        again = decode(tomllib.loads(f"it = {text}")["it"])
    except DecodeError as error:
        return str(error)
    for field in _fields(type(value)):
        if field.init or field.compare:
            if not hasattr(again, field.name):
                return f"built anew, it has no {field.name!r}"
            if encode(getattr(value, field.name), strict=False) != encode(getattr(again, field.name), strict=False):
                return f"its {field.name!r} is another one when it is built anew"
    return ""


def _fields(cls: type) -> tuple[dataclasses.Field[object], ...]:
    return dataclasses.fields(cls)


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _short_repr(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # a value's own __repr__ may raise anything
        text = f"<{type(value).__qualname__} without a repr>"
    data = text.encode("utf-8", "backslashreplace")
    if len(text) > _REPR_MAX:
        # Two values that begin alike are still two to whoever compares.
        return f"{text[:_REPR_MAX]}… ({hashlib.sha256(data).hexdigest()[:8]})".encode(
            "utf-8", "backslashreplace"
        ).decode()
    return data.decode()


def _base64(data: bytes | bytearray) -> str:
    return quote(base64.b64encode(data).decode("ascii"))


def _int(value: int) -> str:
    if value in _INT64:
        return str(value)
    # Hexadecimal beyond what int() agrees to read in decimal.
    return table({"$int": quote(str(value) if value.bit_length() < 10_000 else hex(value))})


def _float(value: float) -> str:
    if value != value:
        bits = struct.pack(">d", value)
        return "nan" if bits == _NAN else table({"$nan": quote(bits.hex())})
    return repr(value)


def _str(value: str) -> str:
    if _SURROGATE.search(value):
        return table({"$text": quote(value.encode("unicode_escape").decode("ascii"))})
    return quote(value)


def _datetime(value: datetime) -> str | None:
    if type(value.tzinfo) is ZoneInfo and value.tzinfo.key:
        local = value.replace(tzinfo=None).isoformat()
        return table({"$datetime": f"[{local}, {value.fold}, {quote(value.tzinfo.key)}]"})
    if not _is_plain_zone(value.tzinfo):
        return None
    return table({"$datetime": f"[{value.isoformat()}, 1]"}) if value.fold else value.isoformat()


def _time(value: time) -> str | None:
    if value.tzinfo is not None:
        return None
    return table({"$time": f"[{value.isoformat()}, 1]"}) if value.fold else value.isoformat()


def _is_plain_zone(zone: object) -> bool:
    """Whether TOML's ``+hh:mm`` says all that there is to say about a time zone."""
    if zone is None:
        return True
    if type(zone) is not timezone:
        return False
    offset = zone.utcoffset(None)
    return offset % timedelta(minutes=1) == timedelta() and zone.tzname(None) == timezone(offset).tzname(None)


def _fraction(value: Fraction) -> str | None:
    try:
        return table({"$fraction": quote(str(value))})
    except ValueError:  # more digits than str() agrees to write
        return None


def _enum(value: Enum) -> str | None:
    """By the names of its members."""
    cls = type(value)
    names = value.name or "0" if isinstance(value, Flag) else value.name
    where = f"{cls.__module__}:{cls.__qualname__}.{names}"
    try:
        return table({"$enum": quote(where)}) if find_enum(where) is value else None
    except (DecodeError, NotImported):  # a class that is local to a function, say
        return None


_NESTING = frozenset({list, tuple, dict, set, frozenset})
_BUILTINS = (int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, BaseException)
_ATOMS: dict[type, Callable[..., str | None]] = {
    bool: lambda value: "true" if value else "false",
    int: _int,
    float: _float,
    str: _str,
    datetime: _datetime,
    date: date.isoformat,
    time: _time,
    type(None): lambda _: table({"$none": "true"}),
    bytes: lambda value: table({"$bytes": _base64(value)}),
    bytearray: lambda value: table({"$bytearray": _base64(value)}),
    complex: lambda value: table({"$complex": f"[{_float(value.real)}, {_float(value.imag)}]"}),
    timedelta: lambda value: table({"$timedelta": f"[{value.days}, {value.seconds}, {value.microseconds}]"}),
    Decimal: lambda value: table({"$decimal": quote(str(value))}),
    Fraction: _fraction,
    UUID: lambda value: table({"$uuid": quote(str(value))}),
    Ref: lambda value: table({"$ref": quote(value.name)}),
    Unbuilt: lambda value: value.text,
}


# --- reading -----------------------------------------------------------------------------


def decode(value: object) -> object:
    """What `encode` wrote, from what `tomllib` made of it; `Unbuilt` if it needs a module that is not imported.

    Raises `DecodeError`.
    """
    try:
        return _decode(value)
    except NotImported as error:
        return Unbuilt(_again(value), error.module)


def built(value: object) -> object:
    """The value itself; of an `Unbuilt`, the value that it stands for.  Raises `DecodeError`."""
    if not isinstance(value, Unbuilt):
        return value
    try:
        return _decode(tomllib.loads(f"it = {value.text}")["it"])
    except NotImported as error:
        cure = "reading a scenario imports nothing: have the test's module import it, or correct the name"
        raise DecodeError(f"{error}; {cure}") from None


def _again(value: object) -> str:
    """What `tomllib` read, as TOML."""
    match value:
        case dict():
            return table({key: _again(item) for key, item in value.items()})
        case list():
            return "[" + ", ".join(map(_again, value)) + "]"
        case _:
            return encode(value)


def _decode(value: object) -> object:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    tags = [key for key in value if key.startswith("$")]
    if not tags:
        return {key: _decode(item) for key, item in value.items()}
    if "$pickle" in tags:
        raise DecodeError(
            f"a value is kept as a pickle, which would run any code that is in it and is never read "
            f"(shown as {value.get('$repr', 'nothing')!r}); write the value in a form of docs/scenarios.md, "
            "or delete the file and let the search find the failure again"
        )
    if tags == ["$dataclass"]:
        return _dataclass(value)
    if len(value) > 1:
        raise DecodeError(f"a table with the tag {tags[0]!r} takes no other key; write other dicts as $dict")
    (tag,) = tags
    if tag == "$repr":
        raise DecodeError("a $repr is for people; this value had no safe form when it was written")
    if tag not in _TAGS:
        raise DecodeError(f"unknown tag {tag!r}; {closest(tag, _ALL_TAGS)}")
    return _decode_tag(tag, value[tag])


def _decode_tag(tag: str, content: object) -> object:
    takes, build = _TAGS[tag]
    if not isinstance(content, takes):
        raise DecodeError(f"the tag {tag!r} takes a {takes.__name__}, not {content!r}")
    try:
        return build(content)
    except (DecodeError, NotImported):
        raise
    except Exception as error:  # the constructors behind the tags raise many things
        raise DecodeError(f"the content of {tag!r} is not valid ({type(error).__name__}: {error})") from error


def _dataclass(table: dict[str, object]) -> object:
    name = table["$dataclass"]
    if not isinstance(name, str):
        raise DecodeError(f"the tag '$dataclass' takes a str, not {name!r}")
    cls = find_class(name)
    if not any("__dataclass_fields__" in vars(base) for base in cls.__mro__):
        raise DecodeError(f"{name} is no dataclass, and nothing else is built from fields")
    allowed = [field.name for field in _fields(cls) if field.init]
    given = {key: _decode(item) for key, item in table.items() if key != "$dataclass"}
    for key, item in given.items():
        if key not in allowed:
            raise DecodeError(f"{name} takes no field {key!r}; {closest(key, allowed)}")
        if next(refs(item), None) is not None:
            raise DecodeError(f"the field {key!r} of {name} holds a $ref, which has no place in a dataclass")
    try:
        return cls(**given)
    except Exception as error:  # the author's __post_init__ may raise anything
        raise DecodeError(f"{name} cannot be built from these fields ({type(error).__name__}: {error})") from error


def _none(_: bool) -> None:
    return None


def _hex_float(text: str) -> float:
    return float(struct.unpack(">d", bytes.fromhex(text))[0])


def _unbase64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _folded(parts: list[object]) -> datetime | time:
    """A point in time with its fold, and the name of its zone if it has one."""
    match parts:
        case [datetime() as at, int(fold), str(zone)]:
            return at.replace(fold=fold, tzinfo=ZoneInfo(zone))
        case [datetime() | time() as at, int(fold)]:
            return at.replace(fold=fold)
    raise DecodeError(f"it takes a time, its fold, and of a date the name of a zone, not {parts!r}")


def _complex(parts: list[object]) -> complex:
    real, imag = (_decode(part) for part in parts)
    if not (isinstance(real, float) and isinstance(imag, float)):
        raise DecodeError(f"the tag '$complex' takes two floats, not {parts!r}")
    return complex(real, imag)


def _items(array: list[object]) -> list[object]:
    return [_decode(item) for item in array]


# tag: what tomllib must have made of its content, and how the value is built from that
_TAGS: dict[str, tuple[type, Callable[..., object]]] = {
    "$none": (bool, _none),
    "$int": (str, lambda text: int(text, 0)),
    "$nan": (str, _hex_float),
    "$text": (str, lambda text: text.encode("ascii").decode("unicode_escape")),
    "$bytes": (str, _unbase64),
    "$bytearray": (str, lambda text: bytearray(_unbase64(text))),
    "$complex": (list, _complex),
    "$timedelta": (list, lambda parts: timedelta(*parts)),
    "$datetime": (list, _folded),
    "$time": (list, _folded),
    "$decimal": (str, Decimal),
    "$fraction": (str, Fraction),
    "$uuid": (str, UUID),
    "$enum": (str, find_enum),
    "$tuple": (list, lambda array: tuple(_items(array))),
    "$set": (list, lambda array: set(_items(array))),
    "$frozenset": (list, lambda array: frozenset(_items(array))),
    "$dict": (list, lambda pairs: {_decode(key): _decode(item) for key, item in pairs}),
    "$ref": (str, Ref),
}
_ALL_TAGS = (*_TAGS, "$dataclass")


# --- looking -----------------------------------------------------------------------------


def refs(value: object) -> Iterator[str]:
    """The names of the `Ref` objects in a value, however deep in lists, tuples, sets and dicts."""
    waiting = [value]
    opened: set[int] = set()  # a container may hold itself
    while waiting:
        item = waiting.pop()
        match item:
            case Ref():
                yield item.name
            case list() | tuple() | set() | frozenset() | Mapping() if id(item) not in opened:
                opened.add(id(item))
                waiting.extend(item)
                if isinstance(item, Mapping):
                    waiting.extend(item.values())
