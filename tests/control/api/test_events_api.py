from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from control_plane import Control, make_control

from fleetproxy.control import new_models
from fleetproxy.control.state import discoveries
from fleetproxy.core.backend import Backend, BackendState, DiskModel
from fleetproxy.core.residency import Sighting
from fleetproxy.settings import Discovery, Settings

GIB = 1024**3


def see(control: Control, number: int, *models: str, vram_gb: int = 24, size_gb: float = 4.0) -> None:
    tags = [
        {
            "name": model,
            "size": int(size_gb * GIB),
            "details": {"family": "llama", "families": ["llama"], "parameter_size": "8B", "quantization_level": "Q4"},
        }
        for model in models
    ]
    state = BackendState(
        online=True,
        on_disk=tuple(DiskModel(name=model, size_bytes=int(size_gb * GIB)) for model in models),
        raw_tags=msgspec.Raw(json.dumps(tags).encode()),
    )
    backend = Backend(name=f"gpu{number}", id=number, column=number, vram_bytes=vram_gb * GIB)
    control.fleet.seen.append((backend, state))


async def test_events_are_told_with_milliseconds(control: Control) -> None:
    admin = await control.admin()
    at = control.clock.now() - timedelta(seconds=1.5)
    row = {"id": 7, "serverId": 1, "serverName": "gpu1", "modelName": "phi", "eventType": "loaded", "occurredAt": at}
    control.records.rows = {"model_events": [row], "server_events": [{"id": 1, "detail": None, "occurredAt": at}]}
    assert (await admin.get("/api/events")).json() == [{**row, "occurredAt": "2026-11-01T11:59:58.500Z"}]
    assert (await admin.get("/api/server-events?hours=2")).json()[0]["occurredAt"] == "2026-11-01T11:59:58.500Z"
    now = control.clock.now()
    assert control.records.asked == [
        ("model_events", now - timedelta(hours=24), 500),
        ("server_events", now - timedelta(hours=2), 100),
    ]


@pytest.mark.parametrize(
    ("sent", "hours"),
    [("", 24), ("?hours=", 24), ("?hours=x", 24), ("?hours=0", 24), ("?hours=-3", 24), ("?hours=12abc", 12),
     ("?hours=1.9", 1), ("?hours=%207", 7), ("?hours=99999999999999999999", 87_600), ("?hours=1e9", 1)],
)  # fmt: skip
async def test_hours_are_read_leniently(control: Control, sent: str, hours: int) -> None:
    admin = await control.admin()
    assert (await admin.get(f"/api/events{sent}")).status_code == 200
    assert control.records.asked[0][1] == control.clock.now() - timedelta(hours=hours)


async def test_usage_is_how_long_models_stayed(control: Control) -> None:
    admin = await control.admin()
    now = control.clock.now()
    control.records.rows = {
        "sightings": [
            Sighting(now - timedelta(hours=5), 1, "gpu1", "phi", "loaded"),
            Sighting(now - timedelta(hours=3), 1, "gpu1", "phi", "unloaded"),
            Sighting(now - timedelta(hours=1), 2, "gpu2", "llama", "loaded"),
        ]  # type: ignore[dict-item]
    }
    assert (await admin.get("/api/usage")).json() == [
        {
            "serverName": "gpu1",
            "serverId": 1,
            "modelName": "phi",
            "totalLoadedSeconds": 7200.0,
            "loadCount": 1,
            "lastSeen": "2026-11-01T09:00:00.000Z",
        },
        {
            "serverName": "gpu2",
            "serverId": 2,
            "modelName": "llama",
            "totalLoadedSeconds": 3600.0,
            "loadCount": 1,
            "lastSeen": "2026-11-01T11:00:00.000Z",
        },
    ]
    assert control.records.asked == [("sightings", now - timedelta(hours=168))]


