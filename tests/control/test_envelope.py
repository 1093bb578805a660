"""The state as nfrx's clients read it: every field by its name, and what it says."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from fleetproxy.control import pages
from fleetproxy.control.bulletin import MAX_WATCHERS, Bulletin, TooManyWatchers
from fleetproxy.control.fleet import Member
from fleetproxy.control.tallies import MAX_BACKENDS, Tallies
from fleetproxy.control.visitors import Visitor
from fleetproxy.control.watch import Watch
from fleetproxy.core.backend import Backend, BackendState, DiskModel, ResidentModel
from fleetproxy.core.record import Attempt, AuditRecord
from fleetproxy.core.worker import Host, Offer, Worker
from fleetproxy.link.messages import Count, Pulse, RelayedCall, RelaysPulse
from fleetproxy.settings import Settings
from fleetproxy.settings.model import Queue

HOSTILE = "<img src=x onerror=alert(1)>\u2028</script>"


class House:
    """What the envelope looks at, set by hand."""

    def __init__(self) -> None:
        self.settings = Settings(queue=Queue(size=7))
        self.servers: list[Member] = []
        self.guests: list[Visitor] = []
        self.relays = RelaysPulse()
        self.loads: dict[int, int] = {}
        self.draining = False
        self.now_s = 1_800_000_000.25
        self.watch = Watch(
            lambda: self.settings,
            self,
            self,
            self,
            draining=lambda: self.draining,
            processes=lambda: ["proxy-0", "hub"],
            wall=lambda: self.now_s,
        )

    def members(self) -> Sequence[Member]:
        return self.servers

    def all(self) -> Sequence[Visitor]:
        return self.guests

    def load(self, column: int) -> int:
        return self.loads.get(column, 0)

    def plugins(self) -> Any:
        made = self.watch.envelope.make()
        assert made.endswith(b"\n")
        return json.loads(made)["plugins"]


def worker(name: str = "gpu", column: int = 3000, family: str = "llm", **offer: Any) -> Worker:
    return Worker(
        id=f"id-{name}",
        name=name,
        family=family,
        column=column,
        version="0.9.6",
        build_sha="abc",
        offer=Offer(**{"models": ("m1", "m2"), "max_concurrency": 2, "embedding_batch_size": 16, **offer}),
        connected_at_s=1_799_999_000.0,
        last_heartbeat_s=1_799_999_990.0,
    )


def server(name: str = "box", *, online: bool = True, **more: Any) -> Member:
    return Member(
        backend=Backend(name=name, id=1, column=1, vram_bytes=10, max_concurrent=4, **more),
        state=BackendState(
            online=online,
            version="0.14",
            on_disk=(DiskModel("m2"),),
            resident=(ResidentModel("m3", 1, 5),),
            polled_at_s=1.5,
        ),
        origin="file",
        metrics_port=None,
        loaded_at_s={},
        in_flight=1,
        waiting=2,
        leaving=False,
    )


def row(
    backend: str = "gpu", *, tokens: tuple[int, int] = (3, 4), errors: Sequence[str | None] = (None,)
) -> AuditRecord:
    attempts = tuple(Attempt(backend=backend, error=error, total_ms=10.0) for error in errors)
    return AuditRecord(
        request_id="r", started_at_us=1, process="proxy-0", sequence=1, source="x", endpoint="/v1/x", method="POST",
        path="/v1/x", backend=backend, attempts=attempts, tokens_in=tokens[0], tokens_out=tokens[1],
    )  # fmt: skip


def test_a_worker_has_every_field_nfrx_gives_it() -> None:
    house = House()
    offer: dict[str, Any] = {"host": Host(hostname="h", os_name="linux", backend_family="ollama")}
    house.guests = [Visitor(worker(**offer), Pulse("llm", "id-gpu", 1_799_999_999.0, 12.5, 0.0, 1, 9, 0))]
    house.loads[3000] = 1
    house.watch.tallies.feed([row(), row(errors=("backend_reset", None))])
    [found] = house.plugins()["llm"]["workers"]
    assert found == {
        "id": "id-gpu",
        "name": "gpu",
        "version": "0.9.6",
        "build_sha": "abc",
        "host_info": {"hostname": "h", "os_name": "linux", "backend_family": "ollama", "worker_version": "0.9.6"},
        "host_cpu_percent": 12.5,
        "status": "working",
        "connected_at": "2027-01-15T07:43:20.000000Z",
        "last_heartbeat": "2027-01-15T07:59:59.000000Z",
        "max_concurrency": 2,
        "embedding_batch_size": 16,
        "input_tokens_total": 6,
        "output_tokens_total": 8,
        "processed_total": 3,
        "processing_ms_total": 30,
        "avg_processing_ms": 10.0,
        "inflight": 1,
        "failures_total": 1,
        "left_total": 0,
        "queue_len": 0,
        "last_error": "backend_reset",
    }


def test_a_caller_who_left_is_no_failure_of_who_was_asked() -> None:
    house = House()
    house.guests = [Visitor(worker(), None)]
    house.watch.tallies.feed([row(), row(errors=("client_gone",)), row(errors=("backend_reset", "aborted"))])
    (found,) = house.plugins()["llm"]["workers"]
    assert (found["processed_total"], found["failures_total"], found["left_total"]) == (4, 1, 2)
    assert found["last_error"] == "backend_reset"
    summary = house.plugins()["llm"]["server"]
    assert (summary["jobs_completed_total"], summary["jobs_failed_total"]) == (1, 1)


def test_the_summary_counts_and_says_how_we_are() -> None:
    house = House()
    assert house.plugins()["llm"]["server"] == {
        "now": "2027-01-15T08:00:00.250000Z",
        "version": house.plugins()["fleet"]["version"],
        "state": "not_ready",
        "uptime_s": 0.0,
        "jobs_inflight_total": 0,
        "jobs_completed_total": 0,
        "jobs_failed_total": 0,
        "scheduler_queue_len": 0,
        "scheduler_queue_capacity": 7,
    }
    house.servers = [server()]
    house.watch.count("hub", Count({}, {"queue_waiting": 5.0}))
    house.watch.count("proxy-0", Count({}, {"exchanges": 2.0}))
    house.watch.count("proxy-1", Count({}, {"exchanges": 1.0}))
    house.watch.tallies.feed([row("box"), row("box", errors=("timeout",))])
    house.now_s += 61.5
    found = house.plugins()
    said = found["llm"]["server"]
    assert (said["state"], said["uptime_s"], said["scheduler_queue_len"]) == ("ready", 61.5, 5)
    assert (said["jobs_inflight_total"], said["jobs_completed_total"], said["jobs_failed_total"]) == (1, 1, 1)
    assert found["server"] == {"drainable_inflight": 3}
    house.watch.left("proxy-1")
    assert house.plugins()["server"] == {"drainable_inflight": 2}
    assert found["asr"]["server"]["scheduler_queue_capacity"] == 0
    assert found["asr"]["server"]["state"] == "not_ready", "servers do not transcribe for us"
    house.watch.count("proxy-0", Count({}, {"draining": 1.0}))
    assert house.plugins()["llm"]["server"]["state"] == "draining"
    house.watch.left("proxy-0")
    assert house.plugins()["llm"]["server"]["state"] == "ready"
    house.draining = True
    assert house.plugins()["llm"]["server"]["state"] == "draining"


@pytest.mark.parametrize(
    ("offer", "busy", "status"),
    [
        ({}, 0, "idle"),
        ({}, 1, "working"),
        ({"max_concurrency": 0}, 0, "not_ready"),
        ({"status": "not_ready"}, 0, "not_ready"),
        ({"status": "draining"}, 1, "draining"),
    ],
)
def test_a_workers_status_follows_from_what_it_offers_and_does(offer: Any, busy: int, status: str) -> None:
    house = House()
    house.guests = [Visitor(worker(**offer))]
    house.loads[3000] = busy
    llm = house.plugins()["llm"]
    assert llm["workers"][0]["status"] == status
    assert llm["workers_summary"] == {
        **dict.fromkeys(("working", "idle", "not_ready", "draining", "gone"), 0),
        status: 1,
        "connected": 1,
    }
    assert (llm["server"]["state"] == "ready") == (status in ("idle", "working"))


def test_a_worker_not_heard_of_since_it_came_is_dated_by_that() -> None:
    house = House()
    house.guests = [Visitor(worker())]
    assert house.plugins()["llm"]["workers"][0]["last_heartbeat"] == "2027-01-15T07:59:50.000000Z"


def test_models_name_everybody_who_has_them() -> None:
    house = House()
    house.guests = [
        Visitor(worker()),
        Visitor(worker("two", 3001, models=("m1",))),
        Visitor(worker("ear", 3002, "asr")),
    ]
    house.servers = [server()]
    found = house.plugins()
    assert found["llm"]["models"] == [
        {"id": "m1", "workers": ["gpu", "two"], "servers": []},
        {"id": "m2", "workers": ["gpu"], "servers": ["box"]},
        {"id": "m3", "workers": [], "servers": ["box"]},
    ]
    assert [one["name"] for one in found["asr"]["workers"]] == ["ear"]
    assert found["fleet"]["workers"] == 3


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({}, "working"),
        ({"online": False}, "not_ready"),
        ({"enabled": False}, "not_ready"),
        ({"draining": True}, "draining"),
    ],
)
def test_servers_stand_beside_workers(more: dict[str, Any], status: str) -> None:
    house = House()
    house.servers = [server(**more)]
    [found] = house.plugins()["llm"]["servers"]
    assert (found["name"], found["status"], found["queue_len"], found["vram_used_bytes"]) == ("box", status, 2, 5)


def test_relays_and_their_calls_have_nfrxs_fields() -> None:
    house = House()
    assert house.plugins()["mcp"] == {"clients": [], "sessions": []}
    house.guests = [Visitor(worker("tools", 3005, "mcp", models=())), Visitor(worker("rest", 3006, "mcp", models=()))]
    house.relays = RelaysPulse(
        (RelayedCall("s1", "id-tools", "tools/call", house.now_s - 1.5), RelayedCall("s2", "id-gone", "ping", 1.0)),
        {"id-tools": {"tools/call": 1, "ping": 0}, "id-gone": {"ping": 1}},
    )
    assert house.plugins()["mcp"] == {
        "clients": [
            {
                "id": "id-tools",
                "name": "tools",
                "status": "active",
                "inflight": 1,
                "functions": {"tools/call": 1, "ping": 0},
            },
            {"id": "id-rest", "name": "rest", "status": "idle", "inflight": 0, "functions": {}},
        ],
        "sessions": [
            {
                "id": "s1",
                "client_id": "id-tools",
                "method": "tools/call",
                "started_at": "2027-01-15T07:59:58.750000Z",
                "duration_ms": 1500,
            }
        ],
    }


def test_families_that_are_off_are_not_there() -> None:
    house = House()
    assert list(house.plugins()) == ["asr", "fleet", "llm", "mcp", "server", "transfer"]
    assert tuple(house.plugins()) == house.watch.envelope.elements()
    house.settings = msgspec.structs.replace(house.settings, plugins=("llm",))
    assert list(house.plugins()) == ["fleet", "llm", "server"]


def test_there_is_a_view_without_script_for_every_element_and_no_other() -> None:
    views = pages.folder("state/views")
    assert set(views) == {f"{element}.html" for element in House().watch.envelope.elements()}
    for view in views.values():
        assert b"<script" not in view.content.lower()
        assert not re.search(rb"<[^>]*\s(?:on\w+|href|src|style)\s*=", view.content)


def test_hostile_names_stay_values() -> None:
    house = House()
    house.guests = [Visitor(worker(HOSTILE, models=(HOSTILE,)))]
    frame = house.watch.bulletin.frame()
    assert frame.count(b"\n") == 2, "one line, whatever names hold"
    said = json.loads(frame.removeprefix(b"data: "))["plugins"]["llm"]
    assert said["workers"][0]["name"] == HOSTILE
    assert said["models"][0] == {"id": HOSTILE, "workers": [HOSTILE], "servers": []}


# --- tallies, bulletin -----------------------------------------------------------------------------------------------


def test_backends_without_end_are_not_counted_without_end() -> None:
    tallies = Tallies()
    tallies.feed([row(str(number)) for number in range(MAX_BACKENDS + 5)])
    assert tallies.of("0").processed == 1
    assert tallies.of(str(MAX_BACKENDS)).processed == 0
    assert tallies.left_out == 10, "an attempt and tokens each"


def test_a_frame_is_made_once_for_all_until_something_changes() -> None:
    clock, made = [0.0], []

    def make() -> bytes:
        made.append(1)
        return b'{"n":%d}\n' % len(made)

    bulletin = Bulletin(make, lambda: clock[0])
    assert bulletin.frame() == bulletin.frame() == b'data: {"n":1}\n\n'
    bulletin.changed()
    assert bulletin.frame() == b'data: {"n":2}\n\n'
    clock[0] += 0.2
    assert bulletin.frame() == b'data: {"n":2}\n\n'
    clock[0] += 0.1
    assert bulletin.frame() == b'data: {"n":3}\n\n'


async def test_watchers_are_bounded() -> None:
    bulletin = Bulletin(lambda: b"{}")
    contexts = [bulletin.watching() for _ in range(MAX_WATCHERS)]
    for context in contexts:
        context.__enter__()
    with pytest.raises(TooManyWatchers), bulletin.watching():
        pass
    contexts.pop().__exit__(None, None, None)
    with bulletin.watching():
        assert bulletin.watchers == MAX_WATCHERS
    assert (bulletin.watchers, bulletin.refused) == (MAX_WATCHERS - 1, 1)
