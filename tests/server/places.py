"""The two places of tensor files, with what a test needs to damage them from outside."""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path
from urllib.request import Request, urlopen

from server.blobs.blobs import BlobFolder
from tests.services import S3

_HEADERS = {
    "Content-Type": "application/octet-stream",
    "Authorization": "AWS4-HMAC-SHA256 "  # the test server wants one, and does not check it
    "Credential=edge-tests/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0",
}


def digest_of(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


class FolderPlace:
    """Blobs in a folder, and the folder itself."""

    def __init__(self, folder: Path) -> None:
        self.blobs = BlobFolder(folder)
        self.uploads = folder / "partial"

    def overwrite(self, digest: str, body: bytes) -> None:
        self.blobs.path(digest).parent.mkdir(parents=True, exist_ok=True)
        self.blobs.path(digest).write_bytes(body)

    def drop(self, digest: str) -> None:
        self.blobs.path(digest).unlink()


class BucketPlace:
    """Blobs below a prefix of their own in a bucket, and plain HTTP to the same server."""

    def __init__(self, s3: S3, uploads: Path) -> None:
        from server.blobs.object_blobs import ObjectBlobs

        prefix = secrets.token_hex(8)
        self.url = f"s3://{s3.bucket}/{prefix}"
        self.endpoint = s3.endpoint
        self.address = f"{s3.endpoint}/{s3.bucket}/{prefix}"
        self.uploads = uploads
        self.blobs = ObjectBlobs(self.url, s3.endpoint, uploads)

    def overwrite(self, digest: str, body: bytes) -> None:
        self.call("PUT", digest, body)

    def drop(self, digest: str) -> None:
        self.call("DELETE", digest)

    def call(self, method: str, digest: str, body: bytes | None = None):
        """Make one plain request about a blob; returns the answer's headers."""
        address = f"{self.address}/{digest[:2]}/{digest}"
        request = Request(address, data=body, headers=_HEADERS, method=method)
        with urlopen(request, timeout=10) as answer:
            return answer.headers
