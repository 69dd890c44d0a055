"""Seccomp user notification: real calls of real processes, in helpers that fork and trap themselves."""

import errno
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[2]
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
USERS = ["as we are", "nobody"] if os.geteuid() == 0 and shutil.which("setpriv") else ["as we are"]


def scenario(name, user="as we are"):
    command = [sys.executable, str(HERE / "syscalls_scenarios.py"), name]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
    prefix = NOBODY if user == "nobody" else []
    done = subprocess.run([*prefix, *command], env=environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


PROBED = scenario("probing")
needs_notification = pytest.mark.skipif(PROBED["answers"][0] is not None, reason=str(PROBED["answers"][0]))


def test_probing_answers_twice_alike_and_leaves_nothing():
    first, second = PROBED["answers"]
    assert first == second
    assert first is None or len(first) > 20  # a reason that a person can read
    assert PROBED["children"] == "ECHILD"
    assert PROBED["same_fds"]


def test_probing_in_a_process_with_threads_is_refused():
    assert "threads" in scenario("probing_with_threads")


@needs_notification
@pytest.mark.parametrize("user", USERS)
def test_probing_says_why_not(user):
    assert "already has a seccomp listener" in scenario("probing_below_a_listener", user)


@needs_notification
@pytest.mark.parametrize("user", USERS)
def test_a_call_is_let_go_failed_or_answered(user):
    got = scenario("answers", user)
    assert got["parent"]
    assert got["given"] == [errno.errorcode[errno.EDQUOT], 1 << 40]
    # call, arguments, pid known, valid before; answered; invalid after; a second answer reaches nobody
    assert got["seen"] == [["getppid", [kind, 7, 1 << 50], True, True, True, False, False] for kind in (1, 2, 3)]


@needs_notification
def test_only_calls_that_meet_a_condition_are_trapped():
    assert scenario("conditions") == [["getppid", 1], ["getppid", 2], ["getppid", 4], ["fsync", 998]]


def test_a_trap_that_can_never_be_is_refused():
    assert len(scenario("unknown")) == 3


@needs_notification
@pytest.mark.skipif(platform.machine() != "x86_64", reason="x32 numbers exist on x86_64 only")
def test_a_foreign_call_is_none_of_ours():
    (result, _), seen = scenario("foreign_calls")
    assert seen == []
    assert result != 0


@needs_notification
@pytest.mark.parametrize("user", USERS)
def test_grandchildren_are_trapped(user):
    stderr, seen = scenario("inheritance", user)
    assert "Input/output error" in stderr
    assert len(seen) == 1


@needs_notification
@pytest.mark.parametrize("user", USERS)
def test_the_callers_memory_is_read_and_written_up_to_its_edge(user):
    theirs, ours = scenario("memory", user)
    assert theirs == "HELLO"
    assert ours == {
        "read": "hello",
        "nothing": 0,
        "edge": "/edge",
        "unmapped": "EFAULT",
        "path_unmapped": "EFAULT",
        "path_too_long": "ENAMETOOLONG",
        "path_longest": 4095,
    }


@needs_notification
@pytest.mark.parametrize("user", USERS)
def test_a_duplicated_descriptor_shares_its_offset_in_every_thread(user):
    content, seen, nobody = scenario("descriptors", user)
    assert content == "ours theirs ours "
    # bytes written, not inheritable, called by the first thread, a descriptor that is not open
    assert seen == [[5, False, True, "EBADF"], [5, False, False, "EBADF"]]
    assert nobody == "ESRCH"


@needs_notification
def test_a_caller_killed_before_its_answer_is_told_apart():
    *answers, hung_up = scenario("vanished")
    assert answers == [False, False, False, False, "ESRCH"]
    assert hung_up


@needs_notification
def test_a_caller_killed_before_it_is_received_is_nothing_to_answer():
    assert scenario("never_received") is None


@needs_notification
def test_a_signal_does_not_make_a_call_happen_twice():
    (value, handled), waits = scenario("signals")
    if len(waits) > 1:
        pytest.skip("before Linux 5.19 a signal makes the kernel ask again")
    assert (value, handled) == (77, 1)
    assert waits == [[True, True]]  # the signal was pending, and the caller still waited


@needs_notification
def test_when_the_supervisor_is_gone_trapped_calls_fail():
    assert scenario("supervisor_gone") == ["done", [None, "ENOSYS"]]
