"""Every exception of the SDK and the server, in one tree.

::

    EdgeError                       catch this to catch everything
    ├─ SketchError (ValueError)     sizes no sketch can have
    ├─ ConfigError (ValueError)     a flag, setting or task that cannot be
    ├─ DataError                    local training data that cannot be read
    ├─ DeviceError
    │  ├─ AlreadyRunning            another agent works with the same state folder
    │  ├─ NotFeasible               nothing fits this device's budget
    │  ├─ ProfileError (ValueError) a device profile that is missing or cannot be used
    │  └─ OutOfMemory               memory ran out: take a smaller plan
    │     └─ MemoryPressure         the owner's own programs need the memory
    ├─ ModelError                   a base model that cannot be found or used
    │  └─ WrongBaseModel            not the base model the task pins
    ├─ AdapterError                 an adapter folder that cannot be read
    │  └─ NothingAdopted            every version lost against the base model alone
    ├─ UntrustedAdapter             an adapter version this device must not use
    │  ├─ BadSignature              changed after it was signed
    │  ├─ UnknownKey                signed by a key this device does not trust
    │  ├─ ForeignAdapter            of another task, base model or rank
    │  └─ RolledBack                older than what this device was told before
    ├─ StorageError                 the disk or the database refused
    ├─ TrainingError
    │  └─ LossDiverged
    ├─ WireError                    what arrived is not what the protocol says
    │  ├─ MalformedMessage          JSON of the wrong form
    │  ├─ MalformedPayload          tensors of the wrong form, names or shapes
    │  ├─ DigestMismatch            bytes changed on the way
    │  ├─ ProtocolMismatch          the two sides speak different versions
    │  ├─ NotFinite                 NaN or infinity in an update
    │  ├─ RangeNotSatisfiable       a part of a body that is not in it
    │  └─ TooLarge                  more bytes than this request may have
    └─ SyncError                    the exchange between device and server failed
       ├─ ServerUnreachable         nobody answered: try again later
       ├─ ServerBusy                try again after ``retry_after_s``
       │  ├─ TooSlow                the body came too slowly
       │  └─ TooManyRequests        more requests than one device or address may make
       │     └─ QuotaExceeded       more bytes than one device may send in a day
       ├─ ServerFailed              the server broke; its log says why
       ├─ NotAuthorized             missing, unknown or foreign token: enrol again
       │  ├─ TokenExpired           its time is over
       │  ├─ TokenUsedUp            an enrolment token that let in as many as it may
       │  ├─ StaleChallenge         a challenge that is foreign, old or used: ask for another
       │  └─ BadProof               a signature that is not of the device's key
       ├─ Revoked                   the operator took a token or a device back
       ├─ NotAllowed                an admin's role is not enough
       ├─ NotFound                  no such task, round or adapter version
       ├─ NotAssigned               this device has no work in that round
       ├─ RoundClosed               too late: fetch the next assignment
       └─ UpdateConflict            a different update was already accepted

Each class has a stable ``code`` that travels in HTTP problem bodies, so that the error a
server raises is the error its device catches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar


class EdgeError(Exception):
    """Anything this project raises on purpose; the text is written for people."""

    code: ClassVar[str] = "edge_error"


class SketchError(EdgeError, ValueError):
    """A sketch size or index set that no sketch of this rank can have."""

    code = "invalid_sketch"


class ConfigError(EdgeError, ValueError):
    """A flag, setting or task definition that cannot be used."""

    code = "invalid_config"


class DataError(EdgeError):
    """Local training data that cannot be used; says the file and the line."""

    code = "invalid_data"


class DeviceError(EdgeError):
    """Something this device cannot do."""

    code = "device_error"


class AlreadyRunning(DeviceError):
    """Another agent works with the same state folder."""

    code = "already_running"


class NotFeasible(DeviceError):
    """No way of training fits the budgets.

    Attributes:
        shortfall_bytes: How much more memory the thriftiest way needs.
        shortfall_s: How much more time it needs.
        shortfall_transfer_bytes: How many more bytes it moves than allowed.
    """

    code = "not_feasible"

    def __init__(
        self,
        message: str,
        shortfall_bytes: int = 0,
        shortfall_s: float = 0.0,
        shortfall_transfer_bytes: int = 0,
    ) -> None:
        super().__init__(message)
        self.shortfall_bytes = shortfall_bytes
        self.shortfall_s = shortfall_s
        self.shortfall_transfer_bytes = shortfall_transfer_bytes


class ProfileError(DeviceError, ValueError):
    """A device profile that cannot be found, read or used."""

    code = "invalid_profile"


class OutOfMemory(DeviceError):
    """Memory ran out, or the budget is spent: take a smaller plan.

    Attributes:
        needed_bytes: What was in use or asked for; 0 if nobody knows.
        budget_bytes: What there was; 0 if nobody knows.
    """

    code = "out_of_memory"

    def __init__(self, message: str, needed_bytes: int = 0, budget_bytes: int = 0) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes
        self.budget_bytes = budget_bytes


class MemoryPressure(OutOfMemory):
    """The owner's own programs need the memory, and went on needing it.

    Attributes:
        needed_bytes: What must stay free for them.
        budget_bytes: What was free.
    """

    code = "memory_pressure"


class ModelError(EdgeError):
    """A base model that cannot be found, read or used."""

    code = "invalid_model"


class WrongBaseModel(ModelError):
    """The base model on the device is not the one the task pins."""

    code = "wrong_base_model"


class AdapterError(EdgeError):
    """An adapter folder that cannot be read or does not fit its base model."""

    code = "invalid_adapter"


class NothingAdopted(AdapterError):
    """On this device's own examples every version lost against the base model alone."""

    code = "nothing_adopted"


