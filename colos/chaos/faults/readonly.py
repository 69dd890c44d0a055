"""A data disk that has become read-only.

Mechanism: mount_setattr(2) on the sandbox's own mount, from inside.  The kernel refuses with EBUSY
for as long as a file is open for writing through it, as it does for mount(8): the fault takes the
first moment of `patience_ms` without a writer, and where there is none it did not fire.  (A disk
whose kernel driver gave up makes open descriptors fail, too; that is done with trapped calls.)
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from hypothesis import strategies as st

from colos.chaos.fault import Fault, Lease, Site, count_of
from colos.chaos.mechanisms.mounts import SetReadOnly, SetWritable
from colos.chaos.sandbox.datadisk import DataDisk
from colos.chaos.sandbox.spec import NAMESPACES
from colos.errors import FaultUnavailable, InvalidSpecification

if TYPE_CHECKING:
    from colos.chaos.sandbox.session import Session

__all__ = ["DiskReadOnly"]

_MECHANISM = "mount_setattr"
_KEY = ("disk", "read-only")
_PATIENCE_MS_MAX = 5000


class DiskReadOnly(Fault):
    """The data disk takes no write any more: opening for writing, creating, renaming, removing give EROFS.

    `patience_ms` is how many milliseconds it waits for a moment in which no file on the disk is open
    for writing: without one the kernel refuses (EBUSY), and the fault does not fire.  A program that
    keeps such a file open never sees this fault.  Reading goes on.  mount_setattr(2), EBUSY.
    """

    kind = "disk-read-only"
    uses = _MECHANISM
    family = "disk"
    targeted = False
    summary = "the data disk's mount becomes read-only, once no file on it is open for writing"
    sees = "EROFS from open, mkdir, rename, unlink, chmod; reading goes on"
    proof = "a probe inside the data directory that met EROFS"
    parameters: ClassVar[Mapping[str, object]] = {"patience_ms": 250}

    @classmethod
    def unavailable(cls, session: Session) -> tuple[str, str] | None:
        """It needs a mount of the sandbox's own."""
        if session.tier == NAMESPACES:
            return None
        return (
            "a bare sandbox's data is a directory on a file system of the host's, which has no mount of its own",
            "the namespaces tier: allow unprivileged user namespaces (see `colos doctor`)",
        )

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """Nothing varies."""
        return st.just({})

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Set the flag at the first moment without a writer."""
        del target
        patience_ms = count_of(cls.complete(arguments)["patience_ms"], "patience_ms")
        if patience_ms > _PATIENCE_MS_MAX:
            raise InvalidSpecification(f"patience_ms is at most {_PATIENCE_MS_MAX}, not {patience_ms}")
        if site.sandbox.tier != NAMESPACES:
            raise FaultUnavailable(cls.kind, "a bare sandbox has no mount of its own", "the namespaces tier")
        with DataDisk(site.sandbox):  # refuses any file system but the sandbox's own
            return _ReadOnly(site, patience_ms)


class _ReadOnly(Lease):
    mechanism = _MECHANISM

    def __init__(self, site: Site, patience_ms: int) -> None:
        self._site = site
        self._proof: str | None = None
        site.overlays.hold(_KEY, self, 0, lambda: None)
        try:
            done, _ = site.sandbox.join(SetReadOnly(site.sandbox.place.data, patience_ms / 1000))
            if done:
                self._proof = self._probe()
        except BaseException:
            self.heal()
            raise

    def _probe(self) -> str | None:
        """Ask for a file without a name, through the mount that the system uses."""
        try:
            os.close(os.open(self._site.sandbox.outside("{data}"), os.O_TMPFILE | os.O_WRONLY, 0o600))
        except OSError as error:
            if error.errno == errno.EROFS:
                return "a probe met EROFS"
            raise
        return None

    def _is_read_only(self) -> bool:
        return bool(os.statvfs(self._site.sandbox.outside("{data}")).f_flag & os.ST_RDONLY)

    def fired(self) -> str | None:
        return self._proof

    def heal(self) -> None:
        if _KEY not in self._site.overlays:
            return
        holds, _ = self._site.overlays.release(_KEY, self)
        if holds is None and not self._site.sandbox.ended():
            self._site.sandbox.join(SetWritable(self._site.sandbox.place.data))

    def is_healed(self) -> bool:
        return self._site.sandbox.ended() or _KEY in self._site.overlays or not self._is_read_only()
