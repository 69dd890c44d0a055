"""Programs that the tests run beside themselves: `python otp_programs.py NAME ARGS`."""

# ruff: noqa: ASYNC110, ASYNC220, ASYNC221, ASYNC240, ASYNC251 - these programs misbehave on purpose, and poll
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from otp_hung import unanswered  # noqa: F401 - one of the programs

from colos.errors import NoSuchActor, RuntimeFailure
from colos.runtime import (
    Actor,
    ActorRef,
    ChildSpec,
    Down,
    Exit,
    Node,
    Supervisor,
    exit_signal,
    monitor,
    receive,
    send,
    serve,
    spawn,
)

DEADLINE_S = 15.0


# --- a herd that does not want to go -----------------------------------------------------


class Sheep(Actor):
    """An actor of which one can ask what it is, and what a process may do."""

    async def pid(self) -> int:
        return os.getpid()

    async def blocked(self) -> list[int]:
        return sorted(signal.pthread_sigmask(signal.SIG_BLOCK, []))

    async def leave(self, status: int) -> None:
        os._exit(status)

    async def run(self, status: int) -> int:
        """A program's own exit status, as seen by who started it."""
        return subprocess.run(["sh", "-c", f"exit {status}"], check=False).returncode

    async def hog(self) -> None:
        """Stands still, event loop and all."""
        while True:
            time.sleep(60)


