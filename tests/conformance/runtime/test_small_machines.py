"""Containers and small machines: what a node does without, each in a throwaway namespace of its own."""

# ruff: noqa: ASYNC110, ASYNC221, ASYNC240 - tests poll and touch files with a deadline; an answer is no error
from __future__ import annotations

import os
import platform
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from nodes_helpers import ROOT, begin, children_of, command, run_dir_of
from runtime_helpers import DEADLINE_S, wait_gone

from colos.runtime import NodeClient, connect

pytestmark = pytest.mark.anyio
MIB = 1 << 20
SMALL_BYTES = (256 if platform.python_implementation() == "PyPy" else 128) * MIB
"""PyPy's interpreter, which has done nothing yet, takes three times as much as CPython's."""
UNSHARE = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount", "--mount-proc")
RING = "runtime_actors:RingSupervisor"

READ_ONLY = """
set -e
mount --make-rprivate /
mount -t tmpfs none "$1"
awk '{print $5}' /proc/self/mountinfo | sort -r | while read -r place; do
    case $place in "$1"|/proc|/proc/*|/dev|/dev/*|/sys|/sys/*) ;; *) mount -o remount,bind,ro "$place" ;; esac
done
shift
exec "$@"
"""
"""The root and everything below it cannot be written to, except $1."""

WITHOUT_SHM = """
set -e
mount --make-rprivate /
mount -t tmpfs none "$1"
for node in null zero full random urandom; do
    : > "$1/$node"
    mount --bind "/dev/$node" "$1/$node"
done
mount --rbind "$1" /dev
shift
exec "$@"
"""
"""A /dev with nothing in it but the usual nodes."""


def _why_no_namespaces() -> str:
    try:
        tried = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    except OSError as error:
        return f"{error}"
    return tried.stderr.strip() or ("" if tried.returncode == 0 else f"status {tried.returncode}")


@pytest.fixture(scope="module")
def namespaces() -> None:
    why = _why_no_namespaces()
    if why:
        pytest.skip(f"this machine gives nobody namespaces of his own: {why}")


