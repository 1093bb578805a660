"""What a container tells of the jobs it runs: labels first, else its environment. Read, never run; values that are no
schedule and no model name are not looked at further."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from fleetproxy.core.cron import BadCron, BadZone, parse, zone

#: Labels: `fleetproxy.job.<key>.cron`, `.model`, `.timezone`, `.duration-ms`; a single job needs no `<key>.`.
LABEL = "fleetproxy.job."
MAX_JOBS_PER_CONTAINER = 50
MAX_VALUE_CHARACTERS = 256
IMPORTED_DURATION_MS = 300_000
_SCHEDULE = re.compile(r"[0-9A-Za-z*/,\-#?@ ]{1,256}", re.ASCII)
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,255}", re.ASCII)
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,100}")
#: What looks like a secret is no model name, whatever its variable is called.
_SECRET = re.compile(r"(?:sk|hf|ghp|xox[bp])[-_][A-Za-z0-9_-]{10,}|[A-Za-z0-9+/_-]{40,}", re.ASCII)


def jobs_of(name: str, labels: Mapping[str, Any], environment: Iterable[str]) -> list[dict[str, Any]]:
    """Jobs of one container, as fields of `core.jobs.Job`; `target_model` is "unknown" where none is named."""
    if not _NAME.fullmatch(name):
        return []
    found = _from_labels(name, labels) or _from_environment(name, environment)
    return found[:MAX_JOBS_PER_CONTAINER]


def _from_labels(container: str, labels: Mapping[str, Any]) -> list[dict[str, Any]]:
    by_key: dict[str, dict[str, str]] = {}
    for label, value in sorted(labels.items()):
        if label.startswith(LABEL) and isinstance(value, str) and len(value) <= MAX_VALUE_CHARACTERS:
            key, _, word = label.removeprefix(LABEL).rpartition(".")
            by_key.setdefault(key, {})[word] = value.strip()
    found = []
    for key, words in by_key.items():
        expression, model = words.get("cron", ""), words.get("model", "")
        timezone = words.get("timezone") or "UTC"
        if not _is_schedule(expression, timezone) or (key and not _NAME.fullmatch(key)):
            continue
        duration = words.get("duration-ms", "")
        found.append(
            _job(
                container,
                key.replace("-", " ").replace("_", " "),
                expression,
                model if _is_model(model) else "unknown",
                via=f"{LABEL}{key}.cron" if key else f"{LABEL}cron",
                timezone=timezone,
                duration_ms=int(duration) if duration.isascii() and duration.isdigit() and duration != "0" else None,
            )
        )
    return found


def _from_environment(container: str, environment: Iterable[str]) -> list[dict[str, Any]]:
    pairs = [entry.partition("=")[::2] for entry in environment if isinstance(entry, str)]
    schedule = next(
        (
            (variable, value.strip())
            for variable, value in pairs
            if ("CRON" in variable.upper() or "SCHEDULE" in variable.upper()) and _is_schedule(value.strip(), "UTC")
        ),
        None,
    )
    if schedule is None:
        return []
    variable, expression = schedule
    models = [
        (name, value.strip())
        for name, value in pairs
        if "OLLAMA" in name and "MODEL" in name.upper() and _is_model(value.strip())
    ]
    if not models:
        return [_job(container, "", expression, "unknown", via=variable)]
    return [
        _job(
            container,
            name.replace("OLLAMA_", "").replace("_MODEL", "").replace("_", " ").lower(),
            expression,
            value,
            via=name,
        )
        for name, value in models
    ]


def _job(
    container: str,
    kind: str,
    expression: str,
    model: str,
    *,
    via: str,
    timezone: str = "UTC",
    duration_ms: int | None = None,
) -> dict[str, Any]:
    return {
        "name": f"{container} - {kind}" if kind else container,
        "description": f"Auto-discovered from {container} ({via[:MAX_VALUE_CHARACTERS]})",
        "source_identifier": container,
        "cron_expression": expression,
        "timezone": timezone,
        "target_model": model,
        "expected_duration_ms": min(duration_ms or IMPORTED_DURATION_MS, 7 * 86_400_000),
    }


def _is_schedule(text: str, timezone: str) -> bool:
    if not _SCHEDULE.fullmatch(text) or (not text.startswith("@") and len(text.split()) < 5):
        return False
    try:
        parse(text, zone(timezone))
    except (BadCron, BadZone):
        return False
    return True


def _is_model(text: str) -> bool:
    """A model name: no address, nothing that looks like a secret."""
    return (
        _MODEL.fullmatch(text) is not None
        and not text.lower().startswith(("http:", "https:"))
        and _SECRET.fullmatch(text) is None
    )
