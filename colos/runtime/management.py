"""Asking a supervisor: start, stop, restart and forget its children.  Source: supervisor(3)."""

from __future__ import annotations

import pickle
from typing import Any

from colos.errors import NotPicklable
from colos.runtime.here import here
from colos.runtime.incarnation import ProcessInfo
from colos.runtime.refs import ActorRef
from colos.runtime.supervisor import ChildSpec, plan_of
from colos.runtime.switchboard import Switchboard

_START_S = 60.0
"""A child's own start_s bounds its start; this bounds the supervisor's taking its turn."""
SupervisorAt = ActorRef | str
"""A supervisor's reference, or its path."""


class Management:
    """What can be asked of the supervisors that a switchboard reaches."""

    def __init__(self, board: Switchboard) -> None:
        self._board = board

    async def start_child(self, supervisor: SupervisorAt, *args: Any, **kwargs: Any) -> ActorRef:
        """Start a child: a ChildSpec, or for a dynamic supervisor the arguments beyond its template's.

        Raises StartFailed, InvalidSpecification, NoSuchActor, NotPicklable.
        """
        plan, extra = None, None
        if len(args) == 1 and isinstance(args[0], ChildSpec) and not kwargs:
            plan = plan_of(args[0], _text(supervisor)).packed()
        else:
            try:
                extra = pickle.dumps((args, kwargs), 5)
            except Exception as error:  # pickling runs the author's code, which may raise anything
                raise NotPicklable(_text(supervisor), "start_child", f"{type(error).__name__}: {error}") from error
        path, id_ = await self._ask("start_child", supervisor, plan, extra)
        return self._board.ref(path, id_)

    async def terminate_child(self, supervisor: SupervisorAt, id_: str) -> None:
        """Stop a child and leave it stopped; a temporary or dynamic one is forgotten."""
        await self._ask("terminate_child", supervisor, id_)

    async def restart_child(self, supervisor: SupervisorAt, id_: str) -> ActorRef:
        """Start a child again that is not running.  Raises StartFailed, InvalidSpecification if it runs."""
        path, number = await self._ask("restart_child", supervisor, id_)
        return self._board.ref(path, number)

    async def delete_child(self, supervisor: SupervisorAt, id_: str) -> None:
        """Forget a child that is not running.  Raises InvalidSpecification if it runs."""
        await self._ask("delete_child", supervisor, id_)

    async def which_children(self, supervisor: SupervisorAt) -> list[ProcessInfo]:
        """A supervisor's children in start order."""
        return list(await self._ask("which_children", supervisor))

    async def _ask(self, question: str, supervisor: SupervisorAt, *args: object) -> Any:
        target = supervisor if isinstance(supervisor, str) else supervisor.id
        return await self._board.ask_root(question, target, *args, timeout_s=_START_S)


def _text(supervisor: SupervisorAt) -> str:
    return supervisor if isinstance(supervisor, str) else supervisor.path


def _ours() -> Management:
    return Management(here().board)


async def start_child(supervisor: SupervisorAt, *args: Any, **kwargs: Any) -> ActorRef:
    """See Management.start_child."""
    return await _ours().start_child(supervisor, *args, **kwargs)


async def terminate_child(supervisor: SupervisorAt, id_: str) -> None:
    """See Management.terminate_child."""
    await _ours().terminate_child(supervisor, id_)


async def restart_child(supervisor: SupervisorAt, id_: str) -> ActorRef:
    """See Management.restart_child."""
    return await _ours().restart_child(supervisor, id_)


async def delete_child(supervisor: SupervisorAt, id_: str) -> None:
    """See Management.delete_child."""
    await _ours().delete_child(supervisor, id_)


async def which_children(supervisor: SupervisorAt) -> list[ProcessInfo]:
    """See Management.which_children."""
    return await _ours().which_children(supervisor)
