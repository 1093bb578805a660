"""The catalogue's cases of who may do what (A-*), and those of leaks, planning and bots that are control's (X-*, I-*).

Most are tested where they are decided; the table says where. Here are those that need a whole service: several servers
with credentials of their own, keys with limits, callers who try to choose for themselves where they are sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from fleetproxy.testing.fault import FaultUpstream
from fleetproxy.testing.raw import Answer
from fleetproxy.testing.script import Keep, Rst, Send, response
from fleetproxy.testing.stage import ROUTING, Stage

pytestmark = pytest.mark.asyncio(loop_scope="module")

_AUTH, _GUARD, _USERS = (f"tests/control/api/test_{name}.py" for name in ("auth", "guard", "users_api"))
_SERVERS, _WALK = "tests/control/api/test_servers_admin.py", "tests/control/test_walk.py"
_SETTINGS, _JOBS = "tests/control/api/test_settings_api.py", "tests/control/api/test_jobs_api.py"

#: Case -> its test: a function of this file, or `path::function`.
CASES: dict[str, tuple[str, ...]] = {
    "A-1": (
        f"{_AUTH}::test_of_a_hundred_setups_at_once_one_succeeds",
        "tests/e2e/test_dashboard.py::test_of_many_setups_through_all_processes_one_succeeds",
    ),
    "A-2": (f"{_AUTH}::test_a_lost_state_is_not_open_for_setup_again", f"{_USERS}::test_the_last_administrator_stays"),
    "A-3": (
        f"{_AUTH}::test_wrong_password_and_unknown_user_look_the_same",
        "tests/control/test_passwords.py::test_an_unknown_user_costs_the_same_work",
    ),
    "A-4": (
        f"{_AUTH}::test_guessing_one_account_is_slowed_down_then_forgotten",
        f"{_AUTH}::test_guessing_many_accounts_from_one_address_is_slowed_down",
    ),
    "A-5": (f"{_AUTH}::test_a_forwarded_header_does_not_make_another_address",),
    "A-6": ("tests/control/test_passwords.py::test_a_flood_is_refused_not_queued",),
    "A-8": (f"{_AUTH}::test_login_never_keeps_a_cookie_it_was_given",),
    "A-9": (
        f"{_AUTH}::test_login_sets_a_cookie_scripts_cannot_read",
        f"{_AUTH}::test_over_https_the_cookie_is_secure",
        f"{_AUTH}::test_the_store_never_holds_a_cookie_or_a_key",
    ),
    "A-10": (
        "tests/control/test_state_surface.py::test_a_stream_ends_when_its_key_is_revoked",
        "tests/control/test_live.py::test_a_stream_says_goodbye_when_its_session_ends",
        "tests/control/test_live.py::test_a_stream_ends_when_its_user_is_demoted_or_deleted",
        f"{_USERS}::test_deleting_a_user_ends_what_is_theirs",
    ),
    "A-12": (
        f"{_GUARD}::test_pages_of_other_sites_change_nothing",
        f"{_GUARD}::test_bodies_that_forms_can_send_are_refused",
        f"{_GUARD}::test_method_overrides_mean_nothing",
    ),
    "A-13": ("test_a13_pages_of_other_origins_do_not_reach_a_server",),
    "A-14": (f"{_GUARD}::test_pages_of_other_sites_change_nothing",),
    "A-15": (f"{_GUARD}::test_what_is_not_the_key_opens_nothing", f"{_GUARD}::test_keys_in_the_query_open_nothing"),
    "A-16": (f"{_AUTH}::test_the_store_never_holds_a_cookie_or_a_key", f"{_WALK}::test_secrets_are_in_no_answer"),
    "A-17": (f"{_GUARD}::test_every_carrier_opens_and_closes_the_same_doors",),
    "A-18": (f"{_GUARD}::test_any_bytes_for_a_key_are_refused_politely",),
    "A-19": ("test_a19_an_unknown_key_is_a_stranger_and_said_to_be_one",),
    "A-20": (f"{_USERS}::test_nobody_promotes_himself", f"{_USERS}::test_fields_that_are_not_theirs_change_nothing"),
    "A-21": (
        f"{_USERS}::test_foreign_accounts_are_closed",
        f"{_WALK}::test_everybody_is_let_in_where_they_may_and_nowhere_else",
        f"{_WALK}::test_the_table_has_every_route_and_every_route_its_policy",
    ),
    "A-23": ("tests/control/api/test_trials.py::test_trying_is_for_administrators_and_bounded",),
    "A-24": (
        "test_a24_no_way_round_leads_to_a_model_that_is_not_allowed",
        "tests/core/test_selection.py::test_what_is_not_allowed_is_served_under_no_name",
    ),
    "A-30": (f"{_GUARD}::test_no_spelling_of_a_path_opens_more_than_another",),
    "A-31": (
        "test_a31_what_a_stranger_says_of_himself_reaches_nobody",
        "tests/control/test_state_surface.py::test_who_may_look",
        f"{_GUARD}::test_only_the_link_may_say_whom_it_calls_for",
    ),
    "A-32": (
        f"{_GUARD}::test_head_is_get_without_the_body",
        f"{_WALK}::test_other_methods_and_paths_are_refused_as_json",
    ),
    "A-40": (f"{_SERVERS}::test_places_no_server_is_at_are_refused",),
    "A-41": (f"{_SERVERS}::test_places_no_server_is_at_are_refused",),
    "A-42": ("test_a42_no_caller_chooses_where_a_request_goes",),
    "A-43": ("test_a43_a_servers_key_goes_to_that_server_alone",),
    "A-44": (
        "tests/transport/test_resolver.py::test_a_name_that_comes_to_lead_to_forbidden_places_is_not_followed",
        "tests/transport/test_http2.py::test_names_are_resolved_by_us_and_forbidden_addresses_are_not_connected_to",
    ),
    "A-45": ("test_a45_names_that_are_not_ours_are_not_answered",),
    "A-46": (
        "tests/control/api/test_discovery_api.py::test_a_hostile_engine_costs_nothing",
        "tests/control/api/test_discovery_api.py::test_a_slow_engine_is_left_after_its_time",
    ),
    "A-47": ("test_a47_blobs_are_named_by_their_digest_or_not_at_all",),
    "X-2": ("tests/control/test_state_surface.py::test_pages_are_ours_and_run_nothing_of_others",),
    "X-5": (
        "tests/e2e/test_dashboard.py::test_no_secret_is_in_the_log_at_any_level",
        f"{_WALK}::test_secrets_are_in_no_answer",
    ),
    "X-6": (
        f"{_SETTINGS}::test_a_chat_is_set_tried_greeted_masked_and_removed",
        f"{_SETTINGS}::test_the_mask_sent_back_keeps_the_token",
    ),
    "X-8": ("tests/control/metrics/test_exporter.py::test_no_flood_of_names_makes_more_series_than_allowed",),
    "X-11": ("tests/core/test_access.py::test_credentials_are_never_shared_across_origins",),
    "X-18": ("test_x18_nothing_of_one_caller_is_kept_for_another",),
    "I-1": (f"{_JOBS}::test_expressions_are_checked",),
    "I-2": (f"{_JOBS}::test_many_questions_about_the_plan_are_refused_not_queued",),
    "I-5": ("tests/control/api/test_discovery_api.py::test_ten_thousand_containers_are_bounded",),
    "I-7": (f"{_SETTINGS}::test_a_telegram_that_does_not_answer_is_told_apart",),
}
#: The catalogue's cases of the first order about access; 7, 33 and 34 are of the second.
FIRST_ORDER = {
    f"A-{number}"
    for number in (
        *(1, 2, 3, 4, 5, 6, 8, 9, 10, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 23, 24),
        *(30, 31, 32, 40, 41, 42, 43, 44, 45, 46, 47),
    )
}

KEYS: list[dict[str, Any]] = [
    {"name": "anna", "key": "key-of-anna-0123456789"},
    {"name": "ben", "key": "key-of-ben-0123456789", "models": ["solo"]},
]
ANNA, BEN = (("Authorization", f"Bearer {one['key']}") for one in KEYS)
OK = (Send(response(body=b'{"model":"m","done":true}')), Keep())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opened(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    stage = await Stage.open(
        tmp_path_factory.mktemp("access"),
        processes=2,
        keys=KEYS,
        routing={**ROUTING, "aliases": {"solo-too": "solo", "m-too": "m"}},
        servers={"a": {"api_key": "key-for-a"}, "b": {"api_key": "key-for-b"}, "o": {"api_key": "key-for-o"}},
    )
    yield stage
    await stage.close()


@pytest_asyncio.fixture(loop_scope="module")
async def stage(opened: Stage) -> AsyncIterator[Stage]:
    await opened.reset()
    yield opened
    await opened.settle()


async def test_every_case_of_the_first_order_has_its_test() -> None:
    assert CASES.keys() >= FIRST_ORDER
    root = Path(__file__).parents[2]
    for case, names in CASES.items():
        for name in names:
            path, _, elsewhere = name.partition("::")
            found = f"def {elsewhere}(" in (root / path).read_text() if elsewhere else name in globals()
            assert found, f"{case}: {name}"


ORIGINS = (
    "http://evil.example",
    "null",
    "http://localhost.evil.example",
    "https://127.0.0.1.evil.example",
)


@pytest.mark.parametrize("origin", ORIGINS)
async def test_a13_pages_of_other_origins_do_not_reach_a_server(stage: Stage, origin: str) -> None:
    foreign = (("Origin", origin),)
    refused = [
        await stage.ask("/api/delete", b'{"model":"m"}', foreign, method="DELETE"),
        await stage.ask("/api/chat", headers=foreign),
        await stage.ask("/v1/chat/completions", headers=foreign),
    ]
    assert {answer.status for answer in refused} == {403}
    assert stage.seen() == 0
    assert all(answer.header("access-control-allow-origin") is None for answer in refused)
    stage.asked.clear()  # what the gate refuses is no exchange


async def test_a19_an_unknown_key_is_a_stranger_and_said_to_be_one(stage: Stage) -> None:
    answer = await stage.ask(headers=(("X-Ollama-Api-Key", "nobodys"),))
    assert answer.status == 200
    record = await stage.record()
    assert (record["key_unknown"], record["user"]) == (True, None)


async def test_a24_no_way_round_leads_to_a_model_that_is_not_allowed(stage: Stage) -> None:
    """Ben may use `solo` alone: no alias, pin, path, dialect or spelling gives him `m`."""
    bodies = [b'{"model":"%b"}' % name for name in (b"m", b"m:latest", b"M", b"library/m", b"m-too", b"nothing-at-all")]
    pins: tuple[tuple[tuple[str, str], ...], ...] = ((), (("X-Ollama-Pin-Server", "b"),))
    answers: dict[bytes, Answer] = {}
    for body in bodies:
        for path in ("/api/chat", "/api/generate", "/api/embed", "/v1/chat/completions", "/v1/messages"):
            for pin in pins:
                answer = await stage.ask(path, body, (BEN, *pin))
                assert answer.status == 404, (path, body, pin, answer.body)
        answers[body] = await stage.ask("/api/chat", body, (BEN,))
    assert stage.seen() == 0
    # What there is and he may not have looks like what there is not.
    said = {body: answers[body].body.replace(b"'%b'" % body[10:-2], b"'X'") for body in bodies}
    assert len(set(said.values())) == 1, said
    for body in (b'{"model":"solo"}', b'{"model":"solo-too"}'):
        assert (await stage.ask("/api/chat", body, (BEN,))).status == 200


async def test_a31_what_a_stranger_says_of_himself_reaches_nobody(stage: Stage) -> None:
    said = (
        ("X-User-Roles", "admin"),
        ("X-User-Roles", "ops"),
        ("X-Forwarded-User", "root"),
        ("X-Remote-User", "root"),
        ("X-Fleet-Client", "127.0.0.1"),
        ("X-Fleet-Roles", "admin"),
        ("X-Forwarded-For", "10.9.8.7"),
    )
    assert (await stage.ask(headers=said)).status == 200
    record = await stage.record()
    assert record["remote_ip"] == "127.0.0.1"
    assert record["user"] is None
    seen = stage["a"].requests[0]
    for name in (
        "x-user-roles",
        "x-forwarded-user",
        "x-remote-user",
        "x-fleet-client",
        "x-fleet-roles",
    ):
        assert seen.header(name) is None, name
    assert seen.header("x-forwarded-for") == "127.0.0.1"
    assert (await stage.look("/api/users")).status == 401
    assert (await stage.ask(headers=(("X_User_Roles", "admin"),))).status == 400
    stage.asked.pop()


async def test_a42_no_caller_chooses_where_a_request_goes(stage: Stage) -> None:
    async with FaultUpstream() as canary:
        place = f"http://127.0.0.1:{canary.port}"
        fields = ",".join(
            f'"{name}":"{place}"'
            for name in ("api_base", "base_url", "url", "host", "endpoint", "proxy", "target", "callback", "webhook")
        )
        headers = tuple(
            (name, place)
            for name in (
                "X-Custom-Host",
                "X-Forwarded-Host",
                "X-Api-Base",
                "X-Original-Url",
                "X-Rewrite-Url",
                "Forwarded",
            )
        )
        for path in ("/api/chat", "/api/generate", "/v1/chat/completions", "/v1/embeddings", "/v1/messages"):
            answer = await stage.ask(path, b'{"model":"m",%b}' % fields.encode(), headers)
            assert answer.status == 200, path
        assert canary.connections == 0
        assert len(stage["a"].requests) == 5
        assert {seen.header("host") for seen in stage["a"].requests} == {f"127.0.0.1:{stage['a'].port}"}


async def test_a43_a_servers_key_goes_to_that_server_alone(stage: Stage) -> None:
    """Retried elsewhere, by alias or by pin: each server gets its own key, and nobody the caller's."""
    stage["a"].script = [Rst()]
    stage["b"].script = OK
    assert (await stage.ask(headers=(ANNA,))).status == 200
    stage["a"].script = OK
    assert (await stage.ask("/api/chat", b'{"model":"m-too"}', (ANNA, ("X-Ollama-Pin-Server", "b")))).status == 200
    assert (await stage.ask("/api/chat", b'{"model":"solo"}', (BEN,))).status == 200
    assert (await stage.ask("/v1/chat/completions", b'{"model":"omni"}', (ANNA,))).status == 200
    for name in ("a", "b", "o"):
        assert stage[name].requests, name
        for seen in stage[name].requests:
            assert seen.all("authorization") == [f"Bearer key-for-{name}"]
            whole = repr(seen.headers) + repr(seen.body)
            assert "key-of-" not in whole
            assert not any(f"key-for-{other}" in whole for other in "abo" if other != name)


