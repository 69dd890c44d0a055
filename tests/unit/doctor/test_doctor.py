"""The doctor's table and its JSON, on this machine and, made inside a namespace, on one that refuses namespaces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from colos.chaos.doctor import Finding, find, table
from colos.chaos.fault import FAMILIES
from colos.chaos.faults import fault_kinds
from colos.chaos.sandbox.session import Session

ROOT = Path(__file__).parents[3]
WIDTH = 100

#: Becomes a machine where nobody may make a user namespace: the limit belongs to the new one, and the host's stays.
REFUSING = """
import os, sys
from colos.chaos.mechanisms import kernel
uid, gid, host = os.getuid(), os.getgid(), os.readlink("/proc/self/ns/user")
try:
    kernel.unshare(kernel.CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    assert os.readlink("/proc/self/ns/user") != host
    with open("/proc/sys/user/max_user_namespaces", "w") as file:
        file.write("0")
except OSError as error:
    print(error)
    sys.exit(77)
os.execv(sys.executable, [sys.executable, "-m", "colos", "doctor", *sys.argv[1:]])
"""


def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run("-m", "colos", "doctor", *arguments)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=60, env=environment, check=False
    )


def refused(*arguments: str) -> str:
    done = run("-c", REFUSING, *arguments)
    if done.returncode == 77:
        pytest.skip(f"no machine that refuses can be made here: {done.stdout}")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def check(told: dict[str, Any]) -> None:
    """What JSON promises, whatever the machine."""
    assert told.keys() == {"tier", "faults"}
    for fault in told["faults"]:
        assert fault.keys() == {"kind", "family", "available", "mechanism", "reason", "cure"}
        if fault["available"]:
            assert (fault["reason"], fault["cure"]) == (None, None)
            assert fault["mechanism"]
        else:
            assert fault["mechanism"] is None
            assert fault["reason"]
            assert fault["cure"]
    assert {fault["kind"] for fault in told["faults"]} == set(fault_kinds())
    families = [FAMILIES.index(fault["family"]) for fault in told["faults"]]
    assert families == sorted(families)


def test_json_is_all_that_is_printed() -> None:
    done = doctor("--json")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["tier"] in ("namespaces", "bare")
    check(told)


def test_a_tier_can_be_asked_for() -> None:
    told = json.loads(doctor("--json", "--sandbox", "bare").stdout)
    assert told["tier"] == "bare"
    check(told)


def test_the_table_says_what_json_says() -> None:
    done = doctor("--sandbox", "bare")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= WIDTH
    faults = json.loads(doctor("--json", "--sandbox", "bare").stdout)["faults"]
    for fault in faults:
        (line,) = (line for line in lines if line.split()[:1] == [fault["kind"]] and line.startswith("  "))
        assert line.split()[1] == (fault["mechanism"].split()[0] if fault["available"] else "UNAVAILABLE")
    assert f"{sum(fault['available'] for fault in faults)} of {len(faults)} kinds" in lines[-1]


def test_where_namespaces_are_refused_the_setting_and_its_command_are_named() -> None:
    said = refused()
    assert "sandbox   bare" in said
    assert "namespaces is refused here: [Errno 28]" in said
    assert "because user.max_user_namespaces=0" in said
    assert "cure: sysctl -w user.max_user_namespaces=15000" in said


def test_a_tier_that_is_asked_for_and_refused_is_explained() -> None:
    said = refused("--sandbox", "namespaces")
    assert "sandbox   none" in said
    assert "cure: sysctl -w user.max_user_namespaces=15000" in said
    told = json.loads(refused("--sandbox", "namespaces", "--json"))
    assert told["tier"] is None
    check(told)
    assert not any(fault["available"] for fault in told["faults"])
    assert all("sysctl -w user.max_user_namespaces=15000" in fault["cure"] for fault in told["faults"])


def test_long_reasons_and_mechanisms_stay_in_their_columns() -> None:
    command = "docker run --security-opt seccomp=unconfined --device /dev/fuse --cap-add SYS_ADMIN IMAGE"
    long = Finding("bit-rot", "disk", "flips bits " * 12, True, mechanism="one facility and another " * 3)
    missing = Finding("io-error", "disk", "", False, reason="it is missing " * 20, cure=command)
    lines = list(table([long, missing]))
    assert max(map(len, lines)) <= WIDTH
    assert sum(line.startswith("  bit-rot ") for line in lines) == 1
    said = " ".join(" ".join(lines).split())
    assert f"cure: {command}" in said, "the words of a command are whole and in order"
    assert "UNAVAILABLE because it is missing it" in said
    assert lines[-1].startswith("1 of 2 ")


def test_what_a_kind_answers_is_what_is_found() -> None:
    session = Session("bare")
    try:
        kinds = fault_kinds()
        for finding in find(kinds, session):
            kind = kinds[finding.kind]
            assert finding.available == (kind.unavailable(session) is None)
            assert finding.mechanism == (kind.mechanism(session) if finding.available else None)
    finally:
        session.close()
