from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "sandbox")]

from sandbox_bench import agent, bare, inside, namespaces, sandbox, session, sessions  # noqa: E402, F401 - found by the line above
