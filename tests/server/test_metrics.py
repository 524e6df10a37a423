import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from server.http.exchanges import Exchange
from server.operation.metrics import Metrics


def exchange(**changes):
    facts = {
        "method": "GET",
        "route": "/v1/tasks/{task}",
        "status": 200,
        "seconds": 0.02,
        "bytes_in": 3,
        "bytes_out": 5,
        "device_id": "device-one",
    }
    return Exchange(**facts | changes)


@pytest.fixture
def metrics():
    return Metrics(CollectorRegistry())


def samples(metrics):
    """Every sample of a scrape, by name and labels."""
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(metrics, name, **labels):
    return samples(metrics)[(f"edge_server_{name}", *sorted(labels.items()))]


def test_requests_are_counted_by_method_route_and_class_of_status(metrics):
    for status in (200, 201, 404, 503, None):
        metrics.count(exchange(status=status))
    where = {"method": "GET", "route": "/v1/tasks/{task}"}
    counted = {
        name: value(metrics, "http_requests_total", status_class=name, **where)
        for name in ("2xx", "4xx", "5xx", "none")
    }
    assert counted == {"2xx": 2, "4xx": 1, "5xx": 1, "none": 1}
    assert value(metrics, "http_request_body_bytes_total", **where) == 15
    assert value(metrics, "http_response_body_bytes_total", **where) == 25
    assert value(metrics, "http_request_seconds_count", **where) == 5
    assert value(metrics, "http_request_seconds_bucket", le="0.01", **where) == 0
    assert value(metrics, "http_request_seconds_bucket", le="0.025", **where) == 5


def test_no_request_can_make_a_new_label(metrics):
    metrics.count(exchange(method="other", route=None))
    before = samples(metrics).keys()
    for i in range(50):
        metrics.count(exchange(method=f"X{i}", route=None, device_id=f"d{i}"))
    assert samples(metrics).keys() == before
    assert not any("device" in str(labels) for labels in before)


def test_the_process_shows_its_own_memory(metrics):
    assert samples(metrics)[("process_resident_memory_bytes",)] > 1 << 20


def test_two_applications_in_one_process_count_apart(metrics):
    other = Metrics(CollectorRegistry())
    metrics.count(exchange())
    assert ("edge_server_http_requests_total" in {name for name, *_ in samples(metrics)}) is True
    assert ("edge_server_http_requests_total" in {name for name, *_ in samples(other)}) is False
