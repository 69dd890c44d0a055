"""What the runtime promises of speed, each figure against its peers in the same run.

    python benchmarks/runtime.py --install               makes the peers' venvs, once
    python benchmarks/runtime.py [--rounds 3] [--quick] [--only colos,xoscar]

Every peer is one script in benchmarks/peers, run by the python of its own venv, in turns; a figure is the
median of the rounds' medians, a ratio the median of the rounds' ratios.  Judges nothing: always ends with 0.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
RUN_S = 60.0
"""Seconds after which a run of a peer is ended; a good one takes less than half of it."""
LEAVE_S = 3.0
"""Seconds that a peer's processes may still live once its script has ended, before they are killed."""
INSTALL_S = 600.0
TOKEN = "COLOS_BENCHMARK_RUN"
"""The environment variable by which all that a run started is found, daemons too."""


# --- what there is to compare, and what is promised ----------------------------------------


@dataclass(frozen=True)
class Peer:
    """One row of the table: `script` run with `args` by the python of `family`'s venv."""

    name: str
    family: str
    script: str
    args: tuple[str, ...] = ()


OURS = "ColOS asyncio"
PEERS = (
    Peer(OURS, "colos", "colos_runtime.py", ("asyncio",)),
    Peer("ColOS trio", "colos", "colos_runtime.py", ("trio",)),
    Peer("asyncio streams", "asyncio", "bare_asyncio.py"),
    Peer("mp fork", "multiprocessing", "bare_multiprocessing.py", ("fork",)),
    Peer("mp forkserver", "multiprocessing", "bare_multiprocessing.py", ("forkserver",)),
    Peer("mp spawn", "multiprocessing", "bare_multiprocessing.py", ("spawn",)),
    Peer("tractor", "tractor", "with_tractor.py"),
    Peer("xoscar", "xoscar", "with_xoscar.py"),
    Peer("Ray", "ray", "with_ray.py"),
    Peer("Thespian", "thespian", "with_thespian.py"),
)

PACKAGES: dict[str, tuple[tuple[str, ...], ...]] = {
    # Its latest release asks for a package from a git address, which PyPI's pip refuses, and for trio's MultiError.
    "tractor": (
        ("--no-deps", "tractor==0.1.0a5"),
        (
            "trio>=0.20,<0.22", "async_generator", "trio_typing", "tricycle", "colorlog", "wrapt", "msgspec",
            "pdbpp", "psutil",
        ),
    ),
    "xoscar": (("xoscar", "psutil"),),
    "ray": (("ray", "psutil"),),
    "thespian": (("thespian", "psutil"),),
}  # fmt: skip
"""Families with a venv of their own, and the arguments of each `pip install`; the others need this interpreter only."""


@dataclass(frozen=True)
class Column:
    """A measured thing: its key in the scripts' lines, its heading, and which way is better."""

    what: str
    heading: str
    more_is_better: bool = False


COLUMNS = (
    Column("spawn_ms", "spawn ms"),
    Column("call_us", "call us"),
    Column("call_pinned_us", "pinned us"),
    Column("one_way_per_s", "one-way/s", more_is_better=True),
    Column("big_mb_per_s", "4MiB MB/s", more_is_better=True),
    Column("kill_known_ms", "known ms"),
    Column("uss_mib", "USS MiB"),
    Column("pss_mib", "PSS MiB"),
)
EXTRAS = {
    "spawn_in_a_row_ms": "spawned one after the other without a rest, to its first answer, ms",
    "spawn_outside_ms": "spawned by a program outside the node, to its first answer, ms",
    "call_outside_us": "call and answer, from a program outside the node, us",
    "one_way_cast_per_s": "one-way 100-byte casts a second",
}
"""What only ColOS is asked."""


@dataclass(frozen=True)
class Promise:
    """`figure` of `who` is at most, or at least, `bound`; with `than`, a ratio to that peer's figure."""

    text: str
    what: str
    bound: float
    who: str = OURS
    than: str = ""
    at_least: bool = False

    def now(self, results: Results) -> float | None:
        """The figure or ratio as measured, or None."""
        if self.than:
            return results.ratio(self.what, self.who, self.than, ours_on_top=not self.at_least or self._rates())
        return results.figure(self.who, self.what)

    def met(self, now: float) -> bool:
        return now >= self.bound if self.at_least else now <= self.bound

    def _rates(self) -> bool:
        return any(column.what == self.what and column.more_is_better for column in COLUMNS)


