"""The commands that look into living nodes, run as people run them: ps, stack, trace."""

from __future__ import annotations

import os
import re
import select
import signal

import anyio
import pytest
import tools_actors as actors
from runtime_helpers import DEADLINE_S, wait_gone
from tools_helpers import Start, colos, does, end, line_of, line_with, pid_of, root_of, stopped, until

from colos.runtime import Node, read_actors
from colos.runtime.stats import read_stats

pytestmark = pytest.mark.anyio


# --- ps ----------------------------------------------------------------------------------


async def test_ps_shows_every_process_and_what_it_does(base: str, anyio_backend: str) -> None:
    run_dir = f"{base}/bank"
    async with Node(actors.Bank, run_dir, anyio_backend) as node:
        account = await node.whereis("account")
        os.kill(pid_of(run_dir, "bank/pool/one"), signal.SIGKILL)
        assert await node.quiet(DEADLINE_S)
        await account.watch("second")
        await account.cast("wait_long")
        await account.cast("add", 1)
        await account.cast("add", 1)
        await does(run_dir, "wait_long")
        await until(lambda: read_stats(f"{run_dir}/names/account/stats").get("mailbox") == "2", "two that wait")
        code, out, errors = await colos("ps", "bank")
        assert (code, errors) == (0, "")
        heads, *_ = out.splitlines()[1:]
        assert heads.split() == [
            "PATH", "KIND", "PID", "STATE", "NAME", "MBOX", "DOING", "RESTARTS", "CPU%", "RSS", "LINKS", "MONITORS",
            "LAST", "CRASH",
        ]  # fmt: skip
        [_, _, kind, pid, state, name, waiting, doing, restarts, cpu, memory, *_] = line_with(out, "account").split()
        assert (kind, pid, state) == ("actor", str(pid_of(run_dir, "bank/account")), "running")
        assert (name, waiting, doing, restarts) == ("account", "2", "wait_long", "0")
        assert re.fullmatch(r"[\d.]+", cpu)
        assert re.fullmatch(r"[\d.]+M", memory)
        assert "bank/pool/two #" in line_with(out, "wait_long")  # whom it monitors
        one = line_with(out, "one").split()
        assert str(pid_of(run_dir, "bank/pool/one")) in one
        assert one[8] == "1"
        assert one[-1] == "killed"
        assert out.index("─ pool") < out.index("─ one") < out.index("─ two")
        assert str(root_of(run_dir)) in line_with(out, "bank: alive")
        assert (await colos("ps", run_dir))[1].splitlines()[0] == out.splitlines()[0]


async def test_ps_shows_all_nodes_and_says_which_are_dead(base: str, anyio_backend: str) -> None:
    assert (await colos("ps"))[1] == f"no nodes in {base}\n"
    async with Node(actors.Bank, f"{base}/crashed", anyio_backend) as doomed:
        pids = [entry.pid for entry in read_actors(doomed.run_dir)]
        os.kill(root_of(doomed.run_dir), signal.SIGKILL)
        assert wait_gone([pid for pid in pids if pid]) == []
    async with Node(actors.Bank, f"{base}/stopped", anyio_backend):
        pass
    async with (
        Node(actors.Bank, f"{base}/first", anyio_backend) as first,
        Node(actors.Pool, f"{base}/second", anyio_backend),
    ):
        code, out, _ = await colos("ps")
        assert code == 0
        pictures = {picture.partition(":")[0]: picture for picture in out.split("\n\n")}
        assert sorted(pictures) == ["crashed", "first", "second", "stopped"]
        assert "first: alive" in pictures["first"]
        assert "second: alive" in pictures["second"]
        assert "account" not in pictures["second"]
        for dead in ("crashed", "stopped"):
            assert f"{dead}: dead" in pictures[dead]
            assert "running" not in pictures[dead]
        assert line_with(pictures["crashed"], "account").split()[4] == "gone"
        assert line_with(pictures["stopped"], "account").split()[4] == "exited", pictures["stopped"]
        assert str(await first.whereis("account"))  # and looking has disturbed nobody
    code, _, errors = await colos("ps", "nobody")
    assert code == 1
    assert "no node 'nobody'" in errors


async def test_ps_works_while_the_root_is_stopped(base: str, anyio_backend: str) -> None:
    run_dir = f"{base}/bank"
    async with Node(actors.Bank, run_dir, anyio_backend) as node:
        assert "its root does not answer" not in (await colos("ps"))[1]
        with stopped(root_of(run_dir)):
            code, out, _ = await colos("ps")
        assert code == 0
        assert "its root does not answer (no answer in time)" in out
        words = line_with(out, "account").split()
        assert words[3:6] == [str(pid_of(run_dir, "bank/account")), "running", "account"]
        assert words[10].endswith("M")
        assert "two" in out
        assert await node.quiet(DEADLINE_S)


