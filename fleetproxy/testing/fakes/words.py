"""Deterministic content: text, JSON, vectors and ids from a seed and a prompt. Pure."""

from __future__ import annotations

import hashlib
import math
import re
import struct
from collections.abc import Iterator
from typing import Any

#: Some beyond ASCII, so that a proxy which cuts inside a character or re-encodes is caught.
_TEXT = """
the a of and to in is that it as for with on by at from this be are or an model fleet server token stream answer
question river mountain light garden winter summer quiet careful simple bright deep open small large paper glass
stone copper signal engine bridge harbour window letter number pattern balance reason memory weather city train
café naïve Zürich 東京 こんにちは Привет über façade → ✓ 🙂 🚀 λ ∑
"""
WORDS = _TEXT.split()


def draw(*parts: object) -> Iterator[int]:
    """An endless row of 32-bit numbers that depends on nothing but the parts."""
    key = hashlib.blake2b("\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass"), digest_size=32).digest()
    block = 0
    while True:
        yield from struct.unpack("<16I", hashlib.blake2b(block.to_bytes(8, "little"), key=key).digest())
        block += 1


def tokens(seed: int, model: str, prompt: str, count: int | None = None) -> list[str]:
    """An answer as tokens; the same seed, model and prompt give the same ones, and a smaller count a prefix."""
    numbers = draw(seed, model, prompt)
    total = 12 + next(numbers) % 36 if count is None else count
    out = []
    for index in range(total):
        word = WORDS[next(numbers) % len(WORDS)]
        if index == 0:
            out.append(word.capitalize())
        elif next(numbers) % 11 == 0:
            out.append(f", {word}")
        else:
            out.append(f" {word}")
    return out


def natural_length(seed: int, model: str, prompt: str) -> int:
    """How many tokens an answer has when nothing limits it."""
    return 12 + next(draw(seed, model, prompt)) % 36


def split_text(text: str) -> list[str]:
    """Text cut into token-like pieces that join to it again."""
    return re.findall(r"\s*\S+|\s+$", text) if text else []


def count_tokens(text: str) -> int:
    """Prompt tokens of a text: about four characters each, never zero for a non-empty text."""
    return (len(text) + 3) // 4


def vector(seed: int, model: str, text: str, dimensions: int, *, normalise: bool = True) -> list[float]:
    """An embedding; float32 values, of length 1 when normalised."""
    key = "\x1f".join((str(seed), model, "embedding", text)).encode("utf-8", "surrogatepass")
    numbers = struct.unpack(f"<{dimensions}I", hashlib.shake_128(key).digest(4 * dimensions))
    raw = [number / 2**31 - 1.0 for number in numbers]
    if normalise:
        length = math.sqrt(sum(value * value for value in raw)) or 1.0
        raw = [value / length for value in raw]
    return list(struct.unpack(f"<{dimensions}f", struct.pack(f"<{dimensions}f", *raw)))


def identifier(seed: int, *parts: object, length: int = 24) -> str:
    """A hexadecimal id."""
    return hashlib.blake2b("\x1f".join(map(str, (seed, *parts))).encode(), digest_size=16).hexdigest()[:length]


def from_schema(schema: Any, numbers: Iterator[int], depth: int = 0) -> Any:
    """A value that satisfies the common parts of a JSON schema."""
    if not isinstance(schema, dict) or depth > 8:
        return {}
    if schema.get("enum"):
        return schema["enum"][next(numbers) % len(schema["enum"])]
    if "const" in schema:
        return schema["const"]
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = next((word for word in kind if word != "null"), "null")
    match kind:
        case "object":
            properties = schema.get("properties") or {}
            return {name: from_schema(part, numbers, depth + 1) for name, part in properties.items()}
        case "array":
            return [from_schema(schema.get("items") or {"type": "string"}, numbers, depth + 1) for _ in range(2)]
        case "integer":
            return int(schema.get("minimum", 0)) + next(numbers) % 90
        case "number":
            return float(schema.get("minimum", 0)) + (next(numbers) % 900) / 10
        case "boolean":
            return bool(next(numbers) % 2)
        case "null":
            return None
    return " ".join(WORDS[next(numbers) % len(WORDS)] for _ in range(2))
