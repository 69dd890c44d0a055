"""A supervisor at work: it carries out what `decisions.decide` says, and what it is asked to.

Supervisors are not processes: the root carries all of them, each as a task of its own.  One thing
after another, as in a gen_server: an end, or a request, is dealt with when the one before is done;
only a shutdown gets in between.  Source: supervisor(3).
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import anyio

from colos.errors import InvalidSpecification, NoSuchActor, StartFailed
from colos.runtime import reasons
from colos.runtime.decisions import ChildExited, ChildState, RestartFailed, State, decide
from colos.runtime.incarnation import Child, Origin, ProcessInfo
from colos.runtime.rundir import ExitRecord
from colos.runtime.supervisor import Plan, TreeSpec, check_significant

if TYPE_CHECKING:
    from colos.runtime.root import Root

_KILL_S: Final = 5.0


class _Slot:
    """One child's place: its plan, and who fills it now, dead or alive."""

    def __init__(self, plan: Plan, key: str, extra: bytes | None = None) -> None:
        self.plan = plan
        self.key = key
        self.extra = extra
        self.member: Child | Supervision | None = None
        self.restarts = 0

    @property
    def alive(self) -> bool:
        return self.member is not None and self.member.record is None


class Supervision:
    """One incarnation of a supervisor."""

    def __init__(
        self, root: Root, tree: TreeSpec, path: str, id_: int, origin: Origin, key: str, plan: Plan | None = None
    ) -> None:
        """`key`: where its children's plans are in the nursery; empty: they are not."""
        self.root = root
        self.tree = tree
        self.path = path
        self.id = id_
        self.origin = origin
        self.key = key
        self.plan = plan
        self.parent: Supervision | None = None
        self.begun = False
        self.ready = False
        self.record: ExitRecord | None = None
        self.blamed: ExitRecord | None = None
        self.why = ""
        """Why it failed, for people."""
        self.slots: dict[str, _Slot] = {}
        self._ended: deque[tuple[str, Child | Supervision | None, object]] = deque()
        self._requests: deque[Callable[[], Coroutine[Any, Any, None]]] = deque()
        self._stop_reason: object = None
        self._brutal = False
        self._started = 0
        self._state = State(tree.strategy, tree.auto_shutdown, tree.intensity, tree.period_s, ())

    def conceive(self, *, ahead: bool) -> None:
        """Make the children's places; `ahead`: and the children, which wait for their turn.  Raises OSError."""
        for plan in self.tree.children:
            slot = self._add(plan, plan.id)
            if ahead:
                slot.member = self._conceive(slot, ahead=True)

    def _add(self, plan: Plan, key: str, extra: bytes | None = None) -> _Slot:
        key = f"{self.key}/{key}" if self.key and plan.payload is None else ""
        slot = self.slots[plan.id] = _Slot(plan, key, extra)
        self._state = self._state.with_child(ChildState(plan.id, plan.restart, plan.significant, alive=False))
        return slot

    def _conceive(self, slot: _Slot, *, ahead: bool) -> Child | Supervision:
        """A new incarnation.  Raises OSError if there can be none."""
        path = f"{self.path}/{slot.plan.id}"
        origin = Origin(((self.path, self.id), *self.origin.ancestors))
        if slot.plan.tree is None:
            child = self.root.conceive(slot.plan, path, origin, slot.restarts, key=slot.key, extra=slot.extra)
            child.supervision = self
            return child
        supervision = self.root.conceive_supervision(slot.plan, path, origin, slot.restarts, slot.key)
        supervision.parent = self
        supervision.conceive(ahead=ahead)
        return supervision

    # --- its life

    async def live(self) -> None:
        """Start the children, keep them, stop them."""
        reason: object = reasons.SHUTDOWN
        failed = await self._start_first()
        if failed is None:
            self.ready = True
            self.root.show(self.id, "running")
            self.root.changes.notify()
            reason = await self._serve()
            self.ready = False
        elif not self.interrupted:
            self.blamed = failed
            self.why = f"{failed.path} did not start: {reasons.text(failed.reason)}"
            reason = ("shutdown", self.why)
        await self._stop_all()
        self.root.bury_supervision(self, reasons.KILLED if self._brutal else reason)

    @property
    def interrupted(self) -> bool:
        """Whether it is to end, so that nothing more is begun."""
        return self._stop_reason is not None or bool(self.root.failure)

    def ask_to_stop(self, reason: object, *, brutal: bool = False) -> None:
        """Let it end; `brutal`: its children are killed."""
        self._stop_reason = self._stop_reason or reason
        if brutal and not self._brutal:
            self._brutal = True
            for slot in self.slots.values():
                if isinstance(slot.member, Supervision):
                    slot.member.ask_to_stop(reason, brutal=True)
                elif slot.member is not None:
                    self.root.condemn(slot.member, reasons.KILLED)
        self.root.changes.notify()

    async def _start_first(self) -> ExitRecord | None:
        for slot in list(self.slots.values()):
            failed = await self._start(slot)
            if failed is not None:
                return failed
        return None

    async def _start(self, slot: _Slot) -> ExitRecord | None:
        """Start a child that is not there, or only conceived, and wait until it is ready; else how it ended."""
        path = f"{self.path}/{slot.plan.id}"
        if self.interrupted:
            return ExitRecord.unborn(path, "its supervisor is ending")
        if not slot.alive:
            try:
                slot.member = self._conceive(slot, ahead=False)
                if isinstance(slot.member, Child):
                    self.root.fork(slot.member)
            except OSError as error:  # no inode, no descriptor: a failed try
                return ExitRecord.unborn(path, reasons.describe(error))
        member = slot.member
        assert member is not None
        if isinstance(member, Child):
            await self.root.begin(member, lambda: self.interrupted)
        else:
            member.begin()
            await self.root.until(lambda: member.ready or bool(member.record) or self.interrupted)
        if member.record is not None:
            return (member.blamed if isinstance(member, Supervision) else None) or member.record
        if not member.ready:
            return ExitRecord.unborn(path, "its supervisor is ending")
        self._state = self._state.with_alive(slot.plan.id, True)
        return None

    def begin(self) -> None:
        """Let it live, once."""
        if not self.begun:
            self.begun = True
            self.root.tasks.start_soon(self.live)

    async def _serve(self) -> object:
        """Until it is to end; the reason."""
        requests_turn = False  # they alternate with ends, so that a child that fails again and again can be terminated
        while not self.interrupted:
            if self._requests and (requests_turn or not self._ended):
                requests_turn = False
                await self._requests.popleft()()
            elif self._ended:
                requests_turn = True
                end = await self._react(*self._ended.popleft())
                if end is not None:
                    return end
            else:
                await self.root.changes.wait()
        return self._stop_reason or reasons.SHUTDOWN

    def child_ended(self, member: Child | Supervision, reason: object) -> None:
        """A child has died."""
        plan = member.plan
        if plan is not None:
            self._ended.append((plan.id, member, reason))

    async def _react(self, id_: str, member: Child | Supervision | None, reason: object) -> object:
        """Do what is decided about an end (a failed restart: no `member`); the reason to end with, if so."""
        slot = self.slots.get(id_)
        if slot is None or (member is not None and slot.member is not member):
            return None  # replaced or removed since
        if member is not None and self._state.child(id_) is not None and not self._is_alive(id_):
            return None  # stopped on purpose, or it never started
        event = RestartFailed(id_, reason) if member is None else ChildExited(id_, reason)
        decision = decide(self._state, event, time.monotonic())
        self._state = decision.state
        if decision.end is not None:
            if decision.why == "intensity":
                limit = f"more than {self.tree.intensity} restarts within {self.tree.period_s:g} s"
                self.blamed = (member.record if member is not None else None) or self.blamed
                self.why = f"gave up: {limit}; the last: {self.path}/{id_}: {reasons.text(reason)}"
            return decision.end
        for other in decision.stop:
            await self._stop(self.slots[other])
        for other in decision.remove:
            self._remove(other)
        for other in decision.start:
            if self.interrupted:
                break
            self.slots[other].restarts += 1
            failed = await self._start(self.slots[other])
            if failed is not None:
                self.blamed = failed
                self._ended.appendleft((other, None, failed.reason))  # as in OTP, before anything else's end
                break
        self.root.changes.notify()
        return None

    def _is_alive(self, id_: str) -> bool:
        child = self._state.child(id_)
        return child is not None and child.alive

    def _remove(self, id_: str) -> None:
        self.slots.pop(id_, None)
        self._state = self._state.without(id_)

    # --- stopping

    async def _stop_all(self) -> None:
        living = [slot for slot in reversed(self.slots.values()) if slot.alive]
        if self.tree.strategy == "dynamic" or self._brutal:
            async with anyio.create_task_group() as tasks:
                for slot in living:
                    tasks.start_soon(self._stop, slot)
        else:
            for slot in living:
                await self._stop(slot)

    async def _stop(self, slot: _Slot) -> None:
        member = slot.member
        if member is None or member.record is not None:
            return
        if isinstance(member, Child):
            member.stopping = True
            await (self.root.kill(member) if self._brutal else self.root.stop(member))
        else:
            await member.end_within(slot.plan.shutdown_s if not self._brutal else 0)

    async def end_within(self, timeout_s: float) -> None:
        """Ask it to shut down, and kill it with all its children if that takes too long."""
        self.ask_to_stop(reasons.SHUTDOWN, brutal=timeout_s <= 0)
        self.begin()  # if it never was: what is conceived is to be buried
        if not await self.root.until(lambda: self.record is not None, timeout_s or _KILL_S):
            self.ask_to_stop(reasons.KILLED, brutal=True)
            await self.root.until(lambda: self.record is not None, _KILL_S)

    # --- what it is asked

    async def ask(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Do something between two events; its result.  Raises NoSuchActor if it ends before."""
        done: list[tuple[Any, Exception | None]] = []

        async def carry_out() -> None:
            try:
                done.append((await work(), None))
            except Exception as error:  # an answer to who asked
                done.append((None, error))
            self.root.changes.notify()

        self._requests.append(carry_out)
        self.root.changes.notify()
        await self.root.until(lambda: bool(done) or self.record is not None)
        if not done:
            raise NoSuchActor(self.path, "the supervisor ended")
        value, error = done[0]
        if error is not None:
            raise error
        return value

    async def start_child(self, plan: Plan | None, extra: bytes | None) -> tuple[str, int]:
        """Start one child more; its path and id."""
        template = self.tree.template
        if template is not None:
            if plan is not None:
                raise InvalidSpecification(f"{self.path} is dynamic: start_child takes arguments, not a ChildSpec")
            self._started += 1
            plan = replace(template, id=str(self._started))
        elif plan is None:
            raise InvalidSpecification(f"{self.path} is not dynamic: start_child takes a ChildSpec")
        check_significant(f"{self.path}, child {plan.id!r}", plan.significant, self.tree.auto_shutdown)
        if plan.id in self.slots:
            raise InvalidSpecification(f"{self.path} has a child {plan.id!r} already; delete_child it first")
        slot = self._add(plan, "*", extra) if template is not None else self._add(plan, plan.id)
        await self._start_asked(slot, keep=False)
        assert slot.member is not None
        return slot.member.path, slot.member.id

    async def _start_asked(self, slot: _Slot, *, keep: bool) -> None:
        failed = await self._start(slot)
        if failed is not None:
            if not keep and not slot.alive:
                self._remove(slot.plan.id)
            raise StartFailed(failed.path, reasons.text(failed.reason), failed.stderr)

    def _slot(self, id_: str) -> _Slot:
        slot = self.slots.get(id_.rpartition("/")[2])
        if slot is None:
            raise NoSuchActor(f"{self.path}/{id_}", f"its children are: {', '.join(self.slots) or 'none'}")
        return slot

    async def terminate_child(self, id_: str) -> None:
        """Stop a child; it is not restarted, and a temporary or dynamic one is forgotten."""
        slot = self._slot(id_)
        self._state = self._state.with_alive(slot.plan.id, False)
        self._ended = deque(entry for entry in self._ended if entry[0] != slot.plan.id or entry[1] is not None)
        await self._stop(slot)
        if slot.plan.restart == "temporary" or self.tree.template is not None:
            self._remove(slot.plan.id)

    async def restart_child(self, id_: str) -> tuple[str, int]:
        """Start a child again that is not running."""
        slot = self._slot(id_)
        if slot.alive:
            raise InvalidSpecification(f"{self.path}/{slot.plan.id} is running")
        slot.restarts += 1
        await self._start_asked(slot, keep=True)
        assert slot.member is not None
        return slot.member.path, slot.member.id

    async def delete_child(self, id_: str) -> None:
        """Forget a child that is not running."""
        slot = self._slot(id_)
        if slot.alive:
            raise InvalidSpecification(f"{self.path}/{slot.plan.id} is running; terminate_child it first")
        self._remove(slot.plan.id)

    def which_children(self) -> list[ProcessInfo]:
        """The children in start order."""
        return [self._info(slot) for slot in self.slots.values()]

    def _info(self, slot: _Slot) -> ProcessInfo:
        plan, member, path = slot.plan, slot.member, f"{self.path}/{slot.plan.id}"
        if member is None or member.record is not None:
            return ProcessInfo(path, 0, None, "exited", slot.restarts, plan.name, plan.kind)
        if isinstance(member, Child):
            return member.info(self.root.registry.name_of(member.id) or plan.name, slot.restarts)
        state = "running" if member.ready else "starting"
        return ProcessInfo(path, member.id, os.getpid(), state, slot.restarts, plan.name, plan.kind)

    def is_quiet(self) -> bool:
        """Whether every child that should be running is ready, and nothing is being done."""
        return self.ready and not self._ended and not self._requests and all(map(self._is_settled, self.slots.values()))

    def _is_settled(self, slot: _Slot) -> bool:
        if not self._is_alive(slot.plan.id):
            return not slot.alive
        if isinstance(slot.member, Supervision):
            return slot.member.is_quiet()
        return slot.member is not None and self.root.runs(slot.member)
