"""Nodes: `colos run`, and several of them on one machine that know each other by name."""

# ruff: noqa: ASYNC110 - tests poll with a deadline; an answer is no error
from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
import runtime_actors as actors
from nodes_helpers import begin, everyone, run_dir_of
from runtime_helpers import DEADLINE_S, wait_gone
from tools_helpers import root_of

from colos.errors import ActorExited, NoSuchActor, NoSuchNode
from colos.runtime import ActorRef, Down, ExitSignal, Node, NodeClient, connect

pytestmark = pytest.mark.anyio


# --- colos run ---------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_run_is_a_node_until_it_is_asked_to_stop(
    base: str, anyio_backend: str, tmp_path: Path, number: signal.Signals
) -> None:
    record = tmp_path / "record"
    with begin("runtime_actors:OrderSupervisor", "--backend", anyio_backend, COLOS_TEST_RECORD=str(record)) as started:
        run_dir = run_dir_of(started)
        assert run_dir == f"{base}/order"  # the name is the supervisor's
        pids = everyone(run_dir)
        assert pids[0] == started.pid  # itself the heart
        async with connect("order") as node:
            assert len(await node.processes()) == 3
        started.send_signal(number)
        assert started.wait(DEADLINE_S) == 0
    assert wait_gone(pids) == []
    assert record.read_text().split("\n")[3:-1] == [f"terminate(shutdown) {label}" for label in "cba"]


@pytest.mark.parametrize("given", ["bank", "{base}/somewhere/else"])
async def test_run_takes_a_name_or_a_directory(base: str, anyio_backend: str, given: str) -> None:
    given = given.format(base=base)
    with begin("runtime_actors:LedgerSupervisor", "--node", given, "--backend", anyio_backend) as started:
        assert run_dir_of(started) == (given if "/" in given else f"{base}/{given}")
        async with connect(given) as node:
            assert await (await node.whereis("writer")).add(1) == 101
        started.terminate()
        assert started.wait(DEADLINE_S) == 0


def test_run_stops_in_order_however_early_it_is_asked(base: str, anyio_backend: str) -> None:
    for _ in range(4):
        with begin("runtime_actors:LedgerSupervisor", "--backend", anyio_backend) as started:
            while not _handles(started.pid, signal.SIGTERM) and started.poll() is None:
                pass
            started.terminate()
            _, errors = started.communicate(timeout=DEADLINE_S)
            assert (started.returncode, errors.partition("runs in")[2].count("\n") <= 1) == (0, True), errors


def _handles(pid: int, number: signal.Signals) -> bool:
    """Whether a process blocks or catches a signal, so that it cannot be killed by it any more."""
    bit = 1 << (number - 1)
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return any(int(status[mask], 16) & bit for mask in ("SigBlk", "SigCgt"))


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("nowhere:Bank",), "there is no module 'nowhere' in {here} or on sys.path"),
        (("runtime_actors.inner:Bank",), "there is no module 'runtime_actors.inner' in {here} or on sys.path"),
        (("runtime_actors:Bank",), "the module 'runtime_actors' has no 'Bank'"),
        (("runtime_actors:Writer",), "runtime_actors:Writer is not a subclass of colos.runtime.Supervisor"),
        (("runtime_actors",), "'runtime_actors' names no supervisor: it must be MODULE:SUPERVISOR, such as "),
        (("runtime_actors:LedgerSupervisor", "--node", "/proc/nowhere"), "there can be no run directory: "),
    ],
)
def test_run_says_in_a_line_what_it_cannot_run(base: str, args: tuple[str, ...], said: str) -> None:
    with begin(*args) as started:
        out, errors = started.communicate(timeout=DEADLINE_S)
    assert (started.returncode, out) == (2, "")
    assert errors.startswith(f"colos: {said.format(here=Path(__file__).parent)}")
    assert errors.count("\n") == 1


def test_run_refuses_a_place_where_a_node_lives(base: str) -> None:
    with begin("runtime_actors:LedgerSupervisor") as first:
        run_dir = run_dir_of(first)
        with begin("runtime_actors:LedgerSupervisor", "--restarts", "3") as second:
            _, errors = second.communicate(timeout=DEADLINE_S)
        assert second.returncode == 2
        assert errors == f"colos: a node already lives in {run_dir}\n"
        first.terminate()
        assert first.wait(DEADLINE_S) == 0


