"""How an operation ends, and what makes a property hold, fail, or stay unobserved."""

from __future__ import annotations

import errno
import gc
import signal

import anyio
import anyio.lowlevel
import pytest
from hypothesis.stateful import initialize, rule

from colos.chaos import ChaosMachine, always, eventually, sometimes
from colos.chaos.executor import Deadlines
from colos.chaos.properties import Outcome
from colos.chaos.scenario import Inject, Op, load
from colos.errors import (
    ActorExited,
    CallTimeout,
    ConnectionLost,
    MailboxFull,
    NoSuchActor,
    NoSuchNode,
    PropertyViolated,
)

NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


class Client(ChaosMachine):
    """Two rules that end as the test wants, one of each colour."""

    refusals = (OSError,)
    unknowns = (LookupError,)
    error: BaseException

    @rule()
    def act(self):
        raise self.error

    @rule()
    async def act_async(self):
        await anyio.lowlevel.checkpoint()
        raise self.error

    @rule()
    async def act_in_a_group(self):
        async with anyio.create_task_group() as group:
            group.start_soon(self.act_async)


@pytest.fixture
def client(nothing):
    def make(error: BaseException, **body: object) -> type[ChaosMachine]:
        return type("Client", (Client,), {"system": nothing, "error": error, **body})

    return make


RULES = ("act", "act_async", "act_in_a_group")


@pytest.mark.parametrize("op", RULES)
@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ActorExited("a", "killed"), "refused"),
        (NoSuchActor("a"), "refused"),
        (NoSuchNode("/run"), "refused"),
        (MailboxFull("a"), "refused"),
        (ConnectionRefusedError(), "refused"),
        (NO_SPACE, "refused"),
        # Unknown even where the author calls every OSError a refusal, which these are too.
        (CallTimeout("a", "m", 1.0), "unknown"),
        (ConnectionResetError(), "unknown"),
        (BrokenPipeError(), "unknown"),
        (ConnectionLost("a", "m"), "unknown"),
        (EOFError(), "unknown"),
        (KeyError("by the author's own word"), "unknown"),
    ],
    ids=repr,
)
def test_what_a_client_may_be_told_is_no_violation(lab, client, op, error, outcome):
    replay = lab.replay(client(error), [Op(op), Op(op)])
    assert replay.verdict.violation is None
    assert [record["outcome"] for record in lab.journal("outcome")] == [outcome] * 2
    assert all(type(error).__name__ in record["detail"] for record in lab.journal("outcome"))


