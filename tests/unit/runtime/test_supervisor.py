"""Specifications are checked before anything starts; plans are what the root needs of them."""

from __future__ import annotations

import functools
import math
import pickle
import threading
from typing import Any

import pytest

from colos.errors import InvalidSpecification, NotPicklable
from colos.runtime.actor import Actor
from colos.runtime.supervisor import (
    ChildSpec,
    Plan,
    Supervisor,
    TreeSpec,
    check_significant,
    plan_of,
    plan_process,
    specify,
    topology,
)


class Writer(Actor):
    async def method(self) -> None: ...


async def loop(*args: object) -> None: ...


def not_async() -> None: ...


def supervisor(*children: object, **attributes: object) -> type[Supervisor]:
    return type("TestSupervisor", (Supervisor,), {"children": lambda self: children, **attributes})


def actor(**attributes: object) -> type[Actor]:
    return type("TestActor", (Actor,), attributes)


class Pool(Supervisor):
    strategy = "one_for_all"

    def __init__(self, size: int = 2) -> None:
        self.size = size

    def children(self) -> list[ChildSpec]:
        return [ChildSpec(f"w{number}", Writer, (number,)) for number in range(self.size)]


class Crowd(Supervisor):
    strategy = "dynamic"

    def children(self) -> list[ChildSpec]:
        return [ChildSpec("member", loop, (1,), restart="temporary")]


class BigLedgerSupervisor(Supervisor):
    strategy = "rest_for_one"
    intensity = 7
    period_s = 2
    auto_shutdown = "any_significant"

    def children(self) -> list[ChildSpec]:
        return [
            ChildSpec("db", Writer, ("x",), {"k": 1}, name="db", heartbeat_s=2),
            ChildSpec("pool", Pool, name="the-pool"),
            ChildSpec("crowd", Crowd, shutdown_s=1),
            ChildSpec("cache", loop, restart="transient", significant=True, shutdown_s=math.inf),
        ]


class Ouroboros(Supervisor):
    def children(self) -> list[ChildSpec]:
        return [ChildSpec("a", Writer), ChildSpec("tail", Tail)]


class Tail(Supervisor):
    def children(self) -> list[ChildSpec]:
        return [ChildSpec("head", Ouroboros)]


def test_a_tree_is_specified() -> None:
    tree = specify(BigLedgerSupervisor)
    assert (tree.name, tree.strategy, tree.intensity, tree.period_s) == ("big_ledger", "rest_for_one", 7, 2)
    assert (tree.label, tree.auto_shutdown) == (f"{__name__}:BigLedgerSupervisor", "any_significant")
    assert tree.template is None
    db, pool, crowd, cache = tree.children
    label = f"{__name__}:Writer"
    assert db == Plan(
        "db", "actor", label, "db", "permanent", 5.0, 10.0, False, 2, None, target=Writer, args=("x",), kwargs={"k": 1}
    )
    assert (pool.kind, pool.name, pool.shutdown_s, pool.target, pool.payload) == (
        "supervisor",
        "the-pool",
        math.inf,
        None,
        None,
    )
    assert pool.tree is not None
    assert (pool.tree.name, pool.tree.strategy) == ("pool", "one_for_all")
    assert [child.id for child in pool.tree.children] == ["w0", "w1"]
    assert crowd.tree is not None
    assert crowd.shutdown_s == 1
    assert crowd.tree.children == ()
    assert crowd.tree.template is not None
    assert (crowd.tree.template.id, crowd.tree.template.kind) == ("member", "process")
    assert (cache.kind, cache.restart, cache.significant, cache.shutdown_s) == ("process", "transient", True, math.inf)


def test_topology_starts_nothing_and_leaves_out_supervisors_and_dynamic_children() -> None:
    assert topology(BigLedgerSupervisor) == (
        "big_ledger/db",
        "big_ledger/pool/w0",
        "big_ledger/pool/w1",
        "big_ledger/cache",
    )
    assert topology(supervisor(ChildSpec("a", Writer), name="other")) == ("other/a",)


def test_a_nested_supervisor_is_named_by_its_place_and_takes_arguments() -> None:
    named = supervisor(ChildSpec("a", Writer), name="other")
    assert topology(supervisor(ChildSpec("here", named), name="top")) == ("top/here/a",)
    assert topology(supervisor(ChildSpec("pool", Pool, (3,)), name="top"))[-1] == "top/pool/w2"
    twice = supervisor(ChildSpec("p", Pool), ChildSpec("q", Pool, kwargs={"size": 1}), name="top")
    assert topology(twice) == ("top/p/w0", "top/p/w1", "top/q/w0")


@pytest.mark.parametrize("shutdown_s", [0, 0.0, 0.5, 1, math.inf])
def test_how_long_a_stop_may_take_is_taken_as_said(shutdown_s: float) -> None:
    assert plan_of(ChildSpec("a", Writer, shutdown_s=shutdown_s), "app").shutdown_s == shutdown_s
    assert plan_of(ChildSpec("a", Pool, shutdown_s=shutdown_s), "app").shutdown_s == shutdown_s


