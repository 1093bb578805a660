"""From the Ollama Fleet Manager (llm-traffic-manager): its environment or compose file, and its tables if exported."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from fleetproxy.settings.migrate.result import Draft, Migration
from fleetproxy.settings.migrate.sources import Sources
from fleetproxy.settings.servers import BadAddress, parse_url

HEAD = """\
fleetproxy, as the Ollama Fleet Manager was set up. `fleetproxy config check` reads it;
`fleetproxy doctor` tries it."""

#: The variables it reads; an environment holds others' too.
_VARIABLES = (
    "POLL_INTERVAL", "OFFLINE_THRESHOLD", "HEALTH_CHECK_TIMEOUT", "SOURCE_NAMES", "ADMIN_USERNAME", "ADMIN_PASSWORD",
    "TELEGRAM_BOT_TOKEN", "TELEGRAM_CHAT_ID", "MUTE_MODEL_NOT_FOUND_ALERTS", "WAN_CHECK_INTERVAL",
    "WAN_OFFLINE_THRESHOLD", "PROXY_PROTECT_WRITES", "PROXY_MIN_NUM_CTX", "PROXY_DEFAULT_KEEP_ALIVE",
)  # fmt: skip
#: What it did where nothing was said.
_SLOTS = {"ollama": 1, "vllm": 10}
_DEFAULTS: tuple[tuple[str, Any, str], ...] = (
    ("routing.min_num_ctx", 8192, "As it was there. Without this line requests go on byte for byte."),
    ("routing.default_keep_alive", "30m", "As it was there. Without this line each server's own default holds."),
)
#: Variable that switches off what would be on by default there.
_SWITCHES = {"routing.min_num_ctx": "PROXY_MIN_NUM_CTX", "routing.default_keep_alive": "PROXY_DEFAULT_KEEP_ALIVE"}
_NO_EQUIVALENT = {
    "DATABASE_URL": "history and accounts are kept in files of data_dir; PostgreSQL is no longer needed",
    "NODE_ENV": "there is no such mode",
}
_HISTORY = ("request_logs", "model_events", "server_events", "system_metrics", "server_snapshots", "model_discoveries")
_TRUE = {"t", "true", "1", "yes"}


def migrate(sources: Sources) -> Migration:
    """Our configuration for it. Never raises: what cannot be used is in the notes."""
    environment = sources.environment
    draft = Draft()
    draft.put("host", "0.0.0.0", "It listened on every address and asked nobody for a key.")  # noqa: S104
    draft.put("open", True, "Callers need no key. To ask for one: take this line away; the keys below are good for it.")
    draft.put(
        "dashboard.listen", "0.0.0.0:3334", "Where its compose file had the dashboard. It is on the public port too."
    )
    _servers(draft, environment, sources.tables.get("servers", []))
    draft.take({name: environment[name] for name in _VARIABLES if name in environment})
    for key, value, remark in _DEFAULTS:
        if _SWITCHES[key] not in environment:
            draft.put(key, value, remark)
    first = environment.get("ADMIN_USERNAME", "") if environment.get("ADMIN_PASSWORD") else ""
    _users(draft, sources.tables.get("users", []), first)
    _jobs(draft, sources.tables.get("scheduled_jobs", []), sources.tables.get("servers", []))
    _rest(draft, environment, sources.tables)
    return draft.finish(HEAD)


def _servers(draft: Draft, environment: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Those of OLLAMA_SERVERS, its one truth; a dump adds who is in maintenance, and whom the variable leaves out."""
    try:
        listed = json.loads(environment.get("OLLAMA_SERVERS") or "[]")
    except ValueError as error:
        listed = []
        draft.notes.append(f"OLLAMA_SERVERS is left out: it is not valid JSON ({error})")
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    known = {_host(entry) for entry in entries}
    entries += [_as_entry(row) for row in rows if str(row.get("host")) not in known]
    resting = {str(row.get("host")) for row in rows if str(row.get("is_disabled", "")).lower() in _TRUE}
    servers = [made for entry in entries if (made := _server(draft, entry, resting))]
    names = [server["name"].casefold() for server in servers]
    for place, server in enumerate(servers):
        if names.index(server["name"].casefold()) != place:
            draft.notes.append(f"a second server called {server['name']} is left out")
    unique = [server for place, server in enumerate(servers) if names.index(server["name"].casefold()) == place]
    if unique:
        draft.put("servers", unique)
    else:
        draft.notes.append("no server was found: give OLLAMA_SERVERS, a compose file that has it, or the table servers")


def _host(entry: Mapping[str, Any]) -> str:
    return str(entry.get("host") or entry.get("url") or "")


