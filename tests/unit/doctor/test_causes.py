"""Why namespaces are refused: from given texts, and on this machine."""

from __future__ import annotations

import os

import pytest

from colos.chaos.mechanisms.userns import causes, probe, read_settings

APPARMOR = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"
CLONE = "/proc/sys/kernel/unprivileged_userns_clone"
STATUS = "/proc/self/status"
PROFILE = "/proc/self/attr/current"
MOUNTS = "/proc/self/mountinfo"
LIMITS = {f"/proc/sys/user/max_{kind}_namespaces": "96365\n" for kind in ("user", "pid", "mnt", "net", "ipc", "uts")}

ORDINARY = "Name:\tpython\nCapEff:\t0000000000000000\nSeccomp:\t0\nSeccomp_filters:\t0\n"
ROOT = ORDINARY.replace("0000000000000000", "000001ffffffffff")
FILTERED = ORDINARY.replace("Seccomp:\t0", "Seccomp:\t2")
PLAIN_MOUNTS = (
    "22 27 0:21 / /proc rw,relatime - proc proc rw\n"
    "31 22 0:29 / /proc/sys/fs/binfmt_misc rw,relatime - autofs systemd-1 rw\n"
)
DOCKER_MOUNTS = "22 27 0:21 / /proc rw - proc proc rw\n90 22 0:5 /null /proc/kcore rw,nosuid - tmpfs tmpfs rw\n"

#: A machine that refuses nothing; each case changes one file of it.
FREE = {**LIMITS, APPARMOR: "0\n", CLONE: "1\n", STATUS: ORDINARY, PROFILE: "unconfined\n", MOUNTS: PLAIN_MOUNTS}


def test_a_machine_that_refuses_nothing_has_no_cause() -> None:
    assert causes(FREE) == []
    assert causes({**LIMITS, STATUS: ORDINARY}) == [], "a kernel without the distributions' switches"


@pytest.mark.parametrize(
    ("path", "text", "reason", "cure"),
    [
        (APPARMOR, "1\n", "AppArmor", "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"),
        (CLONE, "0\n", "unprivileged_userns_clone=0", "sysctl -w kernel.unprivileged_userns_clone=1"),
        *(
            (path, "0\n", f"max_{path.split('_')[1]}_namespaces=0", f"sysctl -w user.{path[15:]}=15000")
            for path in LIMITS
        ),
        (STATUS, FILTERED, "seccomp", "docker run --security-opt seccomp=unconfined"),
        (PROFILE, "docker-default (enforce)\n", "docker-default", "docker run --security-opt apparmor=unconfined"),
        (MOUNTS, DOCKER_MOUNTS, "/proc", "docker run --security-opt systempaths=unconfined"),
    ],
)
def test_each_usual_cause_is_named_with_its_command(path: str, text: str, reason: str, cure: str) -> None:
    (cause,) = causes({**FREE, path: text})
    assert reason in cause.reason
    assert cause.cure.startswith(cure)


def test_a_kernel_without_user_namespaces() -> None:
    (cause,) = causes({STATUS: ORDINARY})
    assert "CONFIG_USER_NS=y" in cause.cure


def test_root_is_not_told_of_switches_that_are_for_others() -> None:
    assert causes({**FREE, APPARMOR: "1\n", CLONE: "0\n", STATUS: ROOT}) == []
    assert len(causes({**FREE, "/proc/sys/user/max_user_namespaces": "0\n", STATUS: ROOT})) == 1


def test_several_causes_are_all_named() -> None:
    docker = {**FREE, APPARMOR: "1\n", STATUS: FILTERED, PROFILE: "docker-default (enforce)\n", MOUNTS: DOCKER_MOUNTS}
    assert len(causes(docker)) == 4


def test_this_machine_s_own_settings_are_read() -> None:
    found = read_settings()
    with open(STATUS) as file:
        assert f"Uid:\t{os.getuid()}\t" in file.read()
    assert f"Uid:\t{os.getuid()}\t" in found[STATUS]
    assert " / " in found[MOUNTS]
    assert probe() == ("; ".join(cause.reason for cause in causes(found)) or None)
