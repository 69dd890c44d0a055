"""Which items there are, under whatever options, plugins and import modes."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

FEW = ("--colos-examples=2", "--colos-steps=2", "--colos-seed=1")
HOLDS = """
class TestHolds(Box):
    faults = (Kill("box"),)
"""
#: A scenario that every box holds against: it says what it would violate.
HARMLESS = ("kill-it", "test_box.py::TestHolds", "builtin:no_zombie", '{ fault = "kill", target = "box" }')


def test_items_are_one_exploration_and_each_saved_scenario(project):
    project.box(HOLDS, "class Model(Box):\n    pass\n", "class TestNothing:\n    def test_it(self):\n        pass\n")
    project.scenario(*HARMLESS)
    project.scenario("two", *HARMLESS[1:])
    result = project.pytest("--collect-only", "-q")
    assert result.ret == 0
    assert result.outlines[:4] == [
        "test_box.py::TestHolds::explore",
        "test_box.py::TestHolds::scenario[kill-it]",
        "test_box.py::TestHolds::scenario[two]",
        "test_box.py::TestNothing::test_it",
    ]
    assert "4 tests collected" in result.stdout.str()
    assert "colos:" not in result.stdout.str()


@pytest.mark.slow
def test_items_run_and_are_selected_as_any_other(project):
    """By id, by -k, by --lf, with -x; in junit's file by name."""
    project.box(
        HOLDS,
        """
        import os

        class TestSwitched(Box):
            faults = (Kill("box"),)

            def __init__(self):
                super().__init__()
                assert not os.path.exists("broken"), "told to break"
        """,
    )
    project.scenario(*HARMLESS)
    by_id = project.pytest("test_box.py::TestHolds::scenario[kill-it]", "-vv")
    by_id.assert_outcomes(passed=1)
    by_id.stdout.fnmatch_lines(["test_box.py::TestHolds::scenario?kill-it? *PASSED*"])
    assert by_id.stdout.lines.count("colos:   fault  kill on box") == 7  # the steps of each run
    project.pytest("-k", "TestHolds and explore", *FEW).assert_outcomes(passed=1, deselected=2)

    project.write("broken", "")
    stopped = project.pytest("-x", "--junitxml=all.xml", *FEW, "-k", "Switched or scenario")
    stopped.assert_outcomes(passed=1, failed=1, deselected=1)
    tree = ElementTree.parse(project.path / "all.xml")
    cases = {(case.get("classname"), case.get("name")): [child.tag for child in case] for case in tree.iter("testcase")}
    assert cases == {
        ("test_box.TestHolds", "scenario[kill-it]"): ["properties"],
        ("test_box.TestSwitched", "explore"): ["failure"],
    }
    properties = {each.get("name"): each.get("value") for each in tree.iter("property")}
    assert properties == {
        "colos_outcome": "fixed",
        "colos_scenario": "scenarios/kill-it.toml",
        "colos_violates": "builtin:no_zombie",
        "colos_failed": "0/7",
        "colos_power": "0.9922",
        "colos_fired": "kill ×7",
    }
    (project.path / "broken").unlink()
    again = project.pytest("--lf", "-v", *FEW)
    again.assert_outcomes(passed=1)
    again.stdout.fnmatch_lines(["test_box.py::TestSwitched::explore PASSED*"])


def test_x_ends_a_run_at_the_first_failure(project):
    project.box("class TestA(Box):\n    system = None\n", "class TestB(Box):\n    system = None\n")
    project.pytest("-x").assert_outcomes(failed=1)


