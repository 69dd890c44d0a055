"""Starting, crashing, restarting, stopping: real processes, true exit statuses."""

# ruff: noqa: ASYNC110, ASYNC240, PT012 - tests poll and touch files with a deadline; an answer is no error
from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import psutil
import pytest
import runtime_actors as actors
from runtime_helpers import DEADLINE_S, line_of, wait_gone

from colos.errors import ConnectionLost, NoSuchActor, NoSuchNode, StartFailed
from colos.runtime import ChildSpec, Node, NodeClient, ProcessInfo, connect, read_actors

pytestmark = pytest.mark.anyio
Script = Callable[..., subprocess.Popen[str]]


async def by_path(node: NodeClient) -> dict[str, ProcessInfo]:
    return {info.path: info for info in await node.processes()}


async def test_exit_reasons_say_why(anyio_backend: str) -> None:
    async with Node(actors.KindsSupervisor, backend=anyio_backend) as node:
        path = "kinds/permanent"
        for method, args in (("crash", ("boom",)), ("kill_self", (signal.SIGTERM,)), ("leave", (3,)), ("end", ())):
            with pytest.raises((ValueError, ConnectionLost)):
                await (await node.whereis(path)).call(method, *args)
                raise ValueError("an orderly end answers first")
            assert await node.quiet(DEADLINE_S)
        ends = await node.exits(path)
        assert [end.reason for end in ends] == [
            "error: ValueError: boom", "killed (SIGTERM)", "exited with status 3", "normal"
        ]  # fmt: skip
        assert "in crash" in ends[0].traceback
        assert ends[0].stderr == "about to fail\n"
        # The last few dead incarnations can be read, the older ones are gone.
        assert not Path(f"{node.run_dir}/actors/{ends[0].id}").exists()
        assert Path(f"{node.run_dir}/actors/{ends[1].id}/exit").read_text().startswith("killed (SIGTERM)\n\npid ")
        assert (await by_path(node))[path].restarts == 4


async def test_permanent_transient_and_temporary(anyio_backend: str) -> None:
    async with Node(actors.KindsSupervisor, backend=anyio_backend) as node:
        for child in ("permanent", "transient", "temporary"):
            with pytest.raises(ValueError, match="x"):
                await (await node.whereis(f"kinds/{child}")).crash("x")
        assert await node.quiet(DEADLINE_S)
        found = await by_path(node)
        assert [found[f"kinds/{child}"].state for child in ("permanent", "transient")] == ["running", "running"]
        assert "kinds/temporary" not in found  # never restarted, and forgotten
        for child in ("permanent", "transient"):
            await (await node.whereis(f"kinds/{child}")).end()
            while (await node.exits(f"kinds/{child}"))[-1].reason != "normal":
                await anyio.sleep(0.002)
        assert await node.quiet(DEADLINE_S)
        found = await by_path(node)
        assert [(info.state, info.restarts) for info in found.values()] == [("running", 2), ("exited", 1)]
        with pytest.raises(NoSuchActor):
            await node.whereis("kinds/temporary")


async def test_a_name_is_free_before_anybody_hears_of_the_death(anyio_backend: str) -> None:
    async with Node(actors.KindsSupervisor, backend=anyio_backend) as node:
        for _ in range(5):
            old = await node.whereis("kinds/permanent")
            with pytest.raises(ValueError, match="x"):
                await old.crash("x")
            try:
                assert (await node.whereis("kinds/permanent")) != old
            except NoSuchActor:
                pass
            assert await node.quiet(DEADLINE_S)
            assert (await node.whereis("kinds/permanent")) != old


async def test_quiet_never_takes_a_killed_child_for_running(anyio_backend: str) -> None:
    async with Node(actors.KindsSupervisor, backend=anyio_backend) as node:
        for _ in range(8):
            info = (await by_path(node))["kinds/permanent"]
            assert info.pid is not None
            os.kill(info.pid, signal.SIGKILL)
            assert await node.quiet(DEADLINE_S)
            assert (await by_path(node))["kinds/permanent"].id != info.id
        [entry] = [entry for entry in read_actors(node.run_dir) if entry.path == "kinds/permanent"]
        assert (entry.state, entry.restarts) == ("running", 8)


