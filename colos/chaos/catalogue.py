"""`docs/faults.md`, written from the registry: ``python -m colos.chaos.catalogue > docs/faults.md``.

The text is the same on every machine: it says what a kind declares, not what works here (that is
`colos doctor`).
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, cast

from colos.chaos.fault import FAMILIES, Fault
from colos.chaos.faults import fault_kinds
from colos.chaos.sandbox.spec import BARE, NAMESPACES, TIERS
from colos.chaos.scenario import Inject, Scenario, dumps
from colos.chaos.values import encode

if TYPE_CHECKING:
    from colos.chaos.sandbox.session import Session

__all__ = ["Ideal", "document", "example", "shipped"]

_HEAD = """\
<!-- Written by `python -m colos.chaos.catalogue > docs/faults.md`: change the kinds, not this file. -->

# The faults

Every fault is the kernel's own doing, acts in the sandbox only, proves that it fired, and heals. `colos doctor` tells
which of them this machine offers, and what would make the others possible. A sandbox is of a *tier*: `namespaces`, or
`bare` where the OS offers no more; a kind that a tier lacks is left out there, and never imitated.

In a machine, a kind is declared by its class: `faults = [DiskFull(), Kill("ledger/*")]`. In a scenario file a step
names it, as below; an argument that is left out has its default.
"""
_TARGET = "ledger/*"
_TEST = "tests/test_ledger.py::TestLedger"
_VIOLATES = "always:an_example"


class Ideal:
    """A session of a machine where whatever a kind asks for works: what it then says is what it declares."""

    refusal: str | None = None

    def __init__(self, tier: str) -> None:
        self.tier = tier

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Every probe finds what it looks for: None is no reason why not."""
        if not name.startswith("probe"):
            raise AttributeError(f"what a kind declares cannot depend on a session's {name!r}")
        return _works


def _works(*asked: object) -> None:
    del asked


def shipped() -> dict[str, type[Fault]]:
    """The kinds of this package, by name, without an author's own."""
    return {name: kind for name, kind in fault_kinds().items() if kind.__module__.startswith("colos.chaos.faults.")}


def document(kinds: Mapping[str, type[Fault]]) -> str:
    """The whole of `docs/faults.md`."""
    families = [(family, _of(family, kinds.values())) for family in FAMILIES]
    chapters = [_HEAD, "\n".join(_overview(families)) + "\n"]
    for family, members in families:
        if members:
            chapters.append(f"## {_title(family)}\n")
            chapters += ["\n".join(_entry(kind)) + "\n" for kind in members]
    return "\n".join(chapters)


def example(kind: type[Fault]) -> str:
    """A step of this kind as it stands in a scenario file, with every argument written out."""
    step = Inject(kind.kind, "f1", _TARGET if kind.targeted else None, dict(kind.parameters))
    text = dumps(Scenario(_TEST, _VIOLATES, (step,)))
    return next(line for line in text.splitlines() if line.startswith("  {")).strip()


# --- its parts -----------------------------------------------------------------------------


def _of(family: str, kinds: Iterable[type[Fault]]) -> list[type[Fault]]:
    return sorted((kind for kind in kinds if kind.family == family), key=lambda kind: kind.kind)


def _title(family: str) -> str:
    return "CPU" if family == "cpu" else family.capitalize()


def _overview(families: Iterable[tuple[str, list[type[Fault]]]]) -> Iterator[str]:
    yield f"| family | fault | what really happens | {' | '.join(f'`{tier}`' for tier in TIERS)} |"
    yield "| --- | --- | --- | --- | --- |"
    for family, members in families:
        for kind in members:
            cells = (
                family,
                f"[`{kind.kind}`](#{kind.kind})",
                kind.summary,
                *(_mechanism(kind, tier) for tier in TIERS),
            )
            yield _row(*cells)


def _entry(kind: type[Fault]) -> Iterator[str]:
    yield f"### {kind.kind}"
    yield ""
    yield inspect.cleandoc(kind.__doc__ or "").replace("``", "`")
    yield ""
    yield "| | |"
    yield "| --- | --- |"
    yield _row("what really happens", kind.summary)
    yield _row("what a program sees", kind.sees)
    yield _row("what proves it", kind.proof)
    yield _row("mechanism", "; ".join(f"`{tier}`: {_mechanism(kind, tier)}" for tier in TIERS))
    defaults = (f"`{name} = {encode(value)}`" for name, value in kind.parameters.items())
    yield _row("parameters, with their defaults", ", ".join(defaults) or "none")
    yield _row("declared as", f"`{_declaration(kind)}`")
    yield ""
    yield "```toml"
    yield example(kind)
    yield "```"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _mechanism(kind: type[Fault], tier: str) -> str:
    return kind.mechanism(_ideal(tier)) if _has(tier, kind) else "none"


def _has(tier: str, kind: type[Fault]) -> bool:
    """Whether a tier can have a kind at all.

    `namespaces` can always.  In `bare`, what a kind lacks there and not in `namespaces` is the tier's fault; what it
    lacks in both, with the same words, is something that is not installed on this machine.
    """
    if tier != BARE:
        return True
    refused = kind.unavailable(_ideal(BARE))
    return refused is None or refused == kind.unavailable(_ideal(NAMESPACES))


def _ideal(tier: str) -> Session:
    return cast("Session", Ideal(tier))


def _declaration(kind: type[Fault]) -> str:
    """The constructor's call, with the defaults of what it takes."""
    words = []
    for parameter in inspect.signature(kind).parameters.values():
        default = "..." if parameter.default is parameter.empty else _plain(parameter.default)
        words.append(default if parameter.name == "target" else f"{parameter.name}={default}")
    return f"{kind.__name__}({', '.join(words)})"


def _plain(value: object) -> str:
    """A value as an author writes it: texts in double quotes."""
    return re.sub(r"'([^'\"\\]*)'", r'"\1"', repr(value))


if __name__ == "__main__":
    sys.stdout.write(document(shipped()))
