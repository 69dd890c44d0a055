"""What the root is asked: by processes over their control sockets, by clients over the node's socket."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import anyio

from colos.errors import InvalidSpecification, NameTaken, NoSuchActor, NoSuchMethod, StartFailed
from colos.runtime import message, reasons
from colos.runtime.incarnation import Child, Guest, Origin, Party, ProcessInfo
from colos.runtime.links import Watch
from colos.runtime.message import Frame, Notice, ProtocolError
from colos.runtime.refs import ROOT_ID, ROOT_PATH
from colos.runtime.registry import Entry
from colos.runtime.rundir import ExitRecord
from colos.runtime.stats import read_stats
from colos.runtime.supervision import Supervision
from colos.runtime.supervisor import Plan
from colos.runtime.transport import Connection

if TYPE_CHECKING:
    from colos.runtime.root import Root

_QUESTIONS_MAX: Final = 64
"""How many of one client's questions are dealt with at a time."""


class Desk:
    """Answers questions.  Each handler gets who asks first."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._guest_ids = itertools.count(-1, -1)
        self._handlers: dict[str, Callable[..., Any]] = {
            name: getattr(self, f"_{name}")
            for name in (
                "hello", "whereis", "processes", "quiet", "exits", "reason", "stop", "info", "tree", "stacks",
                "spawn", "link", "unlink", "monitor", "demonitor", "exit", "register", "unregister", "join", "leave",
                "members", "start_child", "terminate_child", "restart_child", "delete_child", "which_children",
            )
        }  # fmt: skip

    # --- talking

    async def attend(self, connection: Connection) -> None:
        """Serve one client until it leaves."""
        guest = Guest(next(self._guest_ids), connection)
        self._root.guests[guest.id] = guest
        places = anyio.Semaphore(_QUESTIONS_MAX)
        try:
            while True:
                for frame in await connection.receive():
                    if frame.kind == message.IDENT:
                        node, _, path = bytes(frame.body).decode().partition("\0")
                        guest.identify(node, path, frame.request)
                    elif frame.kind == message.GOODBYE:
                        guest.reason = message.decode(frame)
                    elif frame.kind == message.CALL:
                        await places.acquire()
                        self._root.tasks.start_soon(self._answer, guest, frame, places)
                    else:
                        raise ProtocolError(f"a client sent a frame of kind {frame.kind}")
        finally:
            self._root.guest_left(guest)

    def take(self, child: Child, frame: Frame) -> None:
        """A question on a control socket: asked and answered in its turn, so that it keeps its order with the next."""
        method, args, kwargs = message.decode(frame)
        try:
            handler = self._handler(method)
            value = handler(child, *args, **kwargs)
        except Exception as error:  # an answer like NoSuchActor
            child.send(message.encode_failure(frame.request, error, ""))
            return
        if hasattr(value, "__await__"):
            self._root.tasks.start_soon(self._finish, child, frame.request, method, value)
        else:
            self._send(child, frame.request, method, value)

    def _handler(self, method: object) -> Callable[..., Any]:
        handler = self._handlers.get(str(method))
        if handler is None:
            raise NoSuchMethod(ROOT_PATH, str(method), tuple(self._handlers))
        return handler

    async def _answer(self, guest: Guest, frame: Frame, places: anyio.Semaphore) -> None:
        method = "?"
        try:
            method, args, kwargs = message.decode(frame)
            value = self._handler(method)(guest, *args, **kwargs)
            if hasattr(value, "__await__"):
                value = await value
        except Exception as error:  # a client's mistake, or an answer like NoSuchActor: it is the client's to see
            guest.send(message.encode_failure(frame.request, error, ""))
        else:
            self._send(guest, frame.request, method, value)
        finally:
            places.release()

    async def _finish(self, party: Party, request: int, method: str, value: Any) -> None:
        try:
            found = await value
        except Exception as error:  # an answer
            party.send(message.encode_failure(request, error, ""))
        else:
            self._send(party, request, method, found)

    def _send(self, party: Party, request: int, method: str, value: object) -> None:
        (frame,) = message.encode_result(request, ROOT_PATH, method, value)
        party.send(bytes(frame))

    # --- who is there

    def _hello(self, party: Party) -> str:
        """How the node calls itself."""
        del party
        return self._root.dir.path

    def _whereis(self, party: Party, name: str) -> tuple[str, int]:
        del party
        self._root.look()
        return tuple(self._root.registry.whereis(name))  # type: ignore[return-value]  # a plain tuple travels lighter

    def _id_at(self, target: str | int) -> int:
        """Of a name or path; the top supervisor's path is one only where no name is meant by it."""
        if target == self._root.tree.name:
            return ROOT_ID
        return self._root.registry.whereis(target).id if isinstance(target, str) else target

    def _processes(self, party: Party) -> list[ProcessInfo]:
        del party
        self._root.look()
        return [*self._leaves(self._root.top), *self._loose()]

    def _leaves(self, supervision: Supervision) -> list[ProcessInfo]:
        found = []
        for info, slot in zip(supervision.which_children(), supervision.slots.values(), strict=True):
            if slot.plan.tree is None:
                found.append(info)
            elif isinstance(slot.member, Supervision):
                found += self._leaves(slot.member)
        return found

    def _loose(self) -> list[ProcessInfo]:
        return [
            child.info(self._root.registry.name_of(child.id), 0)
            for child in self._root.children.values()
            if child.supervision is None
        ]

    def _tree(self, party: Party) -> list[dict[str, object]]:
        """Everything that lives, each with its details, parents before children."""
        del party
        self._root.look()
        ids = [*self._root.supervisions, *self._root.children]
        return sorted((self._details(id_) for id_ in ids), key=lambda details: int(str(details["id"])))

    def _info(self, party: Party, target: str | int) -> dict[str, object]:
        """What is known of one process."""
        del party
        self._root.look()
        id_ = self._id_at(target)
        if id_ not in self._root.children and id_ not in self._root.supervisions:
            raise NoSuchActor(f"#{id_}", "it is dead")
        return self._details(id_)

    def _details(self, id_: int) -> dict[str, object]:
        root = self._root
        member: Child | Supervision = root.children.get(id_) or root.supervisions[id_]
        plan = member.plan
        parent = member.origin.ancestors[0][0] if member.origin.ancestors else None
        ends = root.departed.of(member.path)
        details: dict[str, object] = {
            "id": id_,
            "path": member.path,
            "kind": "supervisor" if plan is None else plan.kind,
            "name": root.registry.name_of(id_),
            "parent": parent,
            "links": [root.name_for_people(other) for other in root.relations.linked(id_)],
            "monitors": [root.name_for_people(other) for other in root.relations.monitors(id_)],
            "watched_by": [root.name_for_people(other) for other in root.relations.watchers(id_)],
            "restarts": self._restarts_of(member),
            "last_crash": reasons.text(ends[-1].reason) if ends else None,
        }
        if isinstance(member, Child):
            stats = read_stats(f"{root.dir.actor(id_)}/stats")
            waiting, doing = stats.get("mailbox", ""), stats.get("call", "-")
            details |= {
                "pid": member.pid,
                "state": member.state,
                "traps_exits": member.traps,
                "mailbox": int(waiting) if waiting.isdigit() else None,
                "doing": None if doing == "-" else doing,
            }
        else:
            details |= {
                "pid": None,
                "state": "running" if member.ready else "starting",
                "strategy": member.tree.strategy,
            }
        return details

    def _restarts_of(self, member: Child | Supervision) -> int:
        above = member.supervision if isinstance(member, Child) else member.parent
        slot = None if above is None or member.plan is None else above.slots.get(member.plan.id)
        return 0 if slot is None else slot.restarts

    async def _quiet(self, party: Party, timeout_s: float) -> bool:
        del party
        self._root.look()
        return await self._root.until(self._root.top.is_quiet, timeout_s)

    def _exits(self, party: Party, path: str) -> list[ExitRecord]:
        del party
        self._root.look()
        return self._root.departed.of(path)

    async def _reason(self, party: Party, id_: int, timeout_s: float) -> object:
        """Why an incarnation died; an empty string if that is not known in time."""
        del party
        self._root.look()
        departed = self._root.departed
        await self._root.until(lambda: departed.reason(id_) != "", timeout_s)
        return departed.reason(id_)

    def _stop(self, party: Party) -> None:
        del party
        self._root.ask_to_stop()

    def _stacks(self, party: Party, id_: int) -> None:
        """Have a process write its stacks."""
        del party
        child = self._root.children.get(id_)
        if child is None:
            raise NoSuchActor(f"#{id_}", "it is no living process")
        self._root.quit(child)

    # --- processes

    async def _spawn(self, party: Party, plan: Plan, link: bool, monitor: int) -> tuple[str, int]:
        root = self._root
        if plan.name is not None:
            self._check_free(plan.name)
        ancestors = ((party.path, party.id), *party.origin.ancestors) if isinstance(party, Child) else ()
        above = party.path if isinstance(party, Child) else "clients"
        child = root.conceive(plan, f"{above}/{plan.id}-{root.dir.next_id()}", Origin(ancestors), 0, key="")
        child.spawner = party.id if plan.kind == "actor" else 0
        if link:
            root.relations.link(party.id, child.id)
        if monitor:
            root.relations.monitor(Watch(party.id, monitor, child.id))
        if isinstance(party, Child) and (link or monitor):
            root.show_relations(party.id)
        root.fork(child)
        await root.begin(child, lambda: child.heard if plan.kind != "actor" else root.stopping)
        child.spawner = 0
        if child.refused is not None:
            raise child.refused
        if child.record is not None and (plan.kind == "actor" or not child.heard):
            raise StartFailed(child.path, reasons.text(child.record.reason), child.record.stderr)
        return child.path, child.id

    def _check_free(self, name: str) -> None:
        try:
            holder = self._root.registry.whereis(name)
        except NoSuchActor:
            return
        raise NameTaken(name, f"{holder.path} (#{holder.id}) has it")

    def _alive(self, id_: int) -> bool:
        return id_ in self._root.children or id_ in self._root.supervisions

    def _link(self, party: Party, id_: int) -> bool:
        """False if there is nobody to link to."""
        self._root.look()
        if not self._alive(id_):
            return False
        self._root.relations.link(party.id, id_)
        self._root.show_relations(party.id)
        self._root.show_relations(id_)
        return True

    def _unlink(self, party: Party, id_: int) -> None:
        self._root.relations.unlink(party.id, id_)
        self._root.show_relations(party.id)
        self._root.show_relations(id_)

    def _monitor(self, party: Party, number: int, target: str | int) -> None:
        self._root.look()
        path = target if isinstance(target, str) else ""
        try:
            id_ = self._root.registry.whereis(target).id if isinstance(target, str) else target
        except NoSuchActor:
            id_ = -1
        if self._alive(id_):
            self._root.relations.monitor(Watch(party.id, number, id_))
            self._root.show_relations(party.id)
        else:
            party.notify(Notice("down", path, max(id_, 0), reasons.NOPROC, -1, number))

    def _demonitor(self, party: Party, number: int) -> None:
        self._root.relations.demonitor(party.id, number)
        self._root.show_relations(party.id)

    def _exit(self, party: Party, id_: int, reason: object, mark: int) -> None:
        """An exit signal; `mark`: how many messages its sender had sent before."""
        root = self._root
        reasons.checked(reason)
        supervision = root.supervisions.get(id_)
        if supervision is not None:  # it traps exits, and nothing but a kill concerns it
            if reason == reasons.KILL:
                supervision.ask_to_stop(reasons.KILLED, brutal=True)
            return
        child = root.children.get(id_)
        if child is None:
            return
        if reason == reasons.KILL:
            root.condemn(child, reasons.KILLED)
            return
        path, sender = party.path, party.id
        if isinstance(party, Guest):
            path, sender = party.sender_path, party.sender_id
        child.notify(Notice("exit", path, sender, reason, mark, 0, party.node))
        root.enforce(child, reason)

    # --- names and groups

    def _entry_of(self, id_: int) -> Entry:
        child = self._root.children.get(id_)
        if child is None or child.record is not None or child.words is not None:
            raise NoSuchActor(f"#{id_}", "it is dead")
        return Entry(child.path, id_)

    def _register(self, party: Party, name: str, id_: int) -> None:
        del party
        if not isinstance(name, str) or not name or "/" in name or name.startswith((".", "-")):
            raise InvalidSpecification(f"{name!r} cannot be a registered name: it must be a word without '/'")
        self._root.look()
        self._root.give_name(name, self._entry_of(id_))

    def _unregister(self, party: Party, name: str) -> None:
        del party
        self._root.registry.unregister(name)
        self._root.dir.unlink_name(name)

    def _join(self, party: Party, group: str, id_: int) -> None:
        del party
        self._root.registry.join(group, self._entry_of(id_))

    def _leave(self, party: Party, group: str, id_: int) -> None:
        del party
        self._root.registry.leave(group, id_)

    def _members(self, party: Party, group: str) -> list[tuple[str, int]]:
        del party
        self._root.look()
        return [tuple(entry) for entry in self._root.registry.members(group)]  # type: ignore[misc]  # see _whereis

    # --- supervisors

    def _supervision(self, target: str | int) -> Supervision:
        id_ = self._id_at(target)
        found = self._root.supervisions.get(id_)
        if found is None:
            raise NoSuchActor(str(target), "no supervisor of that name lives")
        return found

    async def _start_child(
        self, party: Party, target: str | int, plan: Plan | None, extra: bytes | None
    ) -> tuple[str, int]:
        del party
        supervision = self._supervision(target)
        found = await supervision.ask(lambda: supervision.start_child(plan, extra))
        return found[0], found[1]

    async def _terminate_child(self, party: Party, target: str | int, id_: str) -> None:
        del party
        supervision = self._supervision(target)
        await supervision.ask(lambda: supervision.terminate_child(id_))

    async def _restart_child(self, party: Party, target: str | int, id_: str) -> tuple[str, int]:
        del party
        supervision = self._supervision(target)
        found = await supervision.ask(lambda: supervision.restart_child(id_))
        return found[0], found[1]

    async def _delete_child(self, party: Party, target: str | int, id_: str) -> None:
        del party
        supervision = self._supervision(target)
        await supervision.ask(lambda: supervision.delete_child(id_))

    def _which_children(self, party: Party, target: str | int) -> list[ProcessInfo]:
        del party
        self._root.look()
        return self._supervision(target).which_children()