HOSTS = (
    "evil.example",
    "evil.example:11434",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "localhost.",
    "xlocalhost",
    "127.0.0.1@evil.example",
)


@pytest.mark.parametrize("host", HOSTS)
async def test_a45_names_that_are_not_ours_are_not_answered(stage: Stage, host: str) -> None:
    """A page whose name was made to lead here (rebinding) gets nothing, of a server or of control."""
    for target in ("/api/chat", "/api/auth/me"):
        method = "POST" if target == "/api/chat" else "GET"
        body = b'{"model":"m"}' if method == "POST" else b""
        data = b"%b %b HTTP/1.1\r\nHost: %b\r\nX-Forwarded-Host: localhost\r\nContent-Length: %d\r\n\r\n%b" % (
            method.encode(), target.encode(), host.encode(), len(body), body,
        )  # fmt: skip
        async with await stage.connect() as client:
            await client.send(data)
            answer = await client.answer(method=method)
        if host == "localhost.":
            assert answer.status in {200, 400, 403}, target
        else:
            assert answer.status in {400, 403}, (target, answer.body)
    if host != "localhost.":
        assert stage.seen() == 0
    await stage.recount()


@pytest.mark.parametrize(
    "name",
    [
        "sha256:../../etc/passwd",
        "../x",
        "sha256:" + "a" * 63,
        "sha256:" + "g" * 64,
        "sha512:" + "a" * 64,
        "sha256:" + "a" * 65,
    ],
)
async def test_a47_blobs_are_named_by_their_digest_or_not_at_all(stage: Stage, name: str) -> None:
    for method in ("POST", "HEAD"):
        async with await stage.connect() as client:
            body = b"weights" if method == "POST" else b""
            head = f"{method} /api/blobs/{name} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            await client.send(head.encode() + body)
            assert (await client.answer(method=method)).status in {400, 404}
    assert stage.seen() == 0
    await stage.recount()


async def test_x18_nothing_of_one_caller_is_kept_for_another(stage: Stage) -> None:
    """The same path asked by an administrator, a key holder and nobody, over and over: each gets his own answer."""
    admin = {"Authorization": "Bearer e2e-admin-key"}
    for _ in range(3):
        seen = await asyncio.to_thread(stage.service.fetch, "GET", "/api/users", b"", admin)
        assert seen[0] == 200
        assert seen[1]["cache-control"] == "no-store"
        assert (await stage.look("/api/users")).status == 401
        tag = {"If-None-Match": seen[1].get("etag", '"x"'), "If-Modified-Since": "Fri, 01 Jan 2100 00:00:00 GMT"}
        stranger = await asyncio.to_thread(stage.service.fetch, "GET", "/api/users", b"", tag)
        assert stranger[0] == 401
