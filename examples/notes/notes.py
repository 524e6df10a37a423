"""A note-taking assistant that suggests how a note goes on, and learns from its user's edits."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from edge_sdk import EdgeClient, EdgeError, Policy

HELP = """Begin a note and press Enter: the assistant suggests how it goes on.
Enter again takes the suggestion; other words replace it, and the assistant learns from them.
:status says what training does, :quit ends."""


class Assistant:
    """Suggests, and keeps what its user made of a suggestion as an example to train on."""

    def __init__(self, client: EdgeClient, examples: Path) -> None:
        self._client = client
        self._examples = examples
        self._seen = (0, False)
        if examples.exists():
            client.start()

    def suggest(self, beginning: str) -> str:
        """Return how a note may go on, by the newest adapter."""
        status = self._client.status()
        now = (status.round_number, status.state == "finished")
        if now > self._seen:  # another round has begun, so the one before has its adapter
            self._client.use_newest()
            self._seen = now
        pieces = self._client.generate(_prompt(beginning), max_new_tokens=16)
        return "".join(pieces).split("\n", 1)[0].strip()

    def learn(self, beginning: str, ending: str) -> None:
        """Keep an edit; training sees it from its next round on."""
        line = json.dumps({"prompt": _prompt(beginning), "completion": f" {ending}"})
        with self._examples.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        self._client.start()


def _prompt(beginning: str) -> str:
    return f"Note: {beginning}"


def main() -> int:
    """Talk to the user until they quit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", help="needed once")
    parser.add_argument("--token", help="from the operator of the server; needed once")
    parser.add_argument("--task", help="if the server has several")
    parser.add_argument("--folder", type=Path, default=Path("my-notes"), help="of notes and edits")
    parser.add_argument("--always", action="store_true", help="train also while the user works")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)

    client = EdgeClient(
        server=options.server,
        enrolment_token=options.token,
        task=options.task,
        data=options.folder / "edits.jsonl",
        state_folder=options.folder / "agent",
        policy=Policy.always() if options.always else Policy(),
    )
    try:
        _talk(client, Assistant(client, options.folder / "edits.jsonl"))
    except EdgeError as error:
        sys.stderr.write(f"notes: {error}\n")
        return 1
    finally:
        client.stop()
    return 0


def _talk(client: EdgeClient, assistant: Assistant) -> None:
    print(HELP)
    for line in iter(lambda: _ask("\nnote> "), ":quit"):
        if line == ":status":
            status = client.status()
            print(status.state, *status.reasons)
        elif line:
            suggestion = assistant.suggest(line)
            edit = _ask(f"  ... {suggestion}\n  ... ")
            if edit and edit != ":quit":
                assistant.learn(line, edit)


def _ask(prompt: str) -> str:
    try:
        return input(prompt).strip()
    except EOFError:
        return ":quit"


if __name__ == "__main__":
    sys.exit(main())
