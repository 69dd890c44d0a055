"""A session in a process of its own, to be killed or to be refused something.

``session_script.py TIER`` makes a sandbox full of processes, prints what there is, and waits;
``session_script.py report KEPT WRITABLE`` tells which tier a session has here, and what it can do.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent)]

from sandbox_bench import Agent, agent_in, spec  # noqa: E402

from colos.chaos.sandbox.processes import read_process  # noqa: E402
from colos.chaos.sandbox.session import Session  # noqa: E402


def stand(tier: str) -> None:
    session = Session(tier)
    sandbox = session.sandbox(spec())
    agent = Agent(sandbox)
    agent.do("fork('child', idle); daemon('stray')")
    keeper = read_process(sandbox.keeper)
    launcher = read_process(keeper.parent)
    pids = [process.pid for process in (*sandbox.processes(), keeper, launcher)]
    print(json.dumps({"pids": [*pids, launcher.parent], "data": sandbox.place.data}), flush=True)
    signal.pause()


def report(kept: str, writable: str) -> None:
    session = Session()
    told = {"tier": session.tier, "refusal": session.refusal}
    if kept:
        extra = {"kept": (kept, str(Path(__file__).parents[3])), "writable": (writable,)}
        with agent_in(session, **extra) as agent:
            told["wrote"] = agent.refused(f"open('{writable}/new', 'w').write('x')")
            told["refused"] = agent.refused(f"open('{kept}/new', 'w').write('x')")
    else:
        with agent_in(session) as agent:
            told["answer"] = agent.ask("6 * 7")
    session.close()
    print(json.dumps(told), flush=True)
    os._exit(0)


if __name__ == "__main__":
    if sys.argv[1] == "report":
        report(*sys.argv[2:4])
    else:
        stand(sys.argv[1])
