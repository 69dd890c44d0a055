"""Where processes come from when the zygote or its spare has died: each case in a program of its own, which forks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_PROGRAM = """
import os, select, signal, sys, time
from colos.runtime import Actor, ChildSpec, Supervisor
from colos.runtime import process
from colos.runtime.forks import Forks
from colos.runtime.supervisor import specify

class Idle(Actor):
    pass

class Top(Supervisor):
    def children(self):
        return [ChildSpec("idle", Idle)]

def until(condition):
    deadline = time.monotonic() + 20
    while not (found := condition()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.001)  # between two looks
    return found

def is_born(control):
    return bool(select.select([control], [], [], 20)[0] and control.recv(4096))

def end(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # dead, and left for who reaps

forks = Forks(specify(Top), sys.argv[1], "asyncio")
forks.fork_first([])
forks.make_spare()
zygote, spare = forks._zygote.pid, until(lambda: forks._spare.pid)
"""
_END = """
forks.kill()
left = process.kill_all_children(20)
assert not left, left
print("done")
"""


def run(case: str, run_dir: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", _PROGRAM + case + _END, str(run_dir)],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert ran.stdout == "done\n", ran.stderr


def test_a_zygote_whose_death_nobody_has_seen_yet_is_replaced_when_it_is_asked(tmp_path: Path) -> None:
    """An actor that died with it was started again from the dead zygote, four times at once: its supervisor gave up."""
    run(
        "end(zygote)\n"
        "assert is_born(forks.fork())\n"
        "assert forks._zygote.pid == spare\n"
        "assert not forks.died(zygote, process.reap(zygote))\n"
        "assert forks._zygote.pid == spare\n"
        "assert until(lambda: forks._spare.pid) not in (zygote, spare)\n",
        tmp_path,
    )


def test_with_the_spare_dead_too_that_is_an_error(tmp_path: Path) -> None:
    run(
        "end(spare)\nend(zygote)\n"
        "assert not forks.died(spare, process.reap(spare))\n"
        "try:\n    forks.fork()\n    raise SystemExit('nobody could fork that')\nexcept OSError:\n    pass\n"
        "assert 'no spare' in forks.died(zygote, process.reap(zygote))\n",
        tmp_path,
    )


def test_a_spare_that_died_alone_is_made_again_after_the_next_start(tmp_path: Path) -> None:
    """Else the zygote's own death, however much later, would be the node's."""
    run(
        "end(spare)\n"
        "assert not forks.died(spare, process.reap(spare))\n"
        "assert is_born(forks.fork())\n"
        "forks.settle()\n"
        "again = until(lambda: forks._spare.pid)\n"
        "end(zygote)\n"
        "assert not forks.died(zygote, process.reap(zygote))\n"
        "assert forks._zygote.pid == again\n",
        tmp_path,
    )