def faster(what: str, text: str, **times: float) -> list[Promise]:
    """At least so many times better than these peers."""
    names = {"tractor": "tractor", "xoscar": "xoscar", "ray": "Ray", "thespian": "Thespian"}
    return [
        Promise(f"{text}, than {names[key]}", what, bound, than=names[key], at_least=True)
        for key, bound in times.items()
    ]


PROMISES = (
    Promise("spawn to first answer, asyncio, ms", "spawn_ms", 4.0),
    Promise("spawn to first answer, trio, ms", "spawn_ms", 12.0, who="ColOS trio"),
    *faster("spawn_ms", "spawn, times faster", tractor=40, xoscar=40, ray=40),
    Promise("call and answer, to bare asyncio streams", "call_us", 1.3, than="asyncio streams"),
    Promise("the same, all on one core", "call_pinned_us", 1.3, than="asyncio streams"),
    *faster("call_us", "call, times faster", xoscar=2, ray=5, thespian=5),
    *faster("call_pinned_us", "call on one core, times faster", xoscar=2, ray=5, thespian=5),
    Promise("one-way 100-byte messages a second", "one_way_per_s", 150_000, at_least=True),
    *faster("one_way_per_s", "one-way, times more", xoscar=6),
    Promise("4 MiB messages, MB/s", "big_mb_per_s", 800, at_least=True),
    Promise("kill -9 to the supervisor's knowing, ms", "kill_known_ms", 1.0),
    Promise("idle actor, USS MiB", "uss_mib", 3.0),
    Promise("idle actor, PSS MiB", "pss_mib", 6.0),
)


# --- the peers' venvs ----------------------------------------------------------------------


@dataclass(frozen=True)
class Venvs:
    """One venv a family, each with a file that says how its installation went."""

    folder: Path

    def python(self, family: str) -> str:
        """The interpreter to run a family's script with."""
        if family not in PACKAGES:
            return sys.executable
        return str(self.folder / family / "bin" / "python")

    def missing(self, family: str) -> str:
        """Why a family cannot run; empty if it can, or needs this interpreter only."""
        if family not in PACKAGES:
            return ""
        outcome = self.folder / family / "outcome"
        if not outcome.exists():
            return "not installed; --install does it"
        text = outcome.read_text()
        return "" if text == "installed" else text

    def version(self, family: str) -> str:
        """Of its package; empty where there is none."""
        if family not in PACKAGES or self.missing(family):
            return ""
        code = f"import importlib.metadata as m; print(m.version({family!r}))"
        return _output([self.python(family), "-c", code], 30.0).strip()

    def install(self, family: str) -> str:
        """Make it afresh; returns why it failed, or nothing."""
        home = self.folder / family
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            _output([sys.executable, "-m", "venv", "--clear", str(home)], INSTALL_S)
            for arguments in PACKAGES[family]:
                _output([self.python(family), "-m", "pip", "install", "-q", *arguments], INSTALL_S)
            outcome = "installed"
        except subprocess.CalledProcessError as error:
            outcome = "did not install: " + _last_line(error.stderr, "ERROR")
        except subprocess.TimeoutExpired:
            outcome = f"did not install within {INSTALL_S:g} s"
        home.mkdir(exist_ok=True)
        (home / "outcome").write_text(outcome)
        return "" if outcome == "installed" else outcome


def _output(command: list[str], timeout: float) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=timeout).stdout


def _last_line(text: str, start: str = "") -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if line.startswith(start)] or lines
    return lines[-1][:200] if lines else "it said nothing"


# --- running them --------------------------------------------------------------------------


@dataclass
class Run:
    """What one run of one peer gave: medians by what was measured, remarks, and why it ended badly."""

    medians: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    failure: str = ""


