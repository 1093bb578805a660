"""Environment names of the programs people come from: read as they are, where no setting of our own says otherwise.

They rank below the configuration file: a name as plain as PORT or API_KEY may stand in an environment for many reasons,
a key in our file has only one.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from fleetproxy.settings.servers import BadAddress, check_host, parse_url, short_server

Tree = dict[str, Any]
_DURATION = re.compile(r"([0-9]*\.?[0-9]+)(ns|us|µs|ms|s|m|h)")
_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
#: What "for ever" becomes: a week.
FOR_EVER_S = 7 * 24 * 3600.0
_LEVELS = {"trace": "all", "off": "none", "disabled": "none"}
_KNOWN_LEVELS = {"all", "debug", "info", "warn", "warning", "error", "fatal", "none"}
_BUILT_IN_FAMILIES = ("llm", "asr", "mcp", "transfer")


class Ancestor(msgspec.Struct, frozen=True):
    """One variable of another program."""

    name: str
    #: Dotted keys of ours it sets, all to the same value; "" when `read` gives a tree of several.
    keys: tuple[str, ...]
    #: Text of the variable -> our value; raises ValueError with what it wants.
    read: Callable[[str], Any]
    secret: bool = False


def seconds(text: str) -> float:
    """A Go duration ("1m30s") or a plain number of seconds; negative means for ever."""
    text = text.strip()
    try:
        value = float(text)
    except ValueError:
        sign, body = (-1.0, text[1:]) if text.startswith("-") else (1.0, text)
        parts = _DURATION.findall(body)
        if not parts or "".join(number + unit for number, unit in parts) != body:
            raise ValueError('wants a duration such as "90s" or "5m"') from None
        value = sign * sum(float(number) * _UNIT_S[unit] for number, unit in parts)
    if math.isnan(value):
        raise ValueError('wants a duration such as "90s" or "5m"')
    return min(value, FOR_EVER_S) if value >= 0 else FOR_EVER_S


def _milliseconds(text: str) -> float:
    try:
        return float(text) / 1000
    except ValueError:
        raise ValueError("wants a number of milliseconds") from None


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("wants a whole number") from None


def _number_or_off(text: str) -> int | None:
    return _number(text) or None


def _truth(text: str) -> bool:
    return text.strip().lower() in {"1", "true"}


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _text_or_off(text: str) -> str | None:
    return text.strip() or None


def _level(text: str) -> str:
    word = _LEVELS.get(text.strip().lower(), text.strip().lower())
    return word if word in _KNOWN_LEVELS else "info"


def _families(text: str) -> list[str]:
    asked = _list(text)
    return list(_BUILT_IN_FAMILIES) if "*" in asked else [name for name in asked if name in _BUILT_IN_FAMILIES]


def _source_names(text: str) -> dict[str, str]:
    found = _json(text)
    if not isinstance(found, dict):
        raise ValueError('wants a JSON object of address and name, such as {"10.0.0.9": "laptop"}')
    return {str(address): str(name) for address, name in found.items()}


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"is not valid JSON: {error}") from None


def _ollama_servers(text: str) -> list[Tree]:
    entries = _json(text)
    if not isinstance(entries, list):
        raise ValueError('wants a JSON array, such as [{"name": "gpu1", "host": "http://10.0.0.5:11434"}]')
    return [_ollama_server(entry, place) for place, entry in enumerate(entries)]


#: OLLAMA_SERVERS entry -> our key.
_SERVER_KEYS = {
    "name": "name",
    "host": "url",
    "url": "url",
    "ramGb": "vram_gb",
    "vramGb": "vram_gb",
    "metricsPort": "metrics_port",
    "maxConcurrent": "max_concurrent",
    "apiKey": "api_key",
}
_SERVER_KINDS = {"ollama": "ollama", "vllm": "openai", "openai": "openai"}


def _ollama_server(entry: object, place: int) -> Tree:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not isinstance(entry.get("host"), str):
        raise ValueError(f'entry {place + 1} wants at least {{"name": "gpu1", "host": "http://10.0.0.5:11434"}}')
    kind = str(entry.get("backendType") or entry.get("type") or "ollama").lower()
    if kind not in _SERVER_KINDS:
        raise ValueError(f'entry {place + 1}: a server of type "{kind}" takes no requests; use "ollama" or "vllm"')
    server: Tree = {"kind": _SERVER_KINDS[kind]}
    for key, value in entry.items():
        if key in {"backendType", "type"} or value is None:
            continue
        if key not in _SERVER_KEYS:
            raise ValueError(f'entry {place + 1}: unknown key "{key}"; known: {", ".join(_SERVER_KEYS)}, type')
        server[_SERVER_KEYS[key]] = value
    # That program divides by the number and always writes one; 0 says "not known".
    if not server.get("vram_gb", 1):
        del server["vram_gb"]
    return server


def _base_urls(text: str) -> list[Tree]:
    try:
        return [dict(short_server(url)) for url in text.split(";") if url.strip()]
    except BadAddress as error:
        raise ValueError(str(error)) from None


def _ollama_host(text: str) -> Tree:
    """Ollama's own leniency: scheme and path are allowed, a bare host means 11434, a bare port every address."""
    text = text.strip().strip("\"'")
    try:
        if re.fullmatch(r":\d+", text):
            return {"host": "0.0.0.0", "port": parse_url(f"http://x{text}").port}  # noqa: S104  (Go's meaning of ":port")
        if re.fullmatch(r"[0-9A-Fa-f:]*:[0-9A-Fa-f:]*:[0-9A-Fa-f:]*", text):  # IPv6 without brackets
            return {"host": check_host(text)}
        scheme, _, rest = text.rpartition("://")
        if re.fullmatch(r"\d+(\.\d+){3}|[^/:]+", rest) and not scheme:
            return {"host": check_host(rest)}
        address = parse_url(text, "openai" if scheme else "ollama")
    except BadAddress as error:
        raise ValueError(str(error)) from None
    return {"host": address.host, "port": address.port}