def test_a_supervisor_may_be_a_template() -> None:
    tree = specify(supervisor(ChildSpec("pool", Pool), strategy="dynamic"))
    assert tree.template is not None
    assert tree.template.tree is not None
    assert len(tree.template.tree.children) == 2


@pytest.mark.parametrize(
    ("child", "says"),
    [
        (ChildSpec("a/b", Writer), "a child's id is 'a/b'; it must be letters, digits"),
        (ChildSpec("..", Writer), "a child's id is '..'"),
        (ChildSpec("a", Writer, name="x/y"), "child 'a': its name is 'x/y'"),
        (ChildSpec("a", int), "an `async def` function"),  # type: ignore[arg-type]
        (ChildSpec("a", not_async), "cannot be started"),  # type: ignore[arg-type]
        (ChildSpec("a", functools.partial(loop, 1)), "cannot be started"),
        (ChildSpec("a", Writer, args=5), "args is 5; it must be a tuple"),  # type: ignore[arg-type]
        (ChildSpec("a", Writer, kwargs={1: 2}), "kwargs is {1: 2}; it must be a dict with strings"),  # type: ignore[dict-item]
        (ChildSpec("a", Writer, restart="always"), "one of permanent, transient, temporary"),  # type: ignore[arg-type]
        (ChildSpec("a", Writer, shutdown_s=-1), "shutdown_s is -1; it must be 0 seconds or more, math.inf"),
        (ChildSpec("a", Writer, shutdown_s=math.nan), "shutdown_s is nan"),
        (ChildSpec("a", Writer, shutdown_s="1"), "shutdown_s is '1'"),  # type: ignore[arg-type]
        (ChildSpec("a", Writer, start_s=0), "start_s is 0; it must be more than 0 seconds"),
        (ChildSpec("a", Writer, heartbeat_s=0), "heartbeat_s is 0; it must be more than 0 seconds, or None"),
        (ChildSpec("a", Pool, heartbeat_s=1), "heartbeat_s is 1; it must be None for a supervisor"),
        (ChildSpec("a", Writer, significant=1), "significant is 1; it must be True or False"),  # type: ignore[arg-type]
        (ChildSpec("a", Writer, significant=True), "one of transient, temporary for a significant child"),
        (ChildSpec("a", actor(mailbox_limit=0)), "mailbox_limit is 0; it must be an int, 1 or more"),
        (
            ChildSpec("a", actor(mailbox_overflow="drop")),
            "mailbox_overflow is 'drop'; it must be one of wait, drop_oldest",
        ),
        (ChildSpec("a", Pool, (1, 2)), "Pool: it does not take its ChildSpec's args and kwargs: too many"),
        ("a", "a child is 'a'; it must be a ChildSpec"),
    ],
)
def test_bad_children_say_what_is_wrong(child: Any, says: str) -> None:
    with pytest.raises(InvalidSpecification) as error:
        specify(supervisor(child, auto_shutdown="any_significant"))
    assert says in str(error.value)
    if isinstance(child, ChildSpec) and child.args != (1, 2):
        assert str(error.value).startswith(f"{__name__}:TestSupervisor")
        with pytest.raises(InvalidSpecification) as alone:
            plan_of(child, "app/pool")
        assert says in str(alone.value)
        assert str(alone.value).startswith("app/pool")


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (supervisor(ChildSpec("a", Writer), ChildSpec("a", Writer)), "TestSupervisor: two children have the id 'a'"),
        (
            supervisor(ChildSpec("a", Writer, name="n"), ChildSpec("b", Writer, name="n")),
            "child 'b': its name 'n' is also that of HERE:TestSupervisor, child 'a'",
        ),
        (
            supervisor(ChildSpec("a", Writer, name="db"), ChildSpec("b", BigLedgerSupervisor)),
            "BigLedgerSupervisor, child 'db': its name 'db' is also that of HERE:TestSupervisor, child 'a'",
        ),
        (
            supervisor(ChildSpec("a", Writer, restart="transient", significant=True)),
            "its supervisor's auto_shutdown is 'never'; it must be one of any_significant, all_significant",
        ),
        (supervisor(strategy="one_for_some"), "one of one_for_one, one_for_all, rest_for_one, dynamic"),
        (supervisor(auto_shutdown=True), "one of never, any_significant, all_significant"),
        (supervisor(strategy="dynamic"), "the number of children() is 0; it must be 1 for strategy 'dynamic'"),
        (supervisor(ChildSpec("a", loop), ChildSpec("b", loop), strategy="dynamic"), "children() is 2"),
        (supervisor(ChildSpec("a", supervisor(intensity=-1))), "intensity is -1; it must be an int, 0 or more"),
        (supervisor(intensity=1.0), "intensity is 1.0"),
        (supervisor(period_s=0), "period_s is 0; it must be more than 0 seconds"),
        (supervisor(name="a b"), "its name is 'a b'"),
        (type("S", (Supervisor,), {"children": lambda self: None}), "children() gives None"),
        (Ouroboros, "nested more than 32 deep: … > Tail > Ouroboros > Tail > Ouroboros"),
        (supervisor(ChildSpec("deep", Tail)), "nested more than 32 deep: … > Tail > Ouroboros > Tail"),
        (Supervisor, "Supervisor does not say which children"),
        (Writer, "not a subclass of colos.runtime.Supervisor"),
        (loop, "not a subclass of colos.runtime.Supervisor"),
    ],
)
def test_bad_supervisors_say_what_is_wrong(bad: type[Supervisor], says: str) -> None:
    with pytest.raises(InvalidSpecification) as error:
        specify(bad)
    assert says.replace("HERE", __name__) in str(error.value)


