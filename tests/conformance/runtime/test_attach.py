"""A Python prompt inside a living process: what it may change, what it leaves, and what it says when it cannot."""

# ruff: noqa: ASYNC240 - tests poll files and wait for helpers with a deadline; an answer is no error
from __future__ import annotations

import io
import os
import pty
import re
import select
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import tools_actors as actors
from runtime_helpers import DEADLINE_S
from tools_helpers import Start, colos, does, line_of, line_with, pid_of, until

from colos.runtime import Node
from colos.runtime.stats import read_stats
from colos.runtime.terminal import receive_packet, send_packet
from colos.runtime.tools import attach

pytestmark = pytest.mark.anyio
CONTROL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[=>])")
"""What moves a terminal's cursor, and the like."""


async def test_a_read_only_prompt_changes_nothing(base: str, anyio_backend: str) -> None:
    run_dir = f"{base}/bank"
    async with Node(actors.Bank, run_dir, anyio_backend) as node:
        account = await node.whereis("account")
        pid = pid_of(run_dir, "bank/account")
        commands = """
            actor.total
            actor.total = 5
            actor.total
            kept = 20
            await actor.add(kept + 3)
            await actor.wait_long()
            1 / 0
            raise SystemExit(3)
            1 +* 2
            me, here.author is actor
            print('said', end='')
            here.stats.busy('lie')
            import os
            os.write(actor.writing, b'x')
            os.kill(os.getpid(), 11)
            await (await here.board.whereis('second')).add(7)
            here.tell_root(b'nonsense')
            kept
        """
        lines = "\n".join(line.strip() for line in commands.splitlines())
        code, out, errors = await colos("attach", "account", stdin=lines)
        assert code == 0
        assert "read-only: every command runs in a forked copy" in errors
        expected = [
            "100\n100\n123\n",
            "it waits for something: a read-only prompt is a copy",
            'File "<prompt>", line 1, in <module>\n    1 / 0',
            "ZeroDivisionError: division by zero\n",
            "SystemExit: 3\n",
            "SyntaxError",
            "(<ActorRef bank/account #1>, True)\nsaid",
            "Bad file descriptor",
            "the copy died: killed (SIGSEGV)\n",
            "this is a forked copy of a process, and cannot speak to '(root)'",
        ]
        at = 0
        for words in expected:
            assert words in out[at:], out
            at = out.index(words, at) + len(words)
        assert out.endswith("\n20\n")
        assert await account.add(0) == 100
        assert await (await node.whereis("second")).add(0) == 100
        assert pid_of(run_dir, "bank/account") == pid
        assert read_stats(f"{run_dir}/names/account/stats")["call"] == "-"
        assert "Segmentation" not in Path(run_dir, "names/account/log").read_text()
        assert psutil.Process(pid).children() == []


async def test_a_plain_process_has_a_terminal_too(base: str, anyio_backend: str) -> None:
    async with Node(actors.Bank, f"{base}/bank", anyio_backend) as node:
        ref = await node.spawn(actors.idle)
        assert line_with((await colos("ps"))[1], ref.path).split()[1] == "process"
        code, out, _ = await colos("attach", ref.path, stdin="actor is None, me.id, here.plan.kind\n")
        assert (code, out) == (0, f"(True, {ref.id}, 'process')\n")


async def test_a_copy_lives_for_a_few_seconds_only(base: str, anyio_backend: str) -> None:
    async with Node(actors.Bank, f"{base}/bank", anyio_backend) as node:
        code, out, _ = await colos("attach", "account", stdin="print('begun')\nwhile True: pass\n\nactor.total\n")
        assert code == 0
        assert out == "begun\nit took longer than 5 s: the copy is gone\n100\n"
        assert await (await node.whereis("account")).add(1) == 101


async def test_a_writing_prompt_changes_the_live_actor(base: str, anyio_backend: str) -> None:
    run_dir = f"{base}/bank"
    async with Node(actors.Bank, run_dir, anyio_backend) as node:
        account = await node.whereis("account")
        pid = pid_of(run_dir, "bank/account")
        commands = """
            actor.total = 5
            kept = actor
            kept.total + 1
            _ * 10
            await actor.slowly()
            await actor.add(2)
            await (await here.board.whereis('second')).add(7)
            1 / 0
            raise SystemExit(3)
            print('said')
            import os; os.getpid()
        """
        lines = "\n".join(line.strip() for line in commands.splitlines())
        code, out, errors = await colos("attach", "account", "--write", stdin=lines)
        assert code == 0
        assert "you WRITE" in errors
        assert out.startswith("6\n60\n'slow'\n7\n107\nTraceback")
        assert "ZeroDivisionError: division by zero\nTraceback" in out
        assert out.endswith(f"SystemExit: 3\nsaid\n{pid}\n")
        assert await account.add(0) == 7
        assert await (await node.whereis("second")).add(0) == 107
        assert pid_of(run_dir, "bank/account") == pid


