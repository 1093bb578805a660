"""Faults of dial-in workers (W): each case of the catalogue by its number. Most are tested at the hub itself, in
`tests/hub`; here are those that need the whole service."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from fleetproxy.testing.spawned import until
from tests.e2e.fault_cases import rounds
from tests.e2e.nfrx_rows import BEARER, CHAT, Agent, Rows, chat

pytestmark = pytest.mark.asyncio(loop_scope="module")

_HUB, _WIRE = "tests/hub/test_nfrx_workers.py::", "tests/hub/test_sockets.py::"
CASES = {
    "W-1": _HUB + "test_silence_after_the_handshake_is_closed_at_the_deadline",
    "W-2": _HUB + "test_who_does_not_register_first_is_closed_1008",
    "W-3": _HUB + "test_the_client_key_opens_from_header_or_message",
    "W-4": _HUB + "test_foreign_pages_stay_outside",
    "W-5": _HUB + "test_the_same_id_again_supersedes_and_the_old_sockets_end_changes_nothing",
    "W-6": _HUB + "test_w06_an_id_stays_with_the_key_it_came_by",
    "W-8": _HUB + "test_absurd_concurrencies_are_clamped",
    "W-10": _HUB + "test_a_lost_worker_fails_its_requests_at_once",
    "W-11": "tests/e2e/test_faults_dialin.py::test_a_killed_worker_breaks_its_streams_and_no_others",
    "W-12": "test_w12_heartbeats_do_not_keep_a_request_waiting",
    "W-13": "tests/e2e/test_faults_dialin.py::test_w13_a_caller_that_does_not_read_slows_nobody_elses_stream",
    "W-14": _WIRE + "test_a_worker_that_does_not_read_gets_nothing_more_and_is_dropped_after_a_while",
    "W-15": "tests/e2e/test_nfrx_rows.py::test_row6_a_caller_that_leaves_cancels_and_is_answered_by_silence",
    "W-16": _HUB + "test_messages_out_of_order_are_ignored_and_counted",
    "W-17": _HUB + "test_a_worker_cannot_answer_another_workers_request",
    "W-18": _HUB + "test_data_that_is_not_base64_fails_that_request_alone",
    "W-20": _HUB + "test_drain_lets_what_runs_finish_and_gives_nothing_new",
    "W-22": _HUB + "test_impossible_statuses_fail_that_request_alone",
    "W-24": _WIRE + "test_malformed_frames_close_that_socket_with_the_right_code",
    "W-26": _WIRE + "test_a_message_over_a_megabyte_costs_that_worker_its_socket",
    "W-29": "tests/e2e/test_faults_floods.py::test_w29_a_flood_of_messages_is_closed_and_slows_nobody",
    "W-30": "tests/e2e/test_faults_floods.py::test_w30_pings_without_end_are_cut_off_and_slow_nobody",
    "W-31": "tests/e2e/test_faults_floods.py::test_w31_all_workers_come_back_at_once",
    "W-34": "tests/e2e/test_faults_mcp.py::test_w34_a_relay_that_has_its_id_is_known_to_every_process",
}


async def test_w12_heartbeats_do_not_keep_a_request_waiting(rows: Rows) -> None:
    """A worker that lives and does not answer: the request's own clock ends it, and the worker is told."""
    async with rows.agent("w12") as agent:
        began_s = time.monotonic()
        asking = asyncio.ensure_future(rows.ask(CHAT, chat("w12")))
        order = await agent.order()
        while not asking.done():
            await agent.socket.say(type="heartbeat", ts=int(time.time()))
            await asyncio.wait({asking}, timeout=0.1)
        answer = await asking
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (504, "timeout")
        assert 0.9 < time.monotonic() - began_s < 5.0, "timeouts.first_byte_s is 1 here"
        assert await agent.socket.listen() == {"type": "http_proxy_cancel", "request_id": order["request_id"]}


@pytest.mark.parametrize("family", ["llm", "asr"])
async def test_w34_a_model_that_was_listed_once_is_known_to_every_process(rows: Rows, family: str) -> None:
    bearer = dict(BEARER)
    for number in range(rounds(5, 50)):
        model = f"w34-{number}"
        async with await rows.dial(family) as socket:
            await Agent(socket).register(model, [model])
            listed = lambda: model.encode() in rows.service.fetch("GET", f"/api/{family}/v1/models", None, bearer)[2]  # noqa: E731, B023
            await asyncio.to_thread(until, listed, 5.0, "listed")
            for _ in range(4):
                status, _, _ = await asyncio.to_thread(
                    rows.service.fetch, "GET", f"/api/{family}/v1/models/{model}", None, bearer
                )
                assert status == 200
            if family == "llm":
                agent = Agent(socket)
                for _ in range(4):
                    asking = asyncio.ensure_future(rows.ask(CHAT, chat(model)))
                    await agent.answer(await agent.order(), b"{}")
                    assert (await asking).status == 200
