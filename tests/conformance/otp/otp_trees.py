"""Scenes for test_supervisors.py: starting, crashing, restarting."""

from __future__ import annotations

import os
import signal
from typing import Any

import anyio
from otp_cast import (
    DEADLINE_S,
    STAGE,
    Bench,
    Kid,
    Ledger,
    begin,
    bench,
    down,
    found,
    got,
    kid,
    until,
)
from otp_model import Model

from colos.errors import NoSuchActor, StartFailed
from colos.runtime import (
    ActorRef,
    ChildSpec,
    ProcessInfo,
    me,
    monitor,
    send,
    send_after,
    start_child,
    terminate_child,
    whereis,
    which_children,
)


async def rows(path: str) -> list[tuple[str, bool]]:
    """which_children as the oracle says it: [(id, is it running)]."""
    return [(row_id(info), info.state == "running") for info in await which_children(path)]


def row_id(info: ProcessInfo) -> str:
    """A child's id: its place under its supervisor."""
    return info.path.rpartition("/")[2]


async def incarnations(path: str) -> dict[str, ActorRef]:
    """The children that run, as they are now."""
    return {id_: await whereis(f"{path}/{id_}") for id_, running in await rows(path) if running}


async def there(path: str) -> ActorRef:
    """Who is at a path, once somebody is."""

    async def somebody() -> bool:
        return await found(path) is not None

    await until(somebody)
    return await whereis(path)


async def kill_process(path: str) -> None:
    """SIGKILL to the process at a path."""
    os.kill(await (await whereis(path)).pid(), signal.SIGKILL)


async def starts(ledger: ActorRef, count: int) -> bool:
    """Wait for so many starts since the ledger began."""

    async def enough() -> bool:
        return sum(event[0] == "start" for event in await ledger.story()) >= count

    return await until(enough)


# --- crashes -----------------------------------------------------------------------------


async def drive(strategy: str, intensity: int, kinds: list[tuple[str, str]], crashes: list[tuple[str, object]]) -> Any:
    """As the oracle's drive: children die in turn; what was reported, how it ended, and who is who is not as predicted.

    The model is used only to know when the supervisor has done what is expected of it.
    """
    ledger = await begin(Ledger)
    _, path, watch = await bench(*(kid(ledger, *kind) for kind in kinds), strategy=strategy, intensity=intensity)
    model = Model(strategy, intensity, kinds)
    wrong: list[tuple[str, ...]] = []
    for label, reason in crashes:
        if model.died or not model.running.get(label):
            continue
        before = await incarnations(path)
        renewed = model.crash(label, reason)
        child = await monitor(before[label])
        if reason == "SIGKILL":
            await kill_process(f"{path}/{label}")
        else:
            await send(before[label], ("die", reason))
        await down(child)
        if model.died:
            break

        async def settled(before: dict[str, ActorRef] = before, renewed: set[str] = renewed) -> bool:
            try:
                now = await incarnations(path)
                return await rows(path) == list(model.running.items()) and all(
                    (now[one] != before.get(one)) == (one in renewed) for one in now
                )
            except NoSuchActor:  # the supervisor is gone, or a child between two looks
                return False

        if not await until(settled):
            wrong.append((label, repr(reason)))
            break
    end = ("sup_died", await down(watch)) if model.died else ("alive", await rows(path))
    return [(await ledger.story())[len(kinds) :], end, wrong]


async def nested(outer: int, inner: int, restart: str, crashes: int) -> list[Any]:
    """A supervisor under a supervisor whose child crashes: starts of the child, and what became of both."""
    ledger = await begin(Ledger)
    spec = ChildSpec("inner", Bench, ("one_for_one", inner, 60.0, (kid(ledger, "a"),)), restart=restart)  # type: ignore[arg-type]
    _, path, watch = await bench(spec, intensity=outer)
    for number in range(crashes):
        ref = await there(f"{path}/inner/a")
        child = await monitor(ref)
        await send(ref, ("die", "foo"))
        await down(child)
        if number < crashes - 1:
            assert await starts(ledger, number + 2), number
    if restart == "permanent":
        end: object = await down(watch)
    else:

        async def left() -> bool:
            return await rows(path) == [("inner", False)]

        await until(left)
        end = await rows(path)
    return [end, [event[0] for event in await ledger.story()].count("start")]


async def apart_in_time(period_s: float, crashes: int) -> list[Any]:
    """With intensity 1, crashes that are more than a period apart."""
    ledger = await begin(Ledger)
    _, path, watch = await bench(kid(ledger, "a"), intensity=1, period_s=period_s)
    for number in range(crashes):
        await send(await there(f"{path}/a"), ("die", "foo"))
        if not await starts(ledger, number + 2):
            return ["died", await down(watch)]
        send_after(period_s * 1.5, me(), "later")
        await got(str)
    return ["alive", await rows(path)]


