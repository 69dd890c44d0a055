from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "sandbox")]

from sandbox_bench import agent, bare, inside, namespaces, sandbox, session, sessions  # noqa: E402, F401 - found by the line above
