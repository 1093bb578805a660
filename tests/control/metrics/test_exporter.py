from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from fleetproxy.control.analytics.journal import Journal
from fleetproxy.control.analytics.rows import MetricSample
from fleetproxy.control.metrics import Metrics
from fleetproxy.core.backend import Backend, BackendState, ResidentModel
from fleetproxy.core.names import canonical
from fleetproxy.core.record import AuditRecord
from fleetproxy.core.table import Route, RoutedBackend, RoutingTable
from fleetproxy.link import board as boards
from fleetproxy.link.messages import Count
from tests.control.analytics.analytics_kit import NOON_US, record, running

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def table(*names: str, models: tuple[str, ...] = ("llama3:8b",)) -> RoutingTable:
    backends = tuple(
        RoutedBackend(
            backend=Backend(name=name, id=n, column=n, vram_bytes=24 * 2**30 if n == 0 else None),
            usable=True,
            online=True,
        )
        for n, name in enumerate(names)
    )
    return RoutingTable(backends=backends, models={model: (Route(0, 0, model),) for model in models})


def metrics(names: tuple[str, ...] = ("gpu1",), models: tuple[str, ...] = ("llama3:8b",), **options: object) -> Metrics:
    made = Metrics(wall_us=lambda: NOON_US, **options)  # type: ignore[arg-type]
    made.fleet(table(*names, models=models), {})
    return made


async def test_the_end_of_the_certificate_is_told_where_there_is_one() -> None:
    name = "fleetproxy_tls_certificate_expiry_timestamp_seconds"
    assert (await scraped(metrics(certificate_ends_s=1.8e9)))[name, ()] == 1.8e9
    assert (name, ()) not in await scraped(metrics())


async def scraped(made: Metrics) -> Series:
    body, _ = await made.scrape()
    return series(body)


def series(body: bytes) -> Series:
    """Every sample of an exposition; each series once, each family once."""
    found: Series = {}
    families = set()
    for family in text_string_to_metric_families(body.decode()):
        assert family.name not in families
        families.add(family.name)
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found
            found[key] = sample.value
    return found


def value(found: Series, name: str, **labels: str) -> float:
    return found[f"fleetproxy_{name}", tuple(sorted(labels.items()))]


def promtool(body: bytes) -> str:
    done = subprocess.run(["promtool", "check", "metrics"], input=body, capture_output=True, check=False)
    return "" if done.returncode == 0 else (done.stdout + done.stderr).decode()


async def test_exchanges_are_counted_by_route_model_server_and_result() -> None:
    made = metrics()
    made.feed(
        [record(1), record(2), record(3, status=503, backend=None, outcome="refused", tokens_in=None, tokens_out=None)]
    )
    found = await scraped(made)
    common = {"route": "/api/chat", "model": "llama3:8b", "dialect": "ollama"}
    assert value(found, "requests_total", backend="gpu1", status_class="2xx", **common) == 2
    assert value(found, "requests_total", backend="", status_class="5xx", **common) == 1
    pair = {"model": "llama3:8b", "backend": "gpu1"}
    assert value(found, "tokens_total", direction="input", **pair) == 40
    assert value(found, "tokens_total", direction="output", **pair) == 100
    assert value(found, "request_duration_seconds_count", **pair) == 2
    assert value(found, "request_duration_seconds_sum", **pair) == pytest.approx(2.24)
    assert value(found, "time_to_first_token_seconds_bucket", le="0.1", **pair) == 0
    assert value(found, "time_to_first_token_seconds_bucket", le="0.25", **pair) == 2
    assert value(found, "time_per_output_token_seconds_sum", **pair) == pytest.approx(0.04)
    assert value(found, "overhead_seconds_count") == 3
    assert value(found, "queue_wait_seconds_count") == 0


async def test_only_those_who_waited_are_in_the_queue_histogram_and_only_streams_have_a_first_token() -> None:
    made = metrics()
    made.feed([record(1, queue_ms=200.0), record(2, streamed=False, eval_ms=None)])
    found = await scraped(made)
    pair = {"model": "llama3:8b", "backend": "gpu1"}
    assert value(found, "queue_wait_seconds_count") == 1
    assert value(found, "queue_wait_seconds_sum") == pytest.approx(0.2)
    assert value(found, "time_to_first_token_seconds_count", **pair) == 1
    assert value(found, "time_per_output_token_seconds_count", **pair) == 1


async def test_spellings_of_one_model_are_one_label_and_unknown_ones_are_other() -> None:
    made = metrics(models=("phi:latest",))
    for name in ("phi", "Phi:latest", "registry.ollama.ai/library/phi", "llama3:8b", "phi:latest\n", None):
        made.feed([record(1, model=name)])
    found = await scraped(made)
    counts = {
        dict(labels)["model"]: number
        for (name, labels), number in found.items()
        if name == "fleetproxy_request_duration_seconds_count"
    }
    assert counts == {"phi:latest": 3, "other": 2, "": 1}


