"""What is remembered of the dead is bounded, for each path and for all that were spawned alike."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from colos.runtime.recent import Recent

PATHS = st.sampled_from(["app/a", "app/b", *(f"app/driver/Worker-{number}" for number in range(8))])


@given(st.lists(PATHS))
def test_the_latest_of_each_path_is_remembered_and_the_rest_given_back(paths: list[str]) -> None:
    recent: Recent[int] = Recent(per_path=2, per_family=4)
    kept: dict[int, str] = {}
    for number, path in enumerate(paths):
        forgotten = recent.add(path, number)
        kept[number] = path
        for old in forgotten:
            assert old == min(other for other, its in kept.items() if its == kept[old])  # the oldest of its path
            del kept[old]
        for each in set(paths):
            assert recent.of(each) == [other for other, its in kept.items() if its == each][-2:]
            assert len(recent.of(each)) <= 2
        assert sum(path.startswith("app/driver") for path in kept.values()) <= 4


def test_a_thousand_spawned_processes_leave_no_more_than_their_bound() -> None:
    recent: Recent[int] = Recent(per_path=3, per_family=256)
    forgotten = [old for number in range(1000) for old in recent.add(f"app/d/A-{number}", number)]
    assert forgotten == list(range(1000 - 256))
    assert recent.of("app/d/A-0") == []
    assert recent.of("app/d/A-999") == [999]