async def test_run_restarts_its_root(base: str, anyio_backend: str) -> None:
    with begin("runtime_actors:LedgerSupervisor", "--restarts", "1", "--backend", anyio_backend) as started:
        run_dir = run_dir_of(started)
        os.kill(root_of(run_dir), signal.SIGKILL)
        assert started.stderr is not None
        assert started.stderr.readline() == "colos: the root killed; it is started again\n"
        assert started.stderr.readline().endswith(f"runs in {run_dir}\n")
        pids = everyone(run_dir)
        os.kill(root_of(run_dir), signal.SIGKILL)
        assert started.wait(DEADLINE_S) == 1
        assert wait_gone(pids) == []


# --- several nodes -----------------------------------------------------------------------


@asynccontextmanager
async def two_nodes(backend: str) -> AsyncIterator[tuple[NodeClient, NodeClient]]:
    async with (
        Node(actors.FirstSupervisor, "first", backend) as first,
        Node(actors.OtherSupervisor, "other", backend) as other,
    ):
        yield first, other


async def heard(observer: ActorRef, count: int = 1) -> list[object]:
    """What an observer has been told, when it is so much."""
    with anyio.fail_after(DEADLINE_S):
        while len(await observer.heard_so_far()) < count:
            await anyio.sleep(0.005)
    return list(await observer.heard_so_far())


async def gone(node: NodeClient, path: str, id_: int) -> object:
    """Wait for the end of an incarnation; its reason."""
    with anyio.fail_after(DEADLINE_S):
        while not [end for end in await node.exits(path) if end.id == id_]:
            await anyio.sleep(0.005)
    return next(end.reason for end in await node.exits(path) if end.id == id_)


async def test_an_actor_finds_calls_and_sends_to_one_of_another_node(base: str, anyio_backend: str) -> None:
    async with two_nodes(anyio_backend) as (first, other):
        mine, theirs = await first.whereis("observer"), await other.whereis("observer")
        found = await mine.find("writer", "other")
        assert (found.path, found.node) == ("other/writer", f"{base}/other")
        assert await mine.find("writer", f"{base}/other") == found == await other.whereis("writer")
        assert await mine.add_there("writer", "other", 5) == 5
        assert await mine.add_there("writer", "first", 1) == 1  # its own node by its name
        assert await (await other.whereis("writer")).add(0) == 5
        await mine.send_there("observer", "other", ("hello", mine))
        assert await heard(theirs) == [("hello", mine)]
        with pytest.raises(NoSuchActor, match="nobody"):
            await mine.find("nobody", "other")
        with pytest.raises(NoSuchNode, match="nowhere"):
            await (await first.whereis("second")).find("writer", "nowhere")


async def test_nodes_are_told_apart_though_their_ids_are_the_same(base: str, anyio_backend: str) -> None:
    async with two_nodes(anyio_backend) as (first, other):
        mine, theirs = await first.whereis("writer"), await other.whereis("writer")
        assert mine.id == theirs.id
        assert mine != theirs
        observer = await first.whereis("observer")
        await observer.keep(theirs)
        assert await observer.ask_kept("add", 3) == 3
        await observer.keep(mine)
        assert await observer.ask_kept("add", 10) == 10
        assert await observer.ask_kept("who") == (mine, "first/writer")


async def test_a_reference_passed_on_by_a_third_works(base: str, anyio_backend: str) -> None:
    async with (
        two_nodes(anyio_backend) as (first, other),
        Node(actors.LedgerSupervisor, "third", anyio_backend) as third,
    ):
        writer = await third.whereis("writer")
        mine, theirs = await first.whereis("observer"), await other.whereis("observer")
        await mine.keep(writer)  # from outside to the first
        await mine.hand_on(theirs)  # from the first to the other
        assert await theirs.ask_kept("add", 1) == 101  # of the third, which the other has never heard of
        back = await theirs.give()
        assert back == writer
        assert await back.add(1) == 102


async def test_a_monitor_tells_the_reason_across_nodes(base: str, anyio_backend: str) -> None:
    async with two_nodes(anyio_backend) as (first, other):
        mine, theirs = await first.whereis("observer"), await other.whereis("second")
        await mine.monitor(theirs)
        await theirs.cast("end", ("shutdown", "enough"))
        [down] = await heard(mine)
        assert isinstance(down, Down)
        assert (down.target, down.reason) == (theirs, ("shutdown", "enough"))
        await mine.monitor(theirs)  # it is dead by now
        assert [message.reason for message in await heard(mine, 2)] == [("shutdown", "enough"), "noproc"]
        assert await other.quiet(DEADLINE_S)
        again = await other.whereis("second")
        await mine.monitor(again)
        with pytest.raises(ValueError, match="boom"):
            await again.crash("boom")
        down = (await heard(mine, 3))[2]
        assert (down.target, down.reason) == (again, "error: ValueError: boom")


