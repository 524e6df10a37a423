import sys

import pytest

from edge_sdk.errors import ConfigError
from server.blobs.blobs import BlobFolder
from server.settings.settings import Settings
from server.state import open_blobs, open_state
from tests.server.places import BucketPlace
from tests.server.tasks import tiny_spec


def test_tensors_are_in_the_state_folder_unless_a_bucket_is_named(tmp_path):
    store, blobs = open_state(Settings(state=tmp_path / "state"))
    store.close()
    assert isinstance(blobs, BlobFolder)
    assert blobs.path("ab" * 32).is_relative_to(tmp_path / "state" / "blobs")


def test_other_users_read_no_state_even_in_a_folder_they_can_enter(tmp_path):
    settings = Settings(state=tmp_path / "state")
    settings.state.mkdir(mode=0o755)
    store, blobs = open_state(settings)
    blobs.put(b"an update")
    store.close()
    paths = list(settings.state.iterdir())
    assert {"server.sqlite", "blobs"} <= {path.name for path in paths}
    assert [path.name for path in paths if path.stat().st_mode & 0o077] == []


def test_a_round_with_a_bucket_leaves_no_tensor_in_the_state_folder(tmp_path, site, s3):
    place = BucketPlace(s3, tmp_path / "other")
    settings = Settings(state=tmp_path / "state", blob_url=place.url, blob_endpoint=s3.endpoint)
    site.use(open_blobs(settings))
    spec = site.add_task(tiny_spec(cohort_size=1, quorum=1))
    site.train(site.add_device("a"), spec, seed=1)
    site.advance()
    (first, second) = site.coordinator.adapters("tiny")
    assert {first.digest, second.digest} < {name for name, _ in place.blobs.digests()}
    assert not (tmp_path / "state" / "blobs").exists()
    assert list((tmp_path / "state" / "uploads").iterdir()) == []


def test_a_bucket_without_the_library_for_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "server.blobs.object_blobs", None)
    with pytest.raises(ConfigError, match=r"pip install edge-sdk\[replicas\]"):
        open_state(Settings(state=tmp_path, blob_url="s3://bucket"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"blob_url": "bucket"}, "s3://bucket/prefix"),
        ({"blob_url": "s3://b", "blob_endpoint": "127.0.0.1:9000"}, "http:// or https://"),
        ({"blob_endpoint": "http://127.0.0.1:9000"}, "needs blob_url"),
        ({"keep_updates_s": -1.0}, "keep_updates_s"),
        ({"keep_updates_s": float("nan")}, "keep_updates_s"),
        ({"collect_every_s": 0.0}, "collect_every_s"),
    ],
)
def test_a_setting_of_tensor_files_that_cannot_be_is_refused(tmp_path, wrong, message):
    with pytest.raises(ConfigError, match=message):
        Settings(state=tmp_path, **wrong)
