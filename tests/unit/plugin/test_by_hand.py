"""`colos replay`, `colos scenarios` and `colos minimise`: saved scenarios without pytest."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from colos.chaos.scenario import Inject, load

TEST = "tests/test_box.py::TestKilled"
KILL = '{ fault = "kill", target = "box" }'
PUT = '{ op = "put", size = 60000 }'


def colos(project, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "colos", *arguments],
        cwd=project.path,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


@pytest.fixture
def kept(project, killed):
    """A project with a box that any kill breaks, in a folder of tests."""
    project.write("pyproject.toml", "")
    project.box(killed, name="tests/test_box.py")
    return project


def outcomes(project) -> dict[str, tuple[str, int, int]]:
    raw = json.loads((project.path / ".colos/outcomes.json").read_text())
    return {name: (entry["outcome"], entry["failed"], entry["runs"]) for name, entry in raw.items()}


def test_each_file_is_replayed_and_told_in_a_block(kept):
    """From any folder; the worst of them decides the exit status, and pytest and we remember alike."""
    kept.scenario("breaks", TEST, "always:started_once", KILL)
    kept.scenario("holds", TEST, "always:started_once", PUT, extra="repro = { failed = 10, runs = 10 }\n")
    kept.scenario("other", TEST, "always:another", KILL)
    holds = colos(kept, "replay", "scenarios/holds.toml")
    assert holds.returncode == 0, holds.stderr
    assert "scenarios/holds.toml\n" in holds.stdout
    assert "outcome  fixed: never failed in 3 runs\n" in holds.stdout

    done = colos(kept, "replay", *(f"scenarios/{name}.toml" for name in ("breaks", "holds", "other")))
    assert done.returncode == 1, done.stderr
    blocks = done.stdout.strip().split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == [
        f"scenarios/{name}.toml" for name in ("breaks", "holds", "other")
    ]
    assert "outcome  failed 3 of 3\n" in blocks[0]
    assert "violated always:started_once\n" in blocks[0]
    assert "1. fault  kill on box\n" in blocks[0]
    assert "outcome  different: always:started_once in place of always:another\n" in blocks[2]
    assert "note     TestKilled declares no always:another; known: always:started_once\n" in blocks[2]
    assert "note " not in blocks[0] + blocks[1]
    journal = re.search(r"journal  (.*)$", blocks[0])
    assert journal
    assert '"always:started_once"' in (kept.path / journal[1]).read_text()
    by_hand = outcomes(kept)
    assert by_hand == {
        "scenarios/breaks.toml": ("failed", 3, 3),
        "scenarios/holds.toml": ("fixed", 0, 3),
        "scenarios/other.toml": ("different", 0, 3),
    }
    (kept.path / ".colos/outcomes.json").unlink()
    by_pytest = kept.pytest("-k", "scenario")
    by_pytest.assert_outcomes(passed=1, failed=2, deselected=1)
    by_pytest.stdout.fnmatch_lines(["different: other: *; TestKilled declares no always:another; known: *"])
    assert outcomes(kept) == by_hand


BAD = {
    "stale": (TEST, '{ fault = "kil", target = "box" }', r"stale: .*stale.toml: line 5: unknown fault 'kil'; did .*"),
    "no-file": ("tests/test_bix.py::TestX", KILL, r".*no-file.toml: test: there is no 'tests/test_bix.py' in .*"),
    "no-class": ("tests/test_box.py::TestKilt", KILL, r".*no chaos machine 'TestKilt'; did you mean 'TestKilled'\?.*"),
    "no-module": ("no.such.module::TestX", KILL, r".*there is no 'no.such.module' in .*"),
    "fixtures": (
        "tests/test_wanting.py::TestWanting",
        KILL,
        r".*takes the fixture 'tmp_path', .*run it by pytest: pytest 'tests/test_wanting.py::TestWanting::scenario\["
        r"fixtures\]'",
    ),
}


def test_a_file_that_cannot_be_used_is_bad_usage(kept):
    kept.box(
        "class TestWanting(Box):\n    def __init__(self, tmp_path, size=3):\n        super().__init__()\n",
        name="tests/test_wanting.py",
    )
    paths = [kept.scenario(name, test, "always:x", step) for name, (test, step, _) in BAD.items()]
    before = [path.read_bytes() for path in paths]
    kept.write("scenarios/torn.toml", "format = ")
    done = colos(kept, "replay", *map(str, paths), "scenarios/torn.toml", "scenarios/missing.toml")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    for _, _, wanted in BAD.values():
        assert re.search(rf"^{wanted}$", done.stderr, re.MULTILINE), (wanted, done.stderr)
    assert "torn.toml: end of document: not TOML" in done.stderr
    assert "missing.toml: the file: No such file or directory" in done.stderr
    assert [path.read_bytes() for path in paths] == before
    assert outcomes(kept) == {"scenarios/stale.toml": ("stale", 0, 0)}


def test_a_machine_is_found_by_its_module_s_name_too(kept, killed):
    kept.box(killed, name="box/machines.py")
    kept.write("box/__init__.py", "")
    kept.scenario("named", "box.machines::TestKilled", "always:started_once", KILL)
    done = colos(kept, "replay", "scenarios/named.toml")
    assert "outcome  failed 3 of 3\n" in done.stdout, done.stderr


def test_a_known_failure_is_as_promised_until_it_is_fixed(kept):
    kept.scenario("known", TEST, "always:started_once", KILL, extra='known = "issue #12"\n')
    kept.scenario("mended", TEST, "always:started_once", PUT, extra='known = "issue #13"\n')
    assert colos(kept, "replay", "scenarios/known.toml").returncode == 0
    done = colos(kept, "replay", "scenarios/mended.toml")
    assert done.returncode == 1
    assert "known    issue #13; it is fixed: take the line 'known' out of the file" in done.stdout


def test_the_scenarios_are_a_table(kept):
    kept.scenario("old", TEST, "always:started_once", KILL, PUT, extra="repro = { failed = 3, runs = 4 }\n")
    kept.scenario("young", TEST, "always:started_once", KILL, extra='known = "issue #12"\n')
    old = kept.path / "scenarios/old.toml"
    os.utime(old, (old.stat().st_mtime - 3 * 86400 - 60,) * 2)
    assert colos(kept, "replay", "scenarios/old.toml").returncode == 1
    done = colos(kept, "scenarios")
    assert done.returncode == 0, done.stderr
    head, *rows = done.stdout.splitlines()
    assert re.split(r" {2,}", head) == ["name", "test", "property", "steps", "rate", "age", "last outcome"]
    cells = [re.split(r" {2,}", row) for row in rows]
    assert cells[0][:-1] == ["old", TEST, "always:started_once", "2", "3/4", "3 d"]
    assert re.fullmatch(r"failed 3 of 3, \d+ s ago", cells[0][-1])
    assert cells[1][:5] == ["young", TEST, "always:started_once", "1", "—"]
    assert cells[1][-1] == "—; known: issue #12"

    kept.write("scenarios/torn.toml", "format = ")
    torn = colos(kept, "scenarios")
    assert torn.returncode == 1
    assert torn.stdout.count("\n") == 3
    assert "torn.toml: end of document: not TOML" in torn.stderr
    nowhere = colos(kept, "scenarios", "nowhere")
    assert nowhere.returncode == 2
    assert "there is no folder 'nowhere'" in nowhere.stderr


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("import nothing_of_that_name\n", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("import pytest\npytest.skip('not here', allow_module_level=True)\n", "Skipped: not here"),
    ],
)
def test_a_module_that_cannot_be_imported_is_said_and_the_others_go_on(kept, body, said):
    line = body.count("\n")
    module = kept.write("tests/test_broken.py", body)
    kept.scenario("broken", "tests/test_broken.py::TestIt", "always:started_once", KILL)
    kept.scenario("breaks", TEST, "always:started_once", KILL)
    done = colos(kept, "replay", "scenarios/broken.toml", "scenarios/breaks.toml")
    assert done.returncode == 2
    assert f"'tests/test_broken.py' cannot be imported: {said}; see {module}, line {line}\n" in done.stderr
    assert "Traceback" not in done.stderr
    assert "outcome  failed 3 of 3\n" in done.stdout


def test_a_scenario_is_shortened_again_and_its_file_rewritten(kept):
    path = kept.scenario("long", TEST, "always:started_once", PUT, KILL, PUT, PUT, extra='known = "issue #12"\n')
    path.chmod(0o640)
    done = colos(kept, "minimise", "scenarios/long.toml")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^scenarios/long.toml: 4 → 1 steps, in \d+ runs$", done.stdout, re.MULTILINE)
    found = load(path)
    assert [type(step) for step in found.steps] == [Inject]
    assert (found.known, found.violates) == ("issue #12", "always:started_once")
    assert found.repro is not None
    assert found.repro.failed == found.repro.runs >= 5
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(path.parent.iterdir()) == [path]

    holds = kept.scenario("holds", TEST, "always:started_once", PUT)
    before = holds.read_bytes()
    done = colos(kept, "minimise", "scenarios/holds.toml")
    assert done.returncode == 1
    assert "did not happen in 30 runs; the file is as it was" in done.stdout
    assert holds.read_bytes() == before
