"""`colos trace ACTOR`: the messages of a process, in and out, live, one a line."""

from __future__ import annotations

import sys

from colos.runtime import message, reasons, rundir, transport
from colos.runtime.tools import find
from colos.runtime.trace import TraceEvent


def follow(target: str, node_name: str | None = None, count: int | None = None) -> int:
    """Print events until Ctrl-C, until the process ends, or until there were `count`."""
    try:
        _, found = find.living(target, node_name)
        print(f"tracing {found.path} #{found.id} (pid {found.pid}); Ctrl-C ends it", file=sys.stderr, flush=True)
        _follow(found, count)
    except KeyboardInterrupt:
        return 0
    except find.FAILURES as error:
        return find.complain(error)
    return 0


def _follow(found: find.Found, count: int | None) -> None:
    seen = 0
    reason: object = None
    with transport.connect(found.directory) as connection:
        connection.setblocking(True)
        connection.sendall(message.encode(message.WATCH))
        for frame in find.frames(connection):
            if frame.kind == message.TRACE:
                print(TraceEvent(*message.decode(frame)), flush=True)
                seen += 1
                if seen == count:
                    return
            elif frame.kind == message.GOODBYE:
                reason = message.decode(frame)
    why = reasons.text(reason) if reason else rundir.read_text(f"{found.directory}/exit").partition("\n")[0]
    print(f"{found.path} ended: {why or 'why is not known yet'}", file=sys.stderr)
