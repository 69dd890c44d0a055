"""On what terms a system is tested: what its clients may be told, how long is waited, what all runs share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from colos.chaos.bridge import OpDeadline, Outlet
from colos.chaos.environment import Environment
from colos.chaos.fault import Fault
from colos.chaos.journal import Journal
from colos.chaos.properties import Property
from colos.chaos.sandbox.session import Session
from colos.chaos.sandbox.spec import SandboxSpec
from colos.chaos.system import System
from colos.errors import ActorExited, CallTimeout, ConnectionLost, MailboxFull, NoSuchActor, NoSuchNode

__all__ = ["REFUSALS", "UNKNOWNS", "Deadlines", "Setting"]

#: What a client may be told about an operation that did not happen.
REFUSALS: tuple[type[BaseException], ...] = (
    ActorExited,
    NoSuchActor,
    NoSuchNode,
    MailboxFull,
    ConnectionRefusedError,
)
#: What a client sees when an operation may or may not have happened.
UNKNOWNS: tuple[type[BaseException], ...] = (
    CallTimeout,
    ConnectionLost,
    OpDeadline,
    ConnectionResetError,
    ConnectionAbortedError,
    BrokenPipeError,
    EOFError,
)


@dataclass(frozen=True)
class Deadlines:
    """How long the executor waits, in seconds, for each kind of thing."""

    start_s: float = 20.0
    step_s: float = 10.0
    #: For what an author wrote that is asked outside of a step: a strategy, a precondition, ``__init__``.
    outside_s: float = 10.0
    settle_s: float = 2.0
    heal_s: float = 5.0
    stop_s: float = 10.0


@dataclass
class Setting:
    """What all runs of one item share."""

    session: Session
    outlet: Outlet
    system: System
    properties: tuple[Property, ...]
    kinds: Mapping[str, type[Fault]]
    journal: Journal
    spec: SandboxSpec
    refusals: tuple[type[BaseException], ...] = ()
    unknowns: tuple[type[BaseException], ...] = ()
    without: frozenset[str] = frozenset()
    #: The declared kinds that cannot be made real here, and why.
    unavailable: Mapping[str, str] = field(default_factory=dict)
    deadlines: Deadlines = field(default_factory=Deadlines)
    #: Tells what the machine around the test did to a run.
    environment: Environment = field(default_factory=Environment)
    #: Faults that really fired, and `sometimes` that came true, over all runs so far.
    fired: Counter[str] = field(default_factory=Counter)
    injected: Counter[str] = field(default_factory=Counter)
    mechanisms: dict[str, str] = field(default_factory=dict)
    seen_sometimes: set[str] = field(default_factory=set)
    #: A plain function of the author's blocked until its deadline: only in the main thread can such a one be ended.
    interrupted: bool = False
    #: Operations that were refused in calm, by rule.
    refused_idle: Counter[str] = field(default_factory=Counter)
