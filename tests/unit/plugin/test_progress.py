"""Long work says that it goes on: seldom where nobody watches, and past pytest's capturing."""

from __future__ import annotations

import re

from colos.chaos.progress import QUIET_EVERY_S, Progress


def test_a_line_now_and_then_where_there_is_no_terminal() -> None:
    now_s, lines = 0.0, []
    progress = Progress(lines.append, clock=lambda: now_s)
    for tenth in range(131):
        now_s = tenth / 10
        progress(f"at {now_s:g}")
    assert QUIET_EVERY_S >= 5
    assert lines == [f"at {QUIET_EVERY_S:g}", f"at {2 * QUIET_EVERY_S:g}"]


def test_one_line_is_written_over_on_a_terminal() -> None:
    now_s, lines, over = 0.0, [], []
    progress = Progress(lines.append, over.append, clock=lambda: now_s)
    progress("x" * 1000)
    progress("too soon to be read")
    now_s = 1.0
    progress("later")
    assert not lines
    assert [len(over[0]), over[1]] == [110, "later"]


def test_the_lines_come_through_what_pytest_captures(project):
    """A slow example, and an author who prints: his words stay captured, ours do not."""
    project.box(
        """
        import time

        class TestSlow(Box):
            def __init__(self):
                super().__init__()
                print("words of the author")
                time.sleep(2)  # the work that takes long
        """
    )
    result = project.pytest("--colos-examples=4", "--colos-steps=1", "--colos-seed=1")
    result.assert_outcomes(passed=1)
    text = result.stdout.str()
    assert re.search(r"^colos: exploring: example \d/4; fired: nothing yet$", text, re.MULTILINE), text
    assert text.count("colos: exploring") == 1
    assert "words of the author" not in text
