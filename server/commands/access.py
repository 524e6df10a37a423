"""``edge-server token | device | admin | credentials | audit``: who may talk to the server."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from edge_sdk.errors import ConfigError
from edge_sdk.quantities import parse_seconds
from server.access.admins import ROLES, create_admin, revoke_admin
from server.access.audit import local_user
from server.access.auth import make_enrolment_token, revoke_device, revoke_enrolment_token
from server.access.credentials import KEYS_KNOWN_S, rotate_access_key
from server.access.tokens import hash_token
from server.commands import access_output, output
from server.commands.settings import STATE_SETTINGS
from server.settings.settings import Settings
from server.state import open_state
from server.storage.access_store import AdminRow, EnrolmentTokenRow
from server.storage.store import Store

Add = Callable[..., argparse.ArgumentParser]
_Group = argparse._SubParsersAction  # argparse has no public name for it


class AccessCommands:
    """The commands, each on the state that the settings name.

    Args:
        settings: Reads them from the arguments of a command.
    """

    def __init__(self, settings: Callable[[argparse.Namespace], Settings]) -> None:
        self._settings = settings

    def add_token(self, group: _Group[argparse.ArgumentParser], add: Add) -> None:
        """Declare the commands of the group ``token``."""
        create = add(group, "create", "print a new enrolment token, once", self._create_token)
        create.add_argument("--uses", type=int, help="devices it lets in (default: any number)")
        _add_expiry(create)
        create.add_argument("--name", default="", help="for people")
        text = "let relays in instead of devices, each of which speaks for at most N devices"
        create.add_argument("--relay-for", type=int, metavar="N", help=text)
        add(group, "list", "list enrolment tokens by their ids", self._list_tokens)
        revoke = add(group, "revoke", "let a token let nobody in any more", self._revoke_token)
        revoke.add_argument("id", help="as 'token list' shows it")

    def add_device(self, group: _Group[argparse.ArgumentParser], add: Add) -> None:
        """Declare the commands of the group ``device``."""
        add(group, "list", "list the devices", self._list_devices)
        revoke = add(group, "revoke", "refuse a device from now on", self._revoke_device)
        revoke.add_argument("id", help="as 'device list' shows it")

    def add_admin(self, group: _Group[argparse.ArgumentParser], add: Add) -> None:
        """Declare the commands of the group ``admin``."""
        create = add(group, "create", "print the token of a new admin, once", self._create_admin)
        create.add_argument("name", help="for the audit log; never given twice")
        create.add_argument("--role", choices=ROLES, required=True, help="what it may do")
        _add_expiry(create)
        add(group, "list", "list the admins", self._list_admins)
        revoke = add(group, "revoke", "take an admin's token back", self._revoke_admin)
        revoke.add_argument("name")

    def add_credentials(self, group: _Group[argparse.ArgumentParser], add: Add) -> None:
        """Declare the commands of the group ``credentials``."""
        text = "let a new key make access tokens; those of the old one go on to their end"
        used = (*STATE_SETTINGS, "access_token_ttl_s")
        rotate = add(group, "rotate", text, self._rotate, settings=used)
        rotate.add_argument(
            "--now", action="store_true", help="end those of the old key at once: it leaked"
        )

    def add_audit(self, commands: _Group[argparse.ArgumentParser], add: Add) -> None:
        """Declare the command ``audit``."""
        audit = add(commands, "audit", "list what operators changed, newest first", self._audit)
        audit.add_argument("--last", type=int, default=100, help="entries (default: 100)")

    def _create_token(self, args: argparse.Namespace) -> None:
        store, now = self._store(args), time.time()
        token = make_enrolment_token(
            store,
            now,
            name=args.name,
            uses=args.uses,
            expires_at=_expiry(args, now),
            relay_for=args.relay_for,
            who=local_user(),
        )
        with store.read() as tx:
            row = tx.enrolment_token(hash_token(token))
        facts = {} if row is None else _facts(row)
        output.line(token, {"enrolment_token": token, **facts}, args.json)

    def _list_tokens(self, args: argparse.Namespace) -> None:
        with self._store(args).read() as tx:
            rows = tx.enrolment_tokens()
        if args.json:
            output.line("", [_facts(row) for row in rows], args.json)
        else:
            access_output.tokens(rows, time.time())

    def _revoke_token(self, args: argparse.Namespace) -> None:
        revoke_enrolment_token(self._store(args), args.id, local_user(), time.time())
        output.line(f"enrolment token {args.id} is revoked", {"id": args.id}, args.json)

    def _list_devices(self, args: argparse.Namespace) -> None:
        with self._store(args).read() as tx:
            rows = tx.devices()
        if args.json:
            output.line("", [asdict(row) for row in rows], args.json)
        else:
            access_output.devices(rows)

    def _revoke_device(self, args: argparse.Namespace) -> None:
        row = revoke_device(self._store(args), args.id, local_user(), time.time())
        facts = {"device_id": row.id, "revoked_at": row.revoked_at}
        output.line(f"device {row.id} ({row.name}) is revoked", facts, args.json)

    def _create_admin(self, args: argparse.Namespace) -> None:
        now = time.time()
        expires_at = _expiry(args, now)
        store = self._store(args)
        token = create_admin(store, args.name, args.role, expires_at, local_user(), now)
        facts = {"name": args.name, "role": args.role, "expires_at": expires_at}
        output.line(token, {"admin_token": token, **facts}, args.json)

    def _list_admins(self, args: argparse.Namespace) -> None:
        with self._store(args).read() as tx:
            rows = tx.admins()
        if args.json:
            output.line("", [_facts(row) for row in rows], args.json)
        else:
            access_output.admins(rows, time.time())

    def _revoke_admin(self, args: argparse.Namespace) -> None:
        revoke_admin(self._store(args), args.name, local_user(), time.time())
        output.line(f"admin {args.name} is revoked", {"name": args.name}, args.json)

    def _rotate(self, args: argparse.Namespace) -> None:
        settings = self._settings(args)
        store, _ = open_state(settings)
        # Replicas that have not noticed yet go on making tokens with the old key.
        overlap_s = 0.0 if args.now else settings.access_token_ttl_s + 2 * KEYS_KNOWN_S
        number = rotate_access_key(store, local_user(), time.time(), overlap_s)
        text = f"key {number} makes access tokens now; older ones end within {overlap_s:.0f} s"
        output.line(text, {"number": number, "overlap_s": overlap_s}, args.json)

    def _audit(self, args: argparse.Namespace) -> None:
        if args.last < 1:
            raise ConfigError(f"--last {args.last} must be at least 1")
        with self._store(args).read() as tx:
            rows = tx.audit(args.last)
        if args.json:
            output.line("", [asdict(row) for row in rows], args.json)
        else:
            access_output.audit(rows)

    def _store(self, args: argparse.Namespace) -> Store:
        store, _ = open_state(self._settings(args))
        return store


def _add_expiry(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--expires", metavar="TIME", help="such as 12h or 7d (default: never)")


def _expiry(args: argparse.Namespace, now: float) -> float | None:
    return None if args.expires is None else now + parse_seconds(args.expires)


def _facts(row: EnrolmentTokenRow | AdminRow) -> dict[str, Any]:
    return {name: value for name, value in asdict(row).items() if name != "token_hash"}
