from __future__ import annotations

import pytest

from fleetproxy.core.backend import DIALECTS, Backend, BackendState, ResidentModel


@pytest.mark.parametrize(
    ("host", "authority"),
    [("10.0.0.1", "10.0.0.1:11434"), ("gpu.local", "gpu.local:11434"), ("::1", "[::1]:11434")],
)
def test_an_authority_has_brackets_where_the_address_has_colons(host: str, authority: str) -> None:
    assert Backend(name="a", id=1, column=1, host=host).authority == authority


def test_only_ollama_speaks_ollama() -> None:
    assert {kind for kind, dialects in DIALECTS.items() if "ollama" in dialects} == {"ollama"}


def test_memory_used_is_that_of_all_models_held() -> None:
    held = tuple(ResidentModel(name=str(size), size_vram_bytes=size) for size in (1, 2, 4))
    assert BackendState(resident=held).vram_used_bytes == 7
    assert BackendState().vram_used_bytes == 0
