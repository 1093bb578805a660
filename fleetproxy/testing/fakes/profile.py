"""What one fake is: kind, models, seed, pace, memory. A value; everything a fake does follows from it."""

from __future__ import annotations

from typing import Literal

import msgspec

Kind = Literal["ollama", "openai", "llamacpp", "asr"]


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one fake server. Sizes in GB are 10^9 bytes; times are seconds."""

    kind: Kind = "ollama"
    name: str = "fake"
    #: Model specs: `name[=size in GB][#variant]`.
    models: tuple[str, ...] = ("llama3.2:3b", "nomic-embed-text")
    seed: int = 0
    #: Multiplies token, prefill and load speed; 0 means no waiting at all.
    speed: float = 0.0
    vram_gb: float = 24.0
    #: Requests of one model that run at once (OLLAMA_NUM_PARALLEL); embedding models on Ollama always have 1.
    slots: int = 4
    #: Requests that may wait for a model to load (OLLAMA_MAX_QUEUE); more get 503.
    queue: int = 512
    keep_alive: str = "5m"
    version: str = "0.14.3"
    #: Seconds since the epoch that every timestamp starts from; None takes the wall clock.
    epoch_s: float | None = None
    #: Signed-in account name for /api/me; None answers 401 as a signed-out host does.
    account: str | None = None
    #: Refuse Host names that are not local with 403, as a loopback Ollama does.
    check_host: bool = True
    #: Bearer token this server demands; None takes everybody.
    api_key: str | None = None
