"""A real S3 server and a real PostgreSQL for the tests, on loopback, gone at the end."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest

_START_S = 60.0
_STOP_S = 20.0
_POSTGRES_PROGRAMS = ("initdb", "postgres", "pg_isready")
_POSTGRES_USER = "postgres"
_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "edge-tests",
    "AWS_SECRET_ACCESS_KEY": "edge-tests",
    "AWS_REGION": "us-east-1",
}
_OTHER_CREDENTIALS = ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")


class S3(NamedTuple):
    """Where an S3 server is: ``http://127.0.0.1:PORT``, and the name of an empty bucket."""

    endpoint: str
    bucket: str


@contextmanager
def s3_server() -> Iterator[S3]:
    """Run an S3 server with one bucket; its credentials are in the environment meanwhile.

    Skips the test where moto is missing, or fails it with ``EDGE_TEST_SERVICES=required``.
    """
    if find_spec("moto") is None or find_spec("flask") is None:
        _absent('no S3 server: pip install "moto[s3,server]"')
    if find_spec("obstore") is None:
        _absent("no client of S3: pip install edge-sdk[replicas]")
    port = free_port()
    found = S3(f"http://127.0.0.1:{port}", "edge-tests")
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _CREDENTIALS.items():
            patch.setenv(name, value)
        for name in _OTHER_CREDENTIALS:
            patch.delenv(name, raising=False)
        with _running(command, lambda: _has_made_bucket(found), stop=signal.SIGTERM):
            yield found


@contextmanager
def postgres_server() -> Iterator[str]:
    """Run a fresh PostgreSQL and give the SQLAlchemy address of its empty database.

    PostgreSQL refuses to run as root: then it runs as the system user ``postgres``. It forgets
    nothing when a client is killed, but is not set up to survive a power cut.

    Skips the test where it is missing, or fails it with ``EDGE_TEST_SERVICES=required``.
    """
    programs = _postgres_folder()
    if programs is None:
        _absent("no PostgreSQL: install the package postgresql")
    if find_spec("psycopg") is None:
        _absent('no driver for PostgreSQL: pip install "psycopg[binary]"')
    with tempfile.TemporaryDirectory(prefix="edge-postgres-") as name:
        folder = Path(name)
        owner = _unprivileged(folder)
        data = folder / "data"
        flags = ["--auth=trust", "--username=edge", "--encoding=UTF8", "--no-locale", "--no-sync"]
        _run([str(programs / "initdb"), *flags, f"--pgdata={data}"], cwd=folder, **owner)
        port = free_port()
        command = [str(programs / "postgres"), "-D", str(data), "-p", str(port), "-k", name]
        command += ["-h", "127.0.0.1", "-c", "fsync=off"]
        ready = [str(programs / "pg_isready"), "-h", "127.0.0.1", "-p", str(port)]
        with _running(command, lambda: _succeeds(ready), stop=signal.SIGINT, cwd=folder, **owner):
            yield f"postgresql+psycopg://edge@127.0.0.1:{port}/postgres"


def free_port() -> int:
    """Return a TCP port of loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _absent(reason: str) -> NoReturn:
    if os.environ.get("EDGE_TEST_SERVICES") == "required":
        pytest.fail(f"EDGE_TEST_SERVICES=required, but {reason}")
    pytest.skip(reason)


@contextmanager
def _running(
    command: list[str], is_ready: Callable[[], bool], stop: signal.Signals, **options: Any
) -> Iterator[None]:
    """Run a program until the end of the block, from the moment it is ready."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, **options)
        try:
            limit = time.monotonic() + _START_S
            while not is_ready():
                if process.poll() is not None or time.monotonic() > limit:
                    log.seek(0)
                    raise AssertionError(f"{command[0]} did not start: {log.read()[-2000:]!r}")
                time.sleep(0.05)
            yield
        finally:
            process.send_signal(stop)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _has_made_bucket(s3: S3) -> bool:
    request = Request(f"{s3.endpoint}/{s3.bucket}", method="PUT")
    try:
        with urlopen(request, timeout=5):
            return True
    except (URLError, OSError):
        return False


def _postgres_folder() -> Path | None:
    """Return the folder of PostgreSQL's programs: on PATH, by pg_config, or Debian's newest."""
    folders = []
    if (found := shutil.which("initdb")) is not None:
        folders.append(Path(found).resolve().parent)
    if (found := shutil.which("pg_config")) is not None:
        printed = subprocess.run([found, "--bindir"], capture_output=True, text=True, check=False)
        folders.append(Path(printed.stdout.strip()))
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    folders += sorted(debian, key=lambda path: (len(path.parent.name), path.parent.name))[::-1]
    for folder in folders:
        if all(os.access(folder / name, os.X_OK) for name in _POSTGRES_PROGRAMS):
            return folder
    return None


def _unprivileged(folder: Path) -> dict[str, Any]:
    """Return how to start a program that refuses root, and give it the folder."""
    if os.geteuid() != 0:
        return {}
    try:
        shutil.chown(folder, _POSTGRES_USER)
    except LookupError:
        _absent(f"PostgreSQL cannot run as root, and there is no user {_POSTGRES_USER!r}")
    return {"user": _POSTGRES_USER, "group": _POSTGRES_USER, "extra_groups": []}


def _run(command: list[str], **options: Any) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr


def _succeeds(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
