"""The last outcomes of scenarios: kept whole beside other writers, and never in anybody's way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from colos.chaos.outcomes import Failure
from colos.chaos.properties import Violation
from colos.chaos.remembered import Remembered, recall, remember
from colos.chaos.report import describe_failure
from colos.chaos.scenario import Inject, Op, Repro

MANY = """
import sys
from pathlib import Path
from colos.chaos.remembered import Remembered, remember
root = Path(sys.argv[1])
for n in range(25):
    remember(root, {root / f"{sys.argv[2]}-{n}.toml": Remembered("fixed", 0, 3, n)})
"""


def test_what_several_processes_remember_at_once_is_all_kept(tmp_path: Path) -> None:
    path = f"import sys; sys.path[:] = {sys.path!r}\n"
    writers = [subprocess.Popen([sys.executable, "-c", path + MANY, tmp_path, name]) for name in "abc"]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert recall(tmp_path) == {f"{name}-{n}.toml": Remembered("fixed", 0, 3, n) for name in "abc" for n in range(25)}
    assert sorted(each.name for each in (tmp_path / ".colos").iterdir()) == ["outcomes.json"]


def test_a_file_that_says_nothing_is_as_good_as_none(tmp_path: Path) -> None:
    assert recall(tmp_path) == {}
    file = tmp_path / ".colos" / "outcomes.json"
    file.parent.mkdir()
    for text in ("", "[1]", "\0", '{"a.toml": {"newer": 1}, "b.toml": 3}'):
        file.write_text(text)
        assert recall(tmp_path) == {}
    remember(tmp_path, {tmp_path / "a.toml": Remembered("failed", 1, 3, 5)})
    assert recall(tmp_path) == {"a.toml": Remembered("failed", 1, 3, 5)}


def test_a_folder_that_takes_no_file_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".colos").write_text("a file in the folder's place")
    remember(tmp_path, {tmp_path / "a.toml": Remembered("failed", 1, 3, 5)})
    assert recall(tmp_path) == {}


def test_the_steps_as_they_were_found_are_told_on_demand() -> None:
    kill = Inject("kill", "f1", "box")
    violation = Violation("always:a", "it broke", 1)
    failure = Failure(violation, (Op("put"), kill), (kill,), Repro(3, 3), "", Path("journal.jsonl"))
    brief = describe_failure(failure, replay="", seed=1)
    assert "put()" not in brief
    told = describe_failure(failure, replay="", seed=1, with_found=True)
    assert "found steps (2):\n   1. op     put()\n   2. fault  kill on box\n\n" in told
