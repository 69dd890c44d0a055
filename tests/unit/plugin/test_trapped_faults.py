"""Faults of single system calls, the whole way: declared, generated, found, minimised, saved, replayed."""

from __future__ import annotations

import pytest

from colos.chaos.scenario import Inject, load

SERVER = """
    import os, socket, sys

    journal = os.open(sys.argv[2], os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(sys.argv[1])
    listening.listen()
    while True:
        client, _ = listening.accept()
        line = client.recv(100)
        if not line:
            continue  # somebody only looked whether anybody listens
        try:
            os.write(journal, line)
        except OSError:
            pass  # the planted mistake: it says yes all the same
        client.sendall(b"ok")
        client.close()
"""
MACHINE = """
    import sys
    from hypothesis import strategies as st
    from hypothesis.stateful import rule
    from colos.chaos import ChaosMachine, CommandSystem, always, unix_socket
    from colos.chaos.faults.diskio import IoError


    class TestJournal(ChaosMachine):
        system = CommandSystem(
            [sys.executable, "-I", "-S", "server.py", "{run}/sock", "{data}/journal"],
            ready=unix_socket("{run}/sock"),
            name="server",
        )
        faults = (IoError("server", operations="write", path="journal"),)

        def __init__(self):
            super().__init__()
            self.acknowledged = 0

        @rule()
        def put(self):
            with self.system.connect_blocking("{run}/sock") as line:
                line.sendall(b"x")
                if line.recv(2) == b"ok":
                    self.acknowledged += 1

        @always
        def nothing_acknowledged_is_lost(self):
            with open(self.system.path("{data}/journal"), "rb") as journal:
                assert len(journal.read()) == self.acknowledged
"""


@pytest.mark.slow
@pytest.mark.parametrize("tier", ["namespaces", "bare"])
def test_a_write_that_fails_finds_who_ignores_it(project, tier: str) -> None:
    server = project.write("server.py", SERVER)
    project.write("test_journal.py", MACHINE.replace("server.py", str(server)))
    project.write("pytest.ini", "[pytest]\n")
    found = project.pytest(f"--colos-sandbox={tier}", "--colos-seed=3", "--colos-steps=6")
    if "refused here" in found.stdout.str() + found.stderr.str():
        pytest.skip("this kernel refuses namespaces")
    found.assert_outcomes(failed=1)
    assert "always:nothing_acknowledged_is_lost is violated" in found.stdout.str()
    (saved,) = (project.path / "scenarios").glob("*.toml")
    scenario = load(saved)
    assert [type(step).__name__ for step in scenario.steps] == ["Inject", "Op"]
    (fault,) = [step for step in scenario.steps if isinstance(step, Inject)]
    assert (fault.fault, fault.target, fault.args) == ("io-error", "server", {"path": "journal"})
    replayed = project.pytest(f"--colos-sandbox={tier}", "-k", "scenario")
    replayed.assert_outcomes(failed=1)
    mended = SERVER.replace("pass  # the planted mistake: it says yes all the same", "client.close(); continue")
    project.write("server.py", mended)
    project.pytest(f"--colos-sandbox={tier}", "-k", "scenario").assert_outcomes(passed=1)
