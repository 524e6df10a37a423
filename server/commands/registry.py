"""``edge-server adapter`` and ``edge-server key``: versions, channels, export and signing keys."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from edge_sdk.errors import ConfigError
from edge_sdk.model.model_folder import find_model, read_config
from edge_sdk.model.peft_folder import write_peft_folder
from edge_sdk.wire.manifest import Manifest, Signed, open_signed
from server.access.audit import local_user
from server.access.key_ring import KeyRing
from server.commands import output
from server.registry.gguf_lora import write_gguf_lora
from server.registry.registry import Registry, describe
from server.registry.registry_reports import version_reports
from server.rounds.adapters import AdapterShelf
from server.settings.settings import Settings
from server.state import open_state
from server.storage.lookup import find_adapter, find_task

LATEST = "latest"

_Subparsers = argparse._SubParsersAction  # argparse has no public name for it
Add = Callable[
    [
        "_Subparsers[argparse.ArgumentParser]",
        str,
        str,
        Callable[[argparse.Namespace], None],
    ],
    argparse.ArgumentParser,
]


class RegistryCommands:
    """What the commands do.

    Args:
        read_settings: Turns the arguments of a command into settings.
    """

    def __init__(self, read_settings: Callable[[argparse.Namespace], Settings]) -> None:
        self._settings = read_settings

    def add_adapter(self, group: _Subparsers[argparse.ArgumentParser], add: Add) -> None:
        """Declare the commands of the group ``adapter``."""
        add(group, "list", "list the versions and who uses them", self._list).add_argument("task")
        promote = add(group, "promote", "choose the version that devices use", self._promote)
        promote.add_argument("task")
        promote.add_argument(
            "version", type=_version, help="number, or latest to follow the rounds"
        )
        promote.add_argument(
            "--canary", type=_share, metavar="SHARE", help="only for a share of them, such as 10%%"
        )
        back = add(group, "rollback", "end the canary, or return to the version before", self._back)
        back.add_argument("task")
        export = add(group, "export", "write a version for other programs", self._export)
        export.add_argument("task")
        export.add_argument("out", type=Path, help="folder to write; a file for gguf")
        export.add_argument("--version", type=int, help="default: the latest")
        export.add_argument(
            "--format", choices=("peft", "gguf"), default="peft", help="of the files"
        )
        export.add_argument("--base", help="where the base model is (default: as in the task)")

    def add_key(self, group: _Subparsers[argparse.ArgumentParser], add: Add) -> None:
        """Declare the commands of the group ``key``."""
        add(group, "show", "print the public key that devices trust", self._show_key)
        add(group, "rotate", "let a new key take over, signed by the old one", self._rotate)

    def _list(self, args: argparse.Namespace) -> None:
        settings = self._settings(args)
        store, _ = open_state(settings)
        reports = version_reports(store, args.task, settings.min_evaluating_devices)
        output.versions(reports, args.json)

    def _promote(self, args: argparse.Namespace) -> None:
        registry, who = self._registry(args), local_user()
        if args.version == LATEST and args.canary is not None:
            raise ConfigError("a canary needs the number of one version: latest is never the same")
        if args.version == LATEST:
            row = registry.follow_latest(args.task, who)
        elif args.canary is None:
            row = registry.hold(args.task, args.version, who)
        else:
            row = registry.start_canary(args.task, args.version, args.canary, who)
        output.channel(args.task, row, describe(row), args.json)

    def _back(self, args: argparse.Namespace) -> None:
        row = self._registry(args).roll_back(args.task, local_user())
        output.channel(args.task, row, describe(row), args.json)

    def _export(self, args: argparse.Namespace) -> None:
        settings = self._settings(args)
        store, blobs = open_state(settings)
        with store.read() as tx:
            spec = find_task(tx, args.task).spec
            latest = tx.adapters(args.task)[-1].version
            row = find_adapter(tx, args.task, latest if args.version is None else args.version)
        keys = KeyRing(store, settings.signing_key_file, time.time)
        signed = Registry(store, keys, time.time).manifest(args.task, row.version)
        adapter = AdapterShelf(blobs).read(spec.adapter, row)
        base = args.base or spec.base.model
        if args.format == "gguf":
            config = read_config(find_model(base, spec.base.revision))
            write_gguf_lora(args.out, spec, adapter, _opened(signed, keys), config)
        else:
            write_peft_folder(args.out, spec, adapter, base, signed)
        facts = {"version": row.version, "round_number": row.round_number, "format": args.format}
        facts["file" if args.format == "gguf" else "folder"] = str(args.out)
        output.line(f"adapter version {row.version} of {args.task} in {args.out}", facts, args.json)

    def _show_key(self, args: argparse.Namespace) -> None:
        settings = self._settings(args)
        store, _ = open_state(settings)
        key = KeyRing(store, settings.signing_key_file, time.time).newest()
        facts = {"key_id": key.key_id, "public_key": key.public_key, "number": key.number}
        output.line(f"{key.key_id} {key.public_key}", facts, args.json)

    def _rotate(self, args: argparse.Namespace) -> None:
        settings = self._settings(args)
        store, _ = open_state(settings)
        key = KeyRing(store, settings.signing_key_file, time.time).rotate(local_user())
        facts = {"key_id": key.key_id, "public_key": key.public_key, "number": key.number}
        text = f"{key.key_id} signs from now on; its private key is in {settings.signing_key_file}"
        output.line(text, facts, args.json)

    def _registry(self, args: argparse.Namespace) -> Registry:
        settings = self._settings(args)
        store, _ = open_state(settings)
        keys = KeyRing(store, settings.signing_key_file, time.time)
        return Registry(store, keys, time.time)


def _opened(signed: Signed, keys: KeyRing) -> Manifest:
    return open_signed(Manifest, signed, keys.newest().public_key)


def _version(text: str) -> int | str:
    return LATEST if text == LATEST else int(text)


def _share(text: str) -> float:
    """Return 0.1 for ``10%`` and for ``0.1``."""
    return float(text[:-1]) / 100 if text.endswith("%") else float(text)