def test_one_child_more_is_checked_against_its_supervisor_where_that_is_known() -> None:
    spec = ChildSpec("a", Writer, restart="temporary", significant=True)
    plan = plan_of(spec, "app")
    assert plan.significant
    with pytest.raises(InvalidSpecification, match="app, child 'a': its supervisor's auto_shutdown is 'never'"):
        plan_of(spec, "app", "never")
    assert plan_of(spec, "app", "all_significant") == plan
    with pytest.raises(InvalidSpecification, match="for a significant child"):
        check_significant("app, child 'a'", plan.significant, "never")
    check_significant("app", False, "never")


def test_processes_without_a_supervisor() -> None:
    spawned = plan_process(Writer, (1,), {"k": 2}, "w", "12")
    assert (spawned.id, spawned.kind, spawned.name, spawned.restart, spawned.tree) == (
        "12",
        "actor",
        "w",
        "temporary",
        None,
    )
    assert (spawned.target, spawned.args, spawned.kwargs, spawned.shutdown_s) == (Writer, (1,), {"k": 2}, 5.0)
    assert plan_process(loop, (), {}, None, "a/b").kind == "process"
    assert plan_process(loop, (), {}, None, "1", kind="task").kind == "task"
    assert plan_process(loop, (), {}, None, "1", kind="process").kind == "process"


@pytest.mark.parametrize(
    ("target", "name", "kind", "says"),
    [
        (Pool, None, None, "process '7': HERE:Pool is a supervisor"),
        (not_async, None, None, "cannot be started"),
        (Writer, "a b", None, "process '7': its name is 'a b'"),
        (Writer, None, "task", "HERE:Writer cannot be started as kind 'task'; it is 'actor'"),
        (loop, None, "actor", "it is 'process'"),
        (actor(mailbox_limit="many"), None, None, "mailbox_limit is 'many'"),
    ],
)
def test_bad_processes_say_what_is_wrong(target: Any, name: str | None, kind: Any, says: str) -> None:
    with pytest.raises(InvalidSpecification) as error:
        plan_process(target, (), {}, name, "7", kind)
    assert says.replace("HERE", __name__) in str(error.value)


# --- packing -----------------------------------------------------------------------------


def plans(tree: TreeSpec) -> list[Plan]:
    below = [*tree.children, *([] if tree.template is None else [tree.template])]
    return [plan for child in below for plan in [child, *([] if child.tree is None else plans(child.tree))]]


def test_packing_leaves_nothing_of_the_authors_but_bytes() -> None:
    inner = supervisor(ChildSpec("member", Actor, (1,)), strategy="dynamic")
    tree = specify(supervisor(ChildSpec("a", Actor, ((1, 2),), {"k": {3}}), ChildSpec("crowd", inner)))
    packed = tree.packed()
    a, crowd, member = plans(packed)
    assert a.payload is not None
    assert Plan.unpack(a.payload) == (Actor, ((1, 2),), {"k": {3}})
    assert member.payload is not None
    assert Plan.unpack(member.payload) == (Actor, (1,), {})
    assert (crowd.payload, crowd.target) == (None, None)
    for before, after in zip(plans(tree), plans(packed), strict=True):
        assert (after.target, after.args, after.kwargs) == (None, (), {})
        assert (after.id, after.label, after.shutdown_s) == (before.id, before.label, before.shutdown_s)
    assert packed.packed() == packed
    assert pickle.loads(pickle.dumps(packed, 5)) == packed


def nameless() -> Any:
    async def inner() -> None: ...

    return inner


class Unwilling:
    def __reduce__(self) -> Any:
        raise ZeroDivisionError("no")


@pytest.mark.parametrize("target", [nameless(), type("Hidden", (Actor,), {"__module__": "colos.errors"}), actor()])
def test_what_cannot_be_imported_by_name_cannot_be_packed(target: Any) -> None:
    plan = plan_process(target, (), {}, None, "7")
    with pytest.raises(InvalidSpecification, match=r"another process cannot import it by its name: .*; define it at"):
        plan.packed()


@pytest.mark.parametrize("argument", [threading.Lock(), Unwilling(), lambda: None])
def test_arguments_that_do_not_pickle_are_named(argument: object) -> None:
    plan = plan_process(Actor, (argument,), {}, None, "7")
    with pytest.raises(NotPicklable, match=r"the arguments of 'colos.runtime.actor:Actor' for '7' cannot be pickled"):
        plan.packed()