def test_fixtures_and_marks_are_those_of_any_test(project):
    project.write("pytest.ini", "[pytest]\nmarkers = chaotic: breaks things\naddopts = --strict-markers\n")
    project.write(
        "conftest.py",
        """
        import pytest

        @pytest.fixture
        def noted(request):
            request.config.noted = ["set up"]
            yield request.config.noted
            request.config.noted.append("torn down")
            print(request.config.noted)

        @pytest.fixture
        def used(request, tmp_path):
            assert request.cls.__name__ == "TestMarked"
            (tmp_path / "used").touch()
            print("used was used")
        """,
    )
    project.box(
        """
        import pytest

        @pytest.mark.skip(reason="not today")
        class TestSkipped(Box):
            pass

        @pytest.mark.skipif(True, reason="never on this machine")
        class TestSkippedIf(Box):
            pass

        @pytest.mark.xfail(reason="it is declared badly", strict=True)
        class TestExpected(Box):
            system = None

        @pytest.mark.chaotic
        @pytest.mark.usefixtures("used")
        class TestMarked(Box):
            faults = (Kill("box"),)

            def __init__(self, noted, tmp_path, size=3):
                super().__init__()
                assert size == 3
                assert noted == ["set up"]
                assert (tmp_path / "used").exists()
                noted.append("made") if not noted[1:] else None
                noted.remove("made")
        """
    )
    project.scenario("one", "test_box.py::TestMarked", *HARMLESS[2:])
    result = project.pytest("-rsx", "-s", *FEW)
    result.assert_outcomes(passed=2, skipped=2, xfailed=1)
    result.stdout.fnmatch_lines(["*not today*", "*never on this machine*"])
    assert result.stdout.str().count("['set up', 'torn down']") == 2
    assert result.stdout.str().count("used was used") == 2
    chosen = project.pytest("-m", "chaotic", "--collect-only", "-q")
    assert chosen.outlines[:2] == ["test_box.py::TestMarked::explore", "test_box.py::TestMarked::scenario[one]"]
    assert "2/5 tests collected" in chosen.stdout.str()


def test_a_fixture_that_does_not_exist_is_pytests_own_error(project):
    project.box("class TestWanting(Box):\n    def __init__(self, nowhere):\n        super().__init__()\n")
    result = project.pytest(*FEW)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*fixture 'nowhere' not found*"])


ACTORS = """
from hypothesis import strategies as st
from hypothesis.stateful import rule
from colos.chaos import ActorSystem, ChaosMachine, Kill, always
from colos.runtime import Actor, ChildSpec, Supervisor


class Echo(Actor):
    async def echo(self, text):
        return text


class Root(Supervisor):
    name = "root"
    intensity = 20

    def children(self):
        return [ChildSpec("echo", Echo, name="echo")]


class TestEcho(ChaosMachine):
    system = ActorSystem(Root)
    faults = (Kill("root/*"),)

    @rule(text=st.text(max_size=5))
    async def echo(self, text):
        assert await (await self.system.whereis("echo")).echo(text) == text
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["prepend", "importlib"])
def test_actors_may_stand_in_the_test_module_itself(project, mode):
    """With a conftest beside it, in a folder that is no package, and in one that is."""
    project.write("tests/conftest.py", "")
    project.write("tests/test_flat.py", ACTORS)
    project.write("tests/package/__init__.py", "")
    project.write("tests/package/names.py", "GREETING = 'hello'\n")
    project.write("tests/package/test_deep.py", "from .names import GREETING\n" + ACTORS)
    result = project.pytest(f"--import-mode={mode}", *FEW)
    result.assert_outcomes(passed=2)
    result.stdout.re_match_lines([r".*test_flat.py::TestEcho::explore: 2 examples; faults fired: kill ×\d"])


@pytest.mark.parametrize("mode", ["-p no:anyio", "-o anyio_mode=auto"])
def test_anyios_own_plugin_changes_nothing(project, mode):
    project.write("test_echo.py", ACTORS)
    project.pytest(*mode.split(), *FEW).assert_outcomes(passed=1)


def test_random_order_and_strict_warnings_are_borne(project):
    """As the plugin pytest-randomly shuffles and reseeds, and with every warning an error."""
    pytest.importorskip("pytest_randomly")
    project.box(HOLDS)
    project.scenario(*HARMLESS)
    project.write("scenarios/broken.toml", "format = ")
    result = project.pytester.runpytest_subprocess("-W", "error", "-p", "randomly", *FEW, timeout=60)
    result.assert_outcomes(passed=2, failed=1)


@pytest.mark.slow
def test_workers_of_xdist_explore_apart_and_tell_together(project):
    pytest.importorskip("xdist")
    project.box(HOLDS, HOLDS.replace("TestHolds", "TestToo"))
    project.scenario(*HARMLESS)
    project.scenario("gone", "test_box.py::TestGone", *HARMLESS[2:])
    project.write("test_plain.py", "def test_plain():\n    pass\n")
    project.scenario("lost", "test_plain.py::TestGone", *HARMLESS[2:])
    result = project.pytest("-n", "2", "-p", "xdist", *FEW)
    result.assert_outcomes(passed=4)
    result.stdout.re_match_lines_random(
        [
            r"test_box.py::TestHolds::explore: 2 examples; faults fired: kill ×\d",
            r"test_box.py::TestToo::explore: 2 examples; faults fired: kill ×\d",
            r"orphaned: scenarios/gone.toml: there is no chaos machine 'test_box.py::TestGone'.*",
            r"orphaned: scenarios/lost.toml: there is no chaos machine 'test_plain.py::TestGone'.*",
        ]
    )
    assert result.stdout.str().count("orphaned") == 2
    journals = {path.name.rpartition("-")[2] for path in (project.path / ".colos/journal").iterdir()}
    assert journals <= {"gw0.jsonl", "gw1.jsonl"}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["loadgroup", "each"])
def test_every_way_to_distribute_runs_every_item(project, mode):
    """The two that differ most from the default: one changes the items' ids, one runs each item twice."""
    pytest.importorskip("xdist")
    project.box("import pytest\n", HOLDS.replace("class", "@pytest.mark.xdist_group('one')\nclass"))
    project.scenario(*HARMLESS, extra="repro = { failed = 10, runs = 10 }\n")
    project.scenario("gone", "test_box.py::TestGone", *HARMLESS[2:])
    result = project.pytest("-n", "2", "--dist", mode, *FEW)
    times = 2 if mode == "each" else 1
    result.assert_outcomes(passed=2 * times)
    text = result.stdout.str()
    assert text.count("TestHolds::explore: 2 examples; faults fired: kill ") == times
    assert text.count("orphaned: scenarios/gone.toml") == 1
    assert text.count("colos: sandbox namespaces") == 1
    result.stdout.re_match_lines([rf"fixed: {times} scenarios?: kill-it"])


