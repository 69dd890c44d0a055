"""Programs that the tests run beside themselves: `python runtime_scripts.py NAME ARGS`."""

# ruff: noqa: ASYNC230, SIM115 - tests poll and touch files with a deadline; an answer is no error
from __future__ import annotations

import os
import sys

import anyio
import runtime_actors

from colos.runtime import Node, connect, read_actors, serve


def serve_node(supervisor: str, run_dir: str, backend: str) -> int:
    """Be a node; say ready."""
    return serve(
        getattr(runtime_actors, supervisor), run_dir, backend=backend, ready=lambda: print("ready", flush=True)
    )


def hold_node(supervisor: str, run_dir: str, backend: str) -> int:
    """Start a node, say the pids of all its processes, hold it until killed."""

    async def hold() -> None:
        async with Node(getattr(runtime_actors, supervisor), None if run_dir == "-" else run_dir, backend) as node:
            await (await node.whereis("writer")).cast("hog")  # so that no event loop sees the lifeline's end
            root = int(open(f"{node.run_dir}/root.pid").read())
            with open(f"/proc/{root}/task/{root}/children") as file:
                print(root, *file.read().split(), flush=True)
            await anyio.sleep_forever()

    anyio.run(hold, backend=backend)
    return 0


def ask_node(run_dir: str, backend: str) -> int:
    """Speak to a node from another process."""

    async def ask() -> None:
        async with connect(run_dir) as node:
            writer = await node.whereis("writer")
            print(await writer.add(1), flush=True)

    anyio.run(ask, backend=backend)
    return 0


def fill_disk(directory: str, backend: str) -> int:
    """On a small disk of its own: a node keeps running and restarting while its run directory is full."""

    async def check() -> None:
        run_dir = f"{directory}/run"
        async with Node(runtime_actors.LedgerSupervisor, run_dir, backend) as node:
            with open(f"{directory}/ballast", "wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(4096))
                except OSError as error:
                    print(error.strerror, flush=True)
            writer = await node.whereis("writer")
            os.kill(await writer.pid(), 9)
            assert await node.quiet(10.0)
            again = await node.whereis("writer")
            assert again.id != writer.id
            assert await again.add(1) == 101
            [end] = await node.exits("ledger/writer")
            print(end.reason, [entry.path for entry in read_actors(run_dir)][-1], flush=True)

    anyio.run(check, backend=backend)
    return 0


if __name__ == "__main__":
    sys.exit(globals()[sys.argv[1]](*sys.argv[2:]))
