"""What this machine can do for this user: the sandbox, the faults by family, and what would make others possible."""

from __future__ import annotations

import itertools
import json
import os
import platform
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from colos.chaos.fault import FAMILIES, Fault
from colos.chaos.faults import fault_kinds
from colos.chaos.mechanisms import userns
from colos.chaos.sandbox.session import Session
from colos.chaos.sandbox.spec import NAMESPACES
from colos.errors import HarnessBroken

__all__ = ["Finding", "examine", "find", "table"]

_WIDTH = 100
_INDENT = 2
_COLUMN_MOST = 28
_UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True)
class Finding:
    """One kind of fault on this machine: the mechanism it would use, or the reason why not and the cure."""

    kind: str
    family: str
    summary: str
    available: bool
    mechanism: str | None = None
    reason: str | None = None
    cure: str | None = None

    def as_json(self) -> dict[str, object]:
        """What `colos doctor --json` says of it: all but the summary."""
        return {name: value for name, value in asdict(self).items() if name != "summary"}


def examine(forced: str | None = None, *, as_json: bool = False) -> int:
    """Print what `find` found, as a table or as JSON; returns 0, also where a fault or the tier is not to be had."""
    session = Session(forced)
    try:
        kinds = fault_kinds()
        tier, refused = _tier(session, forced)
        causes = userns.causes(userns.read_settings()) if refused else []
        findings = find(kinds, session) if tier else _none(kinds, refused, causes)
    finally:
        session.close()
    if as_json:
        print(json.dumps({"tier": tier, "faults": [finding.as_json() for finding in findings]}, indent=2))
        return 0
    print(f"machine   {platform.system()} {platform.release()} {platform.machine()}, uid {os.getuid()}")
    print(f"sandbox   {tier or 'none'}{'  (asked for by you)' if forced else ''}")
    for line in (*_explained(refused, causes), *(table(findings) if tier else ())):
        print(line)
    return 0


def find(kinds: Mapping[str, type[Fault]], session: Session) -> list[Finding]:
    """Ask every kind what it would do here, in the catalogue's order."""
    return [_found(kind, session) for kind in _in_order(kinds)]


def table(findings: Sequence[Finding]) -> Iterator[str]:
    """The lines of the table: a heading a family, and kind, mechanism and summary side by side."""
    names = _width(finding.kind for finding in findings)
    mechanisms = _width(finding.mechanism or _UNAVAILABLE for finding in findings)
    widths = (names, mechanisms, _WIDTH - _INDENT - names - mechanisms - 4)
    family = ""
    for finding in findings:
        if finding.family != family:
            family = finding.family
            yield ""
            yield family
        if finding.available:
            yield from _row(widths, finding.kind, finding.mechanism or "", finding.summary)
        else:
            yield from _row(widths, finding.kind, _UNAVAILABLE, f"because {finding.reason}")
            yield from _row(widths, "", "", f"cure: {finding.cure}")
    yield ""
    available = sum(finding.available for finding in findings)
    yield f"{available} of {len(findings)} kinds of fault can be made real here."


# --- asking --------------------------------------------------------------------------------


def _tier(session: Session, forced: str | None) -> tuple[str | None, str]:
    """The tier, or None where the one that was asked for is not to be had; and why `namespaces` is refused."""
    try:
        tier = session.tier
    except HarnessBroken as error:
        if forced is None:
            raise
        return None, str(error)
    return tier, f"{NAMESPACES} is refused here: {session.refusal}" if forced is None and session.refusal else ""


def _found(kind: type[Fault], session: Session) -> Finding:
    unavailable = kind.unavailable(session)
    if unavailable is None:
        return Finding(kind.kind, kind.family, kind.summary, True, mechanism=kind.mechanism(session))
    reason, cure = unavailable
    return Finding(kind.kind, kind.family, kind.summary, False, reason=reason, cure=cure)


def _none(kinds: Mapping[str, type[Fault]], refused: str, causes: Sequence[userns.Cause]) -> list[Finding]:
    """Every fault, where the tier that was asked for is not to be had."""
    cure = "; ".join(cause.cure for cause in causes) or "ask for --sandbox bare"
    return [
        Finding(kind.kind, kind.family, kind.summary, False, reason=refused, cure=cure) for kind in _in_order(kinds)
    ]


def _in_order(kinds: Mapping[str, type[Fault]]) -> list[type[Fault]]:
    """By family, in the catalogue's order of families."""
    return sorted(kinds.values(), key=lambda kind: (_rank(kind.family), kind.family, kind.kind))


def _rank(family: str) -> int:
    return FAMILIES.index(family) if family in FAMILIES else len(FAMILIES)


# --- printing ------------------------------------------------------------------------------


def _explained(refused: str, causes: Sequence[userns.Cause]) -> Iterator[str]:
    """Why there are no namespaces: what the kernel said, then each setting that is known to refuse, with its cure."""
    indent = " " * 10
    if refused:
        yield from textwrap.wrap(refused, _WIDTH, initial_indent=indent, subsequent_indent=indent)
        for cause in causes:
            yield from _hanging(f"because {cause.reason}", indent)
            yield from _hanging(f"cure: {cause.cure}", indent)
        if not causes:
            yield from _hanging("no setting that is known to refuse them was found; see user_namespaces(7)", indent)


def _hanging(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + " " * _INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _width(cells: Iterator[str]) -> int:
    return min(_COLUMN_MOST, max((len(cell) for cell in cells), default=0))


def _row(widths: Sequence[int], *cells: str) -> Iterator[str]:
    """Cells side by side, each wrapped into its column; a word that is too long, a command's path, is kept whole."""
    wrapped = [
        textwrap.wrap(cell, width, break_long_words=False, break_on_hyphens=False)
        for cell, width in zip(cells, widths, strict=True)
    ]
    for line in itertools.zip_longest(*wrapped, fillvalue=""):
        padded = (part.ljust(width) for part, width in zip(line, widths, strict=True))
        yield (" " * _INDENT + "  ".join(padded)).rstrip()