def _as_entry(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": row.get("name"),
        "host": row.get("host"),
        "ramGb": _number(row.get("total_ram_gb")),
        "backendType": row.get("backend_type"),
        "maxConcurrent": _number(row.get("max_concurrent")),
    }


def _server(draft: Draft, entry: Mapping[str, Any], resting: set[str]) -> dict[str, Any] | None:
    name, host = str(entry.get("name") or "").strip(), _host(entry).strip()
    kind = str(entry.get("backendType") or "ollama").lower()
    if kind not in _SLOTS:
        draft.notes.append(f'server {name} is left out: of type "{kind}" it took no requests; watch it with Prometheus')
        return None
    try:
        parse_url(host, "openai" if kind == "vllm" else "ollama")
    except BadAddress as error:
        draft.notes.append(f"server {name or host} is left out: {error}")
        return None
    server: dict[str, Any] = {"name": name or host, "url": host}
    if kind == "vllm":
        server["kind"] = "openai"
    if ram := _number(entry.get("ramGb")):
        server["vram_gb"] = ram
    server["max_concurrent"] = _number(entry.get("maxConcurrent")) or _SLOTS[kind]
    port = entry.get("metricsPort")
    if isinstance(port, int):
        server["metrics_port"] = port
    if host in resting:
        server["enabled"] = False
    return server


def _users(draft: Draft, rows: Sequence[Mapping[str, Any]], first: str) -> None:
    """Their API keys stay good, as hashes. Passwords cannot be carried over: bcrypt is not read here.

    `first` is the administrator whom the settings make.
    """
    keys = []
    for row in rows:
        name, key = str(row.get("username") or "").strip(), str(row.get("api_key") or "").strip()
        if not name:
            continue
        if key:
            keys.append({"name": name, "key": f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"})
        if name == first:
            continue
        admin = " --admin" if str(row.get("is_admin", "")).lower() in _TRUE else ""
        draft.commands.append(f"fleetproxy users add {shlex.quote(name)}{admin}")
    if keys:
        draft.put("keys", keys)
        draft.notes.append(f"API keys of {len(keys)} users stay good: they are in [[keys]], as hashes")
    if rows:
        draft.notes.append(
            f"passwords of {len(rows)} users cannot be carried over (bcrypt hashes are not read here): the commands "
            "make the users anew and ask for a password each"
        )


def _jobs(draft: Draft, rows: Sequence[Mapping[str, Any]], servers: Sequence[Mapping[str, Any]]) -> None:
    names = {str(row.get("id")): str(row.get("name")) for row in servers}
    for row in rows:
        job = {
            "name": row.get("name"),
            "sourceIdentifier": row.get("source_identifier"),
            "cronExpression": row.get("cron_expression"),
            "targetModel": row.get("target_model"),
            "timezone": row.get("timezone") or "UTC",
            "expectedDurationMs": _number(row.get("expected_duration_ms")) or 60_000,
            "isEnabled": str(row.get("is_enabled", "true")).lower() in _TRUE,
        }
        if row.get("description"):
            job["description"] = row["description"]
        preferred = names.get(str(row.get("preferred_server_id") or ""))
        if preferred:
            draft.notes.append(
                f"job {job['name']} preferred server {preferred}: choose it again, its number has changed"
            )
        body = shlex.quote(json.dumps(job, ensure_ascii=False))
        draft.commands.append(
            'curl -fsS "$FLEETPROXY_URL/api/scheduled-jobs" -H "X-Ollama-Api-Key: $FLEETPROXY_KEY" '
            f"-H 'content-type: application/json' -d {body}"
        )
    if rows:
        draft.notes.append(f"{len(rows)} scheduled jobs: the commands make them anew, with an administrator's key")


def _rest(draft: Draft, environment: Mapping[str, str], tables: Mapping[str, Sequence[Any]]) -> None:
    draft.notes += [f"{name} has no equivalent: {why}" for name, why in _NO_EQUIVALENT.items() if environment.get(name)]
    history = [name for name in _HISTORY if tables.get(name)]
    if history:
        draft.notes.append(f"{', '.join(history)}: history is not carried over, it begins anew")
    if tables.get("user_telegram_configs") or tables.get("user_server_subscriptions"):
        draft.notes.append("each user's own Telegram chat and subscriptions are set again in the dashboard")
    if environment.get("ADMIN_PASSWORD"):
        draft.notes.append("ADMIN_USERNAME and ADMIN_PASSWORD make the first administrator at the first start")
    draft.notes.append("the metrics agents on port 9100 go on as they are")


def _number(value: Any) -> int | None:
    try:
        return int(float(value)) if value not in (None, "") else None
    except (TypeError, ValueError):
        return None
