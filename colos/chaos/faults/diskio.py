"""A disk that fails call by call: I/O errors, a quota, slowness, writes that end early or in the middle.

Mechanism: seccomp user notification on the calls that read, write, sync, open or rename, judged by the path of what
they are about.  What goes through a mapping (mmap) or io_uring is not seen.  Proof: the keeper's count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from hypothesis import strategies as st

from colos.chaos.fault import EVERYTHING, Site
from colos.chaos.mechanisms.rules import Cut, Delay, Fail, Rule, Tear, errno_of, traps_for
from colos.chaos.mechanisms.syscalls import Trap
from colos.chaos.trapped import TrappedFault, expand, one_or_more
from colos.errors import InvalidSpecification

__all__ = ["IoError", "ShortWrite", "SlowDisk", "TornWrite"]

_OPERATIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "read": ("read", "pread64", "readv", "preadv", "preadv2"),
    "write": ("write", "pwrite64", "writev", "pwritev", "pwritev2"),
    "fsync": ("fsync", "fdatasync", "syncfs", "sync_file_range"),
    "open": ("open", "openat", "openat2", "creat"),
    "rename": ("rename", "renameat", "renameat2"),
}
_EVERYWHERE: Final = "{data}/*"


def _operation(name: object) -> str:
    if name not in _OPERATIONS:
        raise InvalidSpecification(f"{name!r} is no operation on a disk; there are: {', '.join(_OPERATIONS)}")
    return str(name)


class _OnFiles(TrappedFault):
    """What they have in common: the operations, the files, and which occurrences."""

    def __init__(self, target: str, operations: Sequence[str], path: str, nth: int, at_most: int | None) -> None:
        super().__init__(target, at_most=at_most)
        self.operations = tuple(_operation(name) for name in operations)
        self.path = path
        self.nth = nth
        Rule(("write",), Delay(0, 0), nth=nth)  # raises for what means nothing

    def needed(self) -> tuple[Trap, ...]:
        """The calls of the declared operations."""
        return traps_for(call for name in self.operations for call in _OPERATIONS[name])

    def which(self) -> dict[str, st.SearchStrategy[Any]]:
        """The arguments that say which calls are meant."""
        return {"path": st.just(self.path), "nth": st.just(self.nth)}

    @classmethod
    def calls(cls, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        """Those of the operation."""
        return _OPERATIONS[_operation(arguments.get("operation", "write"))]

    @classmethod
    def rule(cls, site: Site, arguments: Mapping[str, Any], action: Fail | Delay | Cut | Tear) -> tuple[Rule, ...]:
        """One rule, as the arguments say."""
        return (Rule(cls.calls(arguments), action, expand(site, str(arguments["path"])), nth=arguments["nth"]),)


class IoError(_OnFiles):
    """An operation on files fails: `operation` (read, write, fsync, open or rename) gives `errno`, and does nothing.

    Meant are files whose path matches `path` (relative: below the data disk; * matches / too), and of these calls the
    `nth` only (0: each).  EIO is a bad disk, EDQUOT a user's quota, EROFS a file system that went read-only.
    """

    kind = "io-error"
    family = "disk"
    summary = "reading, writing, syncing, opening or renaming chosen files gives EIO, EDQUOT or another errno"
    sees = "the errno"
    proof = "the keeper's count of the calls it has refused"
    parameters: ClassVar[Mapping[str, object]] = {"operation": "write", "errno": "EIO", "path": _EVERYWHERE, "nth": 0}

    def __init__(
        self,
        target: str = EVERYTHING,
        *,
        operations: str | Sequence[str] = ("write", "fsync", "read"),
        errnos: str | Sequence[str] = ("EIO",),
        path: str = _EVERYWHERE,
        nth: int = 0,
        at_most: int | None = None,
    ) -> None:
        super().__init__(target, one_or_more(operations), path, nth, at_most)
        self.errnos = one_or_more(errnos)
        for name in self.errnos:
            errno_of(name)

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """One of the declared operations with one of the declared errnos."""
        return st.fixed_dictionaries(
            {
                "operation": st.sampled_from(self.operations),
                "errno": st.sampled_from(self.errnos),
                **self.which(),
            }
        )

    @classmethod
    def rules(cls, site: Site, arguments: Mapping[str, Any]) -> tuple[Rule, ...]:
        """The operation fails."""
        return cls.rule(site, arguments, Fail(errno_of(arguments["errno"])))


class SlowDisk(_OnFiles):
    """An operation on files takes long: `operation` (read, write, fsync, open or rename) waits `seconds` more.

    Meant are files whose path matches `path`, and of these calls the `nth` only (0: each).
    """

    kind = "slow-disk"
    family = "disk"
    summary = "reading, writing, syncing, opening or renaming chosen files takes so much longer"
    sees = "nothing but the time that passes"
    proof = "the keeper's count of the calls it has kept waiting"
    parameters: ClassVar[Mapping[str, object]] = {"operation": "fsync", "seconds": 0.1, "path": _EVERYWHERE, "nth": 0}

    def __init__(
        self,
        target: str = EVERYTHING,
        *,
        operations: str | Sequence[str] = ("fsync", "write"),
        seconds: float = 0.1,
        path: str = _EVERYWHERE,
        nth: int = 0,
        at_most: int | None = None,
    ) -> None:
        super().__init__(target, one_or_more(operations), path, nth, at_most)
        self.seconds = Delay(seconds, seconds).most_s

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """One of the declared operations."""
        return st.fixed_dictionaries(
            {"operation": st.sampled_from(self.operations), "seconds": st.just(self.seconds), **self.which()}
        )

    @classmethod
    def rules(cls, site: Site, arguments: Mapping[str, Any]) -> tuple[Rule, ...]:
        """The operation waits."""
        return cls.rule(site, arguments, Delay(arguments["seconds"], arguments["seconds"]))


class ShortWrite(_OnFiles):
    """A write to a file ends early: `share` of its bytes are written, and that is what it returns.

    Meant are files whose path matches `path`, and of these writes the `nth` only (0: each).  A write of one byte
    cannot be cut.  write(2): a short write is no error, and the caller has to go on by itself.
    """

    kind = "short-write"
    family = "disk"
    summary = "writes to chosen files write a part, and say so"
    sees = "a count that is smaller than what it wrote"
    proof = "the keeper's count of the writes it has cut"
    parameters: ClassVar[Mapping[str, object]] = {"share": 0.5, "path": _EVERYWHERE, "nth": 0}

    def __init__(
        self,
        target: str = EVERYTHING,
        *,
        share: float = 0.5,
        path: str = _EVERYWHERE,
        nth: int = 0,
        at_most: int | None = None,
    ) -> None:
        super().__init__(target, ("write",), path, nth, at_most)
        self.share = Cut(share).share

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """As declared."""
        return st.fixed_dictionaries({"share": st.just(self.share), **self.which()})

    @classmethod
    def rules(cls, site: Site, arguments: Mapping[str, Any]) -> tuple[Rule, ...]:
        """A part, and its length."""
        return cls.rule(site, arguments, Cut(arguments["share"]))


class TornWrite(_OnFiles):
    """A write to a file breaks off: `share` of its bytes are written, and it returns -1 with `errno`.

    Meant are files whose path matches `path`, and of these writes the `nth` only (0: each).
    """

    kind = "torn-write"
    family = "disk"
    summary = "writes to chosen files write a part, and then give an error"
    sees = "the errno, while a part of the data is in the file"
    proof = "the keeper's count of the writes it has torn"
    parameters: ClassVar[Mapping[str, object]] = {"share": 0.5, "errno": "EIO", "path": _EVERYWHERE, "nth": 0}

    def __init__(
        self,
        target: str = EVERYTHING,
        *,
        share: float = 0.5,
        errno: str = "EIO",
        path: str = _EVERYWHERE,
        nth: int = 0,
        at_most: int | None = None,
    ) -> None:
        super().__init__(target, ("write",), path, nth, at_most)
        self.share = Tear(share, errno_of(errno)).share
        self.errno = errno

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """As declared."""
        return st.fixed_dictionaries({"share": st.just(self.share), "errno": st.just(self.errno), **self.which()})

    @classmethod
    def rules(cls, site: Site, arguments: Mapping[str, Any]) -> tuple[Rule, ...]:
        """A part, and an error."""
        return cls.rule(site, arguments, Tear(arguments["share"], errno_of(arguments["errno"])))