async def test_a_killed_node_is_noconnection_to_who_monitors_and_links(base: str, anyio_backend: str) -> None:
    async with two_nodes(anyio_backend) as (first, other):
        mine, second = await first.whereis("observer"), await first.whereis("second")
        writer = await other.whereis("writer")
        await mine.trap()
        await mine.monitor(writer)
        await mine.link(writer)
        await second.link(writer)
        os.kill(root_of(other.run_dir), signal.SIGKILL)
        told = await heard(mine, 2)
        assert {type(message): message.reason for message in told} == {Down: "noconnection", ExitSignal: "noconnection"}
        assert next(message for message in told if isinstance(message, Down)).target == writer
        assert next(message for message in told if isinstance(message, ExitSignal)).sender == writer
        assert await gone(first, "first/second", second.id) == "noconnection"
        assert await mine.add_there("writer", "first", 1) == 1
        with pytest.raises(NoSuchNode):
            await mine.find("writer", "other")


async def test_a_link_across_nodes_ends_both_ways(base: str, anyio_backend: str) -> None:
    async with two_nodes(anyio_backend) as (first, other):
        # Who is linked to here dies there.
        mine, theirs = await first.whereis("second"), await other.whereis("second")
        await mine.link(theirs)
        with pytest.raises(ValueError, match="boom"):
            await theirs.crash("boom")
        assert await gone(first, "first/second", mine.id) == "error: ValueError: boom"
        assert await first.quiet(DEADLINE_S)
        assert await other.quiet(DEADLINE_S)
        # Who linked dies; and who traps gets a message that says whom it was.
        mine, theirs = await first.whereis("second"), await other.whereis("second")
        trapping = await other.whereis("observer")
        await trapping.trap()
        await mine.link(theirs)
        await mine.link(trapping)
        with pytest.raises(ValueError, match="bang"):
            await mine.crash("bang")
        assert await gone(other, "other/second", theirs.id) == "error: ValueError: bang"
        assert await heard(trapping) == [ExitSignal(mine, "error: ValueError: bang")]


async def test_an_unlinked_process_of_another_node_lives_on(base: str, anyio_backend: str) -> None:
    async with two_nodes(anyio_backend) as (first, other):
        mine, theirs = await first.whereis("second"), await other.whereis("second")
        await mine.link(theirs)
        await mine.unlink(theirs)
        with pytest.raises(ValueError, match="boom"):
            await theirs.crash("boom")
        assert await gone(other, "other/second", theirs.id) == "error: ValueError: boom"
        assert await mine.pid() == await (await first.whereis("second")).pid()
        assert await first.exits("first/second") == []


async def test_exit_signals_cross_nodes(base: str, anyio_backend: str) -> None:
    async with two_nodes(anyio_backend) as (first, other):
        mine, theirs = await first.whereis("observer"), await other.whereis("second")
        trapping = await other.whereis("observer")
        await trapping.trap()
        await mine.kill_off(trapping, "please")
        assert await heard(trapping) == [ExitSignal(mine, "please")]
        await mine.kill_off(theirs, "normal")  # to another: nothing
        assert await theirs.heard_so_far() == []
        await mine.kill_off(theirs, "bye")
        assert await gone(other, "other/second", theirs.id) == "bye"
        await mine.kill_off(trapping, "kill")
        assert await gone(other, "other/observer", trapping.id) == "killed"
        await mine.kill_off(trapping, "again")  # the dead are silent
        with pytest.raises((ActorExited, NoSuchActor)):
            await trapping.pid()


async def test_connecting_by_name_reaches_the_node_of_that_name(base: str, anyio_backend: str) -> None:
    async with two_nodes(anyio_backend):
        for name in ("first", "other"):
            async with connect(name) as node:
                assert node.run_dir == f"{base}/{name}"
                assert (await node.whereis("writer")).path == f"{name}/writer"
        with pytest.raises(NoSuchNode, match="nowhere"):
            async with connect("nowhere"):
                pass
