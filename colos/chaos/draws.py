"""What ``st.data()`` draws inside a rule, recorded while searching and given back while replaying."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["Draws", "RecordedData", "exchanged", "snapshot"]


def snapshot(value: object) -> object:
    """A copy that a rule's later changes do not reach; the value itself where it cannot be copied."""
    if isinstance(value, str | int | float | bytes | bool | None):
        return value
    try:
        return copy.deepcopy(value)
    except Exception:
        return value  # locks, sockets: such a value is no part of a scenario anyway, and saving says so


def exchanged(value: object, other: Callable[[object], object]) -> Any:
    """A copy of a value in which `other` has put another in the place of any that it does not give back, however deep.

    It looks into lists, tuples and dictionaries themselves; of all else it makes a snapshot.
    """
    given = other(value)
    if given is not value:
        return given
    if type(value) is list:
        return [exchanged(item, other) for item in value]
    if type(value) is tuple:
        return tuple(exchanged(item, other) for item in value)
    if type(value) is dict:
        return {key: exchanged(item, other) for key, item in value.items()}
    return snapshot(value)


class Draws:
    """The draws of one step, in order: first those to give back, then what is drawn beyond them.

    `record` is how a draw is kept.
    """

    def __init__(self, replayed: Sequence[object] = (), *, record: Callable[[object], object] = snapshot) -> None:
        self._replayed = list(replayed)
        self._record = record
        self._taken: list[object] = []

    def take(self, data: Any, strategy: Any, label: str | None) -> Any:
        """The next draw.  When there are no recorded ones left, the strategy decides."""
        value = self._replayed.pop(0) if self._replayed else data.draw(strategy, label)
        self._taken.append(self._record(value))
        return value

    def taken(self) -> tuple[object, ...]:
        """What was drawn so far."""
        return tuple(self._taken)


class RecordedData:
    """Stands in for Hypothesis's data object in a rule's arguments."""

    def __init__(self, data: Any, draws: Draws) -> None:
        self._data = data
        self._draws = draws

    def __repr__(self) -> str:
        return "data(...)"

    def draw(self, strategy: Any, label: str | None = None) -> Any:
        """As ``data.draw`` does."""
        return self._draws.take(self._data, strategy, label)
