"""Why this machine refuses a sandbox of kernel namespaces: the usual causes, read from its settings.

An unshare(2) or a mount(2) that is refused says EPERM or ENOSPC and nothing else, so `causes` looks
at what is known to refuse them.  It is pure; `read_settings` reads the files that it wants.

Sources: user_namespaces(7), namespaces(7), apparmor(7), seccomp(2), proc(5); Ubuntu's and Debian's
own switches; the default profiles of Docker and Podman.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["Cause", "causes", "probe", "read_settings"]

_APPARMOR = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"
_CLONE = "/proc/sys/kernel/unprivileged_userns_clone"
_LIMITS = tuple(f"/proc/sys/user/max_{kind}_namespaces" for kind in ("user", "pid", "mnt", "net", "ipc", "uts"))
_USER_LIMIT = _LIMITS[0]
_STATUS = "/proc/self/status"
_PROFILE = "/proc/self/attr/current"
_MOUNTS = "/proc/self/mountinfo"

_CAP_SYS_ADMIN = 21
_SECCOMP_FILTER = "2"
#: Some of what Docker and Podman mask or make read-only.
_COVERED = ("/proc/kcore", "/proc/keys", "/proc/sys", "/proc/timer_list", "/proc/bus", "/proc/sysrq-trigger")


class Cause(NamedTuple):
    """One setting that refuses, and the command that changes it."""

    reason: str
    cure: str


def read_settings() -> dict[str, str]:
    """The text of every file that `causes` looks at and that is there."""
    found: dict[str, str] = {}
    for path in (_APPARMOR, _CLONE, *_LIMITS, _STATUS, _PROFILE, _MOUNTS):
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                found[path] = file.read()
        except OSError:
            continue  # this kernel has no such switch: it refuses nothing
    return found


def causes(settings: Mapping[str, str]) -> list[Cause]:
    """What in these settings (path → text) is known to refuse namespaces, with its cure."""
    found: list[Cause] = []
    status = _fields(settings.get(_STATUS, ""))
    privileged = bool(int(status.get("CapEff", "0"), 16) >> _CAP_SYS_ADMIN & 1)
    if _USER_LIMIT not in settings:
        found.append(Cause("this kernel has no user namespaces", "use a kernel built with CONFIG_USER_NS=y"))
    found += [
        Cause(f"{_name(path)}=0 allows none at all", f"sysctl -w {_name(path)}=15000")
        for path in _LIMITS
        if settings.get(path, "").strip() == "0"
    ]
    if not privileged:  # neither switch is asked for a process that may administer the system
        if settings.get(_APPARMOR, "").strip() not in ("", "0"):
            what = "AppArmor restricts unprivileged user namespaces: a new one has no capabilities in it"
            found.append(Cause(f"{what} ({_name(_APPARMOR)}=1, as on Ubuntu 24.04)", f"sysctl -w {_name(_APPARMOR)}=0"))
        if settings.get(_CLONE, "").strip() == "0":
            found.append(Cause(f"{_name(_CLONE)}=0, as on older Debian", f"sysctl -w {_name(_CLONE)}=1"))
    if status.get("Seccomp") == _SECCOMP_FILTER:
        found.append(
            Cause(
                "a seccomp filter is over this process: a container's default profile, such as Docker's, refuses "
                "unshare(2) and mount(2)",
                "docker run --security-opt seccomp=unconfined … (or --privileged)",
            )
        )
    profile, _, mode = settings.get(_PROFILE, "").strip(" \n\0").rpartition(" ")
    if mode == "(enforce)":
        found.append(
            Cause(
                f"the AppArmor profile {profile!r} is enforced on this process; a container's, such as "
                "docker-default, refuses mount(2)",
                "docker run --security-opt apparmor=unconfined … (or --privileged)",
            )
        )
    if _hides_proc(settings.get(_MOUNTS, "")):
        found.append(
            Cause(
                "parts of /proc are covered, as containers do it, so the kernel lets nobody mount a whole one",
                "docker run --security-opt systempaths=unconfined … (or --privileged)",
            )
        )
    return found


def probe() -> str | None:
    """None where no known setting refuses namespaces; else the reasons."""
    return "; ".join(cause.reason for cause in causes(read_settings())) or None


def _name(path: str) -> str:
    """A switch as sysctl(8) calls it."""
    return path.removeprefix("/proc/sys/").replace("/", ".")


def _fields(status: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in status.splitlines())
    return {name: value.strip() for name, _, value in pairs}


def _hides_proc(mountinfo: str) -> bool:
    """Whether what containers cover in /proc is covered.  Over an empty directory, a mount hides nothing."""
    return any(len(fields := line.split()) > 4 and fields[4] in _COVERED for line in mountinfo.splitlines())
