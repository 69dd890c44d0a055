"""What a process of the system sees of each kind of fault, with its own eyes.  A new kind gets one entry here.

For instance::

    "no-entropy": Probe("result = len(os.urandom(8))", before=8, during="EAGAIN"),
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import EllipsisType


@dataclass(frozen=True)
class Probe:
    """Python for the agent to run, and what it is expected to see.

    `look` is run in the agent's namespace (see `sandbox_agent`: `put`, `fork`, `idle`, `spin` are
    there).  What is seen is its `result`, or the name of the errno that it met.  `before`, `during`
    and `after` are that value or a predicate of it; after the healing it is as before, unless said
    otherwise.  It is looked again, up to a deadline, until the expected is seen.  `prepare` is run
    once, first.  `target` is who is hit; with "agent/victim", `prepare` forks that one.
    `arguments` are the step's.
    """

    look: str
    before: object
    during: object
    after: object | EllipsisType = ...
    prepare: str = ""
    target: str = "agent"
    arguments: Mapping[str, object] = field(default_factory=dict)


VICTIM = "victim = fork('victim', idle)"
#: The signal that ended the victim, or 0.
ENDED = """
ended = os.waitid(os.P_PID, victim, os.WEXITED | os.WNOHANG | os.WNOWAIT)
result = ended.si_status if ended else 0
"""
#: The victim's state, as /proc has it.
STATE = "result = open(f'/proc/{victim}/stat').read().rpartition(')')[2].split()[0]"
#: Whether the agent is continued within a short while, that is, whether somebody stops and continues it.
CONTINUES = """
continued.clear()
deadline = time.monotonic() + 0.03
while not continued and time.monotonic() < deadline:
    pass
result = bool(continued)
"""

PROBES: dict[str, Probe] = {
    "cpu-starvation": Probe(
        CONTINUES,
        before=False,
        during=True,
        prepare="continued = []; signal.signal(signal.SIGCONT, lambda *_: continued.append(True))",
    ),
    "descriptor-exhaustion": Probe(
        "result = os.close(os.open('/dev/null', os.O_RDONLY))", before=None, during="EMFILE"
    ),
    "disk-full": Probe(
        "result = put('probe', b'x' * 5000, os.O_CREAT | os.O_WRONLY | os.O_APPEND)", before=5000, during="ENOSPC"
    ),
    "kill": Probe(ENDED, before=0, during=9, after=9, prepare=VICTIM, target="agent/victim"),
}

#: How often a kind is injected and healed in a row, where a hundred times would take too long, and why.
FEWER_ROUNDS: dict[str, tuple[int, str]] = {}
