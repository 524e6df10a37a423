"""The command ``edge-server``, started quickly: ``python -m server`` is the same.

Importing makes many objects and hardly any garbage, and a server that was killed must be back
soon, so nothing is collected meanwhile. Commands end before they make garbage worth collecting;
``serve`` collects again once everything is imported.
"""

from __future__ import annotations

import gc
import sys


def main() -> int:
    """Run one command and return its exit code."""
    gc.disable()
    from server.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
