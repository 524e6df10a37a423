"""A bucket of an S3-compatible store: opened with bounded patience, its exceptions as ours."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from edge_sdk.errors import ConfigError, ServerBusy, StorageError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Config

log = logging.getLogger(__name__)

NAMES_AT_ONCE = 1000
"""Names of objects that are asked for in one request of a listing."""

_RETRY_AFTER_S = 5.0
_CLIENT: ClientConfig = {"connect_timeout": timedelta(seconds=3), "timeout": timedelta(seconds=15)}
_RETRIES: RetryConfig = {
    "max_retries": 3,
    "retry_timeout": timedelta(seconds=10),
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=1),
        "base": 2,
    },
}
_REFUSED = re.compile(r"status code: 4(?!08|29)\d\d")


def open_bucket(url: str, endpoint: str, folder: str = "") -> S3Store:
    """Return a bucket below a prefix; nothing is asked of it yet.

    Credentials and region come from the usual ``AWS_*`` environment variables. A request is given
    up after 15 s, and repeated at most three times and not later than 10 s after it began.

    Args:
        url: ``s3://bucket`` or ``s3://bucket/prefix``.
        endpoint: Address of the store, such as ``http://127.0.0.1:9000``; empty means AWS.
        folder: A further prefix behind that of ``url``.

    Raises:
        ConfigError: An address that names no bucket.
    """
    place = urlsplit(url)
    if place.scheme != "s3" or not place.netloc or place.query or place.fragment:
        raise ConfigError(f"blob_url={url!r} must look like s3://bucket/prefix")
    config: S3Config = {"endpoint": endpoint} if endpoint else {}
    try:
        return S3Store(
            place.netloc,
            prefix=f"{place.path.strip('/')}/{folder}".strip("/") or None,
            config=config,
            client_options={**_CLIENT, "allow_http": endpoint.startswith("http://")},
            retry_config=_RETRIES,
        )
    except BaseError as error:
        raise ConfigError(f"the object store {url} cannot be used: {error}") from error


@contextmanager
def typed_errors(what: str) -> Iterator[None]:
    """Turn the store's exceptions into ours; its own words, with addresses, go to the log.

    Raises:
        StorageError: The store refused, or does not have the object.
        ServerBusy: It does not answer, or has a problem of its own: try again.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(f"{what}: it is not in the object store") from error
    except (PermissionDeniedError, UnauthenticatedError) as error:
        log.error("%s: %s", what, _words(error))
        raise StorageError(f"{what}: the object store refuses the credentials") from error
    except (BaseError, OSError) as error:
        log.warning("%s: %s", what, _words(error))
        if _REFUSED.search(str(error)):
            raise StorageError(f"{what}: the object store refuses the request") from error
        raise ServerBusy("the object store cannot be reached now", _RETRY_AFTER_S) from error


def _words(error: Exception) -> str:
    """Return what an exception says, without the pages of detail behind it."""
    return str(error).partition("\n\nDebug source")[0]
