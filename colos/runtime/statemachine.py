"""A state machine behaviour: what an actor does with an event depends on its state.

Source: gen_statem(3): state functions, state enter calls, state timeouts, postponing events.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Final, NoReturn

from colos.errors import InvalidSpecification, MailboxFull, RuntimeFailure
from colos.runtime import primitives
from colos.runtime.actor import Actor
from colos.runtime.behaviour import Postponed
from colos.runtime.here import here
from colos.runtime.mailbox import Letter

_HOOKS: Final = ("enter", "leave", "timeout")
_ANY: Final = "event"
_Handler = Callable[..., Awaitable[Any]]


class WrongState(RuntimeFailure):
    """The event has no meaning in the state that the machine is in: nothing was done."""

    def __init__(self, actor: str, state: str, event: str) -> None:
        super().__init__(f"{actor!r} is {state!r}, and {event!r} means nothing then")
        self.actor = actor
        self.state = state
        self.event = event


class StateTimeout:
    """What `info` gets when a state has lasted for its time."""

    def __init__(self, number: int) -> None:
        self.number = number


class _Inside:
    """A handler or hook: the machine runs it; from outside it cannot be called."""

    def __init__(self, function: _Handler) -> None:
        self._function = function

    def __get__(self, machine: object, owner: type | None = None) -> Any:
        return self._function if machine is None else functools.partial(self._function, machine)


class StateMachine(Actor):
    """Says its `states`, and one method for each that an event means something in.

    ``states = ("open", "locked")``, the first is the initial one.  ``await ref.push()`` runs ``open_push`` or
    ``locked_push``, whichever is the state's; if it has none, ``event_push``; else the caller gets WrongState.
    Hooks, where they are defined: ``enter_STATE``, ``leave_STATE``, and ``timeout_STATE`` when a state has lasted
    for as long as `next_state` said.  Other public methods can be called in every state.
    """

    states: ClassVar[tuple[str, ...]] = ()
    _events: ClassVar[frozenset[str]] = frozenset()

    state: str = ""
    _next: tuple[str, float | None] | None = None
    _number = 0
    _timer: primitives.Timer | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        reserved = [state for state in cls.states if state in (*_HOOKS, _ANY) or not state.isidentifier()]
        if reserved:
            raise InvalidSpecification(f"{cls.__qualname__}: {reserved[0]!r} cannot be a state's name")
        cls.expected = tuple(dict.fromkeys((*cls.expected, WrongState, MailboxFull)))
        for name, function in list(vars(cls).items()):
            if not inspect.iscoroutinefunction(function):
                continue
            first, _, rest = name.partition("_")
            owner = max((s for s in (*cls.states, _ANY) if name.startswith(f"{s}_")), key=len, default="")
            if first in _HOOKS and rest not in cls.states:
                raise InvalidSpecification(f"{cls.__qualname__}.{name}: {rest!r} is no state: {', '.join(cls.states)}")
            if first in _HOOKS or owner:
                setattr(cls, name, _Inside(function))
            if owner and first not in _HOOKS:
                cls._add_event(name.removeprefix(f"{owner}_"))

    @classmethod
    def _add_event(cls, event: str) -> None:
        if event in cls._events:
            return
        if event.startswith("_") or hasattr(cls, event):
            raise InvalidSpecification(f"{cls.__qualname__}: {event!r} cannot be an event: it is a method already")

        async def happen(self: StateMachine, *args: Any, **kwargs: Any) -> Any:
            return await self._happen(event, args, kwargs)

        setattr(cls, event, happen)
        cls._events |= {event}

    async def init(self) -> None:
        """Enter the first state."""
        self._postponed: list[Letter] = []
        if not self.states:
            raise InvalidSpecification(f"{type(self).__qualname__} does not say which states it has")
        self.next_state(self.states[0])
        await self._go()

    def next_state(self, state: str, timeout_s: float | None = None) -> None:
        """Go into a state when this event has been handled; perhaps the one it is in, which begins again."""
        if state not in self.states:
            raise InvalidSpecification(f"{state!r} is no state; there are: {', '.join(self.states)}")
        self._next = (state, timeout_s)

    def postpone(self) -> NoReturn:
        """Handle the present event after the next change of state, before what came later; its caller waits."""
        if len(self._postponed) >= self.mailbox_limit:
            raise MailboxFull(self.path)
        raise Postponed(self._postponed)

    async def info(self, message: object) -> None:
        """Run `timeout_STATE` when a state's time is over; a machine that overrides this hands on what is not its."""
        if not isinstance(message, StateTimeout):
            await super().info(message)
        elif message.number == self._number:  # else the state was left since, and this one was on its way
            await self._hook("timeout")
            await self._go()

    async def _happen(self, event: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        handler = getattr(self, f"{self.state}_{event}", None) or getattr(self, f"{_ANY}_{event}", None)
        if handler is None:
            raise WrongState(self.path, self.state, event)
        try:
            answer = await handler(*args, **kwargs)
        except BaseException:
            self._next = None
            raise
        await self._go()
        return answer

    async def _go(self) -> None:
        """Change the state, if that was said; and again, if a hook said so."""
        before = self.state
        while self._next is not None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self.state:
                await self._hook("leave")
            (self.state, timeout_s), self._next = self._next, None
            self._number += 1
            if timeout_s is not None:
                self._timer = primitives.send_after(timeout_s, here().ref, StateTimeout(self._number))
            await self._hook("enter")
        if self.state != before:
            here().mailbox.items.extendleft(reversed(self._postponed))
            self._postponed.clear()

    async def _hook(self, what: str) -> None:
        hook = getattr(self, f"{what}_{self.state}", None)
        if hook is not None:
            await hook()