async def test_models_are_shown_as_their_servers_spell_them() -> None:
    made = Metrics()
    spelled = "meta-llama/Llama-3.1-8B-Instruct"
    canonical_name = canonical(spelled)
    made.fleet(RoutingTable(models={canonical_name: (Route(0, 0, spelled),)}), {})
    made.feed([record(1, model=spelled), record(2, model=spelled.upper())])
    found = await scraped(made)
    assert value(found, "request_duration_seconds_count", model=spelled, backend="other") == 2


async def test_a_model_that_becomes_known_gets_its_label_and_keeps_it() -> None:
    made = metrics(models=())
    made.feed([record(1)])
    made.fleet(table("gpu1"), {})
    made.feed([record(2)])
    made.fleet(table("gpu1", models=()), {})
    made.feed([record(3)])
    found = await scraped(made)
    assert value(found, "request_duration_seconds_count", model="other", backend="gpu1") == 1
    assert value(found, "request_duration_seconds_count", model="llama3:8b", backend="gpu1") == 2


async def test_the_fleet_and_the_load_board_are_shown(tmp_path: Path) -> None:
    boards.create(tmp_path / "board", 2)
    proxies = [boards.Board(tmp_path / "board", row) for row in (1, 2)]
    hub = boards.Board(tmp_path / "board", 0)
    made = metrics(("gpu1", "gpu2"), board=boards.Board(tmp_path / "board"))
    resident = ResidentModel(name="llama3:8b", size_vram_bytes=5)
    made.fleet(table("gpu1", "gpu2"), {"gpu1": BackendState(online=True, resident=(resident, resident))})
    for proxy in proxies:
        proxy.add(1, 3)
    hub.add(1, 4)
    found = await scraped(made)
    assert value(found, "inflight_requests", backend="gpu2") == 6
    assert value(found, "queue_depth", backend="gpu2") == 4
    assert value(found, "inflight_requests", backend="gpu1") == 0
    assert value(found, "backend_up", backend="gpu1") == 1
    assert value(found, "backend_models_loaded", backend="gpu1") == 2
    assert value(found, "backend_vram_bytes", backend="gpu1", kind="used") == 10
    assert value(found, "backend_vram_bytes", backend="gpu1", kind="total") == 24 * 2**30
    assert ("fleetproxy_backend_vram_bytes", (("backend", "gpu2"), ("kind", "total"))) not in found


async def test_processes_settings_and_build_are_shown() -> None:
    made = metrics()
    made.started("proxy-0", os.getpid())
    made.count("proxy-0", Count({"audit_rows": 3, "audit_dropped": 2}, {"exchanges": 1.0}))
    made.started("hub", 2**22 + 1)
    made.left("hub")
    made.reloaded(False)
    found = await scraped(made)
    assert value(found, "process_up", process="proxy-0") == 1
    assert value(found, "process_up", process="hub") == 0
    assert value(found, "process_resident_memory_bytes", process="control") > 1_000_000
    assert value(found, "process_open_fds", process="proxy-0") > 2
    assert ("fleetproxy_process_open_fds", (("process", "hub"),)) not in found
    assert value(found, "audit_rows_total") == 3
    assert value(found, "audit_dropped_total", reason="disk") == 2
    assert value(found, "config_last_reload_successful") == 0
    assert value(found, "config_last_reload_success_timestamp_seconds") == NOON_US / 1e6
    assert any(name == "fleetproxy_build_info" for name, _ in found)


async def test_the_store_is_shown(tmp_path: Path) -> None:
    made = metrics()
    journal = Journal(tmp_path / "spool", "b00t")
    async with running(tmp_path, feed=made.feed, journal=journal) as store:
        made.watch(store, journal)
        (tmp_path / "spool" / "requests.b.p.1.ndjson").write_bytes(b"no row\n")
        await store.flush()
        await store.read(lambda cursor: cursor.execute("SELECT 1").fetchall())
        found = await scraped(made)
        assert value(found, "store_up") == 1
        assert value(found, "store_failures_total", trouble="disk") == 0  # to increase from, for the alert
        assert value(found, "audit_dropped_total", reason="malformed") == 1
        assert value(found, "store_queries_total", result="ok") == 1
        assert value(found, "spool_backlog_segments") == 0


async def test_samples_are_what_requests_cannot_tell(tmp_path: Path) -> None:
    made = metrics()
    made.feed([record(1)])
    samples = made.samples()
    names = {sample.name for sample in samples}
    assert {"fleetproxy_backend_up", "fleetproxy_process_up", "fleetproxy_metrics_overflow_total"} <= names
    assert not names & {"fleetproxy_requests_total", "fleetproxy_tokens_total", "fleetproxy_request_duration_seconds"}
    assert (
        MetricSample(sampled_at_us=NOON_US, name="fleetproxy_backend_up", labels={"backend": "gpu1"}, value=1)
        in samples
    )
    journal = Journal(tmp_path / "spool", "b00t")
    stop = asyncio.Event()
    sampling = asyncio.create_task(made.sample(journal, stop, every_s=0.01))
    async with asyncio.timeout(10):
        while not journal.written:
            await asyncio.sleep(0.01)
    stop.set()
    await sampling


