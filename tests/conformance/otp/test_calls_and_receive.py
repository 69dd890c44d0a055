"""Promises 10 and 11: how calls and tasks end, selective receive, timers, full mailboxes."""

from __future__ import annotations

import otp_calls as scenes
import pytest
from hypothesis import given
from hypothesis import strategies as st
from otp_drive import FEW, REASONS, Otp

GONE = ("NoSuchActor", "ActorExited", "ConnectionLost")


def says(end: tuple[object, ...], reason: object) -> bool:
    """Whether a call's failure says this reason; who came too late to be taken on may hear noproc."""
    if end[0] not in (*GONE, "Exit"):
        return False
    return end[1] in (reason, "noproc") or str(reason) in str(end[2]) or "noproc" in str(end[2])


@FEW
@given(values=st.lists(st.integers() | st.text() | st.binary() | st.none(), min_size=1, max_size=12))
def test_each_call_gets_its_own_reply(otp: Otp, values: list[object]) -> None:
    """Promise 10.  gen_server:call/2: a synchronous call, which waits for its own reply."""
    assert otp.run(scenes.answers, values) == values


def test_an_exception_comes_to_the_caller_and_ends_the_callee(otp: Otp) -> None:
    """Promise 10; docs/runtime.md, Actors and Reasons: an expected one is an answer, every other is a crash."""
    refused, alive, failed, reason = otp.run(scenes.failures, "no such account")
    assert refused == ("Refused", "no such account")
    assert alive == ("reply", 1)
    assert failed[:1] == ("ValueError",)
    assert "no such account" in failed[1]
    assert reason == "error: ValueError: no such account"


def test_a_call_to_the_dead_says_that_nobody_is_there(otp: Otp) -> None:
    """Promise 10: observed.txt, `call dead -> noproc`; here it certainly did not happen."""
    assert set(otp.run(scenes.call_to_the_dead)) <= {"NoSuchActor", "ActorExited"}


@FEW
@given(
    how=st.sampled_from(["signal", "SIGKILL"]),
    callers=st.integers(1, 4),
    reason=REASONS.filter(lambda reason: reason != "normal"),
)
def test_a_call_to_who_dies_meanwhile_says_of_what(otp: Otp, how: str, callers: int, reason: object) -> None:
    """Promise 10.  gen_server:call/2: the call fails with the reason of the server's end; a busy process
    too dies at once of a signal that it does not trap (Erlang Reference Manual, Processes, Receiving Exit Signals)."""
    ends, told = otp.run(scenes.call_to_the_dying, reason, how, callers)
    died_of = "killed" if how == "SIGKILL" or reason == "kill" else reason
    assert told == died_of
    assert len(ends) == callers
    assert all(says(end, died_of) for end in ends), ends


@FEW
@given(reason=REASONS)
def test_a_method_may_end_its_actor(otp: Otp, reason: object) -> None:
    """Promise 10.  gen_server(3): exit(Reason) in a callback ends the server with Reason, and so the call."""
    end, told = otp.run(scenes.call_that_ends_the_callee, reason)
    assert told == reason
    assert says(end, reason), end


@FEW
@given(reason=REASONS)
def test_stopping_answers_first(otp: Otp, reason: object) -> None:
    """Promise 10.  gen_server(3): {stop,Reason,Reply,NewState} gives the reply, then the server ends with Reason."""
    assert otp.run(scenes.stop_answers_first, reason) == [("reply", "the last answer"), reason]


@FEW
@given(count=st.integers(1, 4))
def test_a_late_reply_reaches_nobody(otp: Otp, count: int) -> None:
    """Promise 10: observed.txt, `call timeout -> timeout`.  gen_server:call/3: since OTP 24 no late reply comes."""
    ends, later, left = otp.run(scenes.late_replies, count)
    assert ends == ["CallTimeout"] * count
    assert later == [0, 1, 2]
    assert left == []


@FEW
@given(reason=REASONS)
def test_a_task_says_how_it_ended(otp: Otp, reason: object) -> None:
    """docs/runtime.md, Processes, start_task: what it returned, what it raised, or the reason it died of."""
    value, text, died, waited, cancelled, after = otp.run(scenes.task_ends, reason)
    assert (value, text, waited, after) == (7, "text", "TimeoutError", "ActorExited")
    assert died == ("ActorExited", reason)
    assert cancelled == "killed"


