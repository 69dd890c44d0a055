"""What a trapped system call costs, against strace's injection and against no filter at all.

    .venv/bin/python benchmarks/syscalls.py

One program (a loop of one system call, timed by itself in batches) runs alone, in a sandbox whose filter does not
name the call, in one that traps it and lets it go, in one where a rule answers it, and under ``strace -f -e inject``.
Medians of the rounds' medians, in microseconds a call; a round runs all of them in turn.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from colos.chaos import CommandSystem, file_exists
from colos.chaos.fault import Site
from colos.chaos.faults.systemcalls import SyscallError
from colos.chaos.mechanisms.rules import traps_for
from colos.chaos.sandbox.handle import Sandbox
from colos.chaos.sandbox.session import Session
from colos.chaos.sandbox.spec import SandboxSpec, kept_paths

ROUNDS = 5
BATCHES = 40
DEADLINE_S = 60.0
RULES = 1000
PROGRAM = """
import ctypes, json, os, sys, time
where, calls = sys.argv[1], int(sys.argv[2])
open(where + '.begun', 'w').close()
while not os.path.exists(where + '.go'): time.sleep(0.001)
call = ctypes.PyDLL(None).getppid
took = []
for _ in range(int(sys.argv[3])):
    begun = time.perf_counter()
    for _ in range(calls): call()
    took.append((time.perf_counter() - begun) / calls * 1e6)
with open(where + '.part', 'w') as file: json.dump(took, file)
os.rename(where + '.part', where)
"""


def median_of(path: str) -> float:
    deadline = time.monotonic() + DEADLINE_S
    while not os.path.exists(path):
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.01)
    with open(path, encoding="utf-8") as file:
        return statistics.median(json.load(file))


def outside(prefix: list[str], calls: int) -> float:
    with tempfile.TemporaryDirectory(prefix="colos-bench-") as directory:
        open(f"{directory}/out.go", "w", encoding="utf-8").close()
        argv = [*prefix, sys.executable, "-I", "-S", "-c", PROGRAM, f"{directory}/out", str(calls), str(BATCHES)]
        subprocess.run(argv, check=True, stderr=subprocess.DEVNULL, timeout=DEADLINE_S)
        return median_of(f"{directory}/out")


def inside(session: Session, trapped: str, calls: int, *, rule: bool = False) -> float:
    spec = SandboxSpec(kept=kept_paths(), traps=traps_for((trapped,)))
    sandbox = session.sandbox(spec)
    try:
        argv = [sys.executable, "-I", "-S", "-c", PROGRAM, "{data}/out", str(calls), str(BATCHES)]
        system = CommandSystem(argv, ready=file_exists("{data}/out.begun"), name="loop")
        running = system.boot(sandbox)
        running.wait_ready(DEADLINE_S)
        if rule:
            SyscallError.inject(Site(sandbox, running), "loop", {"call": trapped, "errno": "EPERM"})
        open(sandbox.outside("{data}/out.go"), "w", encoding="utf-8").close()
        return median_of(sandbox.outside("{data}/out"))
    finally:
        sandbox.destroy()


def keeper_kib(sandbox: Sandbox) -> int:
    with open(f"/proc/{sandbox.keeper}/status", encoding="utf-8") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))


def growth(session: Session) -> tuple[int, int]:
    """How much a keeper's memory and descriptors grow with rules that are armed and disarmed."""
    sandbox = session.sandbox(SandboxSpec(kept=kept_paths(), traps=traps_for(("write",))))
    try:
        idle = "import signal; open('begun', 'w').close(); signal.pause()"
        system = CommandSystem([sys.executable, "-c", idle], ready=file_exists("{data}/begun"), name="idle")
        running = system.boot(sandbox)
        running.wait_ready(DEADLINE_S)
        site = Site(sandbox, running)

        def rounds(count: int) -> None:
            for _ in range(count):
                lease = SyscallError.inject(site, "idle", {})
                lease.heal()
                assert lease.is_healed()

        rounds(RULES // 10)
        memory, descriptors = keeper_kib(sandbox), len(os.listdir(f"/proc/{sandbox.keeper}/fd"))
        rounds(RULES)
        return keeper_kib(sandbox) - memory, len(os.listdir(f"/proc/{sandbox.keeper}/fd")) - descriptors
    finally:
        sandbox.destroy()


def main() -> None:
    session = Session()
    figures: dict[str, list[float]] = {}
    strace = shutil.which("strace")
    try:
        for number in range(ROUNDS):
            measured = {
                "no filter": outside([], 20_000),
                "a filter that names another call": inside(session, "io_uring_setup", 20_000),
                "trapped, and let go": inside(session, "getppid", 500),
                "trapped, and answered by a rule": inside(session, "getppid", 500, rule=True),
            }
            if strace is not None:
                inject = ["-f", "-o", "/dev/null", "-e", "trace=getppid", "-e", "inject=getppid:error=EPERM"]
                measured["strace -f -e inject"] = outside([strace, *inject], 500)
            for name, value in measured.items():
                figures.setdefault(name, []).append(value)
            print(f"round {number + 1}", file=sys.stderr, flush=True)
        grown_kib, grown_descriptors = growth(session)
        tier = session.tier
    finally:
        session.close()
    medians = {name: statistics.median(values) for name, values in figures.items()}
    print(f"python {sys.version.split()[0]}, {os.cpu_count()} cores, tier {tier}, {ROUNDS} rounds\n")
    for name, value in medians.items():
        print(f"{name:<36} {value:8.3f} us a call")
    plain = medians["no filter"]
    untrapped_ns = (medians["a filter that names another call"] - plain) * 1000
    answered = medians["trapped, and answered by a rule"] - plain
    print(f"\nan untrapped call costs {untrapped_ns:.0f} ns more (at most 50)")
    let_go = medians["trapped, and let go"] - plain
    print(f"a trapped call costs {let_go:.1f} us, one that a rule answers {answered:.1f} (at most 10)")
    if strace is not None:
        print(f"that is {answered / (medians['strace -f -e inject'] - plain):.2f} of strace's (at most 0.50)")
    print(f"{RULES} rules armed and disarmed: {grown_kib} KiB and {grown_descriptors} descriptors more")


if __name__ == "__main__":
    main()
