from __future__ import annotations

import pytest
from control_plane import Control

from fleetproxy.control.state.servers import entries
from fleetproxy.core.destination import forbidden
from fleetproxy.settings import Server

GPU = {"name": "gpu1", "url": "http://10.0.0.5:11434"}


async def test_a_server_is_added_switched_and_removed(control: Control) -> None:
    admin = await control.admin()
    added = await admin.post("/api/servers", json={**GPU, "apiKey": "secret-of-gpu1", "vramGb": 24, "maxConcurrent": 4})
    assert added.status_code == 201
    assert added.json() == {
        "id": 1,
        "name": "gpu1",
        "origin": "api",
        "url": "http://10.0.0.5:11434",
        "kind": "ollama",
        "isDisabled": False,
        "isDraining": False,
    }
    assert "secret" not in added.text
    (entry,) = await control.services.server_entries()
    assert entry.server == Server(
        name="gpu1", url="http://10.0.0.5:11434", api_key="secret-of-gpu1", vram_gb=24.0, max_concurrent=4
    )
    assert (await admin.patch("/api/servers/1", json={"isDisabled": True})).json() == {"ok": True}
    assert (await admin.patch("/api/servers/1", json={"isDraining": True, "vramGb": None})).json() == {"ok": True}
    (entry,) = await control.services.server_entries()
    assert (entry.is_disabled, entry.is_draining) == (True, True)
    assert entry.server
    assert entry.server.vram_gb is None
    assert (await admin.delete("/api/servers/1")).json() == {"ok": True}
    assert await control.services.server_entries() == []
    assert control.fleet.applied == 4


async def test_the_fleet_managers_words_are_understood(control: Control) -> None:
    admin = await control.admin()
    body = {"name": "spark", "host": "10.0.0.6:8000", "ramGb": 128, "backendType": "vllm", "metricsPort": 9100}
    assert (await admin.post("/api/servers", json=body)).status_code == 201
    (entry,) = await control.services.server_entries()
    assert entry.server == Server(name="spark", url="10.0.0.6:8000", kind="openai", vram_gb=128.0, metrics_port=9100)


async def test_names_of_the_configuration_file_are_taken(control: Control) -> None:
    admin = await control.admin()
    await control.services.register_servers(["GPU1"])
    answer = await admin.post("/api/servers", json=GPU)
    assert answer.status_code == 409
    assert "configuration file" in answer.json()["error"]
    assert (await admin.delete("/api/servers/1")).status_code == 409
    assert (await admin.patch("/api/servers/1", json={"url": "http://10.0.0.9"})).status_code == 409
    assert (await admin.patch("/api/servers/1", json={"isDisabled": True})).json() == {"ok": True}


async def test_a_server_that_is_added_disabled_never_was_in_the_fleet_without_it(control: Control) -> None:
    """Everything one call asks is one change: nobody who looks in between, or after a kill, sees half of it."""
    admin = await control.admin()
    seen: list[tuple[bool | None, bool]] = []
    control.services.store.on_change(
        lambda: seen.extend((one.is_disabled, one.is_draining) for one in control.services.store.read_now(entries))
    )
    await admin.post("/api/servers", json={**GPU, "isDisabled": True, "isDraining": True})
    assert set(seen) == {(True, True)}


async def test_a_change_of_settings_and_switches_is_one(control: Control) -> None:
    admin = await control.admin()
    await admin.post("/api/servers", json=GPU)
    seen: list[tuple[float | None, bool | None]] = []
    control.services.store.on_change(
        lambda: seen.extend(
            (one.server and one.server.vram_gb, one.is_disabled) for one in control.services.store.read_now(entries)
        )
    )
    assert (await admin.patch("/api/servers/1", json={"vramGb": 99, "isDisabled": True})).json() == {"ok": True}
    assert set(seen) == {(99.0, True)}


@pytest.mark.parametrize("payload", [{}, {"isDisabled": "true"}, {"isDisabled": 1}, {"isDisabled": None}, [], {"x": 1}])
async def test_the_switch_takes_a_boolean(control: Control, payload: object) -> None:
    admin = await control.admin()
    await admin.post("/api/servers", json=GPU)
    answer = await admin.patch("/api/servers/1", json=payload)
    assert (answer.status_code, answer.json()) == (400, {"error": "isDisabled must be a boolean"})


