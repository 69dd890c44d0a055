"""Promises 7 to 9: monitors, names, groups, and sending to who is not there."""

from __future__ import annotations

import otp_names as scenes
from hypothesis import example, given
from hypothesis import strategies as st
from otp_drive import FEW, REASONS, Otp

NUMBERS = st.sets(st.integers(0, 5), max_size=4)
ENDS = REASONS | st.just("SIGKILL")


def seen(reason: object) -> object:
    """The reason that others see."""
    return "killed" if reason == "SIGKILL" else reason


@FEW
@given(count=st.integers(1, 6), before=NUMBERS, after=NUMBERS, flush=st.booleans(), reason=REASONS)
@example(count=2, before=set(), after=set(), flush=False, reason="foo")
def test_each_monitor_gives_one_down(
    otp: Otp, count: int, before: set[int], after: set[int], flush: bool, reason: object
) -> None:
    """Promise 7.  Erlang Reference Manual, Processes, Monitors: several are independent; erlang:demonitor/2, flush;
    observed.txt: two monitors -> 2 DOWNs, refs distinct true; demonitor flush -> []."""
    before = {number for number in before if number < count}
    downs, left = otp.run(scenes.monitors, count, before, after, flush, reason)
    assert downs == dict.fromkeys(set(range(count)) - before - after, (True, reason))
    assert left == []


@FEW
@given(reason=REASONS)
def test_a_monitor_is_one_way(otp: Otp, reason: object) -> None:
    """Promise 7.  Erlang Reference Manual, Processes, Monitors: an alternative to links, and unidirectional."""
    assert otp.run(scenes.one_way, reason)


def test_monitoring_the_dead_or_nobody_says_noproc(otp: Otp) -> None:
    """Promise 7: observed.txt, `monitor dead` and `monitor unregistered name`: DOWN noproc, with what was asked for."""
    assert otp.run(scenes.monitor_dead) == [True, True, "noproc", 0]
    assert otp.run(scenes.monitor_nobody) == [True, "no_such_name", "noproc", 0]


@FEW
@given(reason=ENDS, moves=st.booleans())
def test_a_monitor_by_name_stays_with_the_process(otp: Otp, reason: object, moves: bool) -> None:
    """Promise 7.  erlang:monitor/2, Monitoring a process: by a name, it is the process that has it now,
    whatever becomes of the name; and the message holds the name."""
    assert otp.run(scenes.monitor_a_name, reason, moves) == [True, True, seen(reason)]


def test_after_demonitor_with_flush_nothing_is_left(otp: Otp) -> None:
    """Promise 7.  erlang:demonitor/2, option flush: the message is taken out, if there is one."""
    assert otp.run(scenes.demonitor_flush, 25) == []


@FEW
@given(
    watchers=st.lists(st.sampled_from(["monitor", "link"]), min_size=1, max_size=4),
    registers=st.booleans(),
    reason=ENDS,
)
def test_a_name_is_free_when_its_holders_death_is_seen(
    otp: Otp, watchers: list[str], registers: bool, reason: object
) -> None:
    """Promise 8: observed.txt, `whereis at DOWN -> undefined`; and of those who then want it at once, one gets it."""
    assert otp.run(scenes.free_at_death, watchers, registers, reason) == [
        [seen(reason)] * len(watchers), [False] * len(watchers), 1, True
    ]  # fmt: skip


def test_names_are_unique_and_a_process_has_one(otp: Otp) -> None:
    """Promise 8.  erlang:register/2, badarg: the name is in use, the process has a name, or is not alive;
    observed.txt, `register twice same pid`."""
    assert otp.run(scenes.one_name_each) == ["NameTaken", "NameTaken", "NameTaken", "error"]


@FEW
@given(count=st.integers(2, 6))
def test_of_several_registrations_one_wins(otp: Otp, count: int) -> None:
    """Promise 8.  erlang:register/2: a name is associated with one process."""
    assert otp.run(scenes.race_for_a_name, count) == [1, True]
    assert otp.run(scenes.race_to_spawn, count) == [1, True]


def test_sending_to_the_dead_is_silent_and_to_an_unknown_name_an_error(otp: Otp) -> None:
    """Promise 9: observed.txt, `send to dead pid -> x; send to unregistered name -> {'EXIT',{badarg,...`."""
    assert otp.run(scenes.send_to_nobody) == ["silence", "NoSuchActor", "NoSuchActor"]


@FEW
@given(count=st.integers(0, 300), reason=REASONS)
def test_what_was_sent_before_death_comes_before_down(otp: Otp, count: int, reason: object) -> None:
    """Promise 9.  Erlang Reference Manual, Processes, Delivery of Signals: a Down is a signal of the dead one's, so
    it is the last."""
    assert otp.run(scenes.last_words, count, reason) == [list(range(count)), reason, 0]


@FEW
@given(count=st.integers(0, 300))
def test_a_killed_senders_messages_come_before_its_down(otp: Otp, count: int) -> None:
    """Promises 1 and 9, of a process that the kernel kills: what it had sent may be lost from some message on, but
    nothing comes after its Down, twice, or out of order."""
    heard, reason, after = otp.run(scenes.last_words, count, "SIGKILL")
    assert heard == list(range(len(heard)))
    assert (reason, after) == ("killed", 0)


@FEW
@given(sizes=st.lists(st.integers(0, 2), min_size=1, max_size=4), leaving=NUMBERS, dying=NUMBERS)
def test_a_publish_reaches_each_member_once(otp: Otp, sizes: list[int], leaving: set[int], dying: set[int]) -> None:
    """docs/runtime.md, Processes, groups; pg(3): the dead are removed.  Unlike in pg, joining twice is joining once,
    which is what "sends to each member" means."""
    leaving = {number for number in leaving if number < len(sizes)}
    dying = {number for number in dying if number < len(sizes)}
    expected = [number for number, joins in enumerate(sizes) if joins and number not in leaving | dying]
    assert otp.run(scenes.groups, sizes, leaving, dying) == [expected, expected, 0]


@FEW
@given(reason=st.sampled_from(["kill", "foo", "shutdown", ("shutdown", 1)]))
def test_a_client_outside_sees_the_same(otp: Otp, reason: object) -> None:
    """Promises 7 and 8 for a NodeClient; docs/runtime.md, Supervisors, "From outside"."""
    expected = "killed" if reason == "kill" else reason
    assert otp.portal.call(scenes.outside, otp.node, reason) == [
        [expected, expected, "noproc"], [True, "no_such_name"], True
    ]  # fmt: skip