@pytest.mark.parametrize(
    "query", ["", "?serverId=", "?serverId=x", "?serverId=0", "?serverId=-1", "?serverId=9999999999999999"]
)
async def test_metrics_want_a_server(control: Control, query: str) -> None:
    admin = await control.admin()
    answer = await admin.get(f"/api/system-metrics{query}")
    assert (answer.status_code, answer.json()) == (400, {"error": "serverId required"})


async def test_metrics_are_a_day_unless_told_otherwise(control: Control) -> None:
    admin = await control.admin()
    control.records.rows = {"system_metrics": [{"cpuTempC": 50.0, "polledAt": control.clock.now()}]}
    answer = await admin.get("/api/system-metrics?serverId=1")
    assert answer.json() == [{"cpuTempC": 50.0, "polledAt": "2026-11-01T12:00:00.000Z"}]
    assert control.records.asked == [("system_metrics", 1, control.clock.now() - timedelta(hours=24))]


async def test_recommendations(control: Control) -> None:
    admin = await control.admin()
    now = control.clock.now()
    see(control, 1, "phi", "big", size_gb=22)
    see(control, 2, "phi")
    counts: dict[str, Any] = {
        "by_server": [{"serverId": 1, "modelName": "phi", "count": 0}],
        "by_model": [{"modelName": "big", "count": 50, "avgDurationMs": 60000.0, "busiestMinuteCount": 3}],
        "by_source": [],
    }
    churn = [
        Sighting(now - timedelta(hours=20 - hour), 1, "gpu1", "phi", "unloaded" if hour % 2 else "loaded")
        for hour in range(12)
    ]
    control.records.rows = {"request_counts": counts, "sightings": churn}  # type: ignore[dict-item]
    found = (await admin.get("/api/recommendations?hours=48")).json()
    assert [(one["modelName"], one["serverName"], one["loadCount"]) for one in found["considerRemoving"]] == [
        ("phi", "gpu1", 6)
    ]
    assert set(found["considerRemoving"][0]) == {
        "modelName", "serverName", "serverId", "loadCount", "unloadCount", "requestCount", "churnScore", "availableOn",
        "totalServers", "totalRequestCount",
    }  # fmt: skip
    assert [(one["modelName"], one["churnScore"], one["availableOn"]) for one in found["considerAdding"]] == [
        ("big", 3.0, ["gpu1"])
    ]
    assert {(one["modelName"], one["usagePercent"]) for one in found["oversizedModels"]} == {
        ("phi", 91.7),
        ("big", 91.7),
    }
    assert (found["periodHours"], found["serverNames"]) == (48, ["gpu1", "gpu2"])


async def test_new_models_are_noticed_once_with_what_their_server_says(control: Control) -> None:
    admin = await control.admin()
    see(control, 1, "llama3.2:3b")
    looker = control.services.new_models
    await looker.look()
    control.clock.pass_(hours=1)
    see(control, 2, "llama3.2:3b", "phi")
    await looker.look()
    await looker.look()
    counts = {"by_source": [{"source": "chat", "modelName": "llama3:8b", "count": 9}], "by_model": [], "by_server": []}
    control.records.rows = {"request_counts": counts}  # type: ignore[dict-item]
    found = (await admin.get("/api/discoveries")).json()
    assert [one["modelName"] for one in found["discoveries"]] == ["phi", "llama3.2:3b"]
    assert found["discoveries"][1] == {
        "id": 1,
        "modelName": "llama3.2:3b",
        "modelFamily": "llama",
        "families": ["llama"],
        "parameterSize": "8B",
        "quantization": "Q4",
        "modelSize": 4 * GIB,
        "description": None,
        "capabilities": [],
        "pullCount": None,
        "registryExists": None,
        "firstSeenServerName": "gpu1",
        "infoFetchStatus": "success",
        "infoFetchedAt": "2026-11-01T12:00:00.000Z",
        "discoveredAt": "2026-11-01T12:00:00.000Z",
        "serviceAffinities": [
            {"source": "chat", "currentModel": "llama3:8b", "requestCount": 9, "familyMatch": "llama3"}
        ],
    }
    assert found["periodHours"] == 168
    assert len((await admin.get("/api/discoveries?limit=1")).json()["discoveries"]) == 1


