from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from control_plane import Control

from fleetproxy.control.state import jobs as rows
from fleetproxy.core.backend import Backend, BackendState, DiskModel

GIB = 1024**3
JOB = {
    "name": " nightly ",
    "sourceIdentifier": "app",
    "cronExpression": "30 2 * * *",
    "targetModel": "llama3.2:3b",
}


async def add(admin: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await admin.post("/api/scheduled-jobs", json={**JOB, **fields})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def test_a_job_is_created_listed_changed_and_deleted(control: Control) -> None:
    admin = await control.admin()
    await control.services.register_servers(["gpu1"])
    made = await add(admin, preferredServerId="1", expectedDurationMs="90000", timezone="Europe/Berlin")
    assert made == {
        "id": 1,
        "name": "nightly",
        "description": None,
        "sourceIdentifier": "app",
        "cronExpression": "30 2 * * *",
        "timezone": "Europe/Berlin",
        "targetModel": "llama3.2:3b",
        "preferredServerId": 1,
        "preferredServerName": "gpu1",
        "expectedDurationMs": 90000,
        "isEnabled": True,
        "nextExecutions": [f"2026-11-0{day}T01:30:00.000Z" for day in range(2, 7)],
        "createdAt": "2026-11-01T12:00:00.000Z",
        "updatedAt": "2026-11-01T12:00:00.000Z",
        "cronDescription": "Daily at 02:30",
        "action": "none",
        "actionOptions": {},
        "overlap": "skip",
        "misfireGraceSeconds": 300,
        "conflicts": [],
    }
    control.clock.pass_(minutes=1)
    changed = await admin.put(
        "/api/scheduled-jobs/1", json={"isEnabled": False, "id": 9, "createdAt": "x", "unknown": 1}
    )
    assert changed.status_code == 200
    assert changed.json()["isEnabled"] is False
    assert changed.json()["updatedAt"] == "2026-11-01T12:01:00.000Z"
    assert "conflicts" not in changed.json()
    assert (await admin.get("/api/scheduled-jobs/1")).json() == changed.json()
    assert (await admin.delete("/api/scheduled-jobs/1")).json() == {"success": True, "id": 1}
    assert (await admin.get("/api/scheduled-jobs/1")).status_code == 404
    assert (await admin.get("/api/scheduled-jobs")).json() == []


async def test_lists_are_newest_first_and_filtered(control: Control) -> None:
    admin = await control.admin()
    for number, model in enumerate(["phi", "llama", "phi"]):
        control.clock.pass_(seconds=1)
        await add(admin, name=f"job {number}", targetModel=model)
    await admin.put("/api/scheduled-jobs/1", json={"isEnabled": False})

    async def names(query: str = "") -> list[str]:
        return [job["name"] for job in (await admin.get(f"/api/scheduled-jobs{query}")).json()]

    assert await names() == ["job 2", "job 1", "job 0"]
    assert await names("?enabled=true") == ["job 2", "job 1"]
    assert await names("?enabled=yes") == ["job 2", "job 1", "job 0"]
    assert await names("?model=phi&enabled=true") == ["job 2"]
    assert await names("?model=other") == []


@pytest.mark.parametrize("missing", ["name", "sourceIdentifier", "cronExpression", "targetModel"])
@pytest.mark.parametrize("value", [None, "", "  ", 5])
async def test_four_fields_are_required(control: Control, missing: str, value: object) -> None:
    admin = await control.admin()
    answer = await admin.post("/api/scheduled-jobs", json={**JOB, missing: value})
    assert (answer.status_code, answer.json()) == (
        400,
        {"error": "Missing required fields: name, sourceIdentifier, cronExpression, targetModel"},
    )


@pytest.mark.parametrize("expression", ["x", "* * * *", "@reboot", "0 0 30 2 *", "60 * * * *", "* * * * * * *"])
async def test_expressions_are_checked(control: Control, expression: str) -> None:
    admin = await control.admin()
    for answer in (
        await admin.post("/api/scheduled-jobs", json={**JOB, "cronExpression": expression}),
        await admin.put(f"/api/scheduled-jobs/{(await add(admin))['id']}", json={"cronExpression": expression}),
    ):
        assert (answer.status_code, answer.json()) == (400, {"error": "Invalid cron expression"})


UNFIT = [
    {"timezone": "Mars/Olympus"},
    {"timezone": 5},
    {"preferredServerId": 99},
    {"isEnabled": "yes"},
    {"name": "x" * 300},
    {"description": 5},
    {"action": "explode"},
    {"action": "prompt"},
    {"action": "prompt", "actionOptions": {"prompt": "hi", "shell": "rm"}},
    {"action": "preload", "actionOptions": {"keepAlive": "$(id)"}},
    {"action": "retention", "actionOptions": {"days": 0}},
    {"actionOptions": {"days": 3}},
    {"overlap": "maybe"},
    {"misfireGraceSeconds": -1},
    {"misfireGraceSeconds": 1e9},
]


@pytest.mark.parametrize("fields", UNFIT, ids=str)
async def test_unfit_fields_are_named_and_change_nothing(control: Control, fields: dict[str, object]) -> None:
    admin = await control.admin()
    assert (await admin.post("/api/scheduled-jobs", json={**JOB, **fields})).status_code == 400
    job = await add(admin)
    answer = await admin.put(f"/api/scheduled-jobs/{job['id']}", json=fields)
    assert answer.status_code == 400
    assert answer.json()["error"]
    del job["conflicts"]
    assert (await admin.get(f"/api/scheduled-jobs/{job['id']}")).json() == job


@pytest.mark.parametrize(
    ("sent", "kept"),
    [(None, 60000), ("abc", 60000), (0, 60000), (-5, 60000), ("120000", 120000), (1e15, 604800000), (True, 60000)],
)
async def test_durations_are_read_leniently(control: Control, sent: object, kept: int) -> None:
    admin = await control.admin()
    assert (await add(admin, expectedDurationMs=sent))["expectedDurationMs"] == kept


async def test_everybody_signed_in_reads_only_administrators_change(control: Control) -> None:
    admin = await control.admin()
    bob = await control.user(admin, "bob")
    await add(admin)
    forged = control.browser()
    forged.cookies.set("fleet_session", "anything")
    for method, path, payload in [
        ("POST", "", JOB),
        ("PUT", "/1", {"isEnabled": False}),
        ("DELETE", "/1", None),
        ("POST", "/1/run", None),
        ("GET", "/discover", None),
        ("POST", "/discover", None),
    ]:
        assert (await bob.request(method, f"/api/scheduled-jobs{path}", json=payload)).status_code == 403
        assert (await forged.request(method, f"/api/scheduled-jobs{path}", json=payload)).status_code == 401
    for path in ("", "/1", "/1/runs", "/timeline", "/suggestions?model=x", "/validate?cronExpression=@daily"):
        assert (await bob.get(f"/api/scheduled-jobs{path}")).status_code == 200
        assert (await forged.get(f"/api/scheduled-jobs{path}")).status_code == 401


# --- the plan ------------------------------------------------------------------------------------------------------


async def test_a_new_job_tells_its_conflicts(control: Control) -> None:
    admin = await control.admin()
    await add(admin, name="first", cronExpression="0 13 * * *", expectedDurationMs=600_000)
    await add(admin, name="elsewhere", cronExpression="0 20 * * *")
    made = await add(admin, name="second", cronExpression="8 13 * * *")
    assert made["conflicts"] == [
        {
            "startTime": "2026-11-01T13:00:00.000Z",
            "endTime": "2026-11-01T13:10:00.000Z",
            "jobs": [
                {"jobId": 1, "jobName": "first", "targetModel": "llama3.2:3b"},
                {"jobId": 3, "jobName": "second", "targetModel": "llama3.2:3b"},
            ],
            "conflictType": "same_model",
            "serverId": None,
            "exceedsMemory": False,
        }
    ]


async def test_conflicts_heed_servers_and_their_memory(control: Control) -> None:
    await control.services.register_servers(("gpu1", "gpu2"))
    on_disk = (DiskModel(name="llama3.2:3b", size_bytes=6 * GIB), DiskModel(name="phi:latest", size_bytes=5 * GIB))
    state = BackendState(online=True, on_disk=on_disk)
    control.fleet.seen = [(Backend(name=f"gpu{n}", id=n, column=n, vram_bytes=8 * GIB), state) for n in (1, 2)]
    admin = await control.admin()
    await add(admin, name="one", cronExpression="0 13 * * *", expectedDurationMs=3_600_000, preferredServerId=1)
    elsewhere = await add(admin, name="elsewhere", cronExpression="0 13 * * *", preferredServerId=2)
    assert elsewhere["conflicts"] == []
    crowded = await add(admin, name="crowded", cronExpression="30 13 * * *", targetModel="phi", preferredServerId=1)
    (found,) = crowded["conflicts"]
    assert (found["conflictType"], found["serverId"], found["exceedsMemory"]) == ("time_overlap", 1, True)
    assert [job["jobName"] for job in found["jobs"]] == ["one", "crowded"]
    assert (await admin.get("/api/scheduled-jobs/timeline")).json()["conflicts"] == [found]
    unknown = await add(admin, name="unknown", cronExpression="50 13 * * *", targetModel="new", preferredServerId=1)
    assert unknown["conflicts"] == []


async def test_the_timeline_shows_runs_and_marks_conflicts(control: Control) -> None:
    admin = await control.admin()
    await add(admin, name="a", cronExpression="0 * * * *", targetModel="phi")
    await add(admin, name="b", cronExpression="3 13 * * *", targetModel="llama")
    await add(admin, name="off", cronExpression="* * * * *", isEnabled=False)
    shown = (await admin.get("/api/scheduled-jobs/timeline?hours=3")).json()
    assert [(run["jobName"], run["startTime"][11:16], run["isConflict"]) for run in shown["executions"]] == [
        ("a", "12:00", False),
        ("a", "13:00", True),
        ("b", "13:03", True),
        ("a", "14:00", False),
    ]
    assert set(shown["executions"][0]) == {
        "jobId", "jobName", "sourceIdentifier", "targetModel", "startTime", "endTime", "isConflict",
    }  # fmt: skip
    assert [conflict["conflictType"] for conflict in shown["conflicts"]] == ["time_overlap"]
    assert shown["completeUntil"] is None


@pytest.mark.parametrize(("hours", "last"), [("1", 0), ("x", 23), ("-4", 23), ("0", 23), ("9999999", 167), ("2.9", 1)])
async def test_hours_are_read_leniently_and_bounded(control: Control, hours: str, last: int) -> None:
    admin = await control.admin()
    await add(admin, cronExpression="0 * * * *")
    runs = (await admin.get("/api/scheduled-jobs/timeline", params={"hours": hours})).json()["executions"]
    assert runs[-1]["startTime"] == (datetime(2026, 11, 1, 12, tzinfo=UTC) + timedelta(hours=last)).strftime(
        "%Y-%m-%dT%H:%M:%S.000Z"
    )


async def test_suggestions_are_in_nobodys_way(control: Control) -> None:
    admin = await control.admin()
    await add(admin, cronExpression="0 13 * * *", targetModel="phi", expectedDurationMs=3_600_000)
    await add(admin, cronExpression="28 12 * * *", targetModel="other")
    asked = (await admin.get("/api/scheduled-jobs/suggestions?model=phi&durationMs=60000")).json()["openSlots"]
    assert [slot["startTime"][11:16] for slot in asked] == [
        "12:00", "14:00", "14:30", "15:00", "15:30", "16:00", "16:30", "17:00", "17:30", "18:00",
    ]  # fmt: skip
    assert asked[0] == {
        "startTime": "2026-11-01T12:00:00.000Z",
        "endTime": "2026-11-01T12:01:00.000Z",
        "durationMs": 60000,
    }
    missing = await admin.get("/api/scheduled-jobs/suggestions?durationMs=5")
    assert (missing.status_code, missing.json()) == (400, {"error": "Missing required parameter: model"})


async def test_an_expression_can_be_tried(control: Control) -> None:
    admin = await control.admin()
    params = {"cronExpression": "0 9 * * mon", "timezone": "America/New_York"}
    assert (await admin.get("/api/scheduled-jobs/validate", params=params)).json() == {
        "valid": True,
        "error": None,
        "description": "Every Monday at 09:00",
        "nextExecutions": [f"2026-11-{day:02d}T14:00:00.000Z" for day in (2, 9, 16, 23, 30)],
    }
    bad = (await admin.get("/api/scheduled-jobs/validate?cronExpression=1")).json()
    assert bad["valid"] is False
    assert bad["error"]


async def test_a_job_whose_zone_went_away_is_shown_without_times(control: Control) -> None:
    admin = await control.admin()
    await add(admin)
    await control.services.store.write(rows.change, 1, {"timezone": "Gone/Away"}, control.clock.now())
    shown = (await admin.get("/api/scheduled-jobs/1")).json()
    assert (shown["nextExecutions"], shown["cronDescription"]) == ([], None)
    assert (await admin.get("/api/scheduled-jobs/timeline")).json()["executions"] == []


async def test_many_questions_about_the_plan_are_refused_not_queued(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin = await control.admin()
    monkeypatch.setattr("fleetproxy.control.api.jobs.PLANNING_WAITING", 2)
    gate = control.services.planning_slots
    await gate.acquire()
    await gate.acquire()
    waiting = [asyncio.create_task(admin.get("/api/scheduled-jobs/timeline")) for _ in range(2)]
    while control.services.planning_waiting < 2:
        await asyncio.sleep(0.001)
    assert (await admin.get("/api/scheduled-jobs/timeline")).status_code == 429
    gate.release()
    gate.release()
    assert [answer.status_code for answer in await asyncio.gather(*waiting)] == [200, 200]


# --- running -------------------------------------------------------------------------------------------------------


async def test_a_job_is_run_by_hand_and_its_run_written_down(control: Control) -> None:
    admin = await control.admin()
    await add(admin, name="load", action="preload")
    answer = await admin.post("/api/scheduled-jobs/1/run")
    assert (answer.status_code, answer.json()) == (202, {"runId": 1, "status": "running"})
    for _ in range(200):
        (run,) = (await admin.get("/api/scheduled-jobs/1/runs")).json()
        if run["outcome"] != "running":
            break
        await asyncio.sleep(0.01)
    assert run == {
        "id": 1,
        "jobId": 1,
        "scheduledFor": None,
        "startedAt": "2026-11-01T12:00:00.000Z",
        "finishedAt": "2026-11-01T12:00:00.000Z",
        "outcome": "failed",
        "detail": "no fitting server is online",
        "triggeredBy": "root",
    }


async def test_a_plan_cannot_be_run(control: Control) -> None:
    admin = await control.admin()
    await add(admin)
    answer = await admin.post("/api/scheduled-jobs/1/run")
    assert answer.status_code == 400
    assert "only a plan" in answer.json()["error"]
    for path in ("/7/run", "/x/run"):
        assert (await admin.post(f"/api/scheduled-jobs{path}")).status_code in (400, 404)
    assert (await admin.get("/api/scheduled-jobs/7/runs")).status_code == 404


async def test_changing_the_action_takes_its_options_along(control: Control) -> None:
    admin = await control.admin()
    await add(admin, action="prompt", actionOptions={"prompt": "hi"})
    kept = (await admin.put("/api/scheduled-jobs/1", json={"name": "renamed"})).json()
    assert kept["actionOptions"] == {"prompt": "hi", "timeoutS": 600.0}
    changed = (await admin.put("/api/scheduled-jobs/1", json={"action": "unload"})).json()
    assert (changed["action"], changed["actionOptions"]) == ("unload", {})
