"""What is left of a failure that a search has found: the fewest steps, one account for two, small amounts."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, rule

from colos.chaos import ChaosMachine, always
from colos.chaos.scenario import Op, Ref


@pytest.mark.parametrize("seed", range(5))
def test_a_failure_comes_down_to_its_simplest_form(lab, nothing, seed):
    class Bank(ChaosMachine):
        system = nothing
        accounts = Bundle("accounts")

        def __init__(self):
            super().__init__()
            self.moved = 0

        @rule(target=accounts, owner=st.text(max_size=10), limit=st.integers(0, 10**6))
        def open_one(self, owner, limit):
            return (owner, limit)

        @rule(one=accounts, two=accounts, amount=st.integers(0, 1000))
        def pay(self, one, two, amount):
            self.moved += amount >= 100

        @rule()
        def look(self):
            pass

        @always
        def little_is_moved(self):
            return self.moved < 2

    found = lab.explore(Bank, examples=200, steps=12, seed=seed)
    assert found.failure is not None
    opened, *paid = found.failure.minimal
    assert opened == Op("open_one", {"owner": "", "limit": 0}, opened.results)
    account = Ref(opened.results[0])
    assert [(step.name, step.args["one"], step.args["two"]) for step in paid] == [("pay", account, account)] * 2
    if hasattr(type(st.integers()), "_invert"):
        # Three quarters of either would be too little.
        assert all(100 <= step.args["amount"] < 100 / 0.75 for step in paid)
