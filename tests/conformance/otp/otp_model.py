"""What OTP's supervisor does, after supervisor.erl of OTP 25 (restart/2, restart_multiple_children/3, add_restart/1).

Independent of colos.runtime on purpose: it is held against observed.txt by a test of its own, and
against the runtime by another.
"""

from __future__ import annotations

Event = tuple[object, ...]


def is_clean(reason: object) -> bool:
    """normal, shutdown and {shutdown, _}: a transient child stays down after these."""
    if isinstance(reason, tuple):
        return len(reason) == 2 and reason[0] == "shutdown"
    return reason in ("normal", "shutdown")


class Model:
    """A supervisor of `kinds` = [(label, restart), ...]; all its crashes are within one period."""

    def __init__(self, strategy: str, intensity: int, kinds: list[tuple[str, str]]) -> None:
        self.strategy = strategy
        self.intensity = intensity
        self.kinds = dict(kinds)
        self.running = dict.fromkeys(self.kinds, True)
        self.restarts = 0
        self.died = False
        self.events: list[Event] = []

    def crash(self, label: str, reason: object) -> set[str]:
        """A running child ends with a reason; who is a new incarnation afterwards."""
        self.running[label] = False
        kind = self.kinds[label]
        if kind == "temporary":
            self._remove(label)
            return set()
        if kind == "transient" and is_clean(reason):
            return set()
        self.restarts += 1
        if self.restarts > self.intensity:
            self._stop(list(self.kinds))
            self.died = True
            return set()
        labels = list(self.kinds)
        if self.strategy == "one_for_one":
            concerned = [label]
        elif self.strategy == "rest_for_one":
            concerned = labels[labels.index(label) :]
        else:
            concerned = labels
        self._stop(concerned)
        started = [one for one in concerned if one in self.kinds]
        for one in started:
            self.running[one] = True
            self.events.append(("start", one))
        return set(started)

    def _stop(self, labels: list[str]) -> None:
        for label in reversed(labels):
            if self.running[label]:
                self.running[label] = False
                self.events.append(("stop", label, "shutdown"))
            if self.kinds[label] == "temporary":
                self._remove(label)

    def _remove(self, label: str) -> None:
        del self.kinds[label], self.running[label]

    @property
    def end(self) -> tuple[str, object]:
        """As the oracle says it: {alive, [{Id, IsRunning}]} or {sup_died, Reason}."""
        return ("sup_died", "shutdown") if self.died else ("alive", list(self.running.items()))
