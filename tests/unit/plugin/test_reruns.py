"""Items that another plugin runs again: each run begins anew, and the last one is told."""

from __future__ import annotations

import pytest

FEW = ("--colos-examples=2", "--colos-steps=2", "--colos-seed=1")


def test_a_test_that_runs_again_begins_anew_and_is_told_once(project, killed):
    """As pytest-rerunfailures has it: the item forgets its function and its instance, and is set up again."""
    pytest.importorskip("pytest_rerunfailures")
    project.box(killed)
    result = project.pytest("--reruns", "1", "-p", "rerunfailures", "--junitxml=junit.xml", *FEW)
    assert result.parseoutcomes() == {"failed": 1, "rerun": 1}
    result.stdout.re_match_lines([r"new: test_box.py::TestKilled::explore: .*: scenarios/started_once-\w{6}.toml"])
    assert result.stdout.str().count("new: ") == 1
    assert 'name="colos_outcome" value="new"' in (project.path / "junit.xml").read_text()
    again = project.pytest("--reruns", "1", "-p", "rerunfailures", *FEW)
    assert again.parseoutcomes() == {"failed": 2, "rerun": 2}
