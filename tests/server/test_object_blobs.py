"""Blobs in a bucket: large ones, and a store that fails; see test_blobs.py for the rest."""

import hashlib
import logging
import socket
import threading
import time
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from edge_sdk.errors import ConfigError, ServerBusy, StorageError
from tests.server.places import BucketPlace, digest_of
from tests.services import S3

object_blobs = pytest.importorskip("server.blobs.object_blobs", reason="obstore is not installed")
object_store = pytest.importorskip("server.blobs.object_store")
BODY = b"tensors"
NAME = digest_of(BODY)
SECRET = "a-secret-of-the-store"


@pytest.fixture(autouse=True)
def credentials(monkeypatch):
    """Nothing asks the machine for its credentials, and none are printed."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "edge-tests")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", "us-east-1")


@contextmanager
def store_that_answers(*statuses: int):
    """Give these statuses in turn, the last for ever; yields the address and what was asked."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status = statuses[min(len(seen), len(statuses) - 1)]
            seen.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(BODY)))
            self.send_header("Last-Modified", "Mon, 05 Jan 2026 10:00:00 GMT")
            self.send_header("ETag", '"1"')
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(BODY)

        do_GET = do_PUT = do_DELETE = do_HEAD

        def log_message(self, *_args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", seen
        finally:
            server.shutdown()
            thread.join()


def blobs_at(endpoint, tmp_path):
    return object_blobs.ObjectBlobs("s3://bucket/prefix", endpoint, tmp_path / "uploads")


def test_a_large_blob_is_sent_in_parts_and_comes_back_whole(s3, tmp_path):
    place = BucketPlace(s3, tmp_path)
    body = hashlib.shake_128(b"large").digest(17 << 20)
    name = digest_of(body)
    with place.blobs.upload() as upload:
        upload.write(body)
        place.blobs.keep(upload, name)
    assert place.call("HEAD", name)["ETag"].strip('"').endswith("-3")  # 8 + 8 + 1 MiB
    assert place.blobs.read(name) == body
    assert hashlib.sha256(b"".join(place.blobs.stream(name))).hexdigest() == name


def test_two_prefixes_of_a_bucket_do_not_see_each_other(s3, tmp_path):
    one, other = BucketPlace(s3, tmp_path), BucketPlace(s3, tmp_path)
    name = one.blobs.put(BODY)
    assert list(other.blobs.digests()) == []
    with pytest.raises(StorageError, match=name):
        other.blobs.read(name)


def test_a_bucket_without_a_prefix_holds_blobs_too(s3, tmp_path):
    blobs = object_blobs.ObjectBlobs(f"s3://{s3.bucket}", s3.endpoint, tmp_path)
    name = blobs.put(b"at the top of the bucket")
    assert name in [found for found, _ in blobs.digests()]
    assert blobs.remove(name)


def test_a_bucket_that_does_not_exist_fails_the_check(s3, tmp_path):
    blobs = BucketPlace(S3(s3.endpoint, "no-such-bucket"), tmp_path).blobs
    with pytest.raises(StorageError, match="refuses the request"):
        blobs.check()


def test_a_store_that_is_gone_is_busy_so_that_devices_come_again(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    blobs = blobs_at(f"http://127.0.0.1:{port}", tmp_path)
    started = time.monotonic()
    for call in (blobs.check, lambda: blobs.read(NAME), lambda: blobs.put(BODY)):
        with pytest.raises(ServerBusy, match="cannot be reached now") as caught:
            call()
        assert caught.value.retry_after_s > 0
    assert time.monotonic() - started < 30


def test_a_store_that_never_answers_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setitem(object_store._CLIENT, "timeout", timedelta(seconds=0.2))
    monkeypatch.setitem(object_store._RETRIES, "retry_timeout", timedelta(seconds=0.5))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        blobs = blobs_at(f"http://127.0.0.1:{listener.getsockname()[1]}", tmp_path)
        with pytest.raises(ServerBusy):
            blobs.size(NAME)
        with pytest.raises(ServerBusy):
            blobs.put(BODY)


@pytest.mark.parametrize("status", [500, 503])
def test_a_store_in_trouble_is_asked_four_times_at_most(tmp_path, status):
    with store_that_answers(status) as (endpoint, seen), pytest.raises(ServerBusy):
        blobs_at(endpoint, tmp_path).size(NAME)
    assert len(seen) == 4


def test_a_short_trouble_of_the_store_is_not_noticed(tmp_path):
    with store_that_answers(500, 200) as (endpoint, seen):
        assert blobs_at(endpoint, tmp_path).size(NAME) == len(BODY)
    assert seen == [f"/bucket/prefix/{NAME[:2]}/{NAME}"] * 2


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_what_the_store_refuses_is_a_storage_error_at_once_and_tells_no_secret(
    tmp_path, caplog, status
):
    caplog.set_level(logging.DEBUG)
    with store_that_answers(status) as (endpoint, seen), pytest.raises(StorageError) as caught:
        blobs_at(endpoint, tmp_path).put(BODY)
    assert len(seen) == 1
    assert SECRET not in caplog.text
    assert endpoint not in str(caught.value)


@pytest.mark.parametrize("url", ["s3://", "http://bucket", "bucket/prefix", "s3://b?x=1"])
def test_an_address_that_names_no_bucket_is_refused(tmp_path, url):
    with pytest.raises(ConfigError, match="s3://bucket/prefix"):
        object_blobs.ObjectBlobs(url, "", tmp_path)