#: The order counts: of two names for one key the earlier wins.
ANCESTORS: tuple[Ancestor, ...] = (
    # Ollama Fleet Manager
    Ancestor("OLLAMA_SERVERS", ("servers",), _ollama_servers),
    Ancestor("POLL_INTERVAL", ("poll.interval_s",), seconds),
    Ancestor("OFFLINE_THRESHOLD", ("poll.offline_threshold",), _number),
    Ancestor("HEALTH_CHECK_TIMEOUT", ("poll.timeout_s",), _milliseconds),
    Ancestor("SOURCE_NAMES", ("routing.source_names",), _source_names),
    Ancestor("ADMIN_USERNAME", ("auth.admin_username",), str),
    Ancestor("ADMIN_PASSWORD", ("auth.admin_password",), str, True),
    Ancestor("TELEGRAM_BOT_TOKEN", ("telegram.bot_token",), str, True),
    Ancestor("TELEGRAM_CHAT_ID", ("telegram.chat_id",), str),
    Ancestor("MUTE_MODEL_NOT_FOUND_ALERTS", ("telegram.mute_model_not_found",), _truth),
    Ancestor("WAN_CHECK_INTERVAL", ("wan.interval_s",), seconds),
    Ancestor("WAN_OFFLINE_THRESHOLD", ("wan.offline_threshold",), _number),
    Ancestor("PROXY_PROTECT_WRITES", ("auth.protect_writes",), _truth),
    Ancestor("PROXY_MIN_NUM_CTX", ("routing.min_num_ctx",), _number_or_off),
    Ancestor("PROXY_DEFAULT_KEEP_ALIVE", ("routing.default_keep_alive",), _text_or_off),
    # nfrx
    Ancestor("PORT", ("port",), _number),
    Ancestor("METRICS_PORT", ("metrics.listen",), str),
    Ancestor("API_KEY", ("auth.api_key",), str, True),
    Ancestor("CLIENT_KEY", ("auth.client_key",), str, True),
    Ancestor("API_HTTP_ROLES", ("auth.api_http_roles",), _list),
    Ancestor("CLIENT_HTTP_ROLES", ("auth.client_http_roles",), _list),
    Ancestor("REQUEST_TIMEOUT", ("timeouts.first_byte_s", "timeouts.stream_idle_s"), seconds),
    Ancestor("DRAIN_TIMEOUT", ("timeouts.drain_s",), seconds),
    Ancestor("ALLOWED_ORIGINS", ("cors.origins",), _list),
    Ancestor("PLUGINS", ("plugins",), _families),
    Ancestor("LLM_QUEUE_SIZE", ("queue.size",), _number),
    Ancestor("LOG_LEVEL", ("log.level",), _level),
    # Ollama
    Ancestor("OLLAMA_HOST", (), _ollama_host),
    Ancestor("OLLAMA_ORIGINS", ("cors.origins",), _list),
    Ancestor("OLLAMA_MAX_QUEUE", ("queue.size",), _number),
    Ancestor("OLLAMA_KEEP_ALIVE", ("routing.default_keep_alive",), _text_or_off),
    # Open WebUI
    Ancestor("OLLAMA_BASE_URLS", ("servers",), _base_urls),
)

#: Variables of theirs that mean nothing here; said once, so that nobody relies on them.
UNUSED: Mapping[str, str] = {
    "REDIS_ADDR": "one fleetproxy needs no Redis",
    "JOBS_SSE_CLOSE_DELAY": "there is no such timer",
    "JOBS_CLIENT_TTL": "there is no such timer",
    "LLM_MIN_SCORE": "names match exactly or through routing.aliases",
    "LLM_MAX_PARALLEL_EMBEDDINGS": "batches follow each server's max_concurrent and embedding_batch_size",
    "LLM_QUEUE_UPDATE_SECONDS": "positions are sent when they change",
}
