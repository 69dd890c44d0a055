"""What a rule was called with, as a step of a scenario keeps it: bundle values by name, all else by value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from colos.chaos.draws import Draws, RecordedData, exchanged, snapshot
from colos.chaos.scenario import Ref

__all__ = ["BundleValues", "new_names", "recorded", "recorded_arguments", "required_arguments", "with_draws"]

_DATA = type(st.data())


def required_arguments(declared: Any) -> tuple[str, ...]:
    """The arguments of a rule that a step must carry: all but those that draw while it runs."""
    return tuple(name for name, strategy in declared.arguments.items() if not isinstance(strategy, _DATA))


def _is_data(value: object) -> bool:
    return isinstance(value, DataObject)


def with_draws(kwargs: Mapping[str, Any], draws: Draws) -> dict[str, Any]:
    """A rule's arguments, in which ``st.data()`` records what is drawn."""
    return {name: RecordedData(value, draws) if _is_data(value) else value for name, value in kwargs.items()}


class BundleValues(dict[str, Any]):
    """A machine's bundle values by name, which remembers what was looked up: that is what was drawn.

    Seen from a value alone, nobody could tell a bundle's 3 from any other 3.
    """

    def __init__(self) -> None:
        super().__init__()
        self._read: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        self._read[name] = value
        return value

    def take_read(self) -> dict[str, Any]:
        """What was looked up since the last call."""
        read, self._read = self._read, {}
        return read


def recorded_arguments(kwargs: Mapping[str, Any], drawn: Mapping[str, Any]) -> dict[str, object]:
    """A rule's arguments as a scenario keeps them: bundle values by name, everything else by value."""
    return {name: recorded(value, drawn) for name, value in kwargs.items() if not _is_data(value)}


def recorded(value: object, drawn: Mapping[str, Any]) -> object:
    """A value in which those that were drawn from a bundle (`drawn`, by name) are references, however deep.

    A mapped bundle gives new values, which nothing can name: they are kept as they are.
    """
    if not drawn:
        return snapshot(value)
    latest_first = [*drawn.items()][::-1]

    def named(part: object) -> object:
        return next((Ref(name) for name, made in latest_first if made is part), part)

    return exchanged(value, named)


def new_names(counters: Mapping[str, int], targets: Sequence[str], count: int) -> tuple[str, ...]:
    """The names that Hypothesis is about to give the results of a rule."""
    return tuple(f"{target}_{counters[target] + n}" for target in targets for n in range(count))
