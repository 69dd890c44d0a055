"""Run something in a trapped child, served by this single-threaded process.  A library of the helper scripts."""

import contextlib
import os
import select
import signal
import socket
import traceback

from colos.chaos.mechanisms.diskquota import TRAPS, DiskQuota
from colos.chaos.mechanisms.syscalls import Listener, install

DEADLINE_S = 20.0


class Control:
    """The trapped child's line to its supervisor; sendmsg and recvmsg are not trapped."""

    def __init__(self, line):
        self._line = line

    def ask(self, what, **arguments):
        self._line.send(repr((what, arguments)).encode())
        return eval(self._line.recv(1 << 16))  # what our own parent says

    def limit(self, **arguments):
        return self.ask("limit", **arguments)

    def lift(self):
        return self.ask("lift")

    def hits(self):
        return self.ask("hits")


def start(body, traps=TRAPS):
    """Fork; the child traps itself, then runs body(control).  Returns its pid, the listener and the line to it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:
        try:
            os.setpgid(0, 0)
            ours.close()
            listener = install(traps)
            socket.send_fds(theirs, [b"listener"], [listener])
            os.close(listener)
            result = ("done", body(Control(theirs)))
        except BaseException:
            result = ("raised", traceback.format_exc())
        theirs.send(repr(result).encode())
        os._exit(0)
    theirs.close()
    ours.settimeout(DEADLINE_S)
    _, descriptors, _, _ = socket.recv_fds(ours, 1 << 16, 1)
    return child, Listener(descriptors[0]), ours


def serve(listener, line, quota, child, on_notification=None):
    """Answer until the child is done; returns what its body returned."""
    poll = select.poll()
    poll.register(listener.fileno(), select.POLLIN)
    poll.register(line.fileno(), select.POLLIN)
    try:
        while ready := dict(poll.poll(DEADLINE_S * 1000)):
            if ready.get(listener.fileno(), 0) & select.POLLIN:
                notification = listener.receive()
                if notification is not None:
                    (on_notification or quota.handle)(listener, notification)
            if line.fileno() in ready:
                said = line.recv(1 << 16)
                assert said, "the trapped child died"
                what, given = eval(said)
                if what == "done":
                    return given
                assert what != "raised", given
                line.send(repr(answer(quota, what, given)).encode())
        raise TimeoutError("nothing has been heard from the trapped child within the deadline")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        listener.close()
        line.close()


def answer(quota, what, given):
    if what == "limit":
        return quota.limit(**given)
    if what == "lift":
        return quota.lift()
    if what == "hits":
        return dict(quota.hits)
    assert what == "errors"
    errors = list(quota.errors)
    quota.errors.clear()  # they were expected
    return errors


def run(root, body, decide=None):
    """The body's result in a process trapped for a quota on `root`; no problem may have been recorded."""
    quota = DiskQuota(root)
    child, listener, line = start(body)
    result = serve(listener, line, quota, child, decide and decide(quota))
    assert not quota.errors, list(quota.errors)
    return result
