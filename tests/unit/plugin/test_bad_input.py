"""Bad files, bad declarations, systems that do not start: each told clearly, none mistaken for a failure."""

from __future__ import annotations

import re

import pytest

FEW = ("--colos-examples=2", "--colos-steps=2", "--colos-seed=1")
HOLDS = """
class TestHolds(Box):
    faults = (Kill("box"),)
"""
TEST = "test_box.py::TestHolds"
HEAD = f'format = 1\ntest = "{TEST}"\nviolates = "always:x"\n'


def steps(*lines: str) -> str:
    return HEAD + "steps = [\n" + "".join(f"  {line},\n" for line in lines) + "]\n"


#: Each file's content, and what is said of it.
FILES: dict[str, tuple[str | bytes, str]] = {
    "no_toml": ("format = 1\ntest = oops\n", r"line 2.*"),
    "no_utf8": (HEAD.encode() + b'known = "\xff"\n', r"line 4: not UTF-8.*"),
    "format": ("format = 99\n" + HEAD.partition("\n")[2], r"line 1: format 99 is not supported.*supports: 1.*"),
    "missing": ('format = 1\ntest = "x"\nsteps = []\n', r".*violates.*"),
    "typo": (HEAD + 'knwon = "x"\nsteps = []\n', r"line 4: .*'knwon'.*did you mean 'known'.*"),
    "field": (steps('{ target = "box" }'), r"line 5: a step has exactly one of op, fault and heal.*"),
}
#: Files whose machine is gone, which are no error.
ORPHANS: dict[str, tuple[str | bytes, str]] = {
    "gone": (HEAD.replace("TestHolds", "TestHold") + "steps = []\n", rf".*TestHold'; did you mean '{TEST}'.*"),
    "gone_file": (HEAD.replace("test_box", "test_gone") + "steps = []\n", r".*'test_gone.py::TestHolds'.*"),
}
#: The same, found out when the machine is known.
UNFIT: dict[str, tuple[str | bytes, str]] = {
    "fault": (steps('{ op = "put", size = 1 }', '{ fault = "kil" }'), r"line 6: unknown fault 'kil'.*mean 'kill'.*"),
    "op": (steps('{ op = "putt", size = 1 }'), r"line 5: unknown op 'putt'.*mean 'put'.*"),
    "argument": (steps('{ op = "put", sise = 1 }'), r"line 5: the op 'put' has no argument 'sise'.*mean 'size'.*"),
    "lacking": (steps('{ op = "put" }'), r"line 5: the op 'put' needs an argument 'size'.*"),
    "parameter": (steps('{ fault = "kill", target = "box", sig = "KILL" }'), r"line 5: the fault 'kill'.*'sig'.*"),
    "signal": (steps('{ fault = "kill", target = "box", signal = "NOPE" }'), r".*'NOPE' is not a signal's name.*"),
    "target": (steps('{ fault = "kill", target = "bix" }'), r"line 5: .*'bix'.*mean 'box'.*"),
}


def test_a_file_that_cannot_be_used_says_where_and_why_and_stays_as_it_is(project):
    """One item each, named after the file; what can run does."""
    project.box(HOLDS)
    wanted = {**FILES, **UNFIT}
    written = {name: project.write(f"scenarios/{name}.toml", text) for name, (text, _) in {**wanted, **ORPHANS}.items()}
    before = {name: path.read_bytes() for name, path in written.items()}
    project.scenario("good", TEST, "always:x", '{ fault = "kill", target = "box" }')
    result = project.pytest(*FEW)
    text = result.stdout.str()
    unsaid = []
    for name, (_, pattern) in wanted.items():
        stale = "stale: " if name in UNFIT else ""
        if not re.search(rf"^{stale}{re.escape(str(written[name]))}: {pattern}$", text, re.MULTILINE):
            unsaid.append((name, pattern, re.findall(rf"^.*{name}.*$", text, re.MULTILINE)))
    assert not unsaid
    for name, (_, pattern) in ORPHANS.items():
        assert len(re.findall(rf"^orphaned: scenarios/{name}.toml: {pattern}$", text, re.MULTILINE)) == 1, text
        assert text.count(f"{name}.toml") == 1
    result.assert_outcomes(passed=2, failed=len(wanted))
    assert "Traceback" not in text
    assert "colos/chaos" not in text
    assert {name: path.read_bytes() for name, path in written.items()} == before


def test_a_scenario_whose_machine_is_gone_is_a_failure_under_strict(project):
    project.box(HOLDS)
    for name, (text, _) in ORPHANS.items():
        project.write(f"scenarios/{name}.toml", text)
    result = project.pytest("--colos-strict", *FEW)
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines([f"*gone.toml: test: there is no chaos machine*did you mean '{TEST}'*"])
    assert "orphaned" not in result.stdout.str()