async def test_unknown_servers_are_named(control: Control) -> None:
    admin = await control.admin()
    for method, payload in [("PATCH", {"isDisabled": True}), ("PATCH", {"vramGb": 3}), ("DELETE", None)]:
        answer = await admin.request(method, "/api/servers/9", json=payload)
        assert (answer.status_code, answer.json()) == (404, {"error": "Server not found"})
        answer = await admin.request(method, "/api/servers/x", json=payload)
        assert (answer.status_code, answer.json()) == (400, {"error": "Invalid server ID"})


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"name": "x"},
        {"url": "http://10.0.0.1"},
        {"name": "", "url": "http://10.0.0.1"},
        {"name": "  ", "url": "http://10.0.0.1"},
        {"name": "a\nb", "url": "http://10.0.0.1"},
        {"name": "gpu\u202e1", "url": "http://10.0.0.1"},
        {"name": "x" * 200, "url": "http://10.0.0.1"},
        {"name": "x", "url": "http://10.0.0.1", "kind": "other"},
        {"name": "x", "url": "http://10.0.0.1", "vramGb": -1},
        {"name": "x", "url": "http://10.0.0.1", "maxConcurrent": 0},
        {"name": "x", "url": 5},
    ],
)
async def test_unfit_servers_are_refused(control: Control, payload: dict[str, object]) -> None:
    admin = await control.admin()
    answer = await admin.post("/api/servers", json=payload)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("name and url required")
    assert await control.services.server_entries() == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("apiKey", "key\r\nEvil: 1"), ("apiKey", "a b"), ("apiKey", "ä"), ("apiKey", "key\n"),
        ("hostHeader", "a\r\nX: y"), ("hostHeader", "a b"), ("hostHeader", "a/b"), ("hostHeader", "a\n"),
        ("tlsServerName", "a\0"), ("tlsServerName", "a b"),
    ],
)  # fmt: skip
async def test_what_becomes_a_line_of_a_request_is_one(control: Control, field: str, value: str) -> None:
    admin = await control.admin()
    place = {"name": "x", "url": "https://10.0.0.1", field: value}
    assert (await admin.post("/api/servers", json=place)).status_code == 400
    assert (await admin.post("/api/servers/test", json=place)).status_code == 400
    await admin.post("/api/servers", json=GPU)
    assert (await admin.patch("/api/servers/1", json={field: value})).status_code == 400
    (entry,) = await control.services.server_entries()
    assert entry.server
    assert (entry.server.api_key, entry.server.host_header, entry.server.tls_server_name) == (None, None, None)


PLACES = [
    "file:///etc/passwd",
    "gopher://10.0.0.1",
    "ftp://10.0.0.1",
    "unix:///run/x.sock",
    "javascript:alert(1)",
    "http://",
    "http://user:pw@10.0.0.1",
    "http://a#@10.0.0.1",
    "http://10.0.0.1\\@evil",
    "http://a b",
    "http://10.0.0.1/?x=1",
    "http://10.0.0.1/a/../b",
    "http://10.0.0.1:0",
    "http://10.0.0.1:99999",
    "http://2130706433",
    "http://0x7f000001",
    "http://0177.0.0.1",
    "http://127.1",
    "http://[::1",
    "http://169.254.169.254",
    "http://169.254.169.254.",
    "http://[fe80::1]",
    "http://[::ffff:169.254.169.254]",
    "http://[64:ff9b::a9fe:a9fe]",
    "http://[2002:a9fe:a9fe::1]",
    "http://[fd00:ec2::254]",
    "http://100.100.100.200",
    "http://0.0.0.0",
    "http://[::]",
    "http://224.0.0.1",
    "http://255.255.255.255",
    "http://127.0.0.1:11434",
    "http://localhost:11434",
    "http://[::1]:11434",
    "http://10.0.0.1\r\nX: y",
]


@pytest.mark.parametrize("url", PLACES)
async def test_places_no_server_is_at_are_refused(control: Control, url: str) -> None:
    admin = await control.admin()
    answer = await admin.post("/api/servers", json={"name": "x", "url": url})
    assert answer.status_code == 400, answer.text
    await admin.post("/api/servers", json=GPU)
    answer = await admin.patch("/api/servers/1", json={"url": url})
    assert answer.status_code == 400
    assert [entry.server and entry.server.url for entry in await control.services.server_entries()] == [GPU["url"]]


@pytest.mark.parametrize(
    "url", ["http://10.0.0.1", "https://192.168.1.7:8443/ollama", "http://127.0.0.1:11435", "http://[fd00::1]:11434"]
)
async def test_private_places_are_where_fleets_live(control: Control, url: str) -> None:
    admin = await control.admin()
    assert (await admin.post("/api/servers", json={"name": "x", "url": url})).status_code == 201


@pytest.mark.parametrize("address", ["10.0.0.1", "127.0.0.1", "8.8.8.8", "::1", "fd00::1", "2001:db8::1", "172.16.0.1"])
def test_ordinary_addresses_are_allowed(address: str) -> None:
    assert forbidden(address) is None


@pytest.mark.parametrize(
    "address", ["169.254.1.1", "fe80::1%eth0", "::ffff:169.254.0.1", "0.0.0.0", "ff02::1", "nonsense"]
)
def test_others_are_forbidden_with_a_reason(address: str) -> None:
    assert forbidden(address)