class UntrustedAdapter(EdgeError):
    """An adapter version that this device must not use; what it has stays as it is."""

    code = "untrusted_adapter"


class BadSignature(UntrustedAdapter):
    """The signature does not belong to what came."""

    code = "bad_signature"


class UnknownKey(UntrustedAdapter):
    """Signed by a key that the trusted one never gave way to."""

    code = "unknown_key"


class ForeignAdapter(UntrustedAdapter):
    """Rightly signed, but of another task, base model, rank or scaling."""

    code = "foreign_adapter"


class RolledBack(UntrustedAdapter):
    """An older answer than one this device had before: replayed, or from a backup."""

    code = "rolled_back"


class StorageError(EdgeError):
    """The disk or the database refused; nothing was half-written."""

    code = "storage_error"


class TrainingError(EdgeError):
    """Local training could not finish."""

    code = "training_error"


class LossDiverged(TrainingError):
    """The training loss left the finite numbers.

    Attributes:
        step: Local step, from 1.
    """

    code = "loss_diverged"

    def __init__(self, message: str, step: int = 0) -> None:
        super().__init__(message)
        self.step = step


class WireError(EdgeError):
    """What arrived is not what the protocol says."""

    code = "wire_error"


class MalformedMessage(WireError):
    """A JSON body of the wrong form."""

    code = "malformed_message"


class MalformedPayload(WireError):
    """A tensor body of the wrong form, or with wrong names, shapes or types."""

    code = "malformed_payload"


class DigestMismatch(WireError):
    """The bytes do not have the digest they were announced with."""

    code = "digest_mismatch"


class ProtocolMismatch(WireError):
    """The two sides speak different protocol versions."""

    code = "protocol_mismatch"


class NotFinite(WireError):
    """An update holds NaN or infinity."""

    code = "not_finite"


class TooLarge(WireError):
    """A body is larger than this request may have."""

    code = "too_large"


class RangeNotSatisfiable(WireError):
    """The part of a body that was asked for is not in it.

    Attributes:
        size_bytes: Of the whole body.
    """

    code = "range_not_satisfiable"

    def __init__(self, message: str, size_bytes: int = 0) -> None:
        super().__init__(message)
        self.size_bytes = size_bytes


class SyncError(EdgeError):
    """The exchange between a device and its server failed."""

    code = "sync_error"


class ServerUnreachable(SyncError):
    """Nobody answered at the server's address."""

    code = "server_unreachable"


class ServerBusy(SyncError):
    """The server asks to be left alone for a while.

    Attributes:
        retry_after_s: Seconds to wait before the next attempt.
    """

    code = "server_busy"

    def __init__(self, message: str, retry_after_s: float = 5.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TooSlow(ServerBusy):
    """A body came more slowly than a server can wait for."""

    code = "too_slow"


class TooManyRequests(ServerBusy):
    """More requests than one device, or one address, may make."""

    code = "too_many_requests"


class QuotaExceeded(TooManyRequests):
    """More bytes than one device may send in a day."""

    code = "quota_exceeded"


class ServerFailed(SyncError):
    """The server broke while answering; its log holds the reason."""

    code = "server_failed"


class NotAuthorized(SyncError):
    """The token is missing, unknown or belongs to another server."""

    code = "not_authorized"


class TokenExpired(NotAuthorized):
    """The token was good once; its time is over."""

    code = "token_expired"


class TokenUsedUp(NotAuthorized):
    """The enrolment token has let in as many devices as it may."""

    code = "token_used_up"


class StaleChallenge(NotAuthorized):
    """The challenge is not the server's for this device, too old, or was used before."""

    code = "stale_challenge"


class BadProof(NotAuthorized):
    """A signature that the device's key did not make over this request."""

    code = "bad_proof"


class Revoked(SyncError):
    """The operator took back what this device, token or admin was allowed."""

    code = "revoked"


class NotAllowed(SyncError):
    """The admin is known, but its role is not enough."""

    code = "not_allowed"


class NotFound(SyncError):
    """There is no such task, round or adapter version."""

    code = "not_found"


class NotAssigned(SyncError):
    """This device was given no work in that round."""

    code = "not_assigned"


class RoundClosed(SyncError):
    """The round no longer takes updates."""

    code = "round_closed"


class UpdateConflict(SyncError):
    """A different update of this device was already accepted for this round."""

    code = "update_conflict"


def _tree(root: type[EdgeError]) -> Iterator[type[EdgeError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


def by_code() -> dict[str, type[EdgeError]]:
    """Return every error class under its stable code."""
    return {error.code: error for error in _tree(EdgeError)}