def run(peer: Peer, python: str, quick: bool) -> Run:
    """Run a peer's script once; whatever happens, nothing of it lives afterwards."""
    token = uuid.uuid4().hex
    command = [python, str(HERE / "peers" / peer.script), *peer.args, *(["--quick"] if quick else [])]
    found_in = [HERE / "peers"]  # some runtimes import the script again, in a process that is told no more
    if peer.family == "colos":
        found_in.append(HERE.parent)  # this checkout, whatever else is installed
    environment = {**os.environ, TOKEN: token, "PYTHONPATH": os.pathsep.join(map(str, found_in))}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment, start_new_session=True
        )
        try:
            code: int | None = process.wait(RUN_S)
        except subprocess.TimeoutExpired:
            code = None
            process.kill()
            process.wait()
        finally:
            left = sweep(token, 0.0 if process.returncode else LEAVE_S)
        out.seek(0)
        err.seek(0)
        given = read(out)
        if code != 0:
            how = f"not done within {RUN_S:g} s" if code is None else f"ended with {code}"
            given.failure = f"{how}: {_last_line(err.read())}"
        elif left:
            given.notes["end"] = f"left {left} processes, which were killed"
    return given


def read(lines: Iterable[str]) -> Run:
    """Read the JSON lines a script printed, and skip what its runtime printed between them."""
    given = Run()
    for line in lines:
        try:
            figures = json.loads(line)
            what, values, note = figures["what"], figures["values"], figures["note"]
        except (ValueError, TypeError, KeyError):
            continue
        if values:
            given.medians[what] = statistics.median(values)
        if note:
            given.notes[what] = note
    return given


def sweep(token: str, grace_s: float) -> int:
    """Wait until every process of a run has ended, then kill the rest; returns how many those were."""
    ends = time.monotonic() + grace_s
    while (living := started_under(token)) and time.monotonic() < ends:
        time.sleep(0.05)
    killed = len(living)
    ends = time.monotonic() + LEAVE_S
    while living and time.monotonic() < ends:
        for process in living:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue  # which is what is wanted
        time.sleep(0.05)
        living = started_under(token)
    return killed