def test_files_about_other_tests_are_left_alone_when_some_tests_were_asked_for(project):
    project.box(HOLDS)
    project.write("test_other.py", "def test_other():\n    pass\n")
    project.scenario("gone", "test_other.py::TestGone", "always:x", '{ fault = "kill" }')
    for asked in ("test_box.py", "test_other.py"):
        result = project.pytest(asked, *FEW)
        result.assert_outcomes(passed=1)
        assert "orphaned" not in result.stdout.str()


ACTORS = """
from colos.chaos import ActorSystem
from colos.runtime import Actor, ChildSpec, Supervisor

class Stillborn(Actor):
    async def init(self):
        raise RuntimeError("no disk in the drawer")

class Root(Supervisor):
    def children(self):
        return [ChildSpec("a", Stillborn)]
"""


def test_a_system_that_does_not_start_is_no_counterexample(project):
    """Its own words are shown; no verdict on the system, no scenario, and no second try."""
    project.box(
        ACTORS,
        """
        class TestActor(Box):
            system = ActorSystem(Root)

        class TestExits(Box):
            system = CommandSystem(["sh", "-c", "echo out of paper >&2; exit 3"], ready=file_exists("{run}/never"))

        class TestMissing(Box):
            system = CommandSystem(["no-such-program"], ready=file_exists("{run}/never"))

        class TestNeverReady(Box):
            system = CommandSystem(
                ["sh", "-c", "echo warming up; exec sleep 1000"], ready=file_exists("{run}/never"), start_s=0.3
            )
        """,
    )
    result = project.pytest(*FEW)
    result.assert_outcomes(failed=4)
    text = result.stdout.str()
    assert len(re.findall("^harness broken .no verdict on the system.: ", text, re.MULTILINE)) == 4
    for wanted in (
        r"no disk in the drawer",
        r"'sh' did not start: it exited with status 3 before it was ready\nits stderr ends:\nout of paper",
        r"'no-such-program' did not start: .*\nits stderr ends:\ncolos: cannot run 'no-such-program': No such file",
        r"'sh' did not start: it was not ready within 0.3 s\nits stderr ends:\nwarming up",
    ):
        assert re.search(wanted, text), wanted
    assert "is violated" not in text
    assert "Falsifying" not in text
    assert not (project.path / "scenarios").exists()


DECLARATIONS = {
    "NoSystem(ChaosMachine):\n    pass": r"TestNoSystem.system is None; declare system = ActorSystem.*CommandSystem.*",
    "Kind(Box):\n    system = Box": r"TestKind.system is <class '.*Box'>; declare system = .*",
    "Pattern(Box):\n    faults = [Kill('bix/*')]": r"Kill\('bix/\*'\) matches nothing in the system's topology.*: box",
    "Without(Box):\n    without = ['no_zombies']": r"TestWithout.without names no_zombies; .*no_zombie.*",
    "WithoutText(Box):\n    without = 'no_zombie'": r"TestWithoutText.without names no_zombie; it is a tuple.*",
    "Refusals(Box):\n    refusals = OSError": r"TestRefusals.refusals is <class 'OSError'>; it is a tuple of .*",
    "Unknowns(Box):\n    unknowns = ('OSError',)": r"TestUnknowns.unknowns is \('OSError',\); it is a tuple of .*",
    "Backend(Box):\n    backend = 'curio'": r"TestBackend.backend is 'curio'; allowed are asyncio, trio",
}
IMPORTED = {
    "Fault(Box):\n    faults = ['kill']": r"TestFault.faults holds 'kill'; faults look like Kill\('ledger/\*'\)",
    "Faults(Box):\n    faults = Kill('box')": r"TestFaults.faults is Kill\('box'\); it is a list such as .*",
    "Class(Box):\n    faults = [Kill]": r"TestClass.faults holds <class '.*Kill'>; faults look like .*",
    "Signal(Box):\n    faults = [Kill(signals=['X'])]": r"'X' is not a signal's name; .*",
    "Twice(Box):\n    @always\n    @sometimes\n    def p(self): ...": r"TestTwice.p is declared as a property twice",
    "Within(Box):\n    @eventually(within=0)\n    def p(self): ...": r"eventually\(within=0\) leaves no time; .*",
    "NotReady(Box):\n    system = CommandSystem(['sh'], ready=3)": r"CommandSystem needs ready=…: a condition .*",
}


def test_a_bad_declaration_gives_one_clear_sentence(project):
    project.box(*[f"class Test{body}" for body in DECLARATIONS])
    result = project.pytest(*FEW)
    text = result.stdout.str()
    for wanted in DECLARATIONS.values():
        assert re.search(rf"^InvalidSpecification: {wanted}$", text, re.MULTILINE), wanted
    result.assert_outcomes(failed=len(DECLARATIONS))


def test_a_declaration_that_is_refused_at_import_gives_its_sentence_too(project):
    for number, body in enumerate(IMPORTED):
        project.box(f"class Test{body}", name=f"test_{number}.py")
    result = project.pytest(*FEW)
    text = result.stdout.str()
    for wanted in IMPORTED.values():
        assert re.search(rf"^E +colos.errors.InvalidSpecification: {wanted}$", text, re.MULTILINE), wanted
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.assert_outcomes(errors=len(IMPORTED))
