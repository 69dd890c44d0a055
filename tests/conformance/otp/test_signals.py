"""Promises 1 to 6: the order of signals, exit signals, links, and spawning linked or monitored."""

from __future__ import annotations

from typing import Any

import otp_signals as scenes
import pytest
from hypothesis import given
from hypothesis import strategies as st
from otp_drive import FEW, REASONS, Otp, erlang

#: observed.txt, word for word.
OBSERVED = """
exit2 trap=false reason=normal -> ignored
exit2 trap=false reason=kill -> {dies,killed}
exit2 trap=false reason=killed -> {dies,killed}
exit2 trap=false reason=shutdown -> {dies,shutdown}
exit2 trap=false reason={shutdown,x} -> {dies,{shutdown,x}}
exit2 trap=false reason=foo -> {dies,foo}
exit2 trap=true reason=normal -> {message,{'EXIT',pid,normal}}
exit2 trap=true reason=kill -> {dies,killed}
exit2 trap=true reason=killed -> {message,{'EXIT',pid,killed}}
exit2 trap=true reason=shutdown -> {message,{'EXIT',pid,shutdown}}
exit2 trap=true reason={shutdown,x} -> {message,{'EXIT',pid,{shutdown,x}}}
exit2 trap=true reason=foo -> {message,{'EXIT',pid,foo}}
link  trap=false reason=normal -> ignored
link  trap=false reason=kill -> {dies,kill}
link  trap=false reason=killed -> {dies,killed}
link  trap=false reason=shutdown -> {dies,shutdown}
link  trap=false reason=foo -> {dies,foo}
link  trap=true reason=normal -> {message,{'EXIT',pid,normal}}
link  trap=true reason=kill -> {message,{'EXIT',pid,kill}}
link  trap=true reason=killed -> {message,{'EXIT',pid,killed}}
link  trap=true reason=shutdown -> {message,{'EXIT',pid,shutdown}}
link  trap=true reason=foo -> {message,{'EXIT',pid,foo}}
self-exit2 trap=false reason=normal -> {dies,normal}
self-exit2 trap=false reason=kill -> {dies,killed}
self-exit2 trap=false reason=foo -> {dies,foo}
self-exit2 trap=true reason=normal -> {message,{'EXIT',pid,normal}}
self-exit2 trap=true reason=kill -> {dies,killed}
self-exit2 trap=true reason=foo -> {message,{'EXIT',pid,foo}}
""".strip().splitlines()


def read(line: str) -> tuple[str, bool, object, tuple[Any, ...]]:
    """A line of observed.txt: what was done, and its outcome as the scenes say it."""
    left, _, right = line.partition(" -> ")
    what, trap, reason = left.split()
    outcome = erlang(right)
    if outcome == "ignored":
        outcome = ("ignored",)
    elif outcome[0] == "message":
        outcome = ("message", outcome[1][2])
    return what, trap == "trap=true", erlang(reason.partition("=")[2]), outcome


@pytest.mark.parametrize("line", OBSERVED)
def test_a_signal_does_what_otp_was_seen_to_do(otp: Otp, line: str) -> None:
    """Promises 2, 3, 4: the lines `exit2`, `link` and `self-exit2` of observed.txt.

    Erlang Reference Manual, Processes, Receiving Exit Signals; erlang:exit/2; process_flag(trap_exit).
    """
    what, trap, reason, outcome = read(line)
    if what == "exit2":
        assert otp.run(scenes.exit2, trap, reason)[0] == outcome
    elif what == "link":
        assert otp.run(scenes.by_link, trap, trap, reason) == [outcome, trap]
    else:
        assert otp.run(scenes.self_exit2, trap, reason) == outcome


def exit2_outcome(trap: bool, reason: object) -> tuple[object, ...]:
    if reason == "kill":
        return ("dies", "killed")
    if trap:
        return ("message", reason)
    return ("ignored",) if reason == "normal" else ("dies", reason)


