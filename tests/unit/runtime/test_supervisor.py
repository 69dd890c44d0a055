"""Specifications are checked before anything starts; decisions are plain values."""

from __future__ import annotations

import pytest

from colos.errors import InvalidSpecification
from colos.runtime import Actor, ChildSpec, Supervisor, topology
from colos.runtime.supervisor import Exited, RestartFailed, State, decide, specify


class Writer(Actor): ...


def supervisor(*children: object, **attributes: object) -> type[Supervisor]:
    return type("TestSupervisor", (Supervisor,), {"children": lambda self: children, **attributes})


def state(intensity: int = 3, period_s: float = 5.0, restarts: tuple[float, ...] = ()) -> State:
    return State({"p": "permanent", "t": "transient", "x": "temporary"}, intensity, period_s, restarts)


@pytest.mark.parametrize(
    ("child", "reason", "action"),
    [
        ("p", "normal", "restart"),
        ("p", "shutdown", "restart"),
        ("p", "killed (SIGKILL)", "restart"),
        ("t", "normal", "leave"),
        ("t", "shutdown", "leave"),
        ("t", "error: ValueError: x", "restart"),
        ("t", "exited with status 0", "restart"),
        ("x", "normal", "leave"),
        ("x", "killed (SIGKILL)", "leave"),
    ],
)
def test_who_is_restarted(child: str, reason: str, action: str) -> None:
    before = state()
    decision = decide(before, Exited(child, reason), now=100.0)
    assert decision.action == action
    assert decision.state.restarts == ((100.0,) if action == "restart" else ())
    assert before.restarts == ()


@pytest.mark.parametrize(("intensity", "crashes"), [(0, 1), (1, 2), (3, 4)])
def test_more_than_intensity_restarts_give_up(intensity: int, crashes: int) -> None:
    # As erl did: intensity 1, two crashes; intensity 3, four crashes (shared/otp/observed.txt).
    now = state(intensity)
    actions = []
    for second in range(crashes):
        decision = decide(now, Exited("p", "x"), now=float(second))
        actions.append(decision.action)
        now = decision.state
    assert actions == ["restart"] * (crashes - 1) + ["give up"]


def test_restarts_age_out_of_the_period_and_its_edge_counts() -> None:
    late = decide(state(1, 5.0, (10.0,)), Exited("p", "x"), now=15.001)
    assert late.action == "restart"
    assert late.state.restarts == (15.001,)
    assert decide(state(1, 5.0, (10.0,)), Exited("p", "x"), now=15.0).action == "give up"


def test_a_failed_restart_is_tried_again_and_counts() -> None:
    decision = decide(state(2, 5.0, (1.0,)), RestartFailed("t", "error: OSError: x"), now=1.5)
    assert decision.action == "restart"
    assert decide(decision.state, RestartFailed("t", "error: OSError: x"), now=1.6).action == "give up"


def test_topology_starts_nothing() -> None:
    class BigLedgerSupervisor(Supervisor):
        def children(self):
            return [ChildSpec("front", Writer), ChildSpec("writer", Writer)]

    assert topology(BigLedgerSupervisor) == ("big_ledger/front", "big_ledger/writer")
    assert topology(supervisor(ChildSpec("a", Writer), name="other")) == ("other/a",)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (supervisor(ChildSpec("a", Writer), ChildSpec("a", Writer)), "two children have the id 'a'"),
        (supervisor(ChildSpec("a", Writer, name="n"), ChildSpec("b", Writer, name="n")), "the name 'n'"),
        (supervisor(ChildSpec("a/b", Writer)), "a child's id is 'a/b'"),
        (supervisor(ChildSpec("..", Writer)), "a child's id is '..'"),
        (supervisor(ChildSpec("a", Writer, name="x/y")), "its name is 'x/y'"),
        (supervisor(ChildSpec("a", Writer, restart="always")), "permanent, transient, temporary"),  # type: ignore[arg-type]
        (supervisor(ChildSpec("a", int)), "not a subclass of colos.runtime.Actor"),  # type: ignore[arg-type]
        (supervisor(ChildSpec("a", supervisor())), "cannot be nested"),  # type: ignore[arg-type]
        (supervisor(ChildSpec("a", Writer, shutdown_s=-1)), "shutdown_s is -1"),
        (supervisor(ChildSpec("a", Writer, shutdown_s=float("nan"))), "shutdown_s is nan"),
        (supervisor(ChildSpec("a", Writer, start_s=0)), "start_s is 0"),
        (supervisor("a"), "not a ChildSpec"),
        (supervisor(intensity=-1), "intensity is -1"),
        (supervisor(period_s=0), "period_s is 0"),
        (supervisor(name="a b"), "its name is 'a b'"),
        (Supervisor, "does not say which children"),
        (Writer, "not a subclass of colos.runtime.Supervisor"),
    ],
)
def test_bad_specifications_say_what_is_wrong(bad: type[Supervisor], says: str) -> None:
    with pytest.raises(InvalidSpecification) as error:
        specify(bad)
    assert says in str(error.value)
