"""What guards a node and its processes: hearts and watchdogs; and the state machine behaviour."""

# ruff: noqa: ASYNC110, ASYNC240 - tests poll and touch files with a deadline; an answer is no error
from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import anyio
import pytest
import runtime_actors as actors
from nodes_helpers import another_root, begin, everyone, run_dir_of
from runtime_helpers import DEADLINE_S, wait_gone
from tools_helpers import pid_of, root_of, until

from colos.errors import ConnectionLost, InvalidSpecification, MailboxFull, NoSuchMethod, NoSuchNode
from colos.runtime import ActorRef, Node, NodeClient, StateMachine, WrongState, connect
from colos.runtime.stats import read_stats

pytestmark = pytest.mark.anyio


# --- the heart ---------------------------------------------------------------------------


async def test_a_killed_root_is_restarted_within_the_budget_and_then_the_node_ends(
    base: str, anyio_backend: str
) -> None:
    async with Node(actors.LedgerSupervisor, "ledger", anyio_backend, restarts=1) as node:
        first, before = root_of(node.run_dir), everyone(node.run_dir)
        os.kill(first, signal.SIGKILL)
        second = await another_root(node.run_dir, first)
        assert wait_gone(before[1:]) == []  # the heart is the same
        heart, *_ = everyone(node.run_dir)
        assert heart == before[0]
        async with connect("ledger") as again:
            assert await (await again.whereis("writer")).add(1) == 101
        after = everyone(node.run_dir)
        os.kill(second, signal.SIGKILL)
        assert wait_gone(after) == []
        with pytest.raises(NoSuchNode):
            async with connect("ledger"):
                pass


async def test_a_root_that_stands_still_is_killed_and_restarted(base: str, anyio_backend: str) -> None:
    async with Node(actors.LedgerSupervisor, "ledger", anyio_backend, restarts=1, watch_s=1.0) as node:
        first = root_of(node.run_dir)
        os.kill(first, signal.SIGSTOP)
        await another_root(node.run_dir, first)
        assert wait_gone([first]) == []
        assert "the root's event loop has stood still for 1 s" in Path(f"{node.run_dir}/root.log").read_text()


async def test_a_root_that_turns_is_left_alone(base: str, anyio_backend: str) -> None:
    async with Node(actors.LedgerSupervisor, "ledger", anyio_backend, watch_s=0.8) as node:
        first = root_of(node.run_dir)
        with anyio.move_on_after(2.5):  # three times as long as it may stand still
            while True:
                await (await node.whereis("writer")).add(1)
                await anyio.sleep(0.5)
        assert root_of(node.run_dir) == first
        assert await node.quiet(DEADLINE_S)


async def test_a_root_is_watched_only_once_its_loop_turns(base: str, anyio_backend: str) -> None:
    """What comes before, importing and an author's `children()` among it, takes longer here than `watch_s`."""
    async with Node(actors.ThoughtfulSupervisor, "thoughtful", anyio_backend, watch_s=0.3) as node:
        assert await (await node.whereis("writer")).add(1) == 101
    assert "stood still" not in Path(f"{node.run_dir}/root.log").read_text()