@FEW
@given(trap=st.booleans(), reason=REASONS)
def test_an_exit_signal_with_any_reason(otp: Otp, trap: bool, reason: object) -> None:
    """Promises 2 and 3: erlang:exit/2, of a reason that is any term, and of normal and kill.

    Who lives through it is then killed, trapping or not, and dies as *killed*.
    """
    outcome = exit2_outcome(trap, reason)
    assert otp.run(scenes.exit2, trap, reason) == [outcome, outcome[1] if outcome[0] == "dies" else "killed"]


@FEW
@given(reason=REASONS)
def test_a_process_ends_with_the_reason_it_gives(otp: Otp, reason: object) -> None:
    """erlang:exit/1: the reason is any term, and `kill` given so stays `kill` (observed.txt: link ... reason=kill)."""
    assert otp.run(scenes.raise_exit, reason) == reason


@FEW
@given(before=st.booleans(), trap=st.booleans(), reason=REASONS)
def test_the_flag_counts_when_the_signal_is_received(otp: Otp, before: bool, trap: bool, reason: object) -> None:
    """Promise 4.  Erlang Reference Manual, Processes, Receiving Exit Signals: what matters is whether the receiver
    traps when it receives, not when the link was made; process_flag/2 returns the old value."""
    if trap:
        outcome: tuple[object, ...] = ("message", reason)
    else:
        outcome = ("ignored",) if reason == "normal" else ("dies", reason)
    assert otp.run(scenes.by_link, before, trap, reason) == [outcome, before]


@st.composite
def graphs(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]], set[int], int]:
    size = draw(st.integers(2, 6))
    pairs = st.tuples(st.integers(0, size - 1), st.integers(0, size - 1)).filter(lambda pair: pair[0] != pair[1])
    edges = draw(st.lists(pairs, min_size=1, max_size=8)) or [(0, 1)]
    return size, edges, draw(st.sets(st.integers(0, size - 1), max_size=size)), draw(st.integers(0, size - 1))


@FEW
@given(links=graphs(), reason=REASONS)
def test_an_abnormal_end_goes_along_links_unchanged(otp: Otp, links: Any, reason: object) -> None:
    """Promise 4.  Erlang Reference Manual, Processes, Links: an exit signal with the same reason goes to all linked
    processes, on along chains and circles, and stops at who traps; *normal* kills nobody."""
    size, edges, trapping, first = links
    near: dict[int, set[int]] = {number: set() for number in range(size)}
    for one, other in edges:
        near[one].add(other)
        near[other].add(one)
    dead, fresh = {first}, [first]
    while fresh:
        linked = near[fresh.pop()]
        reached = set() if reason == "normal" else linked - dead - trapping
        dead |= reached
        fresh += reached
    told = [(other, one, reason) for one in dead for other in near[one] - dead if other in trapping]
    died, heard, alive = otp.run(scenes.graph, size, edges, trapping, first, reason, len(dead), len(told))
    assert died == dict.fromkeys(dead, reason)
    assert heard == sorted(told, key=repr)  # each linked pair once, however often it linked
    assert alive == set(range(size)) - dead


SIZES = st.sampled_from([0, 10, 70_000, 1_500_000])  # large ones may travel another way, and still in order


@FEW
@given(
    operations=st.lists(st.tuples(st.sampled_from(["send", "named", "nowait", "exit"]), SIZES), max_size=25),
    last=REASONS.filter(lambda reason: not (isinstance(reason, tuple) and reason[:1] == ("number",))),
)
def test_signals_of_a_pair_keep_their_order(otp: Otp, operations: list[tuple[str, int]], last: object) -> None:
    """Promises 1 and 9.  Erlang Reference Manual, Processes, Delivery of Signals: "if an entity sends multiple signals
    to the same destination entity, the order is preserved"; the link's and the monitor's signals come last, once."""
    heard, ends, left = otp.run(scenes.order, operations, last)
    assert heard == list(range(len(operations)))
    assert ends == [(len(operations), last)] * 2
    assert left == 0