async def test_nothing_is_left_in_the_actor_after_detaching(base: str, start: Start, anyio_backend: str) -> None:
    run_dir = f"{base}/bank"
    async with Node(actors.Bank, run_dir, anyio_backend) as node:
        account = await node.whereis("account")
        pid = pid_of(run_dir, "bank/account")

        def counts() -> tuple[int, int]:
            return len(os.listdir(f"/proc/{pid}/task")), len(os.listdir(f"/proc/{pid}/fd"))

        assert not {"colos.runtime.terminal", "colos.runtime.evaluation"} & set(await account.modules())
        before = counts()
        for option in ((), ("--write",)):
            attached = start("attach", "account", *option)
            assert attached.stdin is not None
            attached.stdin.write("actor.total\n")
            attached.stdin.flush()
            assert line_of(attached) == "100"
            assert counts()[0] == before[0] + 1
            attached.stdin.close()
            assert attached.wait(DEADLINE_S) == 0
            await until(lambda: counts() == before, f"{counts()} becoming {before}")
        killed = start("attach", "account", "--write")
        assert killed.stdin is not None
        killed.stdin.write("print('begun')\nawait actor.wait_long()\n")
        killed.stdin.flush()
        assert line_of(killed) == "begun"
        killed.kill()
        await until(lambda: counts() == before, f"{counts()} becoming {before} after a killed client")


async def test_attaching_to_who_is_stuck(base: str, start: Start, anyio_backend: str) -> None:
    run_dir = f"{base}/bank"
    async with Node(actors.Bank, run_dir, anyio_backend) as node:
        account = await node.whereis("account")
        looking, writing = start("attach", "account"), start("attach", "account", "--write")
        for attached in (looking, writing):
            assert attached.stdin is not None
            attached.stdin.write("actor.total\n")
            attached.stdin.flush()
            assert line_of(attached) == "100"
        await account.cast("spin")
        await does(run_dir, "spin")
        code, _, errors = await colos("attach", "account")
        assert code == 1
        assert "does not answer: its event loop does not turn; `colos stack account` says why" in errors
        assert looking.stdin is not None
        looking.stdin.write("actor.spinning\n")
        looking.stdin.flush()
        assert line_of(looking) == "(the event loop does not turn: this was done beside it)"
        assert line_of(looking) == "True"
        out, _ = writing.communicate("await actor.add(1)\nactor.spinning = False\n", timeout=DEADLINE_S)
        assert "nothing can be awaited" in out
        assert await account.add(1) == 101  # it goes on
        os.kill(pid_of(run_dir, "bank/account"), signal.SIGKILL)
        _, errors = looking.communicate("actor.total\n", timeout=DEADLINE_S)
        assert looking.returncode == 1
        assert "account has ended" in errors


async def test_a_prompt_at_a_terminal(
    base: str, start: Start, anyio_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")  # at a dumb one PyPy does not edit lines
    run_dir = f"{base}/bank"
    async with Node(actors.Bank, run_dir, anyio_backend):
        ours, theirs = pty.openpty()
        try:
            attached = start("attach", "account", stdin=theirs, stdout=theirs, stderr=theirs)
            os.close(theirs)
            said = ""

            def see(words: str) -> None:
                nonlocal said
                deadline = time.monotonic() + DEADLINE_S
                while words not in said:
                    assert look(max(0.0, deadline - time.monotonic())), (words, said)
                said = said[said.index(words) + len(words) :]

            def look(timeout_s: float) -> bool:
                nonlocal said
                if not select.select([ours], [], [], timeout_s)[0]:
                    return False
                try:
                    said += os.read(ours, 65536).decode().replace("\r", "")
                except OSError:  # the other end is closed
                    raise AssertionError((said, attached.wait(DEADLINE_S))) from None
                said = CONTROL.sub("", said)  # one that is cut off here is completed by the next read
                return True

            see("read-only")
            see(">>> ")
            os.write(ours, b"actor.tot\t\n")  # completed by asking the actor
            see("100\n")
            see(">>> ")
            os.write(ours, b"\x10 + 1\n")  # the line before
            see("101\n")
            see(">>> ")
            os.write(ours, b"while True: pass\n\n")
            await until(psutil.Process(pid_of(run_dir, "bank/account")).children, "a copy that runs this")
            attached.send_signal(signal.SIGINT)
            see("interrupted")
            see(">>> ")
            os.write(ours, b"half a line")
            see("half a line")
            deadline = time.monotonic() + DEADLINE_S
            while "KeyboardInterrupt" not in said:
                assert time.monotonic() < deadline
                attached.send_signal(signal.SIGINT)
                look(0.05)  # readline notices a signal only while it waits
            see("KeyboardInterrupt")
            see(">>> ")
            os.write(ours, b"await actor.add(5)\n")
            see("105\n")
            see(">>> ")
            os.write(ours, b"\x04")
            assert attached.wait(DEADLINE_S) == 0
        finally:
            os.close(ours)


def test_an_interrupt_between_two_lines_does_not_meet_the_next_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C pressed twice at the prompt: the second comes while nothing is read and nothing runs."""
    ours, theirs = socket.socketpair()
    heard: list[object] = []

    def serve(bell: socket.socket) -> None:
        send_packet(theirs, {"text": ""})
        while (packet := receive_packet(theirs)) is not None:
            heard.append(packet)
            if packet["do"] == "run":
                while select.select([bell], [], [], 0)[0]:  # until whoever waits for the answer has looked at it
                    time.sleep(0.002)
                send_packet(theirs, {"text": ""})

    monkeypatch.setattr(sys, "stdin", io.StringIO("actor.total\n"))
    with attach._Interrupts() as interrupts, ours, theirs:
        other_end = threading.Thread(target=serve, args=(interrupts.bell,), daemon=True)
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.waiting == 1
        other_end.start()
        attach._Prompt(ours, interrupts).run()
        ours.shutdown(socket.SHUT_RDWR)  # the end, even to a descriptor that is read from just now
        other_end.join(DEADLINE_S)
    assert heard == [{"do": "run", "text": "actor.total"}]
