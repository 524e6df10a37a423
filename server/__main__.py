"""``python -m server`` is the command ``edge-server``."""

import sys

from server.cli import main

sys.exit(main())