@pytest.mark.parametrize("op", RULES)
@pytest.mark.parametrize(
    ("error", "name"),
    [
        (ValueError("odd"), "rule:{op}"),
        (AssertionError("odd"), "rule:{op}"),
        (ExceptionGroup("odd", [ValueError("a"), ActorExited("b", "c")]), "rule:{op}"),
        (PropertyViolated("always:odd", "odd"), "always:odd"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_anything_else_is_a_violation_named_after_the_rule(lab, client, op, error, name):
    replay = lab.replay(client(error), [Op(op), Op(op)])
    assert replay.verdict.outcome is Outcome.VIOLATED
    violation = replay.verdict.violation
    assert (violation.name, violation.step) == (name.format(op=op), 0)
    assert "odd" in violation.detail
    # Through a group, it is told from where it was raised.
    assert f", in {op.replace('in_a_group', 'async')}" in violation.detail
    assert "colos/chaos" not in violation.detail
    assert len(lab.journal("step")) == 1


@pytest.mark.parametrize("op", RULES[:2])
@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, pytest.skip.Exception])
def test_what_ends_the_program_goes_through(lab, client, op, stop):
    """And the loop beside it still heals and ends."""
    with lab.driver(client(stop("now"))) as driver, pytest.raises(stop):
        driver._rerun([Op(op)])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_that_lands_where_python_swallows_it_is_not_lost(lab, nothing):
    """As in a callback of the garbage collector, after a collection during which it came."""
    examples: list[int] = []

    def lose(phase: str, info: object) -> None:
        gc.callbacks.remove(lose)
        signal.raise_signal(signal.SIGINT)

    class Collecting(ChaosMachine):
        system = nothing

        @initialize()
        def begin(self):
            examples.append(len(examples))
            if len(examples) == 3:
                gc.callbacks.append(lose)
                gc.collect()

        @rule()
        def step(self):
            pass

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            lab.explore(Collecting, examples=50, steps=2)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(examples) == 3


def test_ctrl_c_after_a_violation_does_not_go_on_to_minimise(lab, nothing):
    ran: list[int] = []

    class Stopped(ChaosMachine):
        system = nothing

        @rule()
        def step(self):
            ran.append(1)
            if len(ran) == 1:
                self._executor._violate("always:x", "violated")
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lab.explore(Stopped)
    assert len(ran) == 1


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_coroutine_that_hangs_under_a_fault_is_unknown_at_the_step_s_deadline(lab, nothing, kinds, backend):
    cancelled: list[int] = []

    class Hanging(ChaosMachine):
        system = nothing

        @rule()
        async def hang(self):
            try:
                await anyio.sleep_forever()
            finally:
                cancelled.append(1)

        @rule()
        async def time_out(self):
            with anyio.fail_after(0):
                await anyio.sleep_forever()

    Hanging.backend = backend
    steps = [Inject("hold", "f1", "nothing"), Op("hang"), Op("hang")]
    replay = lab.replay(Hanging, steps, deadlines=Deadlines(step_s=0.05))
    assert replay.verdict.violation is None
    assert [record["outcome"] for record in lab.journal("outcome")] == ["unknown"] * 2
    assert len(cancelled) == 2
    # A TimeoutError of the author's own is for the author to classify.
    assert lab.replay(Hanging, [Op("time_out")]).verdict.violation.name == "rule:time_out"


def holding(nothing, **body):
    """A machine of one rule that does nothing, with these properties."""

    def step(self):
        pass

    return type("Holding", (ChaosMachine,), {"system": nothing, "step": rule()(step), **body})


def prop(declare, value):
    """A property of this name that returns the value, or raises it."""

    async def p(self):
        await anyio.lowlevel.checkpoint()
        if isinstance(value, BaseException):
            raise value
        return value

    return declare(p)


@pytest.mark.parametrize("value", [True, None, 0, ""])
@pytest.mark.parametrize("declare", [always, eventually])
def test_a_property_holds_unless_it_raises_or_returns_false(lab, nothing, declare, value):
    """Only False itself: a property that returns a count of 0 has not said that it fails."""
    assert lab.replay(holding(nothing, p=prop(declare, value)), [Op("step")]).verdict.violation is None


@pytest.mark.parametrize(
    ("value", "said"),
    [(False, "it returned False"), (AssertionError("why"), "AssertionError: why"), (KeyError("k"), "KeyError: 'k'")],
)
@pytest.mark.parametrize(
    ("declare", "name", "step"), [(always, "always:p", 0), (eventually(within=0.1), "eventually:p", None)]
)
def test_a_property_that_does_not_hold_says_why_and_after_which_step(lab, nothing, declare, name, step, value, said):
    violation = lab.replay(holding(nothing, p=prop(declare, value)), [Op("step")] * 3).verdict.violation
    # Before the first step comes the boot, after which an `always` must hold too.
    assert (violation.name, violation.step) == (name, -1 if step == 0 else None)
    assert said in violation.detail


@pytest.mark.parametrize("error", [ActorExited("a", "killed"), CallTimeout("a", "m", 1.0), ConnectionResetError()])
def test_who_cannot_be_asked_has_violated_nothing_until_the_end(lab, nothing, error):
    """While faults act, silence is no evidence.  After every heal, it is."""
    unasked = holding(nothing, p=prop(always, error))
    assert lab.replay(unasked, [Op("step")]).verdict.violation is None
    assert all("unobserved" in record for record in lab.journal("property"))
    assert len(lab.journal("property")) >= 2
    violation = lab.replay(holding(nothing, p=prop(eventually(within=0.1), error)), [Op("step")]).verdict.violation
    assert violation.name == "eventually:p"
    assert violation.detail.startswith(f"not within 0.1 s: it could not be observed: {type(error).__name__}")


def test_eventually_is_asked_after_the_steps_until_it_holds(lab, nothing):
    asked: list[int] = []

    class Slow(ChaosMachine):
        system = nothing

        @rule()
        def step(self):
            assert not asked

        @eventually(within=20.0)
        async def comes_to_hold(self):
            asked.append(1)
            return len(asked) == 4

    assert lab.replay(Slow, [Op("step"), Op("step")]).verdict.violation is None
    assert len(asked) == 4


def test_sometimes_is_over_all_examples(lab, nothing):
    class Seen(ChaosMachine):
        system = nothing

        def __init__(self):
            super().__init__()
            self.steps = 0

        @rule()
        def step(self):
            self.steps += 1

        @sometimes
        def is_true_once(self):
            return self.steps == 3

        @sometimes
        async def does_not_raise(self):
            assert self.steps == 2

        @sometimes
        def is_false(self):
            return False

        @sometimes
        def raises(self):
            raise AssertionError

        @sometimes
        async def cannot_be_asked(self):
            raise ActorExited("a", "killed")

    found = lab.explore(Seen, examples=2, steps=4)
    assert found.failure is None
    assert found.never == ("cannot_be_asked", "is_false", "raises")


def test_a_known_failure_ends_its_example_and_is_counted(lab, nothing):
    """What follows in the same example tells nothing: it runs on a system that is broken already."""
    after: list[str] = []

    class Broken(ChaosMachine):
        system = nothing
        broken = False

        @rule()
        def break_it(self):
            self.broken = True

        @rule()
        def after(self):
            after.append("broken" if self.broken else "whole")

        @always
        def is_whole(self):
            return not self.broken

    first = lab.explore(Broken, examples=20, steps=6)
    assert first.failure is not None
    known = load(first.failure.saved)
    after.clear()
    again = lab.explore(Broken, known={"k": known}, examples=20, steps=6)
    assert (again.failure, again.examples) == (None, 20)
    assert 10 < again.known["k"] <= 20
    assert set(after) == {"whole"}