def test_any_order_and_any_choice_runs_the_same_items(project):
    """Shuffled by another plugin, and one item deselected; which of them come first changes none of them."""
    project.write(
        "conftest.py",
        """
        import pytest

        @pytest.hookimpl(trylast=True)
        def pytest_collection_modifyitems(items):
            items.reverse()
        """,
    )
    project.box(HOLDS)
    repro = "repro = { failed = 10, runs = 10 }\n"
    for name in ("a", "b"):
        project.scenario(name, *HARMLESS[1:], extra=repro)
    project.write("scenarios/torn.toml", "format = ")
    result = project.pytest("-v", "--deselect=test_box.py::TestHolds::scenario[a]", *FEW)
    result.assert_outcomes(passed=2, failed=1, deselected=1)
    said = [line.partition(" ")[0] for line in result.outlines if re.search("(PASSED|FAILED) +\\[", line)]
    assert said == ["::scenarios/torn::toml", "test_box.py::TestHolds::scenario[b]", "test_box.py::TestHolds::explore"]
    assert "orphaned" not in result.stdout.str()


def test_who_does_not_use_it_does_not_pay(project):
    """Nothing printed, nothing heavy imported, no process started."""
    project.write("test_plain.py", "class TestPlain:\n    def test_it(self):\n        pass\n")
    project.write(
        "conftest.py",
        """
        import sys

        def pytest_unconfigure():
            print("loaded:", sorted(
                name for name in sys.modules if name.startswith(("colos", "hypothesis.stateful"))
            ))
        """,
    )
    result = project.pytest("-s")
    result.assert_outcomes(passed=1)
    assert "loaded: ['colos', 'colos.plugin']" in result.stdout.str()
    assert "colos:" not in result.stdout.str()
    assert "ColOS" not in result.stdout.str()
    assert not (project.path / ".colos").exists()
