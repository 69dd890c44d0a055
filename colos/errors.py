"""Every exception that ColOS raises, in one place.

A class owns its sentence, carries its fields, survives pickling (actors send them to each
other), and says the cure where there is one.  `HarnessBroken` stands apart: it is a
`BaseException`, so that no author's ``except Exception`` can mistake a broken test machine
for a broken system.
"""

from __future__ import annotations

__all__ = [
    "ActorExited",
    "CallTimeout",
    "ColosError",
    "ConnectionLost",
    "FaultUnavailable",
    "HarnessBroken",
    "InvalidScenario",
    "InvalidSpecification",
    "MailboxFull",
    "MessageTooLarge",
    "NameTaken",
    "NoSuchActor",
    "NoSuchMethod",
    "NoSuchNode",
    "NotPicklable",
    "PropertyViolated",
    "RemoteError",
    "RuntimeFailure",
    "StaleScenario",
    "StartFailed",
]


class ColosError(Exception):
    """The base of what ColOS raises for its users."""

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions pickle as cls(*args); ours take fields, not a sentence.
        return (_rebuild, (type(self), self.__dict__.copy(), self.args))


def _rebuild(cls: type[ColosError], fields: dict[str, object], args: tuple[object, ...]) -> ColosError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(fields)
    return error


class InvalidSpecification(ColosError, ValueError):
    """A declaration (a supervisor's children, a machine's faults, an option) makes no sense."""


# --- the runtime -------------------------------------------------------------------------


class RuntimeFailure(ColosError):
    """Something that a client of an actor has to expect."""


class NoSuchActor(RuntimeFailure):
    """Nothing is registered under that name, or the actor was gone before the message was sent."""

    def __init__(self, name: str, detail: str = "") -> None:
        super().__init__(f"no actor {name!r} is alive{': ' + detail if detail else ''}")
        self.name = name
        self.detail = detail


class NameTaken(RuntimeFailure, ValueError):
    """A name is registered already, or its process has another one: a name is unique, and a process has one."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(f"the name {name!r} cannot be registered: {detail}")
        self.name = name
        self.detail = detail


class NoSuchNode(RuntimeFailure):
    """There is no living node behind a run directory."""

    def __init__(self, run_directory: str, detail: str = "") -> None:
        super().__init__(f"no node answers in {run_directory}{': ' + detail if detail else ''}")
        self.run_directory = run_directory
        self.detail = detail


class ActorExited(RuntimeFailure):
    """The actor is known to have exited without having taken the message: it did not happen."""

    def __init__(self, name: str, reason: object) -> None:
        super().__init__(f"actor {name!r} exited: {reason}")
        self.name = name
        self.reason = reason


class ConnectionLost(RuntimeFailure):
    """The connection broke after the message was sent: it may or may not have happened."""

    def __init__(self, name: str, method: str, reason: object = "") -> None:
        super().__init__(
            f"the connection to {name!r} broke while it was answering {method!r}; "
            f"whether it happened is unknown{f' ({reason})' if reason else ''}"
        )
        self.name = name
        self.method = method
        self.reason = reason


class CallTimeout(RuntimeFailure, TimeoutError):
    """No answer within the deadline: it may or may not have happened, or may happen yet."""

    def __init__(self, name: str, method: str, timeout_s: float) -> None:
        super().__init__(f"{name!r} did not answer {method!r} within {timeout_s:g} s")
        self.name = name
        self.method = method
        self.timeout_s = timeout_s


class MailboxFull(RuntimeFailure):
    """`cast_nowait` met a mailbox that takes no more: the message was not sent."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the mailbox of {name!r} is full; use `cast`, which waits, or shed load")
        self.name = name


class NotPicklable(RuntimeFailure, TypeError):
    """A message holds what cannot cross to another process; `what` says which: arguments, or result."""

    def __init__(self, name: str, method: str, detail: str, what: str = "arguments") -> None:
        super().__init__(f"the {what} of {method!r} for {name!r} cannot be pickled: {detail}")
        self.name = name
        self.method = method
        self.detail = detail
        self.what = what


class MessageTooLarge(RuntimeFailure, ValueError):
    """A message, or the answer to one, is larger than a frame may be: it was not sent."""

    def __init__(self, name: str, method: str, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"a message for {method!r} of {name!r} is {size_bytes} bytes and a frame holds {limit_bytes}; "
            "send it in pieces, or put it in a file and send the path"
        )
        self.name = name
        self.method = method
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes


class NoSuchMethod(RuntimeFailure, AttributeError):
    """An actor has no public method of that name: nothing ran, and the actor lives on."""

    # AttributeError keeps `name` in a slot, out of __dict__, where it would not survive pickling.
    def __init__(self, actor: str, method: str, allowed: tuple[str, ...], suggestion: str = "") -> None:
        meant = f"; did you mean {suggestion!r}?" if suggestion else ""
        super().__init__(f"{actor!r} has no method {method!r}{meant} (it has: {', '.join(allowed) or 'none'})")
        self.actor = actor
        self.method = method
        self.allowed = allowed
        self.suggestion = suggestion


class RemoteError(RuntimeFailure):
    """An actor's method raised an exception that cannot be rebuilt in this process.

    `type_name`, `text` and `traceback` are the original's, as text.
    """

    def __init__(self, name: str, method: str, type_name: str, text: str, traceback: str) -> None:
        super().__init__(f"{method!r} of {name!r} raised {type_name}: {text}")
        self.name = name
        self.method = method
        self.type_name = type_name
        self.text = text
        self.traceback = traceback


class StartFailed(ColosError):
    """A node, an actor or a command did not become ready; `stderr` is the tail of what it said."""

    def __init__(self, what: str, reason: str, stderr: str = "") -> None:
        said = f"\nits stderr ends:\n{stderr.rstrip()}" if stderr.strip() else " (it wrote nothing to stderr)"
        super().__init__(f"{what} did not start: {reason}{said}")
        self.what = what
        self.reason = reason
        self.stderr = stderr


# --- chaos -------------------------------------------------------------------------------


class InvalidScenario(ColosError, ValueError):
    """A scenario file cannot be used; says the file, the line or key, and what is allowed."""

    def __init__(self, path: str, where: str, problem: str, cure: str = "") -> None:
        super().__init__(f"{path}: {where}: {problem}{'; ' + cure if cure else ''}")
        self.path = path
        self.where = where
        self.problem = problem
        self.cure = cure


class StaleScenario(InvalidScenario):
    """A scenario names a fault, rule, argument or target that its machine does not have, or has no longer."""


class FaultUnavailable(ColosError):
    """A fault cannot be made real here; says why, and what would make it so."""

    def __init__(self, kind: str, reason: str, cure: str = "") -> None:
        super().__init__(f"fault {kind!r} is unavailable: {reason}{'; ' + cure if cure else ''}")
        self.kind = kind
        self.reason = reason
        self.cure = cure


class PropertyViolated(ColosError, AssertionError):
    """What must hold does not.  `name` is the property's full name, such as ``always:balanced``."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(f"{name}: {detail}")
        self.name = name
        self.detail = detail


class HarnessBroken(BaseException):
    """The test machine itself failed (a heal, a sandbox, a start): no verdict on the system.

    `left` names what may still be standing.
    """

    def __init__(self, what: str, detail: str, left: tuple[str, ...] = ()) -> None:
        standing = f"; still standing: {', '.join(left)}" if left else ""
        super().__init__(f"{what}: {detail}{standing}")
        self.what = what
        self.detail = detail
        self.left = left

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.what, self.detail, self.left))
