"""``/metrics``, as Prometheus' own parser reads it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
from prometheus_client.parser import text_string_to_metric_families

from retro.serving.limits import Limits
from tests.unit.serving.conftest import about, held_service, running, until


def samples(client: httpx.Client) -> dict[tuple[str, ...], float]:
    """(name, sorted values of the labels …) → value."""
    answer = client.get("/metrics").raise_for_status()
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = text_string_to_metric_families(answer.text)
    return {(one.name, *sorted(one.labels.values())): one.value for family in families for one in family.samples}


def test_requests_tokens_seconds_and_the_queue_are_counted(held):
    service = held_service(held, Limits(active=1, waiting=1))
    with running(service) as client, ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(client.post, "/v1/reflections", json=about(str(number))) for number in range(2)]
        until(lambda: (service.admission.active, service.admission.waiting) == (1, 1))
        during = samples(client)
        assert (during["retro_requests_active",], during["retro_requests_waiting",]) == (1, 1)
        assert client.post("/v1/reflections", json=about("2")).status_code == 429
        assert client.get("/some/content").status_code == 404
        held.free.set()
        assert all(future.result().status_code == 200 for future in asked)
        until(lambda: samples(client).get(("retro_requests_total", "/v1/reflections", "200")) == 2)
        after = samples(client)
    assert after["retro_requests_total", "/v1/reflections", "429"] == 1
    assert after["retro_requests_total", "404", "unknown"] == 1
    assert (after["retro_tokens_total", "prompt"], after["retro_tokens_total", "completion"]) == (6, 4)
    assert after["retro_request_seconds_count", "/v1/reflections"] == 3
    assert after["retro_request_seconds_bucket", "+Inf", "/v1/reflections"] == 3
    assert (after["retro_requests_active",], after["retro_requests_waiting",]) == (0, 0)


def test_the_figures_need_the_key(client):
    assert client.get("/metrics", headers={"Authorization": ""}).status_code == 401
    assert client.get("/metrics").status_code == 200