def test_too_many_restarts_end_the_node(script: Script, tmp_path: Path, anyio_backend: str) -> None:
    node = script("serve_node", "LedgerSupervisor", tmp_path, anyio_backend)
    assert line_of(node) == "ready"

    async def crash_it_four_times() -> None:
        async with connect(str(tmp_path)) as client:
            for _ in range(4):
                with pytest.raises(ValueError, match="x"):
                    await (await client.whereis("writer")).crash("x")
                try:
                    await client.quiet(DEADLINE_S)
                except NoSuchNode:
                    return

    anyio.run(crash_it_four_times, backend=anyio_backend)
    assert node.wait(DEADLINE_S) == 1
    crash = (tmp_path / "crash").read_text()
    assert "gave up: more than 3 restarts within 5 s; the last: ledger/writer: error: ValueError: x" in crash
    assert "in crash" in crash
    assert (tmp_path / "actors/2/exit").read_text().startswith("shutdown\n")  # the innocent sibling


def test_a_restart_that_fails_counts(script: Script, tmp_path: Path, anyio_backend: str) -> None:
    run_dir = tmp_path / "run"
    node = script(
        "serve_node", "FailsLaterSupervisor", run_dir, anyio_backend, COLOS_TEST_RECORD=str(tmp_path / "flag")
    )
    assert line_of(node) == "ready"
    os.kill(read_actors(str(run_dir))[0].pid or 0, signal.SIGKILL)
    assert node.wait(DEADLINE_S) == 1
    # One restart for the kill, one try more, and the third would exceed the intensity of 2.
    assert sorted(path.name for path in (run_dir / "actors").iterdir()) == ["1", "2", "3", "4"]
    assert "RuntimeError: not again" in (run_dir / "crash").read_text()


async def test_a_failed_start_tells_all(anyio_backend: str, tmp_path: Path) -> None:
    with pytest.raises(StartFailed) as failure:
        async with Node(actors.BadSupervisor, str(tmp_path), anyio_backend):
            pass
    text = str(failure.value)
    assert "bad/bad did not start: error: RuntimeError: cannot begin" in text
    assert "no database" in text
    assert 'raise RuntimeError("cannot begin")' in text
    assert (tmp_path / "actors/1/exit").read_text().startswith("shutdown\n")  # what had started was stopped


async def test_last_words_that_come_with_the_first_are_heard(anyio_backend: str) -> None:
    """On one core a child has said everything and died before its root looks for the first time."""
    this = psutil.Process()  # PyPy's os cannot choose cores
    allowed = this.cpu_affinity()
    this.cpu_affinity([min(allowed)])
    try:
        for _ in range(5):
            with pytest.raises(StartFailed, match="cannot begin"):
                async with Node(actors.OnlyBadSupervisor, backend=anyio_backend):
                    pass
    finally:
        this.cpu_affinity(allowed)


