"""The audit log: who changed what, written in the transaction of the change."""

from __future__ import annotations

import getpass

from server.storage.store import Transaction

_WHO, _SUBJECT = 200, 300  # characters that are kept


def record(tx: Transaction, now: float, who: str, action: str, subject: str) -> None:
    """Write down one change of an operator; it is kept if and only if the change is.

    Args:
        tx: Of the change.
        now: Seconds since 1970.
        who: Name of the admin, or :func:`local_user`.
        action: Such as ``device.revoke``.
        subject: What it was done to; never a secret.
    """
    tx.add_audit(now, who[:_WHO], action, subject[:_SUBJECT])


def local_user() -> str:
    """Return the name that the log gives to whoever runs a command on the server's machine."""
    try:
        return f"{getpass.getuser()} on this machine"
    except (KeyError, OSError):  # a container's user without a name
        return "a user without a name on this machine"
