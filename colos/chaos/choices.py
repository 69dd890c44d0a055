"""Smaller values of a Hypothesis strategy, by the strategy's own order.

A value is what a sequence of choices gave, and a choice has an order, from the simplest on.  So the choices
behind a recorded value are sought, and one of them at a time is taken a part of the way to the simplest.
Whatever is yielded, the strategy has just drawn; and its choices are fewer or lower than those of the value,
so whoever goes on from one value to the next comes to an end.

Hypothesis has no public way to draw with given choices, or to find those behind a value.  A strategy that
does not let itself be drawn from alone (a bundle, `st.runner()`) gives no values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeAlias

from hypothesis.control import BuildContext
from hypothesis.errors import StopTest
from hypothesis.internal.conjecture.choice import (
    ChoiceTemplate,
    choice_equal,
    choice_from_index,
    choice_permitted,
    choice_to_index,
)
from hypothesis.internal.conjecture.data import ConjectureData

from colos.chaos.values import EncodeError, encode

__all__ = ["simpler_values", "simplest_value", "wilder_values"]

_MOST = 6
_PARTS = (0.0, 0.5, 0.75)  # of the way from the simplest choice to the recorded one
_WILDER_MOST = 3
_CHOICES_MOST = 64  # what took more choices is only tried cut short, or at its simplest
_SOUGHT_MOST = 256  # among so many values of a single choice is the recorded one sought

_Key: TypeAlias = tuple[int, tuple[int, ...]]
"""How simple a value is: by the number of its choices, then by how far each is from its simplest."""


def simpler_values(strategy: Any, value: object) -> Iterator[object]:
    """At most six values that the strategy may draw and holds for simpler than `value`, the simplest first.

    None for a value without a form in a scenario: nobody could tell it from another of its kind.
    """
    try:
        encode(value)
    except EncodeError:
        return
    nodes = _choices_behind(strategy, value)
    given = {_shown(value)}
    candidates = _candidates(strategy, value, nodes)
    yield from islice(_simpler(strategy, candidates, None if nodes is None else _key(nodes), given), _MOST)


def wilder_values(strategy: Any, value: object) -> Iterator[object]:
    """Values of which one choice is a few places farther from the simplest, the farthest first."""
    nodes = _choices_behind(strategy, value) or ()
    choices = [node.value for node in nodes]
    for at, node in enumerate(nodes):
        index = choice_to_index(node.value, node.constraints)
        for higher in range(index + _WILDER_MOST, index, -1):
            choice = _choice(higher, node)
            drawn = None if choice is None else _draw(strategy, [*choices[:at], choice, *choices[at + 1 :]])
            if drawn is not None:
                yield drawn[0]


def _choice(index: int, node: Any) -> Any:
    """The choice at a place of the order; None beyond its end."""
    try:
        choice = choice_from_index(index, node.type, node.constraints)
    except Exception:  # ChoiceTooLarge, or an assertion, by the kind of choice
        return None
    return choice if choice_permitted(choice, node.constraints) else None


def simplest_value(strategy: Any) -> Any:
    """What the strategy draws if every choice is the simplest; None if it cannot be drawn from alone."""
    drawn = _draw(strategy, [])
    return None if drawn is None else drawn[0]


def _simpler(strategy: Any, candidates: Iterator[object], limit: _Key | None, given: set[str]) -> Iterator[object]:
    """Those that are simpler, each once."""
    for candidate in candidates:
        shown = _shown(candidate)
        if shown in given:
            continue
        given.add(shown)
        if limit is not None:
            nodes = _choices_behind(strategy, candidate)
            if nodes is None or _key(nodes) >= limit:
                continue
        yield candidate


def _candidates(strategy: Any, value: object, nodes: Sequence[Any] | None) -> Iterator[object]:
    simplest = _draw(strategy, [])
    if simplest is not None:
        yield simplest[0]
    if nodes is None:
        return  # nobody knows how simple it is; only the simplest is surely no less
    if isinstance(value, str | bytes | list) and len(value) > 1:
        yield from (value[: len(value) // 2], value[len(value) // 2 :], value[:-1])
    if len(nodes) > _CHOICES_MOST:
        return
    choices = [node.value for node in nodes]
    for part in _PARTS:
        for at, node in enumerate(nodes):
            lower = _lowered(node, part)
            drawn = _draw(strategy, [*choices[:at], lower, *choices[at + 1 :]]) if lower is not None else None
            if drawn is not None:
                yield drawn[0]


def _lowered(node: Any, part: float) -> Any:
    """A choice's value at such a part of its distance from the simplest; None where there is no such value."""
    index = choice_to_index(node.value, node.constraints)
    if not index or (node.type in ("string", "bytes") and part):
        return None  # half-way between texts by their order stands gibberish
    if node.type == "float" and part:
        # Whole numbers are the simpler ones; half-way by the order there may be any other.
        whole = float(int(node.value * part)) if math.isfinite(node.value) else 0.0
        return whole if choice_permitted(whole, node.constraints) else None
    return choice_from_index(int(index * part), node.type, node.constraints)


def _shown(value: object) -> str:
    """Equal for values that are the same to a scenario, in whatever order a dictionary was drawn."""
    if type(value) is dict:
        value = dict(sorted(value.items(), key=repr))
    return encode(value, strict=False)


def _key(nodes: Sequence[Any]) -> _Key:
    return len(nodes), tuple(choice_to_index(node.value, node.constraints) for node in nodes)


def _choices_behind(strategy: Any, value: object) -> Sequence[Any] | None:
    """The choices with which the strategy draws that very value; None if they are not found."""
    wanted = _shown(value)

    def gives(choices: Sequence[Any]) -> Sequence[Any] | None:
        drawn = _draw(strategy, choices)
        return drawn[1] if drawn is not None and _shown(drawn[0]) == wanted else None

    found: Sequence[Any] | None = None
    try:
        found = gives(strategy._invert(value))
    except Exception:  # it inverts no such value, or (an older Hypothesis) none at all
        pass
    return found or _sought(strategy, gives)


def _sought(strategy: Any, gives: Callable[[Sequence[Any]], Sequence[Any] | None]) -> Sequence[Any] | None:
    """The same for a value of one choice, such as one of a mapped number: by trying, from the simplest on."""
    simplest = _draw(strategy, [])
    if simplest is None or len(simplest[1]) != 1:
        return None
    node = simplest[1][0]
    for index in range(_SOUGHT_MOST):
        choice = _choice(index, node)
        if choice is None or (index and choice_equal(choice, node.value)):
            return None
        if (found := gives([choice])) is not None:
            return found
    return None


def _draw(strategy: Any, choices: Sequence[Any]) -> tuple[Any, Sequence[Any]] | None:
    """What the strategy draws with these choices, and the simplest ones after them; and all its choices.

    None if it draws nothing: an author's strategy may raise anything, and one more than it was asked for
    is no reason to disturb a search; the recorded value stays.
    """
    data = ConjectureData.for_choices([*choices, ChoiceTemplate("simplest", count=None)])
    try:
        with BuildContext(data, wrapped_test=_draw):
            return data.draw(strategy), data.nodes
    except (StopTest, Exception):
        return None