async def test_servers_that_lie_about_models_are_noticed_all_the_same(control: Control) -> None:
    tags = b'[{"name":"a","size":-5,"details":{"family":5,"families":"x"}},5,{"name":"b","size":1e300,"details":null}]'
    names = ("a", "b", "c" * 300, "d")
    state = BackendState(online=True, on_disk=tuple(DiskModel(name=n) for n in names), raw_tags=msgspec.Raw(tags))
    control.fleet.seen.append((Backend(name="gpu1", id=1, column=1), state))
    await control.services.new_models.look()
    found = await control.services.store.read(discoveries.newest, 10)
    assert sorted((one.model_name, one.model_size_bytes, one.model_family) for one in found) == [
        ("a", 0, None),
        ("b", 0, None),
        ("d", 0, None),
    ]


async def test_known_names_are_bounded_and_forgotten(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discoveries, "MAX_NAMES", 3)
    for number in range(6):
        control.clock.pass_(seconds=1)
        see(control, number, f"m{number}")
        await control.services.new_models.look()
    store = control.services.store
    assert [one.model_name for one in await store.read(discoveries.newest, 10)] == ["m5", "m4", "m3"]
    control.clock.pass_(days=91)
    await store.write(discoveries.forget, control.clock.now(), ["m4"])
    assert [one.model_name for one in await store.read(discoveries.newest, 10)] == ["m4"]
    assert new_models.LOOK_S < 60


# --- plugins ---------------------------------------------------------------------------------------------------------


async def test_plugins_are_never_nothing(control: Control) -> None:
    admin = await control.admin()
    shown = (await admin.get("/api/plugins")).json()
    assert shown[0]["configKey"] == "metricsPort"
    assert shown[0]["defaultPort"] == 9100
    for one in shown:
        assert one.keys() >= {"id", "name", "version", "description", "kind", "enabled"}, one
        assert (one["id"], one["kind"]) == (one["name"], one["type"])
    assert len({one["id"] for one in shown}) == len(shown)
    assert {one["name"]: one["enabled"] for one in shown if one["type"] == "family"} == dict.fromkeys(
        ("llm", "asr", "mcp", "transfer"), True
    )


async def test_manifests_of_the_folder_are_read_and_faulty_ones_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "plugins"
    manifests = {
        "good": {"name": "my-agent", "type": "agent", "version": "1", "defaultPort": 9200, "extra": 1},
        "replaces": {"name": "fleet-metrics", "type": "agent", "description": "our own"},
        "no name": {"type": "agent"},
        "no type": {"name": "x"},
        "bad type": {"name": "x", "type": "virus"},
    }
    for name, manifest in manifests.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "plugin.json").write_text(json.dumps(manifest))
    for name, raw in {"torn": b'{"name":', "binary": b"\xff\xfe", "deep": b"[" * 10_000, "empty": b""}.items():
        (folder / name).mkdir()
        (folder / name / "plugin.json").write_bytes(raw)
    (folder / "folder" / "plugin.json").mkdir(parents=True)
    control = await make_control(tmp_path, Settings(discovery=Discovery(plugins_dir=str(folder)), plugins=("llm",)))
    admin = await control.admin()
    shown = {one["name"]: one for one in (await admin.get("/api/plugins")).json()}
    agent = {"type": "agent", "kind": "agent", "enabled": True}
    assert shown["my-agent"] == {
        "id": "my-agent", "name": "my-agent", "version": "1", "description": "", "defaultPort": 9200, **agent,
    }  # fmt: skip
    assert shown["fleet-metrics"] == {
        "id": "fleet-metrics", "name": "fleet-metrics", "version": "", "description": "our own", **agent,
    }  # fmt: skip
    assert shown["asr"]["enabled"] is False
    assert set(shown) == {"my-agent", "fleet-metrics", "llm", "asr", "mcp", "transfer"}
    await control.services.close()
    await control.caller.aclose()