class Ram(Sheep):
    """Deaf to every signal that a process can be deaf to."""

    async def init(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


class Ewe(Sheep):
    """Leaves lambs behind: programs and forks, of which some try to get away from the family."""

    async def init(self) -> None:
        subprocess.Popen(["sleep", "1000"])
        subprocess.Popen(["sleep", "1000"], start_new_session=True)
        subprocess.Popen(["sh", "-c", "trap '' TERM HUP INT; sleep 1000; sleep 1000"])
        for daemonise in (False, True):
            if os.fork() == 0:
                _stay(daemonise)


def _stay(daemonise: bool) -> None:
    """In a fork: live on, with every descriptor that was inherited; as a daemon, with another parent."""
    if daemonise:
        os.setsid()
        if os.fork():
            os._exit(0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while True:
        time.sleep(60)


class HerdSupervisor(Supervisor):
    def children(self) -> list[ChildSpec]:
        return [
            ChildSpec("sheep", Sheep, name="sheep"),
            ChildSpec("ram", Ram, shutdown_s=0.3),
            ChildSpec("ewe", Ewe),
            ChildSpec("hog", Sheep, name="hog", shutdown_s=0.3),
        ]


class SheepSupervisor(Supervisor):
    intensity = 100

    def children(self) -> list[ChildSpec]:
        return [ChildSpec("sheep", Sheep, name="sheep")]


def hold(run_dir: str, backend: str) -> int:
    """Start a node with a herd, say its run directory's root, hold it; stop it in order when told to by a line."""

    async def run() -> None:
        async with Node(HerdSupervisor, run_dir or None, backend) as node:
            await (await node.whereis("hog")).cast("hog")
            print("ready", flush=True)
            await anyio.to_thread.run_sync(sys.stdin.readline)
        print("over", flush=True)

    anyio.run(run, backend=backend)
    return 0


def masked(run_dir: str, backend: str) -> int:
    """Start a node from a program whose signals are all blocked, and some ignored; what its actors are like."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())

    async def run() -> None:
        async with Node(SheepSupervisor, run_dir or None, backend) as node:
            sheep = await node.whereis("sheep")
            said: dict[str, Any] = {"blocked": await sheep.blocked(), "status": await sheep.run(5)}
            for what in ("SIGTERM", "leave"):
                sheep = await _alive(node, "sheep")
                watch = await node.monitor(sheep)
                if what == "leave":
                    await sheep.cast("leave", 3)
                else:
                    os.kill(await sheep.pid(), signal.SIGTERM)
                with anyio.fail_after(DEADLINE_S):
                    said[what] = str((await node.down(watch)).reason)
            print(json.dumps(said), flush=True)
        print("over", flush=True)

    anyio.run(run, backend=backend)
    return 0


async def _alive(node: Any, name: str) -> ActorRef:
    """Who has a name, once somebody has."""
    with anyio.fail_after(DEADLINE_S):
        while True:
            try:
                return await node.whereis(name)  # type: ignore[no-any-return]
            except NoSuchActor:
                await anyio.sleep(0.002)


# --- PID 1 -------------------------------------------------------------------------------


class InspectorSupervisor(Supervisor):
    """Runs one of the functions below as its child, once."""

    def children(self) -> list[ChildSpec]:
        name, out = os.environ["COLOS_TEST_INSPECT"].split(":")
        return [
            ChildSpec("sheep", Sheep, name="sheep"),
            ChildSpec("inspector", inspect_safely, (name, out), restart="temporary"),
        ]


def first(name: str, out: str, run_dir: str, backend: str) -> int:
    """Be a node's root, as a container's PID 1 is, with a child of one's own that is no business of the runtime."""
    os.environ["COLOS_TEST_INSPECT"] = f"{name}:{out}"
    foreign = subprocess.Popen(["sh", "-c", "exit 7"])
    code = serve(InspectorSupervisor, run_dir, backend=backend, ready=lambda: print("ready", os.getpid(), flush=True))
    print("foreign", foreign.wait(DEADLINE_S), flush=True)
    return code


async def inspect_safely(name: str, out: str) -> None:
    try:
        said = await globals()[name]()
    except BaseException as error:
        said = {"failed": repr(error)}
        raise
    finally:
        Path(f"{out}.part").write_text(json.dumps(said))
        os.rename(f"{out}.part", out)


async def reaping() -> dict[str, Any]:
    """In the node: orphans and actors end in numbers; statuses are right, and nobody is left, not even as a zombie."""
    first, watch = await spawn(Sheep, monitor=True)  # the spare zygote is forked before it
    await exit_signal(first, "kill")
    await receive(lambda one: isinstance(one, Down) and one.monitor == watch, timeout=DEADLINE_S)
    before = _everybody()  # perhaps without the understudy that is forked after each start
    statuses = [subprocess.run(["sh", "-c", f"exit {number}"], check=False).returncode for number in range(5)]
    for number in range(5):
        # the shell's child outlives it, is adopted, and ends
        subprocess.run(["sh", "-c", "(sleep 0.05; exit 3) &"], check=True)
        actor, watch = await spawn(Sheep, monitor=True)
        await actor.cast("leave", number)
        said = await receive(
            lambda one, watch=watch: isinstance(one, Down) and one.monitor == watch, timeout=DEADLINE_S
        )
        statuses.append(said.reason)
    with anyio.move_on_after(DEADLINE_S):
        while len(_everybody()) > len(before) + 1:
            await anyio.sleep(0.002)
    return {"statuses": statuses, "left": max(0, len(_everybody()) - len(before) - 1)}


def _everybody() -> set[int]:
    """The processes of this PID namespace, zombies too."""
    return {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()}


async def reuse() -> dict[str, Any]:
    """In the node: a pid is used again, by a stranger and by another actor; the old reference touches neither."""
    said: dict[str, Any] = {}
    old, watch = await spawn(Sheep, monitor=True)
    pid = await old.pid()
    await exit_signal(old, "kill")
    await receive(lambda one: isinstance(one, Down) and one.monitor == watch, timeout=DEADLINE_S)
    with anyio.fail_after(DEADLINE_S):
        while os.path.exists(f"/proc/{pid}"):
            await anyio.sleep(0.002)
    stranger = _stranger_at(pid)
    said["stranger"] = stranger is not None
    if stranger is not None:
        await _disturb(old)
        said["stranger lives"] = stranger.poll() is None
        stranger.kill()
        stranger.wait()
    said["actor"] = False
    for attempt in range(60):
        # Between the zygote and the new process stands one more for a moment, which takes a pid too.
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1 - attempt % 3))
        new = await spawn(Sheep)
        if await new.pid() == pid:
            said["actor"] = True
            said["told"] = await _disturb(old)
            said["actor lives"] = await new.pid() == pid
            break
        await exit_signal(new, "kill")
    return said


def _stranger_at(pid: int) -> subprocess.Popen[bytes] | None:
    """A process of that pid; None where there cannot be one."""
    for _ in range(50):
        try:
            Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        except OSError:
            return None
        stranger = subprocess.Popen(["sleep", "1000"])
        if stranger.pid == pid:
            return stranger
        stranger.kill()
        stranger.wait()
    return None


async def _disturb(old: ActorRef) -> list[str]:
    """Everything that can be done to somebody by a reference."""
    for reason in ("foo", "kill"):
        await exit_signal(old, reason)
    await send(old, "x")
    watch = await monitor(old)
    said = await receive(lambda one: isinstance(one, Down) and one.monitor == watch, timeout=DEADLINE_S)
    try:
        await old.pid()
        return [str(said.reason), "it answered"]
    except (RuntimeFailure, Exit):
        return [str(said.reason), "gone"]


if __name__ == "__main__":
    import otp_programs  # the node imports its classes by this name

    sys.exit(getattr(otp_programs, sys.argv[1])(*sys.argv[2:]))
