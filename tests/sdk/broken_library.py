"""Trials of libraries that are broken, run as ``python -m tests.sdk.broken_library HOW``."""

import os
import signal
import sys
import time

from edge_sdk.doctor import trials

how = sys.argv[1]
if how == "crash":
    os.kill(os.getpid(), signal.SIGSEGV)
elif how == "hang":
    time.sleep(60)
elif how == "noise":
    sys.stdout.write("a library greets\n")
    sys.exit(3)
else:
    for name in ("torch", "transformers", "onnxruntime"):
        sys.modules[name] = None  # to import it is an ImportError
    trials._has = lambda module: sys.modules.get(module, trials) is not None
    sys.exit(trials.main())
