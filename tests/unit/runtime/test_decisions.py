"""A supervisor's decisions, against what OTP 25.2.3 did and against a small model of their own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colos.runtime.decisions import ChildExited, ChildState, Decision, RestartFailed, State, decide, is_abnormal

KINDS: dict[str, Any] = {"p": "permanent", "t": "transient", "x": "temporary"}


def children(text: str) -> tuple[ChildState, ...]:
    """`a b:t c:x!`: permanent a, transient b, significant temporary c, all alive."""
    found = []
    for word in text.split():
        id_, _, kind = word.rstrip("!").partition(":")
        found.append(ChildState(id_, KINDS[kind or "p"], word.endswith("!"), alive=True))
    return tuple(found)


def state(strategy: Any, kids: str, intensity: int = 3, auto_shutdown: Any = "never", period_s: float = 5.0) -> State:
    return State(strategy, auto_shutdown, intensity, period_s, children(kids))


@dataclass
class Executor:
    """Carries decisions out as the root does, on nothing: starts that are in `fails` fail so often."""

    state: State
    fails: dict[str, int] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    end: str | None = None
    why: str = ""
    now: float = 0.0

    def happens(self, event: ChildExited | RestartFailed) -> None:
        decision = decide(self.state, event, self.now)
        self.state, self.end, self.why = decision.state, decision.end, decision.why
        self.log += [f"-{id_}" for id_ in decision.stop]
        for id_ in decision.start:
            if self.fails.get(id_, 0):
                self.fails[id_] -= 1
                self.log.append(f"!{id_}")
                return self.happens(RestartFailed(id_, "error: OSError: x"))
            self.log.append(f"+{id_}")
            self.state = self.state.with_alive(id_, True)
        return None

    def run(self, script: Iterable[tuple[str, object]]) -> str:
        for id_, reason in script:
            self.happens(ChildExited(id_, reason))
        if self.end is not None:
            return f"{' '.join(self.log)} / {self.end}"
        return f"{' '.join(self.log)} / {' '.join(f'{one.id}={int(one.alive)}' for one in self.state.children)}"


FOO = "foo"


@pytest.mark.parametrize(
    ("strategy", "intensity", "kids", "script", "did"),
    [
        # The `sup` lines of shared/otp/observed.txt, in their order: -stopped, +started / what lives.
        ("one_for_one", 1, "a b c", [("b", FOO)], "+b / a=1 b=1 c=1"),
        ("one_for_one", 1, "a b c", [("b", FOO), ("b", FOO)], "+b -c -a / shutdown"),
        ("one_for_all", 1, "a b c", [("b", FOO)], "-c -a +a +b +c / a=1 b=1 c=1"),
        ("rest_for_one", 1, "a b c", [("b", FOO)], "-c +b +c / a=1 b=1 c=1"),
        ("one_for_one", 0, "a b", [("a", FOO)], "-b / shutdown"),
        ("one_for_one", 3, "a b", [("a", FOO), ("b", FOO), ("a", FOO)], "+a +b +a / a=1 b=1"),
        ("one_for_one", 3, "a b", [("a", FOO), ("b", FOO), ("a", FOO), ("b", FOO)], "+a +b +a -a / shutdown"),
        ("one_for_one", 1, "a:t", [("a", "normal")], " / a=0"),
        ("one_for_one", 1, "a:t", [("a", "shutdown")], " / a=0"),
        ("one_for_one", 1, "a:t", [("a", ("shutdown", "x"))], " / a=0"),
        ("one_for_one", 1, "a:t", [("a", FOO)], "+a / a=1"),
        ("one_for_one", 1, "a", [("a", "normal")], "+a / a=1"),
        ("one_for_one", 1, "a:x", [("a", FOO)], " / "),
        ("one_for_all", 1, "a b:x c", [("a", FOO)], "-c -b +a +c / a=1 c=1"),
        # Asked of the same OTP likewise.
        ("one_for_all", 1, "a b:t c", [("b", "normal"), ("c", FOO)], "-a +a +b +c / a=1 b=1 c=1"),
        ("rest_for_one", 1, "a:t b c:t", [("a", "normal"), ("c", "normal"), ("b", FOO)], "+b +c / a=0 b=1 c=1"),
        ("rest_for_one", 1, "a b:x c", [("a", FOO)], "-c -b +a +c / a=1 c=1"),
        ("one_for_all", 0, "a:x b:t c d", [("b", "normal"), ("c", FOO)], "-d -a / shutdown"),
    ],
)
def test_as_otp_did(strategy: str, intensity: int, kids: str, script: list[tuple[str, object]], did: str) -> None:
    assert Executor(state(strategy, kids, intensity)).run(script) == did


@pytest.mark.parametrize(
    ("strategy", "intensity", "kids", "fails", "crash", "did"),
    [
        ("one_for_one", 3, "a b", {"a": 1}, "a", "!a +a / a=1 b=1"),
        ("one_for_all", 3, "a b c", {"b": 1}, "c", "-b -a +a !b -a +a +b +c / a=1 b=1 c=1"),
        ("rest_for_one", 3, "a b c d", {"c": 1}, "b", "-d -c +b !c +c +d / a=1 b=1 c=1 d=1"),
        ("one_for_one", 2, "a b", {"a": 9}, "a", "!a !a -b / shutdown"),
        ("one_for_all", 2, "a b c", {"b": 9}, "a", "-c -b +a !b -a +a !b -a / shutdown"),
        ("dynamic", 2, "1:t 2:t", {"1": 1}, "1", "!1 +1 / 1=1 2=1"),
    ],
)
def test_a_failed_restart_is_tried_again_and_counts(
    strategy: str, intensity: int, kids: str, fails: dict[str, int], crash: str, did: str
) -> None:
    assert Executor(state(strategy, kids, intensity), fails).run([(crash, FOO)]) == did


@pytest.mark.parametrize(
    ("auto_shutdown", "kids", "script", "did"),
    [
        ("any_significant", "a b:t! c:x!", [("b", "normal")], "-c -a / shutdown"),
        ("any_significant", "a b:t!", [("b", FOO)], "+b / a=1 b=1"),
        ("any_significant", "a b:x!", [("b", FOO)], "-a / shutdown"),
        ("any_significant", "a:t b:x!", [("a", "normal")], " / a=0 b=1"),
        ("all_significant", "a b:t! c:x!", [("b", "normal")], " / a=1 b=0 c=1"),
        ("all_significant", "a b:t! c:x!", [("b", "normal"), ("c", FOO)], "-a / shutdown"),
        ("never", "a b:x!", [("b", FOO)], " / a=1"),
    ],
)
def test_automatic_shutdown(auto_shutdown: str, kids: str, script: list[tuple[str, object]], did: str) -> None:
    done = Executor(state("one_for_one", kids, 1, auto_shutdown))
    assert done.run(script) == did
    assert done.why == ("automatic" if did.endswith("shutdown") else "")


def test_a_significant_child_that_its_supervisor_stopped_shuts_nothing_down() -> None:
    done = Executor(state("one_for_all", "a b:x!", 1, "any_significant"))
    assert done.run([("a", FOO)]) == "-b +a / a=1"


def test_all_significant_counts_neither_the_terminated_nor_forgets_dynamic_ones() -> None:
    # terminate_child took b away (OTP: stop b, stop a, shutdown).
    after = state("one_for_one", "a b:t! c:x!", 1, "all_significant").with_alive("b", False)
    assert Executor(after).run([("c", FOO)]) == "-a / shutdown"
    dynamic = Executor(state("dynamic", "1:x! 2:x!", 1, "all_significant"))
    assert dynamic.run([("2", FOO)]) == " / 1=1"
    assert dynamic.run([("1", "normal")]) == " / shutdown"
    restarting = state("dynamic", "1:t! 2:t!", 1, "all_significant").with_alive("1", False)
    assert Executor(restarting).run([("2", "normal")]) == " / 1=0"


@pytest.mark.parametrize(
    ("kids", "reason", "did"),
    [
        ("1:x 2:x 3:x", FOO, " / 1=1 3=1"),
        ("1:t 2:t 3:t", "normal", " / 1=1 3=1"),
        ("1:t 2:t 3:t", FOO, "+2 / 1=1 2=1 3=1"),
        ("1 2 3", "shutdown", "+2 / 1=1 2=1 3=1"),
    ],
)
def test_dynamic_children(kids: str, reason: str, did: str) -> None:
    assert Executor(state("dynamic", kids)).run([("2", reason)]) == did


def test_a_dynamic_supervisor_that_gives_up_drops_the_child_it_gave_up_on() -> None:
    decision = decide(state("dynamic", "1 2 3", 0), ChildExited("2", FOO), 1.0)
    assert (decision.stop, decision.remove, decision.end, decision.why) == (("3", "1"), ("2",), "shutdown", "intensity")
    assert [child.id for child in decision.state.children] == ["1", "3"]


def test_removed_are_the_temporary_ones_that_ended_or_were_stopped() -> None:
    kids = "a b:x c:t d:x"
    assert decide(state("one_for_one", kids), ChildExited("b", FOO), 0.0).remove == ("b",)
    assert decide(state("rest_for_one", kids), ChildExited("c", FOO), 0.0).remove == ("d",)
    assert decide(state("one_for_all", kids), ChildExited("c", FOO), 0.0).remove == ("b", "d")
    gave_up = decide(state("one_for_one", kids, 0), ChildExited("a", FOO), 0.0)
    assert gave_up.remove == ("b", "d")
    assert [child.id for child in gave_up.state.children] == ["a", "c"]


def test_restarts_age_out_of_the_period_and_its_edge_counts() -> None:
    once = decide(state("one_for_one", "a", 1), ChildExited("a", FOO), 10.0).state.with_alive("a", True)
    late = decide(once, ChildExited("a", FOO), 15.001)
    assert (late.start, late.state.restarts) == (("a",), (15.001,))
    at_the_edge = decide(once, ChildExited("a", FOO), 15.0)
    assert (at_the_edge.end, at_the_edge.why, at_the_edge.state.restarts) == ("shutdown", "intensity", (10.0, 15.0))


def test_a_start_that_fails_with_a_clean_reason_has_failed_too() -> None:
    before = state("one_for_one", "a:t").with_alive("a", False)
    assert decide(before, RestartFailed("a", "normal"), 1.0).start == ("a",)


def test_what_is_said_of_the_unknown_or_the_dead_changes_nothing() -> None:
    before = state("one_for_all", "a b").with_alive("b", False)
    for event in (ChildExited("z", FOO), RestartFailed("z", FOO), ChildExited("b", FOO)):
        assert decide(before, event, 1.0) == Decision((), (), (), None, "", before)


@pytest.mark.parametrize(
    ("reason", "abnormal"),
    [
        ("normal", False),
        ("shutdown", False),
        (("shutdown", "x"), False),
        (("shutdown", ("a", 1)), False),
        (("shutdown",), True),
        (("shutdown", 1, 2), True),
        ("killed", True),
        ("exited with status 0", True),
        (None, True),
        (0, True),
        ((), True),
    ],
)
def test_what_is_abnormal(reason: object, abnormal: bool) -> None:
    assert is_abnormal(reason) is abnormal


def test_states_are_values() -> None:
    before = state("one_for_one", "a")
    grown = before.with_child(ChildState("b", "temporary", False, alive=False)).with_alive("b", True)
    assert [(child.id, child.alive) for child in grown.children] == [("a", True), ("b", True)]
    assert grown.without("b") == before == before.without("b")
    with pytest.raises(ValueError, match="'a' already"):
        before.with_child(ChildState("a", "temporary", False, alive=False))
    with pytest.raises(KeyError):
        before.with_alive("b", True)


# --- a model of its own ------------------------------------------------------------------

REASONS = ("normal", "shutdown", ("shutdown", 1), "killed", ("a", "b"), None)
CLEAN = REASONS[:3]
REASON = st.sampled_from(REASONS)


@st.composite
def states(draw: st.DrawFn) -> State:
    strategy = draw(st.sampled_from(("one_for_one", "one_for_all", "rest_for_one", "dynamic")))
    kind = st.sampled_from(("permanent", "transient", "temporary"))
    if strategy == "dynamic":  # one template, and nobody dead stays
        kind = st.just(draw(kind))
    kids = []
    for number in range(draw(st.integers(1, 5))):
        restart = draw(kind)
        significant = restart != "permanent" and draw(st.booleans())
        kids.append(ChildState(str(number), restart, significant, strategy == "dynamic" or draw(st.booleans())))
    auto_shutdown = draw(st.sampled_from(("never", "any_significant", "all_significant")))
    return State(strategy, auto_shutdown, draw(st.integers(0, 4)), float(draw(st.integers(1, 6))), tuple(kids))


@dataclass
class Model:
    """What is to be expected, said another way: from the whole history, by sets and indices."""

    first: State
    restarted_at: list[float] = field(default_factory=list)
    removed: set[str] = field(default_factory=set)

    def check(self, before: State, event: ChildExited | RestartFailed, now: float, decision: Decision) -> None:
        ids = [child.id for child in before.children]
        living = {child.id for child in before.children if child.alive} - {event.child}
        kinds = {child.id: child.restart for child in before.children}
        kind = kinds[event.child]
        again = kind == "permanent" or (
            kind == "transient" and (isinstance(event, RestartFailed) or event.reason not in CLEAN)
        )
        if again:
            self.restarted_at.append(now)
        within = sum(now - at <= before.period_s for at in self.restarted_at)
        gives_up = again and within > before.intensity
        goes_along = not again and self._goes_along(before, event.child)
        assert decision.end == ("shutdown" if gives_up or goes_along else None)
        assert decision.why == ("intensity" if gives_up else "automatic" if goes_along else "")

        touched = set(ids) if decision.end else self._touched(before, event.child) if again else set()
        assert list(decision.stop) == [id_ for id_ in reversed(ids) if id_ in touched & living]
        startable = {id_ for id_ in touched if kinds[id_] != "temporary"}
        assert list(decision.start) == ([] if decision.end else [id_ for id_ in ids if id_ in startable])

        gone = {id_ for id_ in touched if kinds[id_] == "temporary"}
        if not again and kind == "temporary":
            gone.add(event.child)
        if before.strategy == "dynamic" and (not again or gives_up):
            gone.add(event.child)
        assert set(decision.remove) == gone
        assert len(decision.remove) == len(gone)
        self.removed |= gone
        assert not self.removed & set(decision.start)

        after = decision.state
        assert [child.id for child in after.children] == [id_ for id_ in ids if id_ not in gone]
        assert {child.id for child in after.children if child.alive} == living - set(decision.stop) - gone
        assert not {child.id for child in after.children if child.alive} & set(decision.start)

    @staticmethod
    def _touched(before: State, failed: str) -> set[str]:
        ids = [child.id for child in before.children]
        first, last = {"one_for_all": (0, len(ids)), "rest_for_one": (ids.index(failed), len(ids))}.get(
            before.strategy, (ids.index(failed), ids.index(failed) + 1)
        )
        return set(ids[first:last])

    @staticmethod
    def _goes_along(before: State, ended: str) -> bool:
        significant = {child.id: child.alive for child in before.children if child.significant}
        if ended not in significant:
            return False
        others = [alive for id_, alive in significant.items() if id_ != ended]
        return {"never": False, "any_significant": True, "all_significant": not any(others)}[before.auto_shutdown]


@given(states(), st.data())
def test_every_decision_is_the_models(first: State, data: st.DataObject) -> None:
    now, current, model = 0.0, first, Model(first)
    waiting: list[ChildExited | RestartFailed] = []
    for _ in range(12):
        now += data.draw(st.integers(0, 3), "seconds")
        living = [child.id for child in current.children if child.alive]
        if not waiting and not living:
            return
        event = waiting.pop() if waiting else ChildExited(data.draw(st.sampled_from(living)), data.draw(REASON))
        decision = decide(current, event, now)
        model.check(current, event, now, decision)
        if decision.end is not None:
            assert not any(child.alive for child in decision.state.children)
            return
        current = decision.state
        for id_ in decision.start:
            if data.draw(st.integers(0, 3), f"start of {id_}") == 0:
                waiting.append(RestartFailed(id_, data.draw(REASON)))
                break
            current = current.with_alive(id_, True)
