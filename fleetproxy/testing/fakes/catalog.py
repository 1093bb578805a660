"""The models fakes serve: sizes, digests, capabilities. Known names have the real ones' figures; others are guessed."""

from __future__ import annotations

import hashlib
import re

import msgspec

GB = 1_000_000_000


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One model on a fake's disk."""

    name: str
    size_bytes: int
    #: Hex SHA-256 without a prefix.
    digest: str
    family: str = "llama"
    parameter_size: str = "8.0B"
    quantization: str = "Q4_K_M"
    #: Ollama's words: completion, tools, vision, thinking, embedding, insert.
    capabilities: tuple[str, ...] = ("completion", "tools")
    context_length: int = 131_072
    #: Length of an embedding vector.
    dimensions: int = 4096
    modified_at: str = "2026-01-15T09:30:00.123456789Z"

    @property
    def embeds_only(self) -> bool:
        return "completion" not in self.capabilities

    @property
    def tokens_per_s(self) -> float:
        """Generation speed at speed 1: about what one mid-range GPU gives for this size."""
        return max(8.0, min(240.0, 380.0 * GB / max(self.size_bytes, 1)))


#: name -> (size in GB, family, parameters, capabilities, context, dimensions)
KNOWN: dict[str, tuple[float, str, str, tuple[str, ...], int, int]] = {
    "llama3.2:1b": (1.3, "llama", "1.2B", ("completion", "tools"), 131_072, 2048),
    "llama3.2:3b": (2.0, "llama", "3.2B", ("completion", "tools"), 131_072, 3072),
    "llama3.1:8b": (4.9, "llama", "8.0B", ("completion", "tools"), 131_072, 4096),
    "llama3.3:70b": (42.5, "llama", "70.6B", ("completion", "tools"), 131_072, 8192),
    "qwen3:8b": (5.2, "qwen3", "8.2B", ("completion", "tools", "thinking"), 40_960, 4096),
    "gpt-oss:20b": (13.8, "gptoss", "20.9B", ("completion", "tools", "thinking"), 131_072, 2880),
    "gemma3:4b": (3.3, "gemma3", "4.3B", ("completion", "vision"), 131_072, 2560),
    "qwen2.5-coder:7b": (4.7, "qwen2", "7.6B", ("completion", "tools", "insert"), 32_768, 3584),
    "phi:latest": (1.6, "phi2", "2.8B", ("completion",), 2048, 2560),
    "nomic-embed-text:latest": (0.274, "nomic-bert", "137M", ("embedding",), 2048, 768),
    "mxbai-embed-large:latest": (0.670, "bert", "334M", ("embedding",), 512, 1024),
}


def full_name(name: str) -> str:
    """`m`, `m:latest`, `library/m` and registry-qualified forms are one model to Ollama, in any case of letters."""
    for prefix in ("registry.ollama.ai/", "library/"):
        name = name.removeprefix(prefix)
    return (name if ":" in name.rpartition("/")[2] else f"{name}:latest").lower()


def make(spec: str, *, exact: bool = False) -> Model:
    """A model from `name[=size in GB][#variant]`; another variant has another digest under the same name.

    `exact` keeps the name as written (OpenAI-compatible servers); else an absent tag becomes `:latest`.
    """
    rest, _, variant = spec.partition("#")
    name, _, size = rest.partition("=")
    if not exact and ":" not in name.rpartition("/")[2]:
        name = f"{name}:latest"
    gigabytes, family, parameters, capabilities, context, dimensions = KNOWN.get(full_name(name)) or _guess(name)
    return Model(
        name=name,
        size_bytes=int(float(size or gigabytes) * GB),
        digest=hashlib.sha256(f"{full_name(name)}#{variant}".encode()).hexdigest(),
        family=family,
        parameter_size=parameters,
        capabilities=capabilities,
        context_length=context,
        dimensions=dimensions,
    )


def _guess(name: str) -> tuple[float, str, str, tuple[str, ...], int, int]:
    low = name.lower()
    if "embed" in low or "bge" in low:
        return KNOWN["nomic-embed-text:latest"]
    found = re.search(r"(\d+(?:\.\d+)?)b\b", low)
    billions = float(found.group(1)) if found else 3.0
    extra = tuple(
        word
        for word, marks in {
            "tools": ("",),
            "vision": ("vision", "-vl", "llava", "gemma"),
            "thinking": ("qwen3", "r1", "think", "gpt-oss"),
        }.items()
        if any(mark in low for mark in marks)
    )
    return (billions * 0.62, "llama", f"{billions:.1f}B", ("completion", *extra), 32_768, 4096)
