"""A voice box: what was said becomes one of a few intents, and it learns when it is corrected."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from edge_sdk import Allowance, EdgeClient, EdgeError, Policy

UTTERANCES = Path(__file__).with_name("utterances.jsonl")
HELP = """Say something, such as "it is too dark in here": the box says what it takes it for.
=INTENT corrects it. :newest fetches what the fleet has learned, :quit ends."""


class Box:
    """Classifies while it trains, and keeps corrections as examples."""

    def __init__(self, client: EdgeClient, examples: Path) -> None:
        self._client = client
        self._examples = examples
        if not examples.exists():
            shutil.copy(UTTERANCES, examples)
        client.start()

    def understand(self, said: str) -> tuple[str, float]:
        """Return the most probable intent and its probability."""
        found = self._client.classify(said)
        intent = max(found, key=lambda name: found[name])
        return intent, found[intent]

    def correct(self, said: str, intent: str) -> None:
        """Keep what was meant; training sees it from its next round on."""
        known = {json.loads(line)["label"] for line in UTTERANCES.read_text("utf-8").splitlines()}
        if intent not in known:
            raise ValueError(f"{intent!r} is none of {', '.join(sorted(known))}")
        with self._examples.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"text": said, "label": intent}) + "\n")


def main() -> int:
    """Listen until the user quits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", help="needed once")
    parser.add_argument("--token", help="from the operator of the server; needed once")
    parser.add_argument("--task", help="if the server has several")
    parser.add_argument("--folder", type=Path, default=Path("my-box"), help="of what was said")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    client = EdgeClient(
        server=options.server,
        enrolment_token=options.token,
        task=options.task,
        data=options.folder / "utterances.jsonl",
        state_folder=options.folder / "agent",
        policy=Policy(min_battery_percent=100, max_other_cpu_percent=80),  # a box on mains
        allowance=Allowance(memory_bytes=2 << 30),
    )
    try:
        _listen(client, Box(client, options.folder / "utterances.jsonl"))
    except EdgeError as error:
        sys.stderr.write(f"intents: {error}\n")
        return 1
    finally:
        client.stop()
    return 0


def _listen(client: EdgeClient, box: Box) -> None:
    print(HELP)
    said = ""
    for line in iter(_ask, ":quit"):
        if line == ":newest":
            print(f"version {client.use_newest()}")
        elif line.startswith("=") and said:
            try:
                box.correct(said, line[1:].strip())
            except ValueError as error:
                print(error)
        elif line:
            said = line
            intent, probability = box.understand(said)
            print(f"{intent} ({probability:.0%}); {client.status().state}")


def _ask() -> str:
    try:
        return input("\nsay> ").strip()
    except EOFError:
        return ":quit"


if __name__ == "__main__":
    sys.exit(main())