async def test_children_start_in_order_and_stop_in_reverse(
    anyio_backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tmp_path / "record"
    monkeypatch.setenv("COLOS_TEST_RECORD", str(record))
    async with Node(actors.OrderSupervisor, backend=anyio_backend):
        assert record.read_text().split("\n")[:-1] == ["init a", "init b", "init c"]
    assert record.read_text().split("\n")[3:-1] == [f"terminate(shutdown) {label}" for label in "cba"]


async def test_a_child_that_does_not_stop_is_killed(anyio_backend: str, tmp_path: Path) -> None:
    async with Node(actors.StubbornSupervisor, str(tmp_path), anyio_backend) as node:
        assert await node.quiet(DEADLINE_S)
        left = time.monotonic()
    assert 0.3 <= time.monotonic() - left < 5
    for id_ in (1, 2):
        assert (tmp_path / f"actors/{id_}/exit").read_text().startswith("killed\n")
        assert (tmp_path / f"actors/{id_}/state").read_text() == "exited\n"


async def test_a_stopped_child_holds_nobody_up(anyio_backend: str, tmp_path: Path) -> None:
    async with Node(actors.StubbornSupervisor, str(tmp_path), anyio_backend) as node:
        for info in await node.processes():
            os.kill(info.pid or 0, signal.SIGSTOP)
        assert len(await node.processes()) == 2
        await node.stop(DEADLINE_S)
    with pytest.raises(NoSuchNode):
        async with connect(str(tmp_path)):
            pass


def test_nothing_outlives_a_killed_starter(script: Script, tmp_path: Path, anyio_backend: str) -> None:
    holder = script("hold_node", "LedgerSupervisor", tmp_path, anyio_backend)
    pids = [int(pid) for pid in line_of(holder).split()]
    assert len(pids) >= 4  # the root, its zygote and soon a spare, two actors
    holder.kill()
    assert wait_gone(pids) == []


def test_a_directory_that_was_made_for_a_killed_program_is_removed(
    script: Script, tmp_path: Path, anyio_backend: str
) -> None:
    holder = script("hold_node", "LedgerSupervisor", "-", anyio_backend, COLOS_RUN=str(tmp_path))
    line_of(holder)
    assert list(tmp_path.iterdir())
    holder.kill()
    deadline = time.monotonic() + DEADLINE_S
    while list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.002)
    assert not list(tmp_path.iterdir())


def test_nothing_outlives_a_killed_root(script: Script, tmp_path: Path, anyio_backend: str) -> None:
    holder = script("hold_node", "LedgerSupervisor", tmp_path, anyio_backend)
    pids = [int(pid) for pid in line_of(holder).split()]
    os.kill(pids[0], signal.SIGKILL)
    assert wait_gone(pids) == []


def zygotes_of(root: int, run_dir: Path) -> list[int]:
    children = Path(f"/proc/{root}/task/{root}/children").read_text().split()
    actors_pids = {entry.pid for entry in read_actors(str(run_dir))}
    return [int(pid) for pid in children if int(pid) not in actors_pids]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_spare_takes_the_place_of_a_dead_or_stopped_zygote(
    script: Script, tmp_path: Path, anyio_backend: str, number: signal.Signals
) -> None:
    node = script("serve_node", "LedgerSupervisor", tmp_path, anyio_backend)
    assert line_of(node) == "ready"
    async with connect(str(tmp_path)) as client:
        # The zygote and its spare; and the understudy, once a process was started.
        for there in (2, 3) if number == signal.SIGKILL else (2,):
            with anyio.fail_after(DEADLINE_S):
                while len(zygotes_of(node.pid, tmp_path)) < there:
                    await anyio.sleep(0.002)
            os.kill(min(zygotes_of(node.pid, tmp_path)), number)
            before = (await by_path(client))["ledger/writer"].pid or 0
            os.kill(before, signal.SIGKILL)
            assert await client.quiet(DEADLINE_S)
            assert (await by_path(client))["ledger/writer"].pid != before


async def test_who_is_given_up_before_it_is_born_stands_in_nobodys_way(anyio_backend: str) -> None:
    """A process whose pid is not known cannot be killed: its lifeline is closed, and it counts as dead."""
    async with Node(actors.KindsSupervisor, backend=anyio_backend) as node, anyio.create_task_group() as tasks:

        async def start() -> None:
            with pytest.raises(StartFailed):
                await node.start_child("kinds", ChildSpec("inner", actors.SmallSupervisor))

        root = int(Path(f"{node.run_dir}/root.pid").read_text())
        with anyio.fail_after(DEADLINE_S):
            while len(zygotes_of(root, Path(node.run_dir))) < 2:
                await anyio.sleep(0.002)
            zygote = min(zygotes_of(root, Path(node.run_dir)))
            os.kill(zygote, signal.SIGSTOP)
            tasks.start_soon(start)
            while not any(str(one["path"]).startswith("kinds/inner/") for one in await node.tree()):
                await anyio.sleep(0.002)
            await node.exit_signal(await node.whereis("kinds/inner"), "kill")
            while any(str(one["path"]).startswith("kinds/inner") for one in await node.tree()):
                await anyio.sleep(0.002)
        os.kill(zygote, signal.SIGCONT)
        for _ in range(2):  # the deaths of others are seen, behind that of the late one
            os.kill((await by_path(node))["kinds/permanent"].pid or 0, signal.SIGKILL)
            assert await node.quiet(DEADLINE_S)
        assert [end.reason for end in await node.exits("kinds/permanent")] == ["killed"] * 2
        assert "survives SIGKILL" not in Path(f"{node.run_dir}/root.log").read_text()


