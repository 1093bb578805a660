"""The file that `fleetproxy init` writes: small, with remarks, and good as it is."""

from __future__ import annotations

import json

import msgspec


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """What was answered."""

    #: Name, URL and kind of each server.
    servers: tuple[tuple[str, str, str], ...] = ()
    #: Other machines may reach it, with a key.
    network: bool = False
    api_key: str = ""
    client_key: str = ""


def starter(answers: Answers) -> str:
    """The configuration."""
    host = "0.0.0.0" if answers.network else "127.0.0.1"  # noqa: S104
    lines = [
        "# fleetproxy. Every setting: `fleetproxy config schema`, or docs/reference/settings.md.",
        "# Check it: `fleetproxy config check`. Read it again while it runs: kill -HUP.",
        "",
        "# Whom it listens to: 127.0.0.1 is this machine alone, 0.0.0.0 everybody who gets here.",
        f'host = "{host}"',
        "# Ollama's own port, so that clients need no change.",
        "port = 11434",
    ]
    if answers.network or answers.client_key:
        lines += ["", "[auth]"]
    if answers.network:
        lines += ["# Callers show it: Authorization: Bearer <key>.", f"api_key = {_text(answers.api_key)}"]
    if answers.client_key:
        lines += [
            "# Workers show it: fleetproxy worker llm --client-key <key> --server-url <address of this one>.",
            f"client_key = {_text(answers.client_key)}",
        ]
    if not answers.servers:
        lines += [
            "",
            "# A server of yours; kind is ollama, or openai for vLLM, llama.cpp and the like.",
            "# [[servers]]",
            '# name = "gpu1"',
            '# url = "http://10.0.0.5:11434"',
            "# vram_gb = 24",
        ]
    for name, url, kind in answers.servers:
        lines += ["", "[[servers]]", f"name = {_text(name)}", f"url = {_text(url)}"]
        lines += (
            [f"kind = {_text(kind)}"]
            if kind != "ollama"
            else ["# Video memory in GiB decides who is asked for models nobody lists.", "# vram_gb = 24"]
        )
    return "\n".join(lines) + "\n"


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)
