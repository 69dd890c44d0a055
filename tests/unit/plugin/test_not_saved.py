"""A failure whose steps no file can hold is reported in full, and why there is no file."""

from __future__ import annotations


def test_a_value_without_a_safe_form_is_told_with_its_step_and_argument(project):
    project.box(
        """
        class TestOdd(Box):
            @rule(thing=st.builds(object))
            def put(self, thing):
                raise RuntimeError("it cannot be used")
        """
    )
    result = project.pytest("--colos-steps=4", "--colos-examples=3", "--colos-seed=5")
    result.assert_outcomes(failed=1)
    text = result.stdout.str()
    assert "rule:put is violated" in text
    line, *_again = [line for line in text.splitlines() if line.startswith("not saved")]
    assert "steps[0]: the op 'put': the argument 'thing': <object object at 0x" in line
    assert "has no safe form in a scenario file: there is none for builtins.object; have the rule draw what" in line
    assert list((project.path / "scenarios").glob("*")) == []
