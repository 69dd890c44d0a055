"""A full disk: no bytes left, or no inodes left.

Mechanisms: in `namespaces` the data disk is a tmpfs of the sandbox's own, remounted to what is
used; in `bare` the calls that need space are answered by the watchdog (seccomp user notification),
and no host disk is ever filled.  Proof: a probe that meets ENOSPC, or the watchdog's own count.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from hypothesis import strategies as st

from colos.chaos.fault import Fault, Lease, Site, count_of
from colos.chaos.sandbox.datadisk import DataDisk
from colos.chaos.sandbox.spec import NAMESPACES
from colos.errors import FaultUnavailable, InvalidSpecification

if TYPE_CHECKING:
    from colos.chaos.sandbox.session import Session

__all__ = ["DiskFull"]

RESOURCES = ("bytes", "inodes")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TRIES = 200
_BALLAST = ("disk", "ballast")
_NAMES = itertools.count()  # of leases, as the watchdog knows them


class DiskFull(Fault):
    """The system's data disk has `free` more of one `resource` ("bytes", in whole pages, or "inodes"), then ENOSPC."""

    kind = "disk-full"
    family = "disk"
    targeted = False
    summary = "the data disk has no bytes, or no inodes, left: ENOSPC, and short writes before it"
    sees = "ENOSPC, and short writes before it"
    proof = "a probe that met ENOSPC, or the keeper's count of answers"
    parameters: ClassVar[Mapping[str, object]] = {"resource": "bytes", "free": 0}

    def __init__(self, *, resources: Sequence[str] = RESOURCES) -> None:
        super().__init__()
        self.resources = tuple(_resource(name) for name in resources)

    def __repr__(self) -> str:
        return f"DiskFull(resources={self.resources})"

    @classmethod
    def unavailable(cls, session: Session) -> tuple[str, str] | None:
        """The sandbox's own tmpfs, or trapped system calls."""
        if session.tier == NAMESPACES:
            return None
        reason = session.probe_syscalls()
        if reason is None:
            return None
        return (
            f"bare sandboxes need seccomp user notification: {reason}",
            "a kernel of 5.6 or newer, or user namespaces",
        )

    @classmethod
    def mechanism(cls, session: Session) -> str:
        """See Fault."""
        return "tmpfs-remount" if session.tier == NAMESPACES else "seccomp-notify"

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """Which resource ends, and how much of it is left."""
        left = {"bytes": st.sampled_from((0, 4096)), "inodes": st.integers(0, 1)}
        choices = (st.fixed_dictionaries({"resource": st.just(name), "free": left[name]}) for name in self.resources)
        return st.one_of(*choices)

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Fill the disk, in the way of the tier."""
        del target
        complete = cls.complete(arguments)
        resource, free = _resource(complete["resource"]), count_of(complete["free"], "what is left free")
        if resource == "bytes":
            free -= free % _PAGE
        if site.sandbox.tier == NAMESPACES:
            return _Remounted(site, resource, free)
        if not site.sandbox.trapping:
            raise FaultUnavailable(cls.kind, "this bare sandbox traps no system calls", "see `colos doctor`")
        return _Trapped(site, resource, free)


def _resource(name: object) -> str:
    if name not in RESOURCES:
        raise InvalidSpecification(f"a disk runs out of {' or '.join(RESOURCES)}, not of {name!r}")
    return str(name)


class _Remounted(Lease):
    """The tmpfs holds what it holds and `free` more."""

    mechanism = "tmpfs-remount"

    def __init__(self, site: Site, resource: str, free: int) -> None:
        self._site = site
        self._resource = resource
        self._key = ("disk", resource)
        self._path = site.sandbox.outside("{data}")
        self._free = free
        self._acts = True
        self._disk = DataDisk(site.sandbox)  # refuses any file system but the sandbox's own
        self._original = total = self._total()
        try:
            self._hold_ballast()
            self._limit(total)
            self._proof = self._probe()
        except BaseException:
            self.heal()
            raise

    def _limit(self, total: int) -> None:
        """Shrink the disk to what is used and what stays free, though the system may be writing at full speed.

        EINVAL says that it wrote more between our look and the remount.  Then some room is left at
        first, and taken away look by look: the less there is, the less far a writer can run ahead of us,
        also one that empties the disk again whenever it is full.
        """
        least = _PAGE if self._resource == "bytes" else 1  # 0 means no limit at all
        room = 0
        for _ in range(_TRIES):
            exact = max(self._used() + self._free, least)
            wanted = max(exact, min(exact + room * least, self._total()))
            holds = int(self._site.overlays.hold(self._key, self, wanted, lambda: total))
            try:
                self._apply(holds)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                room = max(1, room * 4)
            else:
                if room == 0:
                    return
                room //= 4
        raise OSError(errno.EINVAL, f"the data disk grew faster than it could be limited ({_TRIES} tries)")

    def _hold_ballast(self) -> None:
        """Keep a page in use for as long as any lease limits this disk: shrunk to 0 bytes it would have no limit.

        It is made before the first limit, and so needs no room under any.
        """
        sandbox = self._site.sandbox
        if _BALLAST not in self._site.overlays:
            try:
                sandbox.ballast = os.open(self._disk.path, os.O_TMPFILE | os.O_WRONLY, 0o600)
                os.posix_fallocate(sandbox.ballast, 0, _PAGE)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
        self._site.overlays.hold(_BALLAST, self, 0, lambda: None)

    def _drop_ballast(self) -> None:
        sandbox = self._site.sandbox
        held, _ = self._site.overlays.release(_BALLAST, self)
        if held is None and sandbox.ballast >= 0:
            os.close(sandbox.ballast)
            sandbox.ballast = -1

    def _used(self) -> int:
        state = os.statvfs(self._path)
        if self._resource == "bytes":
            return (state.f_blocks - state.f_bfree) * state.f_frsize
        return state.f_files - state.f_ffree

    def _total(self) -> int:
        state = os.statvfs(self._path)
        return state.f_blocks * state.f_frsize if self._resource == "bytes" else state.f_files

    def _apply(self, value: int) -> None:
        if self._resource == "bytes":
            self._site.sandbox.remount_data(size=value)
        else:
            self._site.sandbox.remount_data(inodes=value)

    def _probe(self) -> str | None:
        """Ask for one more than is left, in a file without a name that the system cannot see."""
        ballast = self._site.sandbox.ballast
        opened: list[int] = []
        try:
            if self._resource == "inodes":
                path = self._disk.path
                opened.extend(os.open(path, os.O_TMPFILE | os.O_WRONLY, 0o600) for _ in range(self._free + 1))
            elif ballast >= 0:  # a new file might be refused for want of an inode
                os.posix_fallocate(ballast, _PAGE, self._free + _PAGE)
                os.ftruncate(ballast, _PAGE)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                return f"a probe met ENOSPC with {self._free} {self._resource} left"
            raise
        finally:
            for descriptor in opened:
                os.close(descriptor)
        return None

    def fired(self) -> str | None:
        if self._proof is None and self._acts:  # the system gave room back before we looked: look again
            self._proof = self._probe()
        return self._proof

    def heal(self) -> None:
        self._acts = False
        holds, original = self._site.overlays.release(self._key, self)
        try:
            if original is not None:
                self._original = int(original)
                if not self._site.sandbox.ended():
                    self._apply(int(holds) if holds is not None else self._original)
        finally:
            self._drop_ballast()
            self._disk.close()

    def is_healed(self) -> bool:
        return self._site.sandbox.ended() or self._key in self._site.overlays or self._total() == self._original


class _Trapped(Lease):
    """The watchdog answers the calls that would need more than is left."""

    mechanism = "seccomp-notify"

    def __init__(self, site: Site, resource: str, free: int) -> None:
        self._site = site
        self._name = next(_NAMES)
        self._proof: str | None = None
        site.sandbox.trap("hold", self._name, resource, free)

    def fired(self) -> str | None:
        hits: dict[str, int] | None = self._site.sandbox.trap("hits", self._name)
        if hits is not None:  # it acts still; what it did before it was healed stays the proof
            self._proof = ", ".join(f"{name} given {count} times" for name, count in hits.items() if count) or None
        return self._proof

    def heal(self) -> None:
        self.fired()
        self._site.sandbox.trap("release", self._name)

    def is_healed(self) -> bool:
        return self._site.sandbox.trap("hits", self._name) is None