async def test_ps_watches_until_interrupted(base: str, start: Start, anyio_backend: str) -> None:
    async with Node(actors.Bank, f"{base}/bank", anyio_backend) as node:
        watching = start("ps", "--watch")
        while "account" not in line_of(watching):
            pass
        await (await node.whereis("account")).cast("wait_long")
        while "wait_long" not in line_of(watching):  # a later picture
            pass
        assert end(watching) == (0, "")


# --- stack -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["spin", "doze", "block_in_c", "wait_long"])
async def test_stack_of_an_actor_that_is_stuck(base: str, how: str, anyio_backend: str) -> None:
    run_dir = f"{base}/bank"
    async with Node(actors.Bank, run_dir, anyio_backend) as node:
        idle = (await colos("stack", "account"))[1]
        assert "mailbox.wait()" in idle
        assert how not in idle
        await (await node.whereis("account")).cast(how)
        await does(run_dir, how)
        with stopped(root_of(run_dir)):
            code, out, errors = await colos("stack", "bank/account")
        assert (code, errors) == (0, "")
        assert re.search(rf'tools_actors.py", line \d+ in {how}\b|tools_actors.py", line \d+, in {how}\b', out)
        assert ("runs no Python code now" in out) == (how == "block_in_c")
        assert "task " in out or how == "block_in_c"
        assert "stacks.py" not in out
        assert "mailbox.wait()" not in out  # nothing of the first answer
        assert await node.quiet(DEADLINE_S)
        assert pid_of(run_dir, "bank/account") == (await node.info("account"))["pid"]


async def test_stack_says_who_cannot_be_asked(base: str, anyio_backend: str) -> None:
    async with Node(actors.Bank, f"{base}/one", anyio_backend), Node(actors.Bank, f"{base}/two", anyio_backend):
        for args, words in (
            (("nobody",), "no process 'nobody'; alive now: account, bank/pool/one, second"),
            (("account",), "lives in one, two: choose by --node"),
            (("bank/pool", "--node", "two"), "is a supervisor"),
            (("account", "--node", "three"), "no node 'three'"),
        ):
            code, out, errors = await colos("stack", *args)
            assert (code, out) == (1, "")
            assert words in errors
            assert "Traceback" not in errors
        assert (await colos("stack", "account", "--node", "two"))[0] == 0
    code, _, errors = await colos("stack", "account", "--node", "two")
    assert code == 1
    assert "is dead" in errors


# --- trace -------------------------------------------------------------------------------


async def test_trace_shows_a_call_and_its_result(base: str, start: Start, anyio_backend: str) -> None:
    async with Node(actors.Bank, f"{base}/bank", anyio_backend) as node:
        account = await node.whereis("account")
        tracing = start("trace", "account")
        assert tracing.stdout is not None
        with anyio.fail_after(DEADLINE_S):
            while not select.select([tracing.stdout], [], [], 0.02)[0]:  # it watches from some moment on
                await account.add(1)
        await account.add(1000)
        lines = [line_of(tracing)]
        while "add(1000)" not in lines[-1]:
            lines.append(line_of(tracing))
        lines.append(line_of(tracing))
        assert re.fullmatch(r"[\d:.]+ <- call     a client  add\(1000\)", lines[-2])
        assert re.fullmatch(rf"[\d:.]+ -> result   a client  {await account.add(0)}", lines[-1])
        code, errors = end(tracing)
        assert code == 0
        assert "Traceback" not in errors
        assert await account.add(0) > 1000


async def test_trace_ends_by_count_or_with_the_actor(base: str, start: Start, anyio_backend: str) -> None:
    async with Node(actors.Bank, f"{base}/bank", anyio_backend) as node:
        account = await node.whereis("account")
        counting = start("trace", "account", "--count", "3")
        with anyio.fail_after(DEADLINE_S):
            while counting.poll() is None:
                await account.add(1)
                await anyio.sleep(0.005)
        assert len(counting.communicate()[0].splitlines()) == 3
        following = start("trace", "account")
        assert following.stdout is not None
        with anyio.fail_after(DEADLINE_S):
            while not select.select([following.stdout], [], [], 0.02)[0]:
                await account.add(1)
        with pytest.raises(ValueError, match="no such account"):
            await account.fail()
        out, errors = following.communicate(timeout=DEADLINE_S)
        assert following.returncode == 0
        assert "fail()" in out
        assert "bank/account ended: error: ValueError: no such account" in errors
