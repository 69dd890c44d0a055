"""The runtime's promises, held while processes are killed, stopped, starved and without descriptors.

`tests/conformance/otp/` has each promise by itself, on a good day.  Here the actors of `promise_actors` write what
they saw into one book (a file, which no fault here touches), and the properties read it.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import hypothesis.strategies as st
import promise_actors as cast
from hypothesis import settings
from hypothesis.stateful import initialize, rule

from colos.chaos import (
    ActorSystem,
    ChaosMachine,
    CpuStarvation,
    DescriptorExhaustion,
    Kill,
    always,
    eventually,
    sometimes,
)
from colos.errors import NoSuchNode

FEW = settings(max_examples=10, stateful_step_count=8)
NOW_S = 0.6
"""How long a client waits for an actor that may be stopped; longer than an actor waits for another."""
SLACK_S = 1.5
"""How much later than its deadline a call may end on a busy machine."""


def storm(pattern: str) -> tuple[Any, ...]:
    return (
        Kill(pattern),
        Kill(pattern, signals=("SIGSTOP",)),
        CpuStarvation(pattern),
        DescriptorExhaustion(pattern),
    )


class Promises(ChaosMachine):
    """What the machines below share: asking actors, the book, who lives."""

    refusals = (OSError,)  # an actor without descriptors says so
    children: tuple[str, ...] = ()

    async def ask(self, name: str, method: str, *args: object, timeout: float = NOW_S) -> Any:
        return await (await self.system.whereis(name)).call(method, *args, timeout=timeout)

    def book(self, kind: str) -> list[list[Any]]:
        """The events of a kind, in order, without the kind."""
        found = []
        for line in Path(self.system.path("{data}/book")).read_text().splitlines():
            try:
                event = json.loads(line)
            except ValueError:  # empty, being written, or cut by a kill
                continue
            if event[0] == kind:
                found.append(event[1:])
        return found

    async def living(self) -> dict[int, str]:
        """Every process that lives, by id.  The node itself always does."""
        try:
            return {info.id: info.path for info in await self.system.node.processes() if info.id}
        except NoSuchNode as error:
            box = self.system.sandbox
            box.catch_up()
            raise AssertionError(f"the node is gone: {box.exits}; it said:\n{box.output()}") from error

    async def reason(self, path: str, id_: int) -> object:
        """Why the node says that one died; None if it does not."""
        return next((record.reason for record in await self.system.node.exits(path) if record.id == id_), None)

    @eventually(within=10.0)
    async def everybody_answers(self) -> None:
        for path in self.system_declaration().topology():
            assert await self.ask(path, "ping")


@FEW
class TestOrder(Promises):
    """Signals of one process to another (casts, messages, exits): never out of order, never twice, no gap."""

    system = ActorSystem(cast.Post)
    faults = storm("post/*")

    @rule(who=st.sampled_from(["ann", "bob"]), count=st.integers(1, 40), size=st.sampled_from([0, 90_000]),
          signal=st.booleans())  # fmt: skip
    async def push(self, who: str, count: int, size: int, signal: bool) -> None:
        # Not waited for: the next step meets it at work.
        await (await self.system.whereis(who)).cast("push", count, size, signal, timeout=NOW_S)

    def streams(self, kind: str) -> dict[tuple[int, int], list[int]]:
        """What was sent, or got, from one incarnation to another."""
        found = defaultdict(list)
        for sender, receiver, number, *_ in self.book(kind):
            found[sender, receiver].append(number)
        return found

    @always
    def no_signal_is_reordered_doubled_or_skipped(self) -> None:
        for pair, numbers in self.streams("got").items():
            assert numbers == list(range(1, len(numbers) + 1)), (pair, numbers)

    @eventually(within=10.0)
    async def between_the_living_nothing_is_lost(self) -> None:
        alive = await self.living()
        sent, got = self.streams("sent"), self.streams("got")
        for pair in sent:
            if alive.keys() >= set(pair):
                assert len(got.get(pair, [])) == sent[pair][-1], (pair, sent[pair], got.get(pair))

    @sometimes
    def several_incarnations_got_something(self) -> bool:
        return len({receiver for _, receiver in self.streams("got")}) > 1


@FEW
class TestMonitors(Promises):
    """Each monitor: one Down, of a dead one, with the reason that the node records."""

    system = ActorSystem(cast.Ward)
    faults = storm("ward/*")

    @initialize()
    async def watch_all_twice(self) -> None:
        for name in ("w0", "w1", "w2") * 2:
            await self.ask("watcher", "watch", name)

    @rule(name=st.sampled_from(["w0", "w1", "w2"]))
    async def watch(self, name: str) -> None:
        await self.ask("watcher", "watch", name)

    @rule()
    async def unwatch(self) -> None:
        await self.ask("watcher", "unwatch")

    @always
    async def a_down_is_told_once_and_only_of_the_dead(self) -> None:
        downs = self.book("down")
        alive = await self.living()
        told = Counter((watcher, number) for watcher, number, *_ in downs)
        assert set(told.values()) <= {1}, told
        assert not [down for down in downs if down[2] in alive], (downs, alive)
        of = {(watcher, number): target for watcher, number, target, _ in self.book("watch")}
        assert all(of.get((down[0], down[1]), down[2]) == down[2] for down in downs), (downs, of)

    @always
    def who_knows_of_a_death_does_not_find_the_dead(self) -> None:
        assert not [event for event in self.book("found") if event[0] == event[1]]

    @eventually(within=10.0)
    async def every_death_is_told_with_its_reason(self) -> None:
        alive = await self.living()
        downs = {(watcher, number): reason for watcher, number, _, reason in self.book("down")}
        ended = {tuple(event) for event in self.book("unwatch")}
        for watcher, number, target, path in self.book("watch"):
            if watcher in alive and target not in alive and (watcher, number) not in ended:
                assert (watcher, number) in downs, (watcher, number, target)
                assert downs[watcher, number] in ("noproc", await self.reason(path, target))

    @always
    def an_ended_monitor_is_silent(self) -> None:
        events = [tuple(event[:2]) for event in self.book("unwatch")]
        assert not [down for down in self.book("down") if tuple(down[:2]) in events]

    @sometimes
    def a_death_was_told(self) -> bool:
        return bool(self.book("down"))


@FEW
class TestLinks(Promises):
    """Who traps is told once of each death; who does not, dies of it."""

    system = ActorSystem(cast.Family)
    faults = storm("family/*")

    @initialize()
    async def tie_some(self) -> None:
        for who, other in (("parent", "t0"), ("parent", "t1"), ("t0", "t2")):
            await self.ask(who, "tie", other)

    @rule(who=st.sampled_from(["parent", "t0", "t1"]), other=st.sampled_from(["t0", "t1", "t2"]))
    async def tie(self, who: str, other: str) -> None:
        await self.ask(who, "tie", other)

    @rule(other=st.sampled_from(["t0", "t1", "t2"]))
    async def untie(self, other: str) -> None:
        await self.ask("parent", "untie", other)

    def exits(self) -> Counter[tuple[int, int]]:
        return Counter((parent, other) for parent, other, _ in self.book("exit"))

    @always
    async def a_death_is_told_once_and_only_to_the_linked(self) -> None:
        exits, alive = self.exits(), await self.living()
        assert set(exits.values()) <= {1}, exits
        assert not [pair for pair in exits if pair[1] in alive], (exits, alive)
        assert exits.keys() <= {(one, other) for one, other in self.book("tying")}, exits
        assert not exits.keys() & {tuple(event) for event in self.book("untied")}, exits

    @eventually(within=10.0)
    async def every_death_goes_through_its_links(self) -> None:
        alive = await self.living()
        ended = {tuple(event) for event in self.book("untied")}
        exits = self.exits()
        parents = {one for one, path in alive.items() if path.endswith("/parent")}
        for one, other, path in self.book("tied"):
            if (one, other) in ended:
                continue
            if one in alive and other not in alive:
                assert one in parents, f"#{one} outlived #{other}, and does not trap"
                assert exits[one, other] == 1, (one, other, alive)
                told = next(event[2] for event in self.book("exit") if event[:2] == [one, other])
                assert told in ("noproc", await self.reason(path, other))
            assert one in alive or other not in alive, (one, other, alive)

    @sometimes
    def a_parent_was_told(self) -> bool:
        return bool(self.book("exit"))


@FEW
class TestNames(Promises):
    """One living holder a name, never a dead one; groups hold the living."""

    system = ActorSystem(cast.Court)
    faults = storm("court/*")
    who = st.sampled_from(["court/c0", "court/c1", "court/c2"])

    @initialize(king=who, guard=who)
    async def crown_somebody(self, king: str, guard: str) -> None:
        await self.ask(king, "claim")
        await self.ask(guard, "watch", "crown")

    @rule(who=who)
    async def claim(self, who: str) -> None:
        await self.ask(who, "claim")

    @rule(who=who)
    async def abdicate(self, who: str) -> None:
        await self.ask(who, "abdicate")

    @rule(who=who)
    async def leave_and_join(self, who: str) -> None:
        await self.ask(who, "go")

    @rule(who=who)
    async def watch_the_crown(self, who: str) -> None:
        await self.ask(who, "watch", "crown")

    @sometimes
    def a_king_died(self) -> bool:
        return bool({event[2] for event in self.book("down")} & {id_ for (id_,) in self.book("king")})

    @always
    def there_are_never_two_kings(self) -> None:
        assert not self.book("two kings")

    @always
    def who_knows_of_a_death_does_not_find_the_dead(self) -> None:
        assert not [event for event in self.book("found") if event[0] == event[1]]

    @always
    async def the_dead_hold_nothing(self) -> None:
        dead = {event[2] for event in self.book("down")}
        held = {ref.id for ref in await self.system.node.members("claimants")}
        try:
            held.add((await self.system.whereis("crown")).id)
        except cast.NoSuchActor:
            pass
        assert not dead & held, (dead, held)

    @eventually(within=10.0)
    async def the_group_is_the_living_and_the_crown_can_be_had(self) -> None:
        assert {ref.id for ref in await self.system.node.members("claimants")} == set(await self.living())
        for who in self.system_declaration().topology():
            await self.ask(who, "claim")
        assert (await self.system.whereis("crown")).id in await self.living()


@FEW
class TestCalls(Promises):
    """Every call ends in time, with its own reply or one of the errors; an error that says never means it."""

    system = ActorSystem(cast.Exchange)
    faults = storm("exchange/*")

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[tuple[str, str, str]] = []
        self.late: list[tuple[str, float, float]] = []
        self.tokens = 0

    def new_tokens(self, count: int) -> list[str]:
        self.tokens += count
        return [f"{number}" for number in range(self.tokens - count, self.tokens)]

    delays = st.sampled_from([0.0, 0.02, 0.2])
    limits = st.sampled_from([0.01, 0.03, 1.0])

    @rule(count=st.integers(1, 8), delay_s=delays, timeout_s=limits)
    async def call(self, count: int, delay_s: float, timeout_s: float) -> None:
        echo = await self.system.whereis("echo")

        async def one(token: str) -> None:
            begun = anyio.current_time()
            self.answers.append((token, *await cast.answer(echo, token, delay_s, timeout_s)))
            if (took := anyio.current_time() - begun) > timeout_s + SLACK_S:
                self.late.append((token, timeout_s, took))

        for token in self.new_tokens(count):
            self.tasks.start_soon(one, token)  # not waited for: the next step meets them at work

    @rule(count=st.integers(1, 8), delay_s=delays, timeout_s=limits)
    async def have_an_actor_call(self, count: int, delay_s: float, timeout_s: float) -> None:
        asker = await self.system.whereis("asker")
        await asker.cast("ask", self.new_tokens(count), delay_s, timeout_s, timeout=NOW_S)

    @always
    def a_call_ends_in_time_with_what_belongs_to_it(self) -> None:
        answers = [*self.answers, *map(tuple, self.book("answer"))]
        done = Counter(token for (token,) in self.book("done"))
        assert not self.late, self.late
        assert set(done.values()) <= {1}, "done twice"
        for token, kind, value in answers:
            assert kind != "wrong", value
            assert kind != "reply" or (value == token and token in done), (token, value)
            assert kind != "never" or token not in done, (token, value)

    @sometimes
    def a_call_was_in_doubt(self) -> bool:
        return any(kind == "unknown" for _, kind, _ in self.answers)

    @sometimes
    def a_call_was_known_not_to_have_happened(self) -> bool:
        return any(kind == "never" for _, kind, _ in [*self.answers, *self.book("answer")])


class Supervision(Promises):
    """Who is to be restarted together is; nobody else is; each starts when the later ones are gone."""

    @always
    def a_child_starts_when_no_later_one_lives(self) -> None:
        assert not [start for start in self.book("start") if start[2]]

    @always
    def children_start_from_left_to_right(self) -> None:
        order = "".join(label for label, *_ in self.book("start"))
        for one, other in pairwise(order):
            assert other <= one or ord(other) == ord(one) + 1, order

    @always
    async def the_later_ones_are_younger(self) -> None:
        if await self.system.node.quiet(0.5):
            ids = [id_ for id_, _ in sorted((await self.living()).items(), key=lambda item: item[1])]
            assert ids == sorted(ids), ids

    @eventually(within=10.0)
    async def all_run(self) -> None:
        assert sorted((await self.living()).values()) == ["team/a", "team/b", "team/c"]


class Together(Supervision):
    """Whose incarnations are others when one has died."""

    anew: dict[str, str]

    @rule(label=st.sampled_from("abc"))
    async def end_one(self, label: str) -> None:
        if not await self.system.node.quiet(0.5):
            return
        before = {path: id_ for id_, path in (await self.living()).items()}
        await self.system.node.exit_signal(await self.system.whereis(f"team/{label}"), "kill")
        if await self.system.node.quiet(3.0):
            after = {path: id_ for id_, path in (await self.living()).items()}
            anew = "".join(path[-1] for path in sorted(before) if after[path] != before[path])
            assert anew == self.anew[label], (label, before, after)


@FEW
class TestOneForAll(Together):
    system = ActorSystem(cast.OneForAll)
    faults = storm("team/*")
    anew = {"a": "abc", "b": "abc", "c": "abc"}


@FEW
class TestRestForOne(Together):
    system = ActorSystem(cast.RestForOne)
    faults = storm("team/*")
    anew = {"a": "abc", "b": "bc", "c": "c"}


@FEW
class TestTolerance(Supervision):
    """As many deaths as the supervisor's intensity, and it has not given up."""

    system = ActorSystem(cast.Patient)
    faults = storm("team/*")

    @rule(label=st.sampled_from("abc"))
    async def ping(self, label: str) -> None:
        await self.ask(f"team/{label}", "ping")
