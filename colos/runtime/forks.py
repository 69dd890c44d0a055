"""Where a node's processes come from: the zygote, and the spare that takes its place."""

from __future__ import annotations

import os
from collections.abc import Iterable

from colos.runtime import process
from colos.runtime.incarnation import Child
from colos.runtime.process import Death
from colos.runtime.supervisor import Plan, TreeSpec
from colos.runtime.zygote import Nursery, Zygote, fork_process


class Forks:
    """The root's hand on both."""

    def __init__(self, tree: TreeSpec, run_dir: str, backend: str) -> None:
        self._nursery = Nursery(_plans(tree.name, tree), run_dir, backend, os.getpid())
        self._zygote: Zygote | None = None
        self._spare: Zygote | None = None
        self._over = False

    def fork_first(self, children: Iterable[Child]) -> None:
        """Fork the first processes, which wait for their turn, and the zygote; before the loop.  Raises OSError."""
        # All in a row: every page written between two forks would have to be copied once more.
        for child in children:
            child.pid = fork_process(self._nursery, child.key, child.path, child.id, child.theirs)
        self._zygote = Zygote.fork(self._nursery)

    def fork(self, child: Child) -> None:
        """Have a process forked, never waiting.  Raises OSError."""
        if self._zygote is None:
            raise OSError("the node has no zygote any more")
        self._zygote.spawn(child.key, child.path, child.id, child.theirs)

    def make_spare(self) -> None:
        """Have a spare, if there is none."""
        if self._zygote is not None and self._spare is None and not self._over:
            try:
                self._spare = self._zygote.spare()
            except OSError:  # no descriptor, or its queue is full: there is none, then
                pass

    def replace(self) -> None:
        """The zygote does not answer: stopped, or worse."""
        if self._zygote is not None and self._spare is not None:
            process.complain("the zygote does not answer; the spare takes its place")
            self._zygote.kill()
            self._zygote, self._spare = self._spare, None
            self.make_spare()

    def owns(self, pid: int) -> bool:
        """Whether a dead child was the zygote or the spare."""
        return any(one is not None and one.pid == pid for one in (self._zygote, self._spare))

    def died(self, pid: int, death: Death) -> str:
        """A child that is none of the node's processes is dead; why nothing can be started any more, if so."""
        if self._zygote is not None and self._zygote.pid == pid:
            return self._promote(death)
        if self._spare is not None and (self._spare.pid == pid or self._spare.gone()):
            self._spare = None
        if self._zygote is not None and self._zygote.gone():  # a spare once, dead before it could say its pid
            return self._promote(death)
        return ""

    def _promote(self, death: Death) -> str:
        self._zygote, self._spare = self._spare, None
        if self._zygote is not None and self._zygote.gone():
            self._zygote = None
        if self._over:
            return ""
        process.complain(f"the zygote died: {death.reason}")
        if self._zygote is None:
            return f"stopped: its zygote died and there was no spare, so nothing can be started: {death.reason}"
        self.make_spare()
        return ""

    def kill(self) -> None:
        """End both: nothing is to be started any more."""
        self._over = True
        for zygote in (self._zygote, self._spare):
            if zygote is not None:
                zygote.kill()


def _plans(key: str, tree: TreeSpec) -> dict[str, Plan]:
    """Every plan of a tree by its place, a dynamic supervisor's template under "*"."""
    found: dict[str, Plan] = {}
    templates = () if tree.template is None else (("*", tree.template),)
    for id_, plan in (*((plan.id, plan) for plan in tree.children), *templates):
        found[f"{key}/{id_}"] = plan
        if plan.tree is not None:
            found.update(_plans(f"{key}/{id_}", plan.tree))
    return found
