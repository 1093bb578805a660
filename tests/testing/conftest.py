"""Fakes of every kind, on free ports, in the test's own event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from fleetproxy.testing.fakes import Fake, Profile

MODELS = ("llama3.2:3b", "qwen3:8b", "gemma3:4b", "nomic-embed-text")


@pytest.fixture
async def ollama() -> AsyncIterator[Fake]:
    async with Fake(Profile(models=MODELS, seed=7)) as fake:
        yield fake
        assert not fake.crashes
        assert not fake.http.bad_messages


@pytest.fixture
async def vllm() -> AsyncIterator[Fake]:
    async with Fake(Profile(kind="openai", models=("meta-llama/Llama-3.1-8B", "bge-embed"), seed=7)) as fake:
        yield fake
        assert not fake.crashes
        assert not fake.http.bad_messages


@pytest.fixture
async def llamacpp() -> AsyncIterator[Fake]:
    async with Fake(Profile(kind="llamacpp", models=("tiny-1b",), seed=7)) as fake:
        yield fake
        assert not fake.crashes
        assert not fake.http.bad_messages
