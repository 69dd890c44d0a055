"""What still waits at its deadline: a violation in calm, an unknown outcome while faults act."""

from __future__ import annotations

import signal
import threading
import time

import anyio
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from colos.chaos import ChaosMachine, always, eventually, sometimes
from colos.chaos.alarm import OpDeadline, call_within
from colos.chaos.executor import Deadlines
from colos.chaos.scenario import Heal, Inject, Op
from colos.errors import InvalidSpecification

SOON = Deadlines(step_s=0.1)
DEADLINE_S = 10.0
HELD = Inject("hold", "f1", "nothing")

pytestmark = pytest.mark.usefixtures("kinds")


class Hanging(ChaosMachine):
    """Waits for what never comes, in every colour."""

    @rule()
    def fine(self):
        pass

    @rule()
    async def waits(self):
        await anyio.sleep_forever()

    @rule()
    def blocks(self):
        try:
            threading.Event().wait()
        except Exception as error:
            raise AssertionError("no except Exception of an author's takes the deadline") from error

    @rule()
    async def blocks_the_loop(self):
        threading.Event().wait(DEADLINE_S)


@pytest.fixture
def hanging(nothing):
    return lambda **body: type("Hanging", (Hanging,), {"system": nothing, **body})


@pytest.mark.parametrize("op", ["waits", "blocks"])
def test_an_operation_that_hangs_in_calm_is_a_violation(lab, hanging, op):
    for before in ([], [HELD, Heal("f1"), Op("fine")]):
        violation = lab.replay(hanging(), [*before, Op(op)], f"hang:{op}", deadlines=SOON).verdict.violation
        assert violation.name == f"hang:{op}"
        assert violation.step == len(before)
        assert "still waiting after 0.1 s" in violation.detail
        assert f"in {op}" in violation.detail  # where it waited
        assert "colos/chaos" not in violation.detail


@pytest.mark.parametrize("op", ["waits", "blocks"])
@pytest.mark.parametrize("before", [[HELD], [HELD, Heal("f1")], [Inject("strike", "f1", "nothing")]], ids=len)
def test_under_a_fault_and_right_after_it_is_unknown(lab, hanging, op, before):
    assert lab.replay(hanging(), [*before, Op(op)], deadlines=SOON).verdict.violation is None
    assert [record["outcome"] for record in lab.journal("outcome")] == ["unknown"]


@pytest.mark.parametrize("declare", [always, sometimes])
def test_a_property_has_the_deadline_of_a_step(lab, hanging, declare):
    async def waits_itself(self):
        await anyio.sleep_forever()

    def blocks_itself(self):
        threading.Event().wait()

    for function in (waits_itself, blocks_itself):
        machine = hanging(p=declare(function))
        name = f"hang:{function.__name__}"
        violation = lab.replay(machine, [Op("fine")], name, deadlines=SOON).verdict.violation
        assert violation.name == name


def test_a_property_that_cannot_be_asked_in_time_under_a_fault_is_unobserved(lab, hanging):
    def blocked_by_the_fault(self):
        if self._executor.leases:
            threading.Event().wait()

    machine = hanging(p=always(blocked_by_the_fault))
    assert lab.replay(machine, [HELD, Op("fine"), Heal("f1")], deadlines=SOON).verdict.violation is None
    assert sum("unobserved" in record for record in lab.journal("property")) == 2


def test_an_eventually_that_blocks_keeps_its_name(lab, hanging):
    def never_answers(self):
        threading.Event().wait()

    machine = hanging(p=eventually(within=0.1)(never_answers))
    violation = lab.replay(machine, [Op("fine")], deadlines=SOON).verdict.violation
    assert violation.name == "eventually:never_answers"


@pytest.mark.parametrize("before", [[], [HELD]], ids=["calm", "held"])
def test_a_coroutine_that_blocks_the_loop_for_ever_is_found_and_left(lab, hanging, before):
    """Even under a fault: it is healed at once, and the loop does not come back."""
    with lab.driver(hanging(), deadlines=SOON) as driver:
        loop = driver.setting.outlet
        verdict, _ = driver._rerun([*before, Op("blocks_the_loop"), Op("fine")])
        assert verdict.violation.name == "hang:blocks_the_loop"
        assert "blocks the event loop" in verdict.violation.detail
        assert driver.setting.outlet is not loop
        verdict, _ = driver._rerun([Op("waits")])  # the loop in its place serves
        assert verdict.violation.name == "hang:waits"


def test_a_coroutine_that_a_fault_blocks_is_freed_by_an_early_heal(lab, hanging):
    async def until_healed(self):
        deadline = time.monotonic() + DEADLINE_S
        while self._executor.leases and time.monotonic() < deadline:
            time.sleep(0.01)  # noqa: ASYNC251  # it is what is tested

    machine = hanging(until_healed=rule()(until_healed))
    with lab.driver(machine, deadlines=Deadlines(step_s=0.5)) as driver:
        loop = driver.setting.outlet
        verdict, executor = driver._rerun([HELD, Op("until_healed"), Op("fine"), Heal("f1")])
        assert verdict.violation is None
        assert driver.setting.outlet is loop
    assert [record["outcome"] for record in lab.journal("outcome")] == ["unknown", "done"]
    assert executor.fired == {"hold": 1}