@FEW
@given(size=st.integers(1, 5), killed=st.sets(st.integers(0, 4)))
def test_a_pool_whose_workers_are_killed_does_not_hang(otp: Otp, size: int, killed: set[int]) -> None:
    """What users of others complain about: cpython #96062 #82265, celery #2011, dramatiq #260 #505."""
    killed = {number for number in killed if number < size}
    assert otp.run(scenes.pool, size, killed) == [
        "killed" if number in killed else number for number in range(size)
    ]  # fmt: skip


# --- receive -----------------------------------------------------------------------------

MESSAGES = st.lists(
    st.integers(0, 5) | st.sampled_from(["a", "b"]) | st.binary(max_size=2) | st.tuples(st.integers(0, 5)), max_size=12
)
MATCHES = st.lists(st.sampled_from(sorted(scenes.MATCHES)), max_size=10)


def matches(name: str, message: object) -> bool:
    match = scenes.MATCHES[name]
    if match is None:
        return True
    return isinstance(message, match) if isinstance(match, type | tuple) else match(message)


def take(mailbox: list[object], name: str) -> object:
    """What selective receive takes out: the first that matches."""
    for number, message in enumerate(mailbox):
        if matches(name, message):
            return mailbox.pop(number)
    return "nothing"


@FEW
@given(messages=MESSAGES, names=MATCHES)
def test_selective_receive_keeps_what_it_skips_in_order(otp: Otp, messages: list[object], names: list[str]) -> None:
    """Promise 11.  Erlang Reference Manual, Expressions, Receive: what matches is taken out, what does not
    stays as it was; `after 0` looks once."""
    mailbox = list(messages)
    taken = [take(mailbox, name) for name in names]
    assert otp.run(scenes.selective, messages, names) == [taken, mailbox]


@FEW
@given(messages=MESSAGES, names=MATCHES)
def test_selective_receive_while_messages_come(otp: Otp, messages: list[object], names: list[str]) -> None:
    """Promise 11: the same when the process waits, however far the messages have come."""
    mailbox: list[object] = list(messages)
    wanted = []
    taken = []
    for name in names:
        if any(matches(name, message) for message in mailbox):
            wanted.append(name)
            taken.append(take(mailbox, name))
    assert otp.run(scenes.selective_while_they_come, messages, wanted) == [taken, mailbox]


@FEW
@given(
    delays_s=st.lists(st.sampled_from([0.0, 0.001, 0.01, 0.03]), min_size=1, max_size=8),
    cancelled=st.sets(st.integers(0, 7)),
    by_name=st.booleans(),
)
def test_a_cancelled_timer_is_silent_or_has_come(
    otp: Otp, delays_s: list[float], cancelled: set[int], by_name: bool
) -> None:
    """Promise 11.  erlang:cancel_timer/1: a time left means it will not come, false that it was over; send_after/3."""
    pending, came, again = otp.run(scenes.timers, delays_s, cancelled, by_name)
    assert came == [number for number in range(len(delays_s)) if number not in pending]
    assert set(pending) <= cancelled
    assert not again  # none is pending any more


def test_a_timer_to_nobody_is_silent(otp: Otp) -> None:
    """erlang:send_after/3: nobody need have the name when the time is up; sending to the dead is silent."""
    assert otp.run(scenes.timer_to_the_dead) == "later"


@pytest.mark.parametrize("plain", [True, False], ids=["function", "actor"])
def test_a_send_has_a_deadline(otp: Otp, plain: bool) -> None:
    """Promise 11; docs/runtime.md, send and send_nowait: `MailboxFull`, then it was not sent; what was, comes."""
    assert otp.run(scenes.send_has_a_deadline, plain) == [True, True]


def test_a_mailbox_that_drops_the_oldest(otp: Otp) -> None:
    """docs/runtime.md, Actors, mailbox_overflow: casts never wait, the newest is kept, a call is never dropped."""
    answered, seen = otp.run(scenes.drop_oldest, 3000)
    assert answered == ["kept"]
    assert seen == sorted(set(seen))
    assert seen[-1] == 2999
    assert len(seen) < 3000