@contextmanager
def running(*args: object, prefix: tuple[str, ...] = (), **env: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`colos run` in whatever `prefix` makes: the outer process, and the path to the run directory from here.

    Killing what `unshare` forked ends its pid namespace, and so everything in it.
    """
    with begin(RING, *args, prefix=prefix, **env) as outer:
        run_dir = run_dir_of(outer)
        inner = children_of(outer.pid)[0] if prefix[:1] == UNSHARE[:1] else outer.pid
        yield outer, f"/proc/{inner}/root{run_dir}"


async def it_works(node: NodeClient) -> dict[str, object]:
    """Three actors call each other, one is killed and restarted; what their machine is like."""
    # Each call around the ring waits for the next, so it must not come back to one that waits.
    ends = [await (await node.whereis(name)).pass_on(2) for name in "abc"]
    assert len(set(ends)) == 3
    before = await node.whereis("b")
    await node.exit_signal(before, "kill")
    assert await node.quiet(DEADLINE_S)
    after = await node.whereis("b")
    assert after.id != before.id
    assert await (await node.whereis("a")).pass_on(2) in ends
    return dict(await after.facts())


async def works(run_dir: str) -> dict[str, object]:
    async with connect(run_dir) as node:
        return await it_works(node)


async def stops(outer: subprocess.Popen[str], inner: int) -> None:
    os.kill(inner, signal.SIGTERM)
    with anyio.fail_after(DEADLINE_S):
        while outer.poll() is None:
            await anyio.sleep(0.005)
    assert outer.returncode == 0


async def test_a_read_only_root_with_one_writable_run_directory(
    namespaces: None, base: str, anyio_backend: str, tmp_path: Path
) -> None:
    place = tmp_path / "run"
    place.mkdir()
    shell = (*UNSHARE, "sh", "-c", READ_ONLY, "sh", str(place))
    with running("--backend", anyio_backend, prefix=shell, COLOS_RUN=str(place)) as (outer, run_dir):
        facts = await works(run_dir)
        assert facts["writable"] == []
        await stops(outer, children_of(outer.pid)[0])


async def test_without_dev_shm(namespaces: None, base: str, anyio_backend: str, tmp_path: Path) -> None:
    place = tmp_path / "dev"
    place.mkdir()
    shell = (*UNSHARE, "sh", "-c", WITHOUT_SHM, "sh", str(place))
    with running("--backend", anyio_backend, prefix=shell) as (outer, run_dir):
        facts = await works(run_dir)
        assert facts["shm"] is False
        await stops(outer, children_of(outer.pid)[0])


async def test_pid_1_reaps_and_stops_in_order(namespaces: None, base: str, anyio_backend: str) -> None:
    with running("--backend", anyio_backend, prefix=UNSHARE) as (outer, run_dir):
        first = children_of(outer.pid)[0]
        assert Path(f"/proc/{first}/status").read_text().partition("NSpid:")[2].split("\n")[0].split()[-1] == "1"
        # An orphan that is nobody's descendant here comes to PID 1: it enters the namespace from outside.
        enter = ["nsenter", f"--target={first}", "--user", "--pid", "--mount", "--preserve-credentials"]
        entered = subprocess.run(
            [*enter, "sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!"],
            stdout=subprocess.PIPE, text=True, check=True, timeout=DEADLINE_S,
        )  # fmt: skip
        inside = int(entered.stdout)
        orphan = _outer_pid(first, inside)
        assert orphan in children_of(first)
        os.kill(orphan, signal.SIGKILL)
        await _reaped(first, orphan)
        # One of an actor's comes to the root, which is nearer.
        async with connect(run_dir) as node:
            mine = _outer_pid(first, await (await node.whereis("a")).orphan())
            os.kill(mine, signal.SIGKILL)
            await _reaped(first, mine)
            left = [_outer_pid(first, info.pid) for info in await node.processes() if info.pid]
        await stops(outer, first)
        assert wait_gone(left) == []


def _outer_pid(first: int, inside: int) -> int:
    """The pid here of one in the pid namespace that `first` is the first of."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                numbers = Path(f"/proc/{name}/status").read_text().partition("NSpid:")[2].split("\n")[0].split()
                same = os.readlink(f"/proc/{name}/ns/pid") == os.readlink(f"/proc/{first}/ns/pid")
            except OSError:  # it has ended
                continue
            if same and numbers[-1] == str(inside):
                return int(name)
    raise AssertionError(f"no pid {inside} in there")


async def _reaped(first: int, pid: int) -> None:
    """Wait until not even a zombie is left."""
    with anyio.fail_after(DEADLINE_S):
        while os.path.exists(f"/proc/{pid}"):
            await anyio.sleep(0.005)


# --- little of what there is -------------------------------------------------------------


LIMIT = (
    "import resource, os, sys; name, limit = sys.argv[1:3]; "
    "resource.setrlimit(getattr(resource, name), (int(limit), int(limit))); os.execvp(sys.argv[3], sys.argv[3:])"
)


def under(name: str, limit: int) -> tuple[str, ...]:
    """A prefix that sets a limit for what follows, as prlimit(1) does."""
    return (command()[0], "-c", LIMIT, name, str(limit))


async def test_64_descriptors(base: str, anyio_backend: str) -> None:
    with running("--backend", anyio_backend, prefix=under("RLIMIT_NOFILE", 64)) as (outer, run_dir):
        facts = await works(run_dir)
        assert facts["descriptors"] == 64
        await stops(outer, outer.pid)


async def test_without_pidfd(base: str, anyio_backend: str, tmp_path: Path) -> None:
    """As on PyPy, whose os has none: the function is taken away before anything is imported, in every process."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal\nfor module, name in ((os, 'pidfd_open'), (signal, 'pidfd_send_signal')):\n"
        "    if hasattr(module, name):\n        delattr(module, name)\n"
    )
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    with running("--backend", anyio_backend, PYTHONPATH=path) as (outer, run_dir):
        facts = await works(run_dir)
        assert facts["pidfd"] is False
        await stops(outer, outer.pid)


async def test_three_actors_on_a_small_machine(base: str, anyio_backend: str) -> None:
    with running("--backend", anyio_backend) as (outer, run_dir):
        await works(run_dir)
        total = sum(map(_pss_bytes, _all_below(outer.pid)))
        assert 8 * MIB < total < SMALL_BYTES
        await stops(outer, outer.pid)


@pytest.mark.parametrize(("which", "fact"), [("RLIMIT_AS", "address_space"), ("RLIMIT_DATA", "data")])
async def test_little_memory_a_process(base: str, anyio_backend: str, which: str, fact: str) -> None:
    with running("--backend", anyio_backend, prefix=under(which, SMALL_BYTES)) as (outer, run_dir):
        facts = await works(run_dir)
        assert facts[fact] == SMALL_BYTES
        await stops(outer, outer.pid)


def _all_below(pid: int) -> list[int]:
    try:
        return [pid, *(found for child in children_of(pid) for found in _all_below(child))]
    except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
        return [pid]


def _pss_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):  # one that stood between the zygote and a process it forked
        return 0
    [pss] = [line for line in lines if line.startswith("Pss:")]
    return int(pss.split()[1]) << 10
