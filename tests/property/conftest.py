from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent)]  # promise_actors: a node's own interpreter imports it by this name