async def test_a_killed_heart_ends_the_node_in_order(
    base: str, anyio_backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tmp_path / "record"
    monkeypatch.setenv("COLOS_TEST_RECORD", str(record))
    async with Node(actors.OrderSupervisor, "order", anyio_backend, restarts=3) as node:
        heart, *rest = everyone(node.run_dir)
        os.kill(heart, signal.SIGKILL)
        assert wait_gone(rest) == []
    assert record.read_text().split("\n")[3:-1] == [f"terminate(shutdown) {label}" for label in "cba"]
    assert not Path(f"{node.run_dir}/root.pid").exists()


async def test_what_an_actor_of_a_killed_root_forked_is_killed_by_the_heart(base: str, anyio_backend: str) -> None:
    async with Node(actors.KindsSupervisor, "kinds", anyio_backend) as node:
        orphan = await (await node.whereis("kinds/permanent")).daemonise()
        os.kill(root_of(node.run_dir), signal.SIGKILL)
        assert wait_gone([orphan]) == []


def test_a_root_that_gives_up_is_restarted_only_within_the_budget(
    base: str, anyio_backend: str, tmp_path: Path
) -> None:
    record = tmp_path / "record"
    with begin(
        "runtime_actors:GivesUpSupervisor", "--restarts", 2, "--backend", anyio_backend, COLOS_TEST_RECORD=str(record)
    ) as node:
        _, errors = node.communicate(timeout=2 * DEADLINE_S)
    assert node.returncode == 1
    assert errors.count("gave up: more than 1 restarts") == 3
    assert errors.count("it is started again") == 2
    assert record.read_text().count("begun") == 6  # of each root twice


def test_a_failed_start_is_not_tried_again(base: str, anyio_backend: str) -> None:
    with begin("runtime_actors:OnlyBadSupervisor", "--restarts", 5, "--backend", anyio_backend) as node:
        _, errors = node.communicate(timeout=2 * DEADLINE_S)
    assert node.returncode == 2
    assert "cannot begin" in errors
    assert "started again" not in errors
    assert sorted(os.listdir(f"{base}/only_bad/actors")) == ["1"]


def test_asking_a_stopped_root_to_stop_wakes_it(base: str, anyio_backend: str, tmp_path: Path) -> None:
    record = tmp_path / "record"
    with begin(
        "runtime_actors:OrderSupervisor", "--backend", anyio_backend, COLOS_TEST_RECORD=str(record)
    ) as node:  # fmt: skip
        root = root_of(run_dir_of(node))
        os.kill(root, signal.SIGSTOP)
        node.terminate()
        assert node.wait(DEADLINE_S) == 0
    assert record.read_text().split("\n")[3:-1] == [f"terminate(shutdown) {label}" for label in "cba"]


# --- the watchdog ------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["spin", "sleep_hard", "stop_itself"])
async def test_a_process_whose_loop_stands_still_is_killed_and_restarted(
    base: str, anyio_backend: str, how: str
) -> None:
    async with Node(actors.WatchedSupervisor, "watched", anyio_backend) as node:
        stuck = await node.whereis("stuck")
        with pytest.raises(ConnectionLost, match="unresponsive"):
            await stuck.call(how, timeout=DEADLINE_S)
        assert await node.quiet(DEADLINE_S)
        again = await node.whereis("stuck")
        assert again.id != stuck.id
        assert await again.pid() == pid_of(node.run_dir, "watched/stuck")
        [end] = await node.exits("watched/stuck")
        assert end.reason == "unresponsive"
        said = "its event loop has stood still for 1 s"
        assert f"watched/stuck: {said}" in Path(f"{node.run_dir}/root.log").read_text()
        directory = Path(node.run_dir, "actors", str(stuck.id))
        if how != "stop_itself":  # a stopped process hears nothing but SIGKILL
            written = [directory / "stack", directory / "log"]
            assert any(f"in {how}" in file.read_text() for file in written if file.exists())


async def test_a_busy_process_whose_loop_turns_is_left_alone(base: str, anyio_backend: str) -> None:
    async with Node(actors.WatchedSupervisor, "watched", anyio_backend) as node:
        stuck = await node.whereis("stuck")
        assert await stuck.call("busy", 3.0, timeout=DEADLINE_S) == "done"
        assert await node.exits("watched/stuck") == []
        assert await node.whereis("stuck") == stuck


async def test_an_idle_process_is_left_alone(base: str, anyio_backend: str) -> None:
    async with Node(actors.WatchedSupervisor, "watched", anyio_backend) as node:
        stuck = await node.whereis("stuck")
        stats = f"{node.run_dir}/actors/{stuck.id}/stats"
        begun = int(read_stats(stats)["beat"])
        await until(lambda: int(read_stats(stats)["beat"]) >= begun + 10, "ten beats, in two and a half of its times")
        assert await node.exits("watched/stuck") == []
        assert await node.whereis("stuck") == stuck


# --- the state machine -------------------------------------------------------------------


async def door_of(node: NodeClient) -> ActorRef:
    return await node.whereis("door")


async def test_an_event_does_what_its_state_says(base: str, anyio_backend: str) -> None:
    async with Node(actors.DoorSupervisor, backend=anyio_backend) as node:
        door = await door_of(node)
        assert await door.read() == ("closed", ["enter closed"])
        assert await door.knock() == "come in"  # the state's own handler comes before the general one
        assert await door.push() == "closed yet"  # the change comes when the handler is done
        assert await door.read() == ("open", ["enter closed", "leave closed", "enter open"])
        assert await door.knock() == "it is open"
        await door.cast("close")
        assert (await door.read())[0] == "closed"
        await node.send(door, "poke")
        assert (await door.read())[1][-1] == "poked"


async def test_an_event_without_a_meaning_is_refused_and_the_machine_lives(base: str, anyio_backend: str) -> None:
    async with Node(actors.DoorSupervisor, backend=anyio_backend) as node:
        door = await door_of(node)
        with pytest.raises(WrongState) as refusal:
            await door.unlock()
        assert (refusal.value.state, refusal.value.event) == ("closed", "unlock")
        assert str(refusal.value) == "'door/door' is 'closed', and 'unlock' means nothing then"
        await door.cast("unlock")  # nobody to tell, and no harm either
        with pytest.raises(NoSuchMethod, match="did you mean 'push'"):
            await door.pish()
        for inside in ("closed_push", "event_knock", "enter_open", "timeout_open", "next_state", "postpone"):
            with pytest.raises(NoSuchMethod):
                await door.call(inside)
        assert await door.read() == ("closed", ["enter closed"])
        assert await node.exits("door/door") == []
        assert await door_of(node) == door


async def test_an_event_that_fails_changes_no_state(base: str, anyio_backend: str) -> None:
    async with Node(actors.DoorSupervisor, backend=anyio_backend) as node:
        door = await door_of(node)
        await door.push()
        with pytest.raises(actors.Refused, match="not so loud"):
            await door.slam()
        assert (await door.read())[0] == "open"
        await door.knock()
        assert (await door.read())[0] == "open"


async def test_a_state_times_out_unless_it_is_left(base: str, anyio_backend: str) -> None:
    async with Node(actors.DoorSupervisor, backend=anyio_backend) as node:
        door = await door_of(node)
        await door.push(0.3)
        await door.close()
        await door.push()  # the same state again, without a timeout
        await door.hold(0.3)
        await door.hold(0.8)  # it begins again, and so does its time
        began = time.monotonic()
        with anyio.fail_after(DEADLINE_S):
            while (await door.read())[0] == "open":
                await anyio.sleep(0.01)
        assert time.monotonic() - began > 0.6
        assert (await door.read())[1].count("timeout open") == 1
        assert (await door.read())[0] == "closed"


async def test_a_timeout_on_its_way_when_the_state_is_left_does_nothing(base: str, anyio_backend: str) -> None:
    async with Node(actors.DoorSupervisor, backend=anyio_backend) as node:
        door = await door_of(node)
        await door.push(0.1)
        await door.dawdle(0.3)  # meanwhile the timer's message comes, and waits for its turn
        await door.push()
        assert await door.read() == ("open", ["enter closed", "leave closed", "enter open"] * 2)


async def test_a_hook_can_change_the_state(base: str, anyio_backend: str) -> None:
    async with Node(actors.DoorSupervisor, backend=anyio_backend) as node:
        door = await door_of(node)
        await door.blow()
        assert await door.read() == (
            "closed",
            ["enter closed", "leave closed", "enter ajar", "enter closed"],
        )  # fmt: skip


async def test_postponed_events_come_first_after_the_next_change(base: str, anyio_backend: str) -> None:
    answers: dict[int, object] = {}
    async with Node(actors.DoorSupervisor, backend=anyio_backend) as node:
        door = await door_of(node)
        await door.lock()

        async def ask(number: int, event: str) -> None:
            answers[number] = await door.call(event, timeout=DEADLINE_S)

        async with anyio.create_task_group() as tasks:
            for number, event in enumerate(("knock", "push", "knock")):
                tasks.start_soon(ask, number, event)
                await door.read()  # so that they come in this order
            await door.rattle()  # the same state again is no change
            state, log = await door.read()
            assert (state, log.count("knock later")) == ("locked", 2)
            assert answers == {}
            await door.unlock()
        assert answers == {0: "come in", 1: "closed yet", 2: "it is open"}
        assert (await door.read())[0] == "open"


async def test_a_machine_that_ends_answers_no_postponed_call(base: str, anyio_backend: str) -> None:
    async with Node(actors.DoorSupervisor, backend=anyio_backend) as node:
        door = await door_of(node)
        await door.lock()
        async with anyio.create_task_group() as tasks:

            async def knock() -> None:
                with pytest.raises(ConnectionLost, match="killed"):
                    await door.call("knock", timeout=DEADLINE_S)

            tasks.start_soon(knock)
            await door.read()
            await node.exit_signal(door, "kill")


async def test_no_more_is_postponed_than_the_mailbox_holds(base: str, anyio_backend: str) -> None:
    async with Node(actors.NarrowSupervisor, backend=anyio_backend) as node:
        door = await door_of(node)
        await door.lock()
        for _ in range(2):
            await door.cast("knock")
        with pytest.raises(MailboxFull):
            await door.knock()
        assert (await door.read())[0] == "locked"


def test_a_machine_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(InvalidSpecification, match="'opne' is no state: open, closed"):

        class Typo(StateMachine):
            states = ("open", "closed")

            async def enter_opne(self) -> None: ...

    with pytest.raises(InvalidSpecification, match="'stop' cannot be an event"):

        class Taken(StateMachine):
            states = ("open",)

            async def open_stop(self) -> None: ...

    with pytest.raises(InvalidSpecification, match="'event' cannot be a state's name"):

        class Reserved(StateMachine):
            states = ("event",)


def test_a_longer_state_name_goes_first() -> None:
    class Wide(StateMachine):
        states = ("open", "open_wide")

        async def open_wide_push(self) -> None: ...

    assert Wide._events == {"push"}
