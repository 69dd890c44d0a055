"""Rewriting a scenario file so that its author's comments, layout and order stay.

The new text is read back before it is given out.  A layout that is too free to be edited in place
(``[[steps]]``, dotted keys) is written anew, below all the comments that it had.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

from colos.chaos.scenario_read import loads
from colos.chaos.scenario_toml import TOKEN
from colos.chaos.scenario_write import dumps, healed_ids, identity, parts, step_text
from colos.chaos.steps import FORMAT, Heal, Inject, Op, Scenario, Step
from colos.errors import InvalidScenario

__all__ = ["update_text"]


def update_text(text: str, scenario: Scenario, path: str = "<string>") -> str:
    """The file's `text`, changed so that it says `scenario`; the same text if it does already.

    Touched are the keys whose values differ, and the steps.  Comments at the head, over, beside and
    after keys stay, and so do those of steps that stay, even with other arguments.  Raises
    `InvalidScenario` if the text is no scenario or the scenario cannot be written.
    """
    plain = text.replace("\r\n", "\n")
    old = loads(plain, path)
    parts(scenario)
    if tomllib.loads(plain)["format"] == FORMAT:
        if _says(old, scenario):
            return text
        edited = _edited(plain, old, scenario)
    else:
        edited = None
    if edited is None or not _reads_as(edited, scenario):
        edited = _anew(plain, scenario)
    return edited.replace("\n", "\r\n") if "\r\n" in text else edited


def _says(one: Scenario, two: Scenario) -> bool:
    """Whether they are equal, whatever ids their faults have."""
    return replace(one, steps=()) == replace(two, steps=()) and identity(one) == identity(two)


def _reads_as(text: str, scenario: Scenario) -> bool:
    try:
        return _says(loads(text), scenario)
    except InvalidScenario:
        return False


def _anew(text: str, scenario: Scenario) -> str:
    comments = [piece for piece in map(str.rstrip, TOKEN.findall(text)) if piece.startswith("#")]
    return "".join(f"{comment}\n" for comment in comments) + dumps(scenario)


# --- keys --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Entry:
    """Where a top-level ``key = value`` stands: offsets into the text; `line_end` is past its line's end."""

    start: int
    value: int
    end: int
    line_end: int


@dataclass(frozen=True)
class _Edit:
    start: int
    end: int
    text: str


def _edited(text: str, old: Scenario, new: Scenario) -> str | None:
    """The text with its entries changed in place; None for a layout that this cannot do."""
    entries = _entries(text)
    if entries is None or "steps" not in entries:
        return None
    edits = list(_head_edits(text, entries, old, new))
    steps = entries["steps"]
    array = _changed_array(text[steps.value : steps.end], old.steps, new)
    if array is None:
        return None
    edits.append(_Edit(steps.value, steps.end, array))
    pieces, at = [], 0
    for edit in sorted(edits, key=lambda edit: edit.start):
        pieces += [text[at : edit.start], edit.text]
        at = edit.end
    return "".join([*pieces, text[at:]])


def _head_edits(text: str, entries: dict[str, _Entry], old: Scenario, new: Scenario) -> Iterator[_Edit]:
    wanted, _ = parts(replace(new, steps=()))
    anchor = entries["format"]
    for key in ("test", "violates", "known", "repro", "tier", "mechanisms", "versions"):
        entry, value = entries.get(key), wanted.get(key)
        if getattr(old, key) == getattr(new, key):
            pass
        elif entry is not None and value is not None:
            yield _Edit(entry.value, entry.end, value)
        elif entry is not None:
            comment = text[entry.end : entry.line_end].strip()
            yield _Edit(entry.start, entry.line_end, f"{comment}\n" if comment else "")
        else:
            begin = "" if text[: anchor.line_end].endswith("\n") else "\n"
            yield _Edit(anchor.line_end, anchor.line_end, f"{begin}{key:<8} = {value}\n")
        anchor = entry or anchor


def _entries(text: str) -> dict[str, _Entry] | None:
    """Every top-level entry by its key; None if one is a header, has a dotted key or an escaped one."""
    found: dict[str, _Entry] = {}
    key, start, value, end, depth = "", 0, -1, 0, 0
    in_value = False
    for match in itertools.chain(TOKEN.finditer(text), [None]):
        piece = match.group() if match else "\n"
        at = match.start() if match else len(text)
        ends_line = piece == "\n" or piece.startswith("#")
        if in_value and depth == 0 and ends_line:
            line_end = text.find("\n", end) + 1 or len(text)
            found[key] = _Entry(start, value, end, line_end)
            key, value, in_value = "", -1, False
        elif in_value:
            depth += (piece in "[{") - (piece in "]}")
            if not piece.isspace() and not piece.startswith("#"):
                value, end = (at if value < 0 else value), at + len(piece)
        elif piece == "=" and key:
            in_value = True
        elif not piece.isspace() and not ends_line:
            if key or "\\" in piece or not (piece[0] in "\"'_-" or piece[0].isalnum()):
                return None
            key, start = piece.strip("\"'"), at
    return found if not key else None


# --- steps -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Element:
    """A step in the file: the lines over it, itself, and the comment behind it."""

    over: list[str]
    body: str
    beside: str


