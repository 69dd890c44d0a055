"""Scenes for test_supervisors.py: how children stop, significant ones, children by id, plain functions."""

# ruff: noqa: ASYNC240 - a gate is a file
from __future__ import annotations

import math
import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import anyio
from otp_cast import (
    DEADLINE_S,
    STAGE,
    Bench,
    Ledger,
    begin,
    bench,
    down,
    got,
    idle,
    kid,
    refuser,
    until,
)
from otp_trees import incarnations, is_restarted, row_id, rows, starts

from colos.errors import InvalidSpecification, NoSuchActor, StartFailed
from colos.runtime import (
    ActorRef,
    ChildSpec,
    Down,
    delete_child,
    exit_signal,
    me,
    monitor,
    receive,
    restart_child,
    send,
    start_child,
    terminate_child,
    whereis,
    which_children,
)

# --- shutdown ----------------------------------------------------------------------------


async def shutdowns() -> dict[str, Any]:
    """Children that stop each in its own way; what each died of, and what was reported."""
    ledger = await begin(Ledger)
    with tempfile.TemporaryDirectory() as directory:
        gate = f"{directory}/gate"
        specs = (
            kid(ledger, "waits", habit=f"gate:{gate}", shutdown_s=math.inf),
            kid(ledger, "brutal", shutdown_s=0),
            kid(ledger, "stubborn", habit="stubborn", shutdown_s=1.0),
            kid(ledger, "stopped", shutdown_s=0.2),
            ChildSpec("refuser", refuser, (ledger, "refuser"), shutdown_s=0.2),
            kid(ledger, "polite"),
        )
        _, path, watch = await bench(*specs)

        async def unlinked() -> bool:
            return ("unlinked", "refuser") in await ledger.story()

        assert await until(unlinked)
        os.kill(await (await whereis(f"{path}/stopped")).pid(), signal.SIGSTOP)
        watches = {await monitor(ref): label for label, ref in (await incarnations(path)).items()}
        died: dict[str, object] = {}
        order: list[str] = []

        async def others() -> None:
            while len(died) < len(specs):
                message = await got(lambda one: isinstance(one, Down) and one.monitor in watches)
                order.append(watches[message.monitor])
                died[watches[message.monitor]] = message.reason
                if len(died) == len(specs) - 1:
                    Path(gate).touch()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(others)
            await terminate_child(STAGE, path.rpartition("/")[2])
        return {"died": died, "order": order, "stops": await stops(ledger), "supervisor": await down(watch)}


async def kill_supervisor() -> list[Any]:
    """exit_signal(supervisor, "kill"): what it and its children, also the deeper ones, die of."""
    ledger = await begin(Ledger)
    inner = ChildSpec("inner", Bench, ("one_for_one", 3, 60.0, (kid(ledger, "deep"),)))
    sup, path, watch = await bench(kid(ledger, "a"), inner)
    watches = [await monitor(await whereis(f"{path}/{one}")) for one in ("a", "inner", "inner/deep")]
    await exit_signal(sup, "kill")
    reason = await down(watch)
    for one in watches:
        await down(one)
    try:
        await whereis(f"{path}/a")
        return [reason, "its child's path is still taken"]
    except NoSuchActor:
        pass
    with anyio.move_on_after(DEADLINE_S):
        # its own supervisor learns of its end by itself
        while any(info.path == path for info in await which_children(STAGE)):  # noqa: ASYNC110
            await anyio.sleep(0.002)
    return [reason, [row_id(info) for info in await which_children(STAGE) if info.path == path]]


# --- significant children ----------------------------------------------------------------


async def significant(
    auto: str, kinds: list[tuple[str, str, bool]], ends: list[tuple[str, object]], last: int | None
) -> list[Any]:
    """Children end by themselves; after which the supervisor went (or None), of what, and what was reported.

    `last` is the end after which it is expected to go: until then, each is waited for to have had its effect.
    """
    ledger = await begin(Ledger)
    specs = [kid(ledger, label, restart, significant=flag) for label, restart, flag in kinds]
    _, path, watch = await bench(*specs, auto=auto, intensity=100)
    restarts = {label: restart for label, restart, _ in kinds}
    number = -1
    try:
        for number, (label, reason) in enumerate(ends):
            now = await incarnations(path)
            if label not in now:
                continue
            child = await monitor(now[label])
            await send(now[label], ("die", reason))
            await down(child)
            if number == last:
                return [number, await down(watch), await stops(ledger)]
            again = is_restarted(restarts[label], reason)

            async def settled(old: ActorRef = now[label], label: str = label, again: bool = again) -> bool:
                running = await incarnations(path)
                return (label in running and running[label] != old) if again else label not in running

            assert await until(settled), (label, reason)
        await rows(path)
    except NoSuchActor:
        return [number, await down(watch), await stops(ledger)]
    return [None, None, await stops(ledger)]


