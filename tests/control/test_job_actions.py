from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from fleetproxy.control.job_actions import OPTIONS, Actions, check_options
from fleetproxy.control.server_calls import Refused
from fleetproxy.core.backend import Backend, BackendState, DiskModel, ResidentModel
from fleetproxy.core.jobs import Job
from fleetproxy.errors import BackendError, BadRequest
from fleetproxy.testing.fakes import Fake, Fault, Profile
from fleetproxy.transport.httpx_client import HttpxClient
from fleetproxy.transport.pool import Http1Transport, tls_context

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


class World:
    def __init__(self, fakes: list[Fake], caller: HttpxClient, exports: Path) -> None:
        self.fakes = fakes
        self.seen: list[tuple[Backend, BackendState]] = []
        self.forgotten: list[tuple[datetime, Any]] = []
        self.exported: list[tuple[Any, ...]] = []
        self.actions = Actions(
            self,
            caller,
            Http1Transport(asyncio.get_running_loop(), tls_context),
            exports=exports,
            upkeep=lambda: self,
            now=lambda: NOW,
        )

    def backends(self) -> Sequence[tuple[Backend, BackendState]]:
        return self.seen

    async def apply(self) -> None: ...

    async def forget(self, before: datetime, tables: Collection[str] | None = None) -> int:
        self.forgotten.append((before, tables))
        return 42

    async def export(self, tables: Collection[str], since: datetime, form: str, folder: Path) -> tuple[int, int]:
        self.exported.append((tables, since, form, folder))
        return 7, 2

    def see(
        self,
        number: int,
        *,
        disk: tuple[str, ...] = (),
        memory: tuple[str, ...] = (),
        kind: str = "ollama",
        **fields: object,
    ) -> None:
        url = httpx.URL(self.fakes[number].url)
        backend = Backend(
            name=f"gpu{number}",
            id=number + 1,
            column=number,
            host="127.0.0.1",
            port=url.port or 0,
            kind=kind,
            **fields,  # type: ignore[arg-type]
        )
        state = BackendState(
            online=True,
            on_disk=tuple(DiskModel(name=name) for name in disk),
            resident=tuple(ResidentModel(name=name) for name in memory),
        )
        self.seen.append((backend, state))

    async def do(self, action: str, model: str = "phi", server: int | None = None, **options: object) -> str:
        return await self.actions.run(
            Job(
                id=1,
                name="job",
                source_identifier="test",
                cron_expression="@daily",
                target_model=model,
                preferred_server_id=server,
                action=action,
                action_options=check_options(action, options),
                created_at=NOW,
                updated_at=NOW,
            )
        )

    def asked(self, number: int) -> list[str]:
        return [f"{row.method} {row.target}" for row in self.fakes[number].journal.rows]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    fakes = [
        Fake(Profile(models=("phi:latest", "llama3.2:3b"))),
        Fake(Profile(models=("phi:latest",))),
        Fake(Profile(kind="openai", models=("qwen",))),
    ]
    for fake in fakes:
        await fake.listen()
    caller = HttpxClient()
    yield World(fakes, caller, tmp_path / "exports")
    await caller.aclose()
    for fake in fakes:
        await fake.close()


async def test_a_preload_goes_to_who_holds_the_model_then_to_who_has_it(world: World) -> None:
    world.see(0, disk=("phi:latest",))
    world.see(1, disk=("phi:latest",), memory=("phi:latest",))
    assert await world.do("preload", keepAlive="1h") == "loaded phi on gpu1"
    assert await world.do("preload", server=1) == "loaded phi on gpu0"
    assert (world.asked(0), world.asked(1)) == (["POST /api/generate"], ["POST /api/generate"])


async def test_nobody_who_has_the_model_is_said(world: World) -> None:
    with pytest.raises(BadRequest, match="no fitting server is online"):
        await world.do("preload")
    world.see(0, disk=("llama3.2:3b",))
    with pytest.raises(BadRequest, match="no server that is online has phi"):
        await world.do("preload")
    with pytest.raises(BadRequest, match="its server is offline"):
        await world.do("preload", server=9)
    assert world.asked(0) == []


async def test_servers_in_maintenance_are_left_alone(world: World) -> None:
    world.see(0, disk=("phi:latest",), enabled=False)
    with pytest.raises(BadRequest):
        await world.do("preload")
    assert world.asked(0) == []


async def test_an_unload_goes_wherever_the_model_is_in_memory(world: World) -> None:
    world.see(0, memory=("phi:latest",))
    world.see(1, memory=("phi:latest",))
    assert await world.do("unload") == "unloaded phi on gpu0, gpu1"
    assert await world.do("unload", model="other") == "unloaded other on no server: none had it"


async def test_a_pull_goes_to_the_preferred_server_or_the_one_with_most_room(world: World) -> None:
    world.see(0, vram_bytes=8)
    world.see(1, vram_bytes=24)
    assert await world.do("pull", model="qwen3:4b") == "pulled qwen3:4b on gpu1"
    assert await world.do("pull", model="qwen3:4b", server=1) == "pulled qwen3:4b on gpu0"
    with pytest.raises(Refused, match="file does not exist"):
        await world.do("pull", model="missing:1b")


async def test_a_prompt_is_answered_and_the_answer_is_not_kept(world: World) -> None:
    world.see(0, disk=("phi:latest",))
    world.see(2, disk=("qwen",), memory=("qwen",), kind="openai")
    said = await world.do("prompt", prompt="Say something about canary-prompt")
    assert said.startswith("gpu0 answered with ")
    assert int(said.split()[-2]) > 0
    vllm = await world.do("prompt", model="qwen", prompt="hello")
    assert vllm.startswith("gpu2 answered with ")
    assert "canary" not in said


async def test_a_server_that_breaks_is_an_error_with_words(world: World) -> None:
    world.see(0, disk=("phi:latest",))
    for fault in ("reset_before", "garbage", "cut"):
        world.fakes[0].faults.add(Fault(name=fault, path="/api/generate"))
        with pytest.raises(BackendError) as caught:
            await world.do("preload")
        assert "127.0.0.1" not in str(caught.value)
    world.fakes[0].faults.add(Fault(name="model_missing", path="/api/generate"))
    with pytest.raises(Refused, match="not found"):
        await world.do("preload")


async def test_the_store_is_kept_small_and_exported(world: World, tmp_path: Path) -> None:
    assert await world.do("retention", days=30) == "forgot 42 rows older than 30 days"
    await world.do("retention", days=1, tables=["system_metrics"])
    assert world.forgotten == [(NOW - timedelta(days=30), None), (NOW - timedelta(days=1), ["system_metrics"])]
    assert await world.do("export") == "wrote 7 rows of requests to 2 files in exports/"
    await world.do("export", days=1, tables=["attempts", "job_runs"], format="csv")
    assert world.exported == [
        (["requests"], NOW - timedelta(days=7), "parquet", tmp_path / "exports"),
        (["attempts", "job_runs"], NOW - timedelta(days=1), "csv", tmp_path / "exports"),
    ]


async def test_a_plan_does_nothing(world: World) -> None:
    assert "only a plan" in await world.do("none")


def test_options_are_checked_for_every_action() -> None:
    assert {
        action: check_options(
            action, {"prompt": "x"} if action == "prompt" else {"days": 1} if action == "retention" else None
        )
        for action in OPTIONS
    }
    for action in OPTIONS:
        with pytest.raises(BadRequest):
            check_options(action, {"command": "rm -rf /"})
    with pytest.raises(BadRequest, match="known are"):
        check_options("shell", {})
