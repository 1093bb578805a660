"""The fields of a job as callers send them: read leniently where the fleet manager was, strictly where it was wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fleetproxy.control.api.reading import integer
from fleetproxy.control.job_actions import check_options
from fleetproxy.core.cron import BadCron, BadZone, parse, zone
from fleetproxy.core.jobs import Job
from fleetproxy.errors import BadRequest

REQUIRED = ("name", "sourceIdentifier", "cronExpression", "targetModel")
NEW_FAULT = "Missing required fields: name, sourceIdentifier, cronExpression, targetModel"
DEFAULT_DURATION_MS = 60_000
MAX_DURATION_MS = 7 * 86_400_000
MAX_GRACE_S = 7 * 86_400
_OVERLAPS = ("skip", "wait", "allow")


def read_new(body: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `core.jobs.Job` for a new job. Raises BadRequest."""
    if not all(isinstance(body.get(name), str) and body[name].strip() for name in REQUIRED):
        raise BadRequest(NEW_FAULT)
    fields = _read({"timezone": "UTC", "expectedDurationMs": None, **body})
    _check_action(fields, "none")
    _check_times(fields["cron_expression"], fields["timezone"])
    return fields


def read_changes(body: Mapping[str, Any], known: Job) -> dict[str, Any]:
    """The same for some fields of a job that exists."""
    fields = _read(body)
    if "action" in fields or "action_options" in fields:
        fields.setdefault(
            "action_options", known.action_options if fields.get("action") in (None, known.action) else {}
        )
        _check_action(fields, known.action)
    if "cron_expression" in fields or "timezone" in fields:
        _check_times(fields.get("cron_expression", known.cron_expression), fields.get("timezone", known.timezone))
    return fields


def _read(body: Mapping[str, Any]) -> dict[str, Any]:
    return {field: read(name, body[name]) for name, (field, read) in _FIELDS.items() if name in body}


def _check_action(fields: dict[str, Any], action: str) -> None:
    if "action" in fields or "action_options" in fields:
        action = fields.get("action", action)
        fields["action"] = action
        fields["action_options"] = check_options(action, fields.get("action_options"))


def _check_times(expression: str, timezone: str) -> None:
    try:
        where = zone(timezone)
    except BadZone as error:
        raise BadRequest(str(error)) from None
    try:
        parse(expression, where)
    except BadCron as error:
        raise BadRequest("Invalid cron expression") from error


def duration_ms_of(value: object) -> int:
    """A length of time as callers send it: anything but a positive number means the default."""
    number = _number(value)
    return DEFAULT_DURATION_MS if number is None or number <= 0 else min(number, MAX_DURATION_MS)


# --- one field -------------------------------------------------------------------------------------------------------


def _text(most: int) -> Callable[[str, Any], str]:
    def read(name: str, value: Any) -> str:
        if not isinstance(value, str) or not value.strip() or len(value) > most:
            raise BadRequest(f"{name} must be a text of 1 to {most} characters")
        return value.strip()

    return read


def _words(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > 2000:
        raise BadRequest(f"{name} must be a text of at most 2000 characters")
    return value.strip() or None


def _number(value: Any) -> int | None:
    """A number or a text that begins with one; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return int(value) if abs(value) < 2**53 else None
    return integer(value) if isinstance(value, str) else None


def _server(name: str, value: Any) -> int | None:
    return _number(value)


def _duration(name: str, value: Any) -> int:
    return duration_ms_of(value)


def _boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise BadRequest(f"{name} must be true or false")
    return value


def _zone(name: str, value: Any) -> str:
    if value is None:
        return "UTC"
    if not isinstance(value, str):
        raise BadRequest(f"{name} must be the name of a time zone")
    return value.strip() or "UTC"


def _overlap(name: str, value: Any) -> str:
    if value not in _OVERLAPS:
        raise BadRequest(f"{name} must be one of {', '.join(_OVERLAPS)}")
    return str(value)


def _grace(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_GRACE_S:
        raise BadRequest(f"{name} must be a whole number of seconds from 0 to {MAX_GRACE_S}")
    return value


def _any(name: str, value: Any) -> Any:
    return value


#: Name in the API -> field of the job, and how it is read.
_FIELDS: dict[str, tuple[str, Callable[[str, Any], Any]]] = {
    "name": ("name", _text(200)),
    "description": ("description", _words),
    "sourceIdentifier": ("source_identifier", _text(200)),
    "cronExpression": ("cron_expression", _text(256)),
    "timezone": ("timezone", _zone),
    "targetModel": ("target_model", _text(256)),
    "preferredServerId": ("preferred_server_id", _server),
    "expectedDurationMs": ("expected_duration_ms", _duration),
    "isEnabled": ("is_enabled", _boolean),
    "action": ("action", _text(32)),
    "actionOptions": ("action_options", _any),
    "overlap": ("overlap", _overlap),
    "misfireGraceSeconds": ("misfire_grace_s", _grace),
}