def test_no_zygote_and_no_spare_end_the_node(script: Script, tmp_path: Path, anyio_backend: str) -> None:
    node = script("serve_node", "LedgerSupervisor", tmp_path, anyio_backend)
    assert line_of(node) == "ready"
    deadline = time.monotonic() + DEADLINE_S
    while len(zygotes_of(node.pid, tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(node.pid, signal.SIGSTOP)  # so that it learns of both at once
    for zygote in zygotes_of(node.pid, tmp_path):
        os.kill(zygote, signal.SIGKILL)
    os.kill(node.pid, signal.SIGCONT)
    assert node.wait(DEADLINE_S) == 1
    assert "its zygote died and there was no spare" in (tmp_path / "crash").read_text()


async def test_an_orphan_of_an_actor_is_reaped_or_killed_with_the_node(anyio_backend: str) -> None:
    async with Node(actors.KindsSupervisor, backend=anyio_backend) as node:
        root = int(Path(f"{node.run_dir}/root.pid").read_text())
        children = Path(f"/proc/{root}/task/{root}/children")
        first, second = [await (await node.whereis("kinds/permanent")).daemonise() for _ in range(2)]
        for _ in range(2):  # the orphans' parent dies; then one of the adopted does
            os.kill((await by_path(node))["kinds/permanent"].pid or 0, signal.SIGKILL)
            assert await node.quiet(DEADLINE_S)
        os.kill(first, signal.SIGKILL)
        with anyio.fail_after(DEADLINE_S):
            while str(first) in children.read_text().split():
                await anyio.sleep(0.002)
        assert str(second) in children.read_text().split()
    assert wait_gone([second]) == []


def test_a_client_in_another_process_and_a_long_path(script: Script, tmp_path: Path, anyio_backend: str) -> None:
    run_dir = tmp_path / ("a_long_name_" * 8) / "run"
    node = script("serve_node", "LedgerSupervisor", run_dir, anyio_backend)
    assert line_of(node) == "ready"
    assert line_of(script("ask_node", run_dir, anyio_backend)) == "101"
    assert line_of(script("ask_node", f"/proc/{node.pid}/root{run_dir}", anyio_backend)) == "102"
    second = script("serve_node", "LedgerSupervisor", run_dir, anyio_backend)
    assert second.wait(DEADLINE_S) == 2  # the lock is held
    node.send_signal(signal.SIGINT)
    assert node.wait(DEADLINE_S) == 0
    assert not (run_dir / "root.pid").exists()
    third = script("serve_node", "LedgerSupervisor", run_dir, anyio_backend)  # a dead node's directory is taken over
    assert line_of(third) == "ready"
    assert [entry.id for entry in read_actors(str(run_dir))] == [3, 4]  # and its ids go on
    third.terminate()
    assert third.wait(DEADLINE_S) == 0


def test_a_full_run_directory_does_not_hurt_the_node(script: Script, tmp_path: Path, anyio_backend: str) -> None:
    enter = ("unshare", "-m") if os.geteuid() == 0 else ("unshare", "-Urm")
    if subprocess.run([*enter, "mount", "-t", "tmpfs", "none", tmp_path], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a small disk of his own")
    mount = f'mount -t tmpfs -o size=200k none {tmp_path} && exec "$@"'
    check = script("fill_disk", tmp_path, anyio_backend, prefix=(*enter, "sh", "-c", mount, "sh"))
    assert line_of(check) == "No space left on device"
    assert line_of(check) == "killed ledger/front"
    assert check.wait(DEADLINE_S) == 0