async def failing_restart(intensity: int, failures: int) -> list[Any]:
    """A child crashes, and its next starts fail: the story after its first start, and how it ended."""
    ledger = await begin(Ledger)
    _, path, watch = await bench(kid(ledger, "a"), kid(ledger, "b"), intensity=intensity)
    await ledger.arm("b", failures)
    await send(await whereis(f"{path}/b"), ("die", "foo"))
    if failures + 1 > intensity:
        reason = await down(watch)
        return [(await ledger.story())[2:], ("sup_died", reason)]
    await starts(ledger, 3)

    async def running() -> bool:
        return await rows(path) == [("a", True), ("b", True)]

    await until(running)
    return [(await ledger.story())[2:], ("alive", await rows(path))]


async def shutdown_between(strategy: str) -> list[Any]:
    """A child fails for ever to restart, and its supervisor, which may restart for ever, is asked to stop."""
    ledger = await begin(Ledger)
    _, path, watch = await bench(kid(ledger, "a"), kid(ledger, "b"), strategy=strategy, intensity=10**9)
    await ledger.arm("b", 10**9)
    await send(await whereis(f"{path}/b"), ("die", "foo"))

    async def tried_often() -> bool:
        return sum(event[0] == "fail" for event in await ledger.story()) >= 3

    assert await until(tried_often)
    with anyio.fail_after(DEADLINE_S):
        answered = (await rows(path))[0][0]  # it answers meanwhile, too
        await terminate_child(STAGE, path.rpartition("/")[2])
    reason = await down(watch)
    count = len(await ledger.story())
    for one in ("a", "b"):
        assert await found(f"{path}/{one}") is None
    left = (await ledger.story())[count:]
    return [answered, reason, left]


# --- starting and stopping ---------------------------------------------------------------


async def start_and_stop(labels: list[str]) -> list[Any]:
    """What is reported while a supervisor starts, and while its parent stops it."""
    ledger = await begin(Ledger)
    _, path, watch = await bench(*(kid(ledger, label, habit="slow") for label in labels))
    started = await ledger.story()
    listed = [row_id(info) for info in await which_children(path)]
    await terminate_child(STAGE, path.rpartition("/")[2])
    return [started, listed, (await ledger.story())[len(started) :], await down(watch)]


async def start_that_fails(labels: list[str], failing: int, nested_in: bool) -> list[Any]:
    """A child does not start: what was reported, what is said, and what is left under the stage."""
    ledger = await begin(Ledger)
    await ledger.arm(labels[failing], 1)
    specs: tuple[ChildSpec, ...] = tuple(kid(ledger, label) for label in labels)
    if nested_in:
        specs = (kid(ledger, "before"), ChildSpec("inner", Bench, ("one_for_one", 3, 60.0, specs)))
    before = [row_id(info) for info in await which_children(STAGE)]
    try:
        await bench(*specs)
        said = "it started"
    except StartFailed as error:
        said = str(error)
    left = [row_id(info) for info in await which_children(STAGE)]
    return [await ledger.story(), said, [one for one in left if one not in before]]


async def stop_together(size: int) -> list[Any]:
    """Dynamic children which stop only when all are stopping: the story of the end."""
    ledger = await begin(Ledger)
    template = ChildSpec("template", Kid, (ledger,), shutdown_s=DEADLINE_S)
    sup, path, watch = await bench(template, strategy="dynamic")
    for number in range(size):
        await start_child(sup, f"k{number}", f"together:{size}")
    ids = [row_id(info) for info in await which_children(sup)]
    await terminate_child(STAGE, path.rpartition("/")[2])
    story = [event for event in await ledger.story() if event[0] != "start"]
    return [ids, sorted(event[1] for event in story if event[0] == "stopped"), await down(watch)]


async def dynamic(restart: str, reason: object) -> list[Any]:
    """Dynamic children: their ids, a start that fails, one that ends by itself, one that is terminated."""
    ledger = await begin(Ledger)
    sup, path, _ = await bench(ChildSpec("template", Kid, (ledger,), restart=restart), strategy="dynamic")  # type: ignore[arg-type]
    empty = await rows(path)
    refs = [await start_child(sup, label) for label in ("x", "y", "z")]
    await ledger.arm("bad", 1)
    try:
        await start_child(path, "bad")
        failed = "it started"
    except StartFailed as error:
        failed = str(error)
    ids = [row_id(info) for info in await which_children(path)]
    await terminate_child(sup, "2")
    left = [row_id(info) for info in await which_children(path)]
    watch = await monitor(refs[0])
    await send(refs[0], ("die", reason))
    told = await down(watch)

    async def settled() -> bool:
        now = await rows(path)
        return len(now) == (2 if is_restarted(restart, reason) else 1) and all(running for _, running in now)

    return [empty, ids, failed, left, told, await until(settled)]


def is_restarted(restart: str, reason: object) -> bool:
    model = Model("one_for_one", 9, [("a", restart)])
    return bool(model.crash("a", reason))