@FEW
@given(
    operations=st.lists(
        st.tuples(st.sampled_from(["call", "cast", "cast_nowait", "send", "exit"]), SIZES), min_size=1, max_size=25
    )
)
def test_signals_to_an_actor_keep_their_order(otp: Otp, operations: list[tuple[str, int]]) -> None:
    """Promise 1: the same of gen_server's calls and casts, which are messages (gen_server(3))."""
    assert otp.run(scenes.order_to_an_actor, operations) == list(range(len(operations)))


@FEW
@given(counts=st.lists(st.integers(0, 60), min_size=2, max_size=4))
def test_several_senders_are_each_heard_in_order(otp: Otp, counts: list[int]) -> None:
    """Promise 1.  Delivery of Signals: nothing is said of the order between different senders; each one's stands."""
    assert otp.run(scenes.several_speakers, counts) == [list(range(count)) for count in counts]


@FEW
@given(
    operations=st.lists(st.tuples(st.integers(0, 1), st.sampled_from(["link", "link", "unlink"])), max_size=6),
    dies=st.integers(0, 1),
    reason=REASONS,
)
def test_a_pair_has_one_link(otp: Otp, operations: list[tuple[int, str]], dies: int, reason: object) -> None:
    """Promise 5.  Erlang Reference Manual, Processes, Links: two-way, and there is only one between two processes;
    observed.txt: link x3, unlink x1, kill -> []."""
    linked = bool(operations) and operations[-1][1] == "link"
    assert otp.run(scenes.link_history, operations, dies, reason) == ([reason] if linked else [])


def test_three_links_are_undone_by_one_unlink(otp: Otp) -> None:
    """Promise 5: observed.txt, `link x3, unlink x1, kill -> []`."""
    operations = [(0, "link"), (0, "link"), (0, "link"), (0, "unlink")]
    assert otp.run(scenes.link_history, operations, 1, "kill") == []


def test_after_unlink_no_exit_of_that_link_comes(otp: Otp) -> None:
    """Promise 5.  erlang:unlink/1: once it has returned, the link has no effect on the caller any more; what had come
    before may be in the mailbox."""
    assert otp.run(scenes.unlink_race, 40) == []


@pytest.mark.parametrize(("trap", "outcome"), [(False, ("dies", "noproc")), (True, ("message", "noproc"))])
def test_linking_the_dead_says_noproc(otp: Otp, trap: bool, outcome: tuple[str, str]) -> None:
    """Promise 5: observed.txt, `link dead pid`."""
    assert otp.run(scenes.link_dead, trap) == outcome


@FEW
@given(reason=REASONS | st.just("SIGKILL"))
def test_spawning_linked_and_monitored_is_atomic(otp: Otp, reason: object) -> None:
    """Promise 6.  erlang:spawn_opt/4, Option link, monitor: as if in one step; so one that dies with its first breath
    is never told of as *noproc*, nor missed."""
    expected = "killed" if reason == "SIGKILL" else reason
    assert otp.run(scenes.spawn_both, reason, 5) == [(expected, expected)] * 5


@FEW
@given(reason=REASONS.filter(lambda reason: reason != "normal"))
def test_a_linked_child_and_its_parent_die_together(otp: Otp, reason: object) -> None:
    """Promise 6, of those that do not trap: erlang:spawn_link/3."""
    assert otp.run(scenes.spawn_link_kills, reason) == reason
    assert otp.run(scenes.link_survives_its_maker, reason) == reason


def test_an_unlinked_child_outlives_its_parent(otp: Otp) -> None:
    """erlang:spawn/3 makes neither a link nor an owner; docs/runtime.md, Processes."""
    assert otp.run(scenes.outlives_its_parent)