async def test_both_formats_are_what_they_say() -> None:
    made = metrics()
    made.feed([record(n, model="llama3:8b" if n % 2 else "x") for n in range(10)])
    made.count("proxy-0", Count({"retries:connect_failed": 2}, {"exchanges": 1.0}))
    body, content_type = await made.scrape()
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert promtool(body) == ""
    body, content_type = await made.scrape(OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
    assert body.endswith(b"# EOF\n")
    families = list(openmetrics.text_string_to_metric_families(body.decode()))
    assert {"fleetproxy_requests", "fleetproxy_retries", "fleetproxy_backend_up"} <= {
        family.name for family in families
    }


async def test_an_empty_exporter_is_well_formed_too() -> None:
    body, _ = await Metrics().scrape()
    assert promtool(body) == ""
    series(body)


def bomb() -> Iterator[AuditRecord]:
    """Distinct names in everything a caller, a backend or a worker can choose."""
    for n in range(30_000):
        yield record(
            n, model=f"model{n}", model_served=f"served{n}", backend=f"worker{n}", source=f"s{n}", user=f"u{n}",
            user_agent=f"a{n}", endpoint=f"/api/{n}", path=f"/p/{n}", method=f"M{n}", status=n % 1000,
            dialect=f"d{n}", family=f"f{n}", route_reason=f"r{n}", error=f"e{n}",
        )  # fmt: skip


async def test_no_flood_of_names_makes_more_series_than_allowed() -> None:
    models = tuple(f"model{n}:latest" for n in range(0, 30_000, 2))
    backends = tuple(f"worker{n}" for n in range(0, 30_000, 2))
    made = metrics(backends, models)
    made.feed(list(bomb()))
    for n in range(200):
        made.started(f"p{n}", n + 1)
        made.count(f"p{n}", Count({f"c{n}_{m}": 1 for m in range(50)}, {f"g{n}_{m}": 1.0 for m in range(50)}))
    body, _ = await made.scrape()
    found = series(body)
    assert len(found) <= 2000
    assert len(body) <= 512 * 1024
    assert value(found, "metrics_overflow_total") > 0
    total = sum(number for (name, _), number in found.items() if name == "fleetproxy_requests_total")
    assert total == 30_000
    assert promtool(body) == ""


async def test_a_smaller_cap_is_kept_too() -> None:
    made = metrics(("gpu1",), tuple(f"m{n}:latest" for n in range(100)), max_series=500)
    made.feed([record(n, model=f"m{n}") for n in range(100)])
    assert len(await scraped(made)) <= 500


NASTY = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12) | st.sampled_from(
    ['a"b', "a\\b", "a\nb", '",x="', "{}", "# HELP", "\\n", "é", "\u2028", "\x00", "\x1b[31m"]
)


@given(st.lists(NASTY, min_size=1, max_size=4, unique=True), NASTY)
def test_no_name_breaks_the_exposition(names: list[str], model: str) -> None:
    made = metrics(tuple(names), (model.lower() if ":" in model else f"{model.lower()}:latest",))
    made.feed([record(n, backend=name, model=model) for n, name in enumerate(names)])

    async def scrape() -> tuple[bytes, bytes]:
        return (await made.scrape())[0], (await made.scrape(OPENMETRICS))[0]

    text, om = asyncio.run(scrape())
    shown = {dict(labels).get("backend") for (name, labels) in series(text) if name == "fleetproxy_backend_up"}
    assert shown == set(names)
    list(openmetrics.text_string_to_metric_families(om.decode()))


async def test_a_scrape_is_kept_for_a_second_whoever_asks() -> None:
    now = [0.0]
    made = metrics(clock=lambda: now[0])
    first = await made.scrape()
    made.feed([record(1)])
    assert await made.scrape() == first
    now[0] = 0.99
    assert await made.scrape() == first
    now[0] = 1.0
    assert await made.scrape() != first


async def test_scrapes_while_rows_are_counted_are_whole_and_never_go_back() -> None:
    now = [0.0]
    made = metrics(("gpu1",), tuple(f"m{n}:latest" for n in range(30)), clock=lambda: now[0])
    stop = threading.Event()

    def count() -> None:
        n = 0
        while not stop.is_set():
            made.feed([record(n, model=f"m{n % 30}", total_ms=float(n % 5000))])
            n += 1

    counting = threading.Thread(target=count)
    counting.start()
    try:
        last: Series = {}
        for _ in range(40):
            now[0] += 1
            found = await scraped(made)
            for (name, labels), number in found.items():
                if name.endswith(("_total", "_count", "_bucket")):
                    assert number >= last.get((name, labels), 0)
                if name.endswith("_bucket") and ("le", "+Inf") in labels:
                    rest = tuple(pair for pair in labels if pair[0] != "le")
                    assert number == found[name.replace("_bucket", "_count"), rest]
            last = found
    finally:
        stop.set()
        counting.join()
