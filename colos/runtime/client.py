"""Speaking to a node from a process that need not be in it, nor in its namespaces."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import anyio.abc

from colos.errors import CallTimeout, NoSuchNode
from colos.runtime import primitives, transport
from colos.runtime.here import Down, Monitor
from colos.runtime.incarnation import ProcessInfo
from colos.runtime.management import Management
from colos.runtime.message import TRACE, WATCH, Notice, decode, encode
from colos.runtime.primitives import Task
from colos.runtime.refs import DEADLINE_S, ActorRef, board_of
from colos.runtime.rundir import ExitRecord, node_directory
from colos.runtime.supervisor import plan_process
from colos.runtime.switchboard import Switchboard
from colos.runtime.trace import TraceEvent
from colos.runtime.transport import BrokenConnectionError, Connection

_STOP_S = 30.0


class NodeClient(Management):
    """A living node, seen from outside."""

    def __init__(self, run_dir: str, board: Switchboard, run: Callable[..., object]) -> None:
        super().__init__(board)
        self.run_dir = run_dir
        self._run = run
        self._numbers = itertools.count(1)
        self._downs: dict[int, tuple[Monitor, anyio.Event, list[object]]] = {}
        board.on_notice = self._take

    async def whereis(self, name: str) -> ActorRef:
        """The process now registered under a name, or living at a path.  Raises NoSuchActor, NoSuchNode."""
        return await self._board.whereis(name)

    async def send(self, dest: ActorRef | str, value: object, timeout: float = DEADLINE_S) -> None:
        """See primitives.send."""
        ref = await self.whereis(dest) if isinstance(dest, str) else dest
        await primitives.send_through(ref, value, timeout)

    async def spawn(
        self, target: Callable[..., Any], *args: object, name: str | None = None, **kwargs: object
    ) -> ActorRef:
        """A new process of the node, without a supervisor or a parent; see primitives.spawn."""
        plan = plan_process(target, args, kwargs, name, primitives.id_of(target)).packed()
        return await primitives.start_plan(self._board, plan)

    async def start_task(self, function: Callable[..., Any], *args: object, **kwargs: object) -> Task:
        """See primitives.start_task."""
        return await primitives.begin_task(self._board, self._run, function, args, kwargs)

    async def exit_signal(self, ref: ActorRef, reason: object) -> None:
        """See primitives.exit_signal."""
        await primitives.send_exit(ref, reason)

    async def monitor(self, target: ActorRef | str) -> Monitor:
        """Watch a process; `down` tells its end."""
        number = next(self._numbers)
        made = Monitor(number, target, self._board.node)
        self._downs[number] = (made, anyio.Event(), [])
        await self._board.ask_root("monitor", number, target if isinstance(target, str) else target.id)
        return made

    async def down(self, monitor: Monitor, timeout: float | None = None) -> Down:
        """Wait for the end of what a monitor watches.  Raises TimeoutError, NoSuchNode if the node ends first."""
        made, told, reasons = self._downs[monitor.number]
        with anyio.fail_after(timeout):
            async with anyio.create_task_group() as tasks:

                async def watch_node() -> None:
                    await self._board.root_ended()
                    told.set()

                tasks.start_soon(watch_node)
                await told.wait()
                tasks.cancel_scope.cancel()
        if not reasons:
            raise NoSuchNode(self.run_dir, "it ended meanwhile")
        return Down(made, made.target, reasons[0])

    def _take(self, node: str, notice: Notice) -> None:
        del node
        entry = self._downs.get(notice.monitor)
        if notice.what == "down" and entry is not None:
            entry[2].append(notice.reason)
            entry[1].set()

    async def members(self, group: str) -> list[ActorRef]:
        """See primitives.members."""
        return await primitives.members_through(self._board, group)

    async def publish(self, group: str, value: object) -> int:
        """See primitives.publish."""
        found = await self.members(group)
        for ref in found:
            await primitives.send_through(ref, value)
        return len(found)

    # --- looking

    async def processes(self) -> list[ProcessInfo]:
        """The processes as the root sees them now: the supervised in start order, then the others."""
        return list(await self._board.ask_root("processes"))

    async def tree(self) -> list[dict[str, Any]]:
        """Every process and supervisor that lives, with all that is known of it; see `info`."""
        return list(await self._board.ask_root("tree"))

    async def info(self, target: ActorRef | str) -> dict[str, Any]:
        """What is known of one: path, kind, pid, state, parent, links, monitors, mailbox, what it is doing, …"""
        found = await self._board.ask_root("info", target if isinstance(target, str) else target.id)
        return dict(found)

    async def subscribe(self, target: ActorRef | str) -> AsyncIterator[TraceEvent]:
        """The messages of a process, in and out, from now on and while it lives; use it in `async for`."""
        ref = await self.whereis(target) if isinstance(target, str) else target
        directory = f"{board_of(ref).run_dir}/actors/{ref.id}"
        connection = Connection(transport.connect(directory), self._run)
        try:
            connection.post(encode(WATCH))
            while True:
                for frame in await connection.receive():
                    if frame.kind == TRACE:
                        yield TraceEvent(*decode(frame))
        except (EOFError, BrokenConnectionError):
            return
        finally:
            connection.close()

    async def stacks(self, target: ActorRef | str) -> None:
        """Have a process write down its stacks; see `stacks`."""
        ref = await self.whereis(target) if isinstance(target, str) else target
        await self._board.ask_root("stacks", ref.id)

    async def quiet(self, timeout_s: float) -> bool:
        """Wait until every child that should be running is ready; False at the deadline.

        A child with a SIGKILL on its way is not running.  Raises NoSuchNode if the node ends meanwhile.
        """
        try:
            return bool(await self._board.ask_root("quiet", timeout_s, timeout_s=timeout_s + 1.0))
        except CallTimeout:  # the root itself is stopped or starved
            return False

    async def exits(self, path: str) -> list[ExitRecord]:
        """How the latest incarnations at a path ended, oldest first."""
        return list(await self._board.ask_root("exits", path))

    async def stop(self, timeout_s: float = _STOP_S) -> None:
        """Stop the node in order and wait until it has; a node that is gone already is fine.  Raises CallTimeout."""
        try:
            with anyio.fail_after(timeout_s):
                await self._board.ask_root("stop", timeout_s=timeout_s)
                await self._board.root_ended()
        except NoSuchNode:
            return
        except TimeoutError:
            raise CallTimeout(self.run_dir, "stop", timeout_s) from None


class connect:  # noqa: N801 - it is used as a function, in `async with connect(run_dir) as node`
    """Speak to a node by its name, or its run directory, which may be given by a path through /proc/PID/root.

    Raises NoSuchNode on entering.  References it gives out speak until the block is left.
    """

    def __init__(self, node: str) -> None:
        self._run_dir = node_directory(node)

    async def __aenter__(self) -> NodeClient:
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._board = board = Switchboard(self._run_dir, self._tasks.start_soon)
        try:
            board.node = await board.ask_root("hello")
        except BaseException:
            await self.__aexit__()
            raise
        return NodeClient(self._run_dir, board, self._tasks.start_soon)

    async def __aexit__(self, *_: object) -> None:
        self._board.close()
        # The block's exception is not given to the task group, which would wrap it in a group.
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(None, None, None)
