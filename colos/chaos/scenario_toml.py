"""The TOML side of a scenario file: parsing it, and saying on which line something is wrong.

`tomllib` keeps no positions beyond its own syntax errors, so `Source` finds the line of a key or
of a step by a small scan of the text.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Collection
from dataclasses import dataclass
from typing import TypeVar

from colos.errors import InvalidScenario
from colos.spelling import closest

__all__ = ["TOKEN", "Lines", "Source", "Table", "locate"]

T = TypeVar("T")

_PLAIN_NAMES = {str: "text", int: "a whole number", list: "a list", dict: "a table"}
_STEP_EXAMPLE = 'a step is one line such as { op = "deposit", amount = 1 },'


@dataclass(frozen=True)
class Lines:
    """Where things stand in a file, counting lines from 1."""

    keys: dict[str, int]
    steps: list[int]


# Strings and comments first, so that what is in them is never taken for structure.
TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?"""'
    r"|'''.*?'''"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'"
    r"|\#[^\n]*"
    r"|[A-Za-z0-9_-]+"
    r"|[^\S\n]+"
    r"|.",
    re.DOTALL,
)
_STEP_HEADER = re.compile(r"^[ \t]*\[\[[ \t]*steps[ \t]*\]\]", re.MULTILINE)


def locate(text: str) -> Lines:
    """The line of each top-level key and of each step, written as ``steps = [ {…} ]`` or as ``[[steps]]``."""
    keys: dict[str, int] = {}
    steps = [text.count("\n", 0, header.end()) + 1 for header in _STEP_HEADER.finditer(text)]
    line, depth, key, last = 1, 0, "", ""
    for match in TOKEN.finditer(text):
        piece = match.group()
        if piece == "=" and depth == 0:
            key = last.strip("\"'")
            keys.setdefault(key, line)
        elif piece in ("[", "{"):
            if (key, depth, piece) == ("steps", 1, "{"):
                steps.append(line)
            depth += 1
        elif piece in ("]", "}"):
            depth -= 1
        line += piece.count("\n")
        last = last if piece.isspace() else piece
    return Lines(keys, steps)


@dataclass(frozen=True)
class Source:
    """A scenario file's text and where it is from; makes every complaint about it."""

    path: str
    text: str

    def parse(self) -> Table:
        """The whole file as a table.  Raises `InvalidScenario` for what is not TOML."""
        if not self.text.strip():
            raise InvalidScenario(
                self.path, "line 1", "the file is empty", "a scenario has at least format, test, violates and steps"
            )
        try:
            return Table(self, tomllib.loads(self.text))
        except tomllib.TOMLDecodeError as error:
            found = re.fullmatch(r"(.*?) \(at (.*)\)", str(error), re.DOTALL)
            problem, where = found.groups() if found else (str(error), "the file")
            raise InvalidScenario(self.path, where, f"not TOML: {problem}", _STEP_EXAMPLE) from None
        except (ValueError, RecursionError) as error:
            # Numbers of thousands of digits, and very deep nesting, are TOML that Python declines to read.
            raise InvalidScenario(self.path, "the file", f"not readable as TOML: {error}") from None

    @functools.cached_property
    def _lines(self) -> Lines:
        return locate(self.text)

    def where_key(self, key: str) -> str:
        """``line 3`` for a top-level key, or its name where the line cannot be told."""
        line = self._lines.keys.get(key)
        return f"line {line}" if line else f"key {key!r}"

    def where_step(self, index: int, count: int) -> str:
        """``line 7`` for one of `count` steps, or ``steps[3]`` where the scan did not find just as many."""
        lines = self._lines.steps
        return f"line {lines[index]}" if len(lines) == count else f"steps[{index}]"


class Table:
    """A table of the file, from which known keys are taken one by one; complains with the line.

    `where` says where the whole table stands; a file's own top-level keys have lines of their own.
    """

    def __init__(self, source: Source, entries: dict[str, object], where: str | None = None) -> None:
        self._source = source
        self._where = where
        self.entries = dict(entries)

    def error(self, problem: str, cure: str = "", *, key: str | None = None) -> InvalidScenario:
        """An exception, to be raised, about this table or about one `key` of it."""
        where = self._where or (self._source.where_key(key) if key else "the file")
        return InvalidScenario(self._source.path, where, problem, cure)

    def take(self, key: str, kind: type[T], *, cure: str = "") -> T:
        """Takes out what `key` holds.  Raises `InvalidScenario` if it is missing or no `kind`."""
        if key not in self.entries:
            raise self.error(f"{key!r} is missing", cure)
        value = self.entries.pop(key)
        # Exactly that type: to Python, true is an int.
        if type(value) is not kind:
            raise self.error(f"{key!r} must be {_PLAIN_NAMES[kind]}, not {_shown(value)}", cure, key=key)
        return value

    def take_texts(self, key: str) -> tuple[str, ...]:
        """Takes out a list of texts; empty if `key` is missing."""
        items = self.take(key, list) if key in self.entries else []
        for item in items:
            if type(item) is not str:
                raise self.error(f"{key!r} must be a list of texts, and has {_shown(item)}", key=key)
        return tuple(items)

    def take_table(self, key: str) -> Table:
        """Takes out a table, which complains with the line of this key."""
        where = self._where or self._source.where_key(key)
        return Table(self._source, self.take(key, dict), where)

    def refuse_others(self, allowed: Collection[str]) -> None:
        """Raises `InvalidScenario` for a key that is none of the `allowed`.

        Ask this before taking anything: a misspelt key is a better complaint than a missing one.
        """
        for key in self.entries:
            if key not in allowed:
                raise self.error(f"unknown key {key!r}", closest(key, allowed), key=key)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