def _changed_array(text: str, old: Sequence[Step], scenario: Scenario) -> str | None:
    """The array of steps, each with the comments of the step that it was; None if it cannot be told apart."""
    keys_old, keys_new = _keys(old), _keys(scenario.steps)
    if keys_old == keys_new:
        return text
    read = _elements(text)
    if read is None or len(read[1]) != len(old):
        return None
    opening, elements, closing, indent = read
    was = _matches(keys_old, keys_new, old, scenario.steps)
    steps = _with_ids_of_the_file(scenario.steps, old, was)
    _, lines = parts(replace(scenario, steps=tuple(steps)))
    healed = healed_ids(steps)
    raw = tomllib.loads(f"steps = {text}")["steps"]
    out = [f"[{'  ' + opening if opening else ''}"]
    for index, (step, line) in enumerate(zip(steps, lines, strict=True)):
        place = was.get(index)
        if place is None:
            out.append(f"{indent}{line},")
            continue
        element = elements[place]
        same = keys_old[place] == keys_new[index]
        if isinstance(step, Inject):
            same = same and (step.id not in healed or "id" in raw[place])
        elif isinstance(step, Heal):
            same = same and step == old[place]
        body = element.body if same else line
        out += [*element.over, f"{indent}{body},{'  ' + element.beside if element.beside else ''}"]
    return "\n".join([*out, *closing, "]"])


def _keys(steps: Sequence[Step]) -> list[str]:
    """What each step says, without ids: a heal says which fault it heals."""
    keys: list[str] = []
    begun: dict[str, str] = {}
    for step in steps:
        if isinstance(step, Heal):
            keys.append(f"heal {begun.get(step.id, '')}")
            continue
        plain = replace(step, id="") if isinstance(step, Inject) else step
        keys.append(step_text(plain, frozenset(), strict=False))
        if isinstance(step, Inject):
            begun[step.id] = f"{keys.count(keys[-1])} {keys[-1]}"
    return keys


def _matches(keys_old: list[str], keys_new: list[str], old: Sequence[Step], new: Sequence[Step]) -> dict[int, int]:
    """Which of the old steps each new one was: an equal one, or else one of the same name in between."""
    was: dict[int, int] = {}
    for what, old_from, old_to, new_from, new_to in SequenceMatcher(None, keys_old, keys_new, False).get_opcodes():
        places = range(old_from, old_to)
        for index in range(new_from, new_to):
            if what == "equal":
                was[index] = old_from + index - new_from
            elif place := [place for place in places if _name(old[place]) == _name(new[index])]:
                was[index] = place[0]
                places = range(place[0] + 1, old_to)
    return was


def _name(step: Step) -> tuple[str, str]:
    match step:
        case Op():
            return "op", step.name
        case Inject():
            return "fault", step.fault
        case Heal():
            return "heal", ""


def _with_ids_of_the_file(new: Sequence[Step], old: Sequence[Step], was: dict[int, int]) -> list[Step]:
    ids: dict[str, str] = {}
    taken = {step.id for step in old if isinstance(step, Inject)}
    fresh = (id_ for id_ in map("f{}".format, itertools.count(1)) if id_ not in taken)
    for index, step in enumerate(new):
        if isinstance(step, Inject):
            place = was.get(index)
            before = old[place] if place is not None else None
            ids[step.id] = before.id if isinstance(before, Inject) else next(fresh)
    return [step if isinstance(step, Op) else replace(step, id=ids[step.id]) for step in new]


def _elements(text: str) -> tuple[str, list[_Element], list[str], str] | None:
    """What stands in the array: the comment at its opening, its elements, the lines at its end, their indentation."""
    spans: list[tuple[int, int]] = []
    depth = start = 0
    for match in TOKEN.finditer(text):
        piece = match.group()
        if piece in ("[", "{"):
            start = match.start() if depth == 1 else start
            depth += 1
        elif piece in ("]", "}"):
            depth -= 1
            if depth == 1:
                spans.append((start, match.end()))
    ends = [1, *(end for _, end in spans)]
    starts = [*(start for start, _ in spans), len(text) - 1]
    gaps = [_gap(text[end:start]) for end, start in zip(ends, starts, strict=True)]
    if any(gap is None for gap in gaps):
        return None
    known = [gap for gap in gaps if gap is not None]
    elements = [
        _Element(known[place][1], text[start:end], known[place + 1][0]) for place, (start, end) in enumerate(spans)
    ]
    indents = [indent for _, _, indent in known[:-1] if indent]
    return known[0][0], elements, known[-1][1], indents[0] if indents else "  "


def _gap(text: str) -> tuple[str, list[str], str] | None:
    """Between two elements: the comment behind the first, the lines over the second, its indentation."""
    first, *rest = text.split("\n")
    lines = [line.rstrip() for line in rest[:-1]]
    if any(line.strip() and not line.strip().startswith("#") for line in lines):
        return None  # a comma at the beginning of a line, say
    indent = rest[-1] if rest else ""
    comment = first[first.index("#") :].rstrip() if "#" in first else ""
    return comment, lines, indent if indent.isspace() else ""
