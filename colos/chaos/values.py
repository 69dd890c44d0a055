"""Argument values as TOML text, and back again, exactly.

TOML knows strings, 64-bit integers, floats, booleans, dates, times, lists and tables with text
keys.  Everything else becomes a *tag*: an inline table whose one key begins with ``$``, such as
``{ "$none" = true }`` or ``{ "$tuple" = [1, 2] }``.  What has no tag of its own is pickled, with
its repr beside it for the reader.  A pickle runs code when it is loaded, so a scenario is loaded
only from the author's own repository, as a test module is.
"""

from __future__ import annotations

import base64
import difflib
import importlib
import math
import pickle
import re
import struct
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from uuid import UUID

__all__ = ["DecodeError", "EncodeError", "Ref", "closest", "decode", "encode", "quote", "refs", "table"]


@dataclass(frozen=True)
class Ref:
    """An argument that is a bundle value, named symbolically: the result of an earlier op."""

    name: str


class EncodeError(ValueError):
    """A value that no scenario file can carry, because it cannot be pickled."""


class DecodeError(ValueError):
    """A value in a scenario file that is not what its tag promises."""


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

    Raises `EncodeError` for what cannot be pickled.  Not `strict`: never raises, and writes such a
    value as a ``$repr`` that a person can read and `decode` refuses; good for comparing and showing.
    """
    try:
        return _Writer(strict).write(value)
    except _Unnestable:
        return _Writer(strict).opaque(value)


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
            return _ATOMS[kind](value) or self.opaque(value)
        if isinstance(value, Enum):
            return _enum(value) or self.opaque(value)
        return self.opaque(value)

    def _nested(self, value: object) -> str:
        if self._depth == _DEPTH_MAX:
            raise _Unnestable
        self._depth += 1
        try:
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

    def opaque(self, value: object) -> str:
        """The last resort: a pickle with the repr beside it."""
        shown = quote(_short_repr(value))
        try:
            data = pickle.dumps(value, protocol=5)
        except Exception as error:  # a value's own __reduce__ may raise anything
            if self._strict:
                raise EncodeError(
                    f"{_short_repr(value)} cannot be pickled ({type(error).__name__}: {error})"
                ) from error
            return table({"$repr": shown})
        return table({"$pickle": _base64(data), "$repr": shown})


def _short_repr(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # a value's own __repr__ may raise anything
        text = f"<{type(value).__qualname__} without a repr>"
    text = text if len(text) <= _REPR_MAX else text[: _REPR_MAX - 1] + "…"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


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
    return value.isoformat() if value.fold == 0 and _is_plain_zone(value.tzinfo) else None


def _time(value: time) -> str | None:
    return value.isoformat() if value.fold == 0 and value.tzinfo is None else None


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
    """By name where the member can be found by name; a combination of flags cannot."""
    cls = type(value)
    where = f"{cls.__module__}:{cls.__qualname__}.{value.name}"
    try:
        return table({"$enum": quote(where)}) if _find_enum(where) is value else None
    except Exception:  # a class that is local to a function, or in a module that does not import
        return None


_NESTING = frozenset({list, tuple, dict, set, frozenset})
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
}


# --- reading -----------------------------------------------------------------------------


def decode(value: object) -> object:
    """What `encode` wrote, from what `tomllib` made of it.  Raises `DecodeError`."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    tags = [key for key in value if key.startswith("$")]
    if not tags:
        return {key: decode(item) for key, item in value.items()}
    if tags[0] in ("$pickle", "$repr") and set(value) <= {"$pickle", "$repr"}:
        tag, content = "$pickle", value.get("$pickle")
    elif len(value) == 1:
        tag, content = next(iter(value.items()))
    else:
        raise DecodeError(f"a table with the tag {tags[0]!r} takes no other key; write other dicts as $dict")
    if tag not in _TAGS:
        raise DecodeError(f"unknown tag {tag!r}; {closest(tag, _TAGS)}")
    if content is None:
        raise DecodeError("a $repr alone is for people; this value could not be pickled when it was written")
    return _decode_tag(tag, content)


def _decode_tag(tag: str, content: object) -> object:
    takes, build = _TAGS[tag]
    if not isinstance(content, takes):
        raise DecodeError(f"the tag {tag!r} takes a {takes.__name__}, not {content!r}")
    try:
        return build(content)
    except DecodeError:
        raise
    except Exception as error:  # a pickle may raise anything; so may the constructors behind the tags
        raise DecodeError(f"the content of {tag!r} is not valid ({type(error).__name__}: {error})") from error


def _find_enum(where: str) -> Enum:
    module, _, path = where.partition(":")
    found: object = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    if not isinstance(found, Enum):
        raise DecodeError(f"{where} is no member of an Enum")
    return found


def _none(_: bool) -> None:
    return None


def _hex_float(text: str) -> float:
    return float(struct.unpack(">d", bytes.fromhex(text))[0])


def _unbase64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _complex(parts: list[object]) -> complex:
    real, imag = (decode(part) for part in parts)
    if not (isinstance(real, float) and isinstance(imag, float)):
        raise DecodeError(f"the tag '$complex' takes two floats, not {parts!r}")
    return complex(real, imag)


def _items(array: list[object]) -> list[object]:
    return [decode(item) for item in array]


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
    "$decimal": (str, Decimal),
    "$fraction": (str, Fraction),
    "$uuid": (str, UUID),
    "$enum": (str, _find_enum),
    "$tuple": (list, lambda array: tuple(_items(array))),
    "$set": (list, lambda array: set(_items(array))),
    "$frozenset": (list, lambda array: frozenset(_items(array))),
    "$dict": (list, lambda pairs: {decode(key): decode(item) for key, item in pairs}),
    "$ref": (str, Ref),
    "$pickle": (str, lambda text: pickle.loads(_unbase64(text))),
}


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


def closest(word: str, known: Collection[str]) -> str:
    """A cure for a misspelt word: the nearest known one, and the list of them all."""
    listed = ", ".join(sorted(known)) or "none"
    near = difflib.get_close_matches(word, known, n=1)
    return (f"did you mean {near[0]!r}? " if near else "") + f"known: {listed}"
