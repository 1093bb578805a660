"""Model names: when two spellings mean the same model.

Ollama reads `[host/][namespace/]model[:tag]` with `registry.ollama.ai`, `library` and `latest` as defaults, letters of
either case. OpenAI-compatible servers take names literally; comparing them canonically too only means that a route
remembers the literal name it serves (`Route.model`).
"""

from __future__ import annotations

import re

_REGISTRY = "registry.ollama.ai"
_NAMESPACE = "library"
_TAG = "latest"

#: nfrx's rule: something before the first colon, then a run without `-` or blanks, then optionally `-` and more.
_ALIAS = re.compile(r"([^:]+:[^\s-]+)(?:-.+)?")


def canonical(model: str) -> str:
    """The one spelling under which a model is compared: lower case, defaults dropped, the tag always there.

    `phi`, `Phi:latest` and `registry.ollama.ai/library/phi` give `phi:latest`. A text that is no name in Ollama's sense
    (an empty part) is only lower-cased. Applying it twice changes nothing.
    """
    name = model.lower()
    if "/" not in name:
        return name if ":" in name else f"{name}:{_TAG}" if name else name
    path = name.partition("://")[2] or name
    head, _, last = path.rpartition("/")
    bare, colon, tag = last.partition(":")
    host, _, namespace = head.rpartition("/")
    if not (bare and namespace) or (colon and not tag) or head.startswith("/"):
        return name
    if host == _REGISTRY:
        host = ""
    if not host:
        head = "" if namespace == _NAMESPACE else namespace
    full = last if colon else f"{last}:{_TAG}"
    return f"{head}/{full}" if head else full


def alias_key(model: str) -> str:
    """The key under which models of one size but another quantisation or variant stand in for each other.

    `llama2:7b-q4_0` and `llama2:7b-instruct-fp16` both give `llama2:7b`. Names without a key give "", which never
    equals anything.
    """
    found = _ALIAS.fullmatch(model)
    return found[1] if found else ""
