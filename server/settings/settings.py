"""Every setting of the server: its name, default and unit."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import platformdirs
from sqlalchemy import URL

from edge_sdk.errors import ConfigError
from edge_sdk.wire.messages import MAX_WAIT_S

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]


def _default_state() -> Path:
    return platformdirs.user_state_path("edge-server")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How one server process runs.

    Attributes:
        state: Folder of the database and the tensor files.
        database_url: SQLAlchemy address; empty means a SQLite file in ``state``.
        host: Address to listen on.
        port: Port to listen on; 0 lets the system choose.
        poll_s: Seconds a waiting device is told to stay away; less while a round is being closed.
        tick_s: Seconds between two looks at the deadlines of the rounds.
        max_json_bytes: Largest JSON body a request may have.
        signing_key: File of the Ed25519 private key that signs adapters, the same for all
            replicas; empty means ``signing-key.pem`` in ``state``.
        log_format: Lines of the log as text for people, or one JSON object each for machines.
        log_level: Least important lines that are logged; requests are ``info``.
        metrics_open: Whether anybody may read /metrics; else it needs an operator's token.
        drain_s: Seconds a server that was told to stop goes on serving, while /readyz says so.
        blob_url: Where tensor files are, ``s3://bucket/prefix``; empty means a folder in ``state``.
        blob_endpoint: Address of an S3-compatible store, ``http://`` or ``https://``; empty means
            AWS.
        presigned_uploads: Whether devices are given signed addresses, to put updates into the
            object store by themselves.
        keep_updates_s: Seconds for which the updates of a closed round are kept.
        collect_every_s: Seconds between two looks for tensor files that nothing needs any more.
        access_token_ttl_s: Seconds an access token of a device lives; it renews it by itself.
        device_requests_per_min: Requests one device may make in a minute, and at once after a rest.
        entrance_requests_per_min: The same of one address without an access token: to enrol and to
            renew one.
        device_upload_bytes_per_day: Bytes of updates one device may send in a day (UTC).
        min_evaluating_devices: How many devices must have reported on an adapter version before
            anything of it is shown.
        tls_certificate: PEM file of the certificate and its chain; empty serves without TLS.
        tls_key: PEM file of its private key.
        forwarded_allow_ips: Addresses and networks of proxies whose ``X-Forwarded-For`` and
            ``X-Forwarded-Proto`` are believed; nobody else's are.
        upstream: Address of the server whose relay this one is: it serves that server's tasks and
            sends the sum of each round there; empty serves tasks of its own.
        upstream_token: Enrolment token of that server, for relays; needed once, and better in the
            environment or the settings file than in a flag that others can read.
    """

    state: Path = field(default_factory=_default_state)
    database_url: str = ""
    host: str = "127.0.0.1"
    port: int = 8765
    poll_s: float = 2.0
    tick_s: float = 1.0
    max_json_bytes: int = 64 * 1024
    signing_key: str = ""
    log_format: LogFormat = "text"
    log_level: LogLevel = "info"
    metrics_open: bool = False
    drain_s: float = 0.0
    blob_url: str = ""
    blob_endpoint: str = ""
    presigned_uploads: bool = False
    keep_updates_s: float = 7 * 86_400.0
    collect_every_s: float = 3600.0
    access_token_ttl_s: float = 3600.0
    device_requests_per_min: int = 600
    entrance_requests_per_min: int = 600
    device_upload_bytes_per_day: int = 100 * 2**30
    min_evaluating_devices: int = 3
    tls_certificate: str = ""
    tls_key: str = ""
    forwarded_allow_ips: tuple[str, ...] = ()
    upstream: str = ""
    upstream_token: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port={self.port} must be in 0..65535; 0 lets the system choose")
        for name in ("poll_s", "tick_s", "collect_every_s"):
            seconds = getattr(self, name)
            if not (math.isfinite(seconds) and seconds > 0):
                raise ConfigError(f"{name}={seconds} must be a positive number of seconds")
        if self.poll_s > MAX_WAIT_S:
            raise ConfigError(f"poll_s={self.poll_s} must be at most {MAX_WAIT_S:.0f}, a day")
        if self.max_json_bytes < 1:
            raise ConfigError(f"max_json_bytes={self.max_json_bytes} must be at least 1")
        if not (math.isfinite(self.drain_s) and self.drain_s >= 0):
            raise ConfigError(f"drain_s={self.drain_s} must be 0 or more seconds")
        self._check_blobs()
        if self.presigned_uploads:
            self._check_presigned_uploads()
        self._check_access()
        self._check_upstream()

    @property
    def url(self) -> str | URL:
        """Address of the database."""
        return self.database_url or URL.create("sqlite", database=str(self.database_file))

    @property
    def database_file(self) -> Path:
        """File of the SQLite database, unless ``database_url`` names another."""
        return self.state / "server.sqlite"

    @property
    def signing_key_file(self) -> Path:
        """File of the private key that signs adapters."""
        if self.signing_key:
            return Path(self.signing_key).expanduser()
        return self.state / "signing-key.pem"

    @property
    def upstream_folder(self) -> Path:
        """Folder of what a relay is on its upstream server."""
        return self.state / "upstream"

    @property
    def blob_folder(self) -> Path:
        """Folder of the tensor files."""
        return self.state / "blobs"

    def _check_blobs(self) -> None:
        if self.blob_url and not self.blob_url.startswith("s3://"):
            raise ConfigError(f"blob_url={self.blob_url!r} must look like s3://bucket/prefix")
        if self.blob_endpoint and not self.blob_endpoint.startswith(("http://", "https://")):
            raise ConfigError(
                f"blob_endpoint={self.blob_endpoint!r} must begin with http:// or https://"
            )
        if self.blob_endpoint and not self.blob_url:
            raise ConfigError("blob_endpoint needs blob_url: name the bucket, s3://bucket/prefix")
        if not (math.isfinite(self.keep_updates_s) and self.keep_updates_s >= 0):
            raise ConfigError(f"keep_updates_s={self.keep_updates_s} must be 0 or more seconds")

    def _check_presigned_uploads(self) -> None:
        if not self.blob_url:
            raise ConfigError(
                "presigned_uploads needs an object store, a folder cannot sign addresses: name the "
                "bucket with blob_url, s3://bucket/prefix"
            )
        if self.tls_certificate and self.blob_endpoint.startswith("http://"):
            raise ConfigError(
                f"presigned_uploads with blob_endpoint={self.blob_endpoint!r}: devices of a server "
                "with TLS send nothing to a store without; it must begin with https://"
            )

    def _check_upstream(self) -> None:
        if self.upstream and not self.upstream.startswith(("http://", "https://")):
            raise ConfigError(f"upstream={self.upstream!r} must begin with http:// or https://")
        if self.upstream_token and not self.upstream:
            raise ConfigError("upstream_token needs upstream: name the server it is from")
        if self.upstream and self.database_url:
            raise ConfigError(
                "upstream with database_url: a relay is one process with one identity, kept beside "
                "its database in the state folder; leave database_url out"
            )

    def _check_access(self) -> None:
        if not (math.isfinite(self.access_token_ttl_s) and self.access_token_ttl_s > 0):
            raise ConfigError(
                f"access_token_ttl_s={self.access_token_ttl_s} must be a positive number of seconds"
            )
        for name in (
            "device_requests_per_min",
            "entrance_requests_per_min",
            "device_upload_bytes_per_day",
            "min_evaluating_devices",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise ConfigError("tls_certificate and tls_key belong together: name both or neither")
