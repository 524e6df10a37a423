"""``python -m tests.faults.embedding_host FOLDER``: an app that embeds the agent.

It ends with 0 when the task is finished.
"""

from __future__ import annotations

import sys
from pathlib import Path

from edge_sdk.agent.policy import Policy
from edge_sdk.client import EdgeClient
from edge_sdk.planning.allowance import Allowance


def main() -> int:
    folder = Path(sys.argv[1])
    client = EdgeClient(
        data=folder / "data.jsonl",
        state_folder=folder / "device",
        policy=Policy.always(),
        allowance=Allowance(quantization="fp32", threads=1),
    )
    client.start()
    status = client.wait(250)
    client.stop()
    sys.stderr.write(f"{status}\n")
    return 0 if status.state == "finished" else 1


if __name__ == "__main__":
    sys.exit(main())
