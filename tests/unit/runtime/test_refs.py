"""Through what a reference speaks that was unpickled."""

from __future__ import annotations

import pickle
import threading

from colos.runtime import refs


class Board:
    def other(self, node: str) -> Board:
        return self


def test_a_binding_is_its_threads_own() -> None:
    board, pickled = Board(), pickle.dumps(refs.ActorRef("a", 1, "node"))
    elsewhere: list[object] = []
    with refs.binding(board):  # type: ignore[arg-type]
        thread = threading.Thread(target=lambda: elsewhere.append(pickle.loads(pickled)._board))
        thread.start()
        thread.join()
        assert pickle.loads(pickled)._board is board
    assert elsewhere == [None]
    assert pickle.loads(pickled)._board is None


def test_a_processs_board_is_every_threads() -> None:
    board, pickled = Board(), pickle.dumps(refs.ActorRef("a", 1, "node"))
    elsewhere: list[object] = []
    refs.bind(board)  # type: ignore[arg-type]
    try:
        thread = threading.Thread(target=lambda: elsewhere.append(pickle.loads(pickled)._board))
        thread.start()
        thread.join()
    finally:
        refs.bind(None)
    assert elsewhere == [board]
