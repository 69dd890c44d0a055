"""Workers of pytest-xdist whose sandboxes share the host: two systems that want one port take turns."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from colos.chaos.mechanisms.filelock import locked

#: A server on a fixed port, which only one of two can have at a time; it says so by failing.
SERVERS = """
import anyio
from colos.chaos import ChaosMachine, CommandSystem, Kill, Restarts, always, tcp
from hypothesis.stateful import rule

class Server(ChaosMachine):
    system = CommandSystem(
        ["{python}", "-m", "http.server", "{port}", "--bind", "127.0.0.1"],
        ready=tcp({port}), restarts=Restarts(limit=50), name="server", start_s=20,
    )
    faults = (Kill("server"),)

    @rule()
    async def linger(self):
        await anyio.sleep(0.2)

    @always
    def there(self):
        assert "in use" not in self.system.output(), "another has its port"

class TestOne(Server):
    pass

class TestTwo(Server):
    pass
"""


@pytest.mark.slow
def test_two_workers_take_turns_at_a_port_of_the_host(project, monkeypatch):
    pytest.importorskip("xdist")
    monkeypatch.setenv("COLOS_RUN", str(project.path / "nodes"))  # a lock of its own, whatever else runs here
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    project.write("test_servers.py", SERVERS.replace("{python}", sys.executable).replace("{port}", str(port)))
    few = ("--colos-sandbox=bare", "--colos-examples=2", "--colos-steps=4", "--colos-seed=1")
    result = project.pytest("-n", "2", "-p", "xdist", *few)
    result.assert_outcomes(passed=2)


def test_by_hand_too_a_run_waits_for_the_machine_and_says_so(project, monkeypatch):
    """`colos replay` beside a run that has the machine: the lock is the user's, not one pytest run's."""
    nodes = project.path / "nodes"
    nodes.mkdir()
    monkeypatch.setenv("COLOS_RUN", str(nodes))
    project.box("class TestHolds(Box):\n    faults = (Kill('box'),)\n")
    kill = '{ fault = "kill", id = "f1", target = "box" }'
    path = project.scenario("kill-it", "test_box.py::TestHolds", "always:x", kill)
    (nodes / "host.lock").touch()
    command = [sys.executable, "-m", "colos", "replay", str(path), "--sandbox=bare"]
    with locked(nodes / "host.lock", 0) as held:
        assert held
        replay = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert replay.stderr is not None
        said = replay.stderr.readline()
    out, _ = replay.communicate(timeout=60)
    assert "waiting for the machine (to itself)" in said
    assert "fixed" in out