def test_a_hang_is_found_confirmed_minimised_and_replayed(lab, hanging):
    def stuck_after_three(self):
        if len([step for step in self._executor.steps if isinstance(step, Op)]) > 3:
            threading.Event().wait()

    machine = hanging(waits=None, blocks=None, blocks_the_loop=None, stuck=rule()(stuck_after_three))
    found = lab.explore(machine, examples=20, steps=6, deadlines=Deadlines(step_s=0.02))
    assert found.failure is not None
    assert found.failure.violation.name == "hang:stuck_after_three"
    assert found.failure.repro.failed == found.failure.repro.runs
    assert len(found.failure.minimal) == 4


def test_refusals_are_counted_where_nothing_excuses_them(lab, nothing):
    class Refusing(ChaosMachine):
        system = nothing
        refusals = (OSError,)

        @rule()
        def act(self):
            raise OSError("no")

        @rule()
        def act_not(self):
            pass

    steps = [Op("act"), HELD, Op("act"), Heal("f1"), Op("act"), Op("act"), Op("act_not")]
    with lab.driver(Refusing) as driver:
        driver._rerun(steps)
        assert +driver.setting.refused_idle == {"act": 2}
    assert lab.explore(Refusing, examples=2, steps=3).refused_idle.keys() == {"act"}


# --- what is asked outside of a step -------------------------------------------------------


def waits_for_ever(*_args):
    threading.Event().wait()
    return True


def ready_then_stuck(machine):
    return waits_for_ever() if machine._executor.booted else True


@pytest.mark.parametrize(
    ("of", "what"),
    [
        ({"__init__": lambda self: waits_for_ever()}, "Hanging.__init__"),
        ({"guarded": precondition(waits_for_ever)(rule()(lambda self: None))}, "a precondition or strategy of Hanging"),
        ({"guarded": precondition(ready_then_stuck)(rule()(lambda self: None))}, "a precondition or strategy"),
        ({"drawn": rule(x=st.builds(waits_for_ever))(lambda self, x: None)}, "a precondition or strategy of Hanging"),
    ],
    ids=["init", "precondition", "precondition of a running system", "strategy"],
)
def test_what_waits_outside_of_a_step_ends_the_search_and_is_told(lab, nothing, of, what):
    body = {"system": nothing, "fine": rule()(lambda self: None), **of}
    machine = type("Hanging", (ChaosMachine,), body)
    with pytest.raises(InvalidSpecification) as told:
        lab.explore(machine, examples=30, steps=5, deadlines=Deadlines(outside_s=0.2))
    said = str(told.value)
    assert said.startswith(what)
    assert "takes too long: colos.chaos.alarm.OpDeadline: still waiting after 0.2 s" in said
    assert "in waits_for_ever" in said
    assert "hypothesis/" not in said


def test_a_precondition_that_waits_is_told_in_a_replay_too(lab, hanging):
    def guarded(self):
        pass

    machine = hanging(guarded=precondition(waits_for_ever)(rule()(guarded)))
    with pytest.raises(InvalidSpecification, match="a precondition of guarded takes too long"):
        lab.replay(machine, [Op("guarded")], deadlines=Deadlines(outside_s=0.2))


def test_a_machine_says_how_long_its_rules_may_take(lab, hanging):
    violation = lab.replay(hanging(deadline_s=0.2), [Op("waits")]).verdict.violation
    assert "still waiting after 0.2 s" in violation.detail
    for bad in (0, -1, True, "1", float("nan"), float("inf")):
        with pytest.raises(InvalidSpecification, match=r"deadline_s is .*; it is seconds, more than 0"):
            lab.replay(hanging(deadline_s=bad), [Op("fine")])


# --- the alarm ---------------------------------------------------------------------------


def test_the_alarm_leaves_handlers_and_timers_as_they_were():
    rang = []
    handler = signal.signal(signal.SIGALRM, lambda number, frame: rang.append(number))
    ours = signal.getsignal(signal.SIGALRM)
    try:
        signal.setitimer(signal.ITIMER_REAL, 60.0)
        assert call_within(5.0, lambda: 7) == 7
        with pytest.raises(OpDeadline):
            call_within(0.05, threading.Event().wait)
        assert signal.getsignal(signal.SIGALRM) is ours
        left_s, _ = signal.getitimer(signal.ITIMER_REAL)
        assert 50 < left_s < 60
        # One that is due earlier is somebody else's deadline: it stays theirs.
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        call_within(0.2, lambda: threading.Event().wait(0.3))
        assert rang == [signal.SIGALRM]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


def test_the_alarm_rings_until_it_is_heard():
    """The first ring is lost where Python swallows it."""

    class Deaf:
        def __del__(self):
            threading.Event().wait()

    def lose():
        Deaf()
        threading.Event().wait()

    unraisable = []
    hook, sys_hook = unraisable.append, __import__("sys")
    before, sys_hook.unraisablehook = sys_hook.unraisablehook, hook
    try:
        with pytest.raises(OpDeadline):
            call_within(0.05, lose)
    finally:
        sys_hook.unraisablehook = before
    assert len(unraisable) == 1


def test_outside_the_main_thread_there_is_no_alarm():
    values = []
    thread = threading.Thread(target=lambda: values.append(call_within(0.01, lambda: threading.Event().wait(0.05))))
    thread.start()
    thread.join(DEADLINE_S)
    assert values == [False]