async def stops(ledger: ActorRef) -> list[Any]:
    """The stops that were reported."""
    return [event for event in await ledger.story() if event[0] == "stop"]


async def significant_but_terminated(auto: str) -> list[Any]:
    """A significant child that its supervisor stops, when asked by terminate_child, is no reason to go."""
    ledger = await begin(Ledger)
    _, path, watch = await bench(kid(ledger, "a", "transient", significant=True), kid(ledger, "b"), auto=auto)
    await terminate_child(path, "a")
    await send(await whereis(f"{path}/b"), ("die", "foo"))
    alive = await starts(ledger, 3)
    try:
        await receive(lambda one: isinstance(one, Down) and one.monitor == watch, timeout=0)
        alive = False
    except TimeoutError:
        pass
    with anyio.fail_after(DEADLINE_S):
        while ("b", True) not in await rows(path):  # noqa: ASYNC110 - it has begun; it is not yet ready
            await anyio.sleep(0.002)
    return [alive, await rows(path)]


async def bad_significance(auto: str, restart: str) -> str:
    """A combination that makes no sense."""
    ledger = await begin(Ledger)
    try:
        await bench(kid(ledger, "a", restart, significant=True), auto=auto)
        return "it started"
    except InvalidSpecification:
        return "InvalidSpecification"
    except StartFailed as error:
        return f"StartFailed: {error}"


# --- by id -------------------------------------------------------------------------------


async def by_id(kinds: list[tuple[str, str]], operations: list[tuple[str, str]]) -> list[Any]:
    """Delete, terminate, restart and start by id: what each ends with, and the rows after it."""
    ledger = await begin(Ledger)
    sup, path, _ = await bench(*(kid(ledger, *kind) for kind in kinds))
    said: list[Any] = []
    for number, (operation, label) in enumerate(operations):
        where = path if number % 2 else sup
        try:
            if operation == "start":
                made = await start_child(where, kid(ledger, label, dict(kinds).get(label, "permanent")))
                assert made == await whereis(f"{path}/{label}")
            elif operation == "terminate":
                await terminate_child(where, label)
            elif operation == "restart":
                await restart_child(where, label)
            else:
                await delete_child(where, label)
            end = "ok"
        except (NoSuchActor, InvalidSpecification) as error:
            end = type(error).__name__
        said.append((end, await rows(path)))
    return said


async def restart_that_fails() -> list[Any]:
    """restart_child whose start fails: said, and the child stays down; asked again, it comes."""
    ledger = await begin(Ledger)
    _, path, _ = await bench(kid(ledger, "a"), kid(ledger, "b"))
    await terminate_child(path, "b")
    await ledger.arm("b", 1)
    try:
        await restart_child(path, "b")
        said = "it started"
    except StartFailed as error:
        said = str(error)
    after = await rows(path)
    await restart_child(path, "b")
    return [said, after, await rows(path)]


async def function_child(reason: object) -> list[Any]:
    """A plain function as a transient child: it is restarted when it fails, and not when it is done."""
    _, path, _ = await bench(ChildSpec("f", _tells, (me(),), restart="transient"))
    first = await got(ActorRef)
    await send(first, reason)
    second = await got(ActorRef)
    watch = await monitor(second)
    await send(second, "return")
    told = await down(watch)

    async def settled() -> bool:
        return await rows(path) == [("f", False)]

    return [first != second, told, await until(settled)]


async def _tells(boss: ActorRef) -> None:
    """Says who it is, then ends as it is told."""
    await send(boss, me())
    message = await receive()
    if message != "return":
        await exit_signal(me(), message)
        await idle()
