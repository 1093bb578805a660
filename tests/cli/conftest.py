"""One fleet for all verbs: two Ollama fakes, one that speaks OpenAI's dialect, one dial-in worker, a real service."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from fleetproxy.testing.service import Service
from fleetproxy.testing.spawned import FakeProcess, Spawned, until
from tests.cli.spoken import KEY, SAME, Place


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("cli")
    kinds = {
        "big": {"models": "llama3.2:3b,qwen3:8b,nomic-embed-text", "vram_gb": 48},
        "small": {"models": "llama3.2:3b,phi", "vram_gb": 12},
        "vllm": {"kind": "openai", "models": "meta-llama/Llama-3.1-8B"},
        "behind": {"models": "gemma3:4b"},
    }
    with ExitStack() as stack:
        fakes = {
            name: stack.enter_context(FakeProcess(folder, name, **{**SAME, **options}))
            for name, options in kinds.items()
        }
        servers: dict[str, str | dict[str, Any]] = {
            "big": {"url": fakes["big"].url, "vram_gb": 48},
            "small": {"url": fakes["small"].url, "vram_gb": 12},
            "vllm": {"url": fakes["vllm"].url, "kind": "openai"},
        }
        settings = {"auth": {"admin_key": KEY, "client_key": "worker-key"}}
        service = stack.enter_context(Service(folder / "service", servers, settings=settings))
        words = [sys.executable, "-m", "fleetproxy", "worker", "llm", "--base-url", fakes["behind"].url]
        words += ["--server-url", service.url.replace("http", "ws"), "--client-name", "laptop"]
        words += ["--client-key", "worker-key", "--reconnect"]
        worker = Spawned(words, folder / "worker.log", {"NOTIFY_SOCKET": ""})
        worker.spawn()
        stack.callback(worker.kill)
        until(lambda: service.admin("GET", "/api/state")["plugins"]["llm"]["workers"], 20, "the worker is there")
        until(lambda: "gemma3:4b" in service.names(), 10, "its model is listed")
        yield Place(folder, service, fakes, worker)
        worker.kill()
