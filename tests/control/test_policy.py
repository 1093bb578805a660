"""Settings as the data plane gets them."""

from __future__ import annotations

import hashlib

import msgspec
import pytest

from fleetproxy.control import policy
from fleetproxy.core.table import Limits, Principal
from fleetproxy.settings import Auth, Dashboard, Key, Metrics, Routing, Settings


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


LONG = "k" * 64


def test_every_key_in_force_is_known_by_its_hash_alone() -> None:
    settings = Settings(
        keys=(
            Key(name="ann", key=LONG, max_in_flight=2, requests_per_minute=60, models=("Phi", "llama3:8b")),
            Key(name="bob", key="sha256:" + digest("short").hex()),
        ),
        auth=Auth(api_key="static", admin_key="boss"),
    )
    users = {digest("user"): Principal(name="eve", user_id=3, models=frozenset({"Phi"}))}
    assert policy.principals(settings, users) == {
        digest(LONG): Principal(
            name="ann",
            key_prefix="k" * 8,
            max_in_flight=2,
            requests_per_minute=60,
            models=frozenset({"phi:latest", "llama3:8b"}),
        ),
        digest("short"): Principal(name="bob"),
        digest("static"): Principal(name="api key"),
        digest("boss"): Principal(name="admin key", admin=True),
        digest("user"): Principal(name="eve", user_id=3, models=frozenset({"phi:latest"})),
    }
    assert LONG not in repr(policy.principals(settings, users))


def test_one_key_for_everything_is_an_administrators() -> None:
    settings = Settings(auth=Auth(api_key="same", admin_key="same"))
    assert policy.principals(settings, {}) == {digest("same"): Principal(name="api key", admin=True)}


@pytest.mark.parametrize(
    ("settings", "required"),
    [
        (Settings(), False),
        (Settings(host="::1"), False),
        (Settings(host="0.0.0.0"), True),
        (Settings(host="0.0.0.0", open=True), False),
        (Settings(host="0.0.0.0", auth=Auth(proxy="open")), False),
        (Settings(auth=Auth(proxy="required")), True),
        (Settings(open=True, auth=Auth(proxy="required")), True),
    ],
)
def test_strangers_need_a_key_beyond_loopback_unless_told_otherwise(settings: Settings, required: bool) -> None:
    access = policy.access(settings, "box")
    assert access.proxy_required is required
    assert access.families_required is required


def test_the_static_key_guards_the_families() -> None:
    access = policy.access(Settings(auth=Auth(api_key="x")), "box")
    assert access.families_required
    assert not access.proxy_required


def test_hosts_are_this_machines_names_and_the_listed_ones_or_any() -> None:
    assert policy.access(Settings(), "Box.lan").hosts == {"box", "box.lan"}
    assert policy.access(Settings(hosts=("LLM.example",)), "box").hosts == {"box", "llm.example"}
    assert policy.access(Settings(hosts=("*",)), "box").hosts == frozenset()


def test_addresses_of_their_own_take_paths_off_the_public_port() -> None:
    access = policy.access(Settings(), "box")
    assert (access.dashboard_on_public_port, access.metrics_on_public_port) == (True, True)
    settings = Settings(dashboard=Dashboard(on_public_port=False), metrics=Metrics(listen="127.0.0.1:9090"))
    access = policy.access(settings, "box")
    assert (access.dashboard_on_public_port, access.metrics_on_public_port) == (False, False)


def test_default_settings_give_the_default_limits() -> None:
    assert policy.limits(Settings()) == Limits()


def test_limits_come_from_their_sections() -> None:
    values = msgspec.to_builtins(
        policy.limits(
            msgspec.convert(
                {
                    "limits": {"body_bytes": 1, "buffered_bytes": 2},
                    "timeouts": {"connect_s": 3, "first_byte_s": 4, "stream_idle_s": 5, "drain_s": 6},
                    "routing": {"retry_budget": 0.5, "eject_failures": 7, "min_num_ctx": 8, "default_keep_alive": "9m"},
                    "queue": {"size": 10, "wait_s": 11},
                },
                Settings,
            )
        )
    )
    expected = {
        "body_bytes": 1,
        "buffered_bytes": 2,
        "connect_s": 3.0,
        "first_byte_s": 4.0,
        "stream_idle_s": 5.0,
        "drain_s": 6.0,
        "retry_budget": 0.5,
        "eject_failures": 7,
        "min_num_ctx": 8,
        "default_keep_alive": "9m",
        "queue_size": 10,
        "queue_wait_s": 11.0,
    }
    assert {name: values[name] for name in expected} == expected


def test_routing_switches_reach_the_data_plane() -> None:
    access = policy.access(Settings(routing=Routing(pin_fallback=True, hide_backends=True)), "box")
    assert (access.pin_fallback, access.hide_backends) == (True, True)
