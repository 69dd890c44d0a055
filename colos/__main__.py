"""``python -m colos`` is the command ``colos``."""

import sys

from colos.cli import main

if __name__ == "__main__":
    sys.exit(main())