def started_under(token: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(TOKEN) == token and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # gone, or not ours
    return found


# --- what came of it -----------------------------------------------------------------------


class Results:
    """The runs of every peer, one a round; a ratio compares what ran in the same round."""

    def __init__(self) -> None:
        self.runs: dict[str, list[Run]] = {}

    def add(self, peer: Peer, given: Run) -> None:
        self.runs.setdefault(peer.name, []).append(given)

    def figure(self, who: str, what: str) -> float | None:
        values = [given.medians[what] for given in self.runs.get(who, []) if what in given.medians]
        return statistics.median(values) if values else None

    def ratio(self, what: str, who: str, than: str, *, ours_on_top: bool) -> float | None:
        """The median over the rounds of who/than, or of than/who."""
        ratios = []
        for ours, theirs in zip(self.runs.get(who, []), self.runs.get(than, []), strict=False):
            mine, other = ours.medians.get(what), theirs.medians.get(what)
            if mine and other:
                ratios.append(mine / other if ours_on_top else other / mine)
        return statistics.median(ratios) if ratios else None

    def remarks(self) -> list[str]:
        """How runs failed, and what the peers said about their figures: each remark once, with whom it is about."""
        about: dict[str, dict[str, None]] = {}  # a dict keeps the order
        for name, runs in self.runs.items():
            for given in runs:
                said = [f"{what}: {note}" for what, note in given.notes.items()]
                for remark in [*said, *([f"FAILED, {given.failure}"] if given.failure else [])]:
                    about.setdefault(remark, {})[name] = None
        return sorted(f"{remark} ({', '.join(names)})" for remark, names in about.items())


def number(value: float | None) -> str:
    if value is None:
        return "-"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def cell(results: Results, peer: str, column: Column) -> str:
    """A figure, and how many times better ours is."""
    value = results.figure(peer, column.what)
    times = results.ratio(column.what, OURS, peer, ours_on_top=column.more_is_better) if peer != OURS else None
    return number(value) + (f" ({number(times)}x)" if times else "")


def table(rows: list[list[str]]) -> str:
    """Columns as wide as they must be, the first to the left."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = []
    for row in rows:
        first, *rest = (text.ljust(width) if n == 0 else text.rjust(width)
                        for n, (text, width) in enumerate(zip(row, widths, strict=True)))  # fmt: skip
        lines.append("  ".join([first, *rest]).rstrip())
    return "\n".join(lines)


def comparison(results: Results) -> str:
    rows = [["", *(column.heading for column in COLUMNS)]]
    rows += [[name, *(cell(results, name, column) for column in COLUMNS)] for name in results.runs]
    return table(rows)


def promises(results: Results) -> str:
    rows = [["promised", "bound", "now", "met"]]
    for promise in PROMISES:
        now = promise.now(results)
        bound = f"{'>=' if promise.at_least else '<='} {promise.bound:,g}{'x' if promise.than else ''}"
        met = "-" if now is None else ("yes" if promise.met(now) else "no")
        rows.append([promise.text, bound, number(now), met])
    return table(rows)


def extras(results: Results) -> str:
    rows = [["of ColOS alone", "asyncio", "trio"]]
    for what, text in EXTRAS.items():
        rows.append([text, number(results.figure(OURS, what)), number(results.figure("ColOS trio", what))])
    return table(rows)


# --- the program ---------------------------------------------------------------------------


def measure(peers: list[Peer], venvs: Venvs, rounds: int, quick: bool) -> Results:
    """Run every peer once a round, each round beginning with another one."""
    results = Results()
    for peer in peers:
        results.runs[peer.name] = []  # the table's order
    for turn in range(rounds):
        shift = turn % max(1, len(peers))  # none, where none is installed
        for peer in peers[shift:] + peers[:shift]:
            started = time.monotonic()
            given = run(peer, venvs.python(peer.family), quick)
            results.add(peer, given)
            took = f"{time.monotonic() - started:.1f} s"
            print(f"round {turn + 1}: {peer.name}, {took} {given.failure}".rstrip(), file=sys.stderr, flush=True)
    return results


def chosen_peers(only: str) -> list[Peer]:
    families = {name.strip().lower() for name in only.split(",") if name.strip()}
    known = {peer.family for peer in PEERS}
    if unknown := families - known:
        sys.exit(f"--only: no {', '.join(sorted(unknown))} among {', '.join(sorted(known))}")
    return [peer for peer in PEERS if not families or peer.family in families]


def install(peers: list[Peer], venvs: Venvs) -> None:
    for family in dict.fromkeys(peer.family for peer in peers if peer.family in PACKAGES):
        print(f"{family}: {venvs.install(family) or 'installed ' + venvs.version(family)}", flush=True)


def header(peers: list[Peer], venvs: Venvs) -> str:
    versions = [f"{family} {venvs.version(family)}" for family in dict.fromkeys(p.family for p in peers)]
    load = os.getloadavg()[0]
    machine = f"python {platform.python_version()}, {os.cpu_count()} cores, load {load:.1f}"
    return ", ".join([machine, *(text for text in versions if not text.endswith(" "))])


def default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "/tmp") / "colos-bench-peers"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true", help="make the peers' venvs, and stop")
    parser.add_argument("--only", default="", help="families, with commas between: colos,asyncio,xoscar")
    parser.add_argument("--quick", action="store_true", help="few samples, one round: to see that it works")
    parser.add_argument("--rounds", type=int, help="how often each peer is run (3; 1 with --quick)")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where the venvs are")
    chosen = parser.parse_args()
    peers, venvs = chosen_peers(chosen.only), Venvs(chosen.cache.absolute())
    if chosen.install:
        install(peers, venvs)
        return
    missing = {peer.name: venvs.missing(peer.family) for peer in peers if venvs.missing(peer.family)}
    able = [peer for peer in peers if peer.name not in missing]
    print(header(able, venvs))
    results = measure(able, venvs, chosen.rounds or (1 if chosen.quick else 3), chosen.quick)
    sections: list[Callable[[Results], str]] = [comparison, promises, extras]
    for section in sections:
        print(f"\n{section(results)}")
    print("\n(Nx): so many times better ours on asyncio is, in the same round.")
    for remark in [*(f"{name} LEFT OUT: {why}" for name, why in missing.items()), *results.remarks()]:
        print(f"- {remark}")


if __name__ == "__main__":
    main()
