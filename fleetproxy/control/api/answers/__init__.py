"""The shapes of the dashboard API's answers, for its document: what a client may lean on.

Handlers build plain dictionaries; a test decodes what a whole control process answers into these, strictly, so that
neither a field more nor a field less goes unnoticed. Fields may be added, never taken away.
"""

from __future__ import annotations

from typing import Any

from fleetproxy.control.api.answers import fleet, jobs, numbers, people, records
from fleetproxy.control.api.answers.base import Ok

#: Call -> shape of its answer.
ANSWERS: dict[str, Any] = {
    "POST /api/auth/login": people.LoggedIn,
    "POST /api/auth/logout": Ok,
    "GET /api/auth/me": people.MeAnswer,
    "POST /api/auth/setup": people.LoggedIn,
    "GET /api/servers": list[fleet.Server],
    "POST /api/servers": fleet.AddedServer,
    "POST /api/servers/test": fleet.Trial,
    "POST /api/servers/{server_id}/test": fleet.Trial,
    "PATCH /api/servers/{server_id}": Ok,
    "DELETE /api/servers/{server_id}": Ok,
    "GET /api/workers": fleet.Workers,
    "PATCH /api/workers/{worker_id}": Ok,
    "POST /api/workers/{worker_id}/drain": Ok,
    "POST /api/workers/{worker_id}/undrain": Ok,
    "GET /api/events": list[records.ModelEvent],
    "GET /api/server-events": list[records.ServerEvent],
    "GET /api/usage": list[records.Usage],
    "GET /api/system-metrics": list[records.MachineRow],
    "GET /api/requests": records.Requests,
    "GET /api/requests/{request_id}": records.Story,
    "GET /api/analytics": numbers.Analytics,
    "GET /api/recommendations": records.Recommendations,
    "GET /api/discoveries": records.Discoveries,
    "GET /api/plugins": list[fleet.Plugin],
    "POST /api/poll": Ok,
    "GET /api/scheduled-jobs": list[jobs.Job],
    "POST /api/scheduled-jobs": jobs.NewJob,
    "GET /api/scheduled-jobs/{job_id}": jobs.Job,
    "PUT /api/scheduled-jobs/{job_id}": jobs.Job,
    "DELETE /api/scheduled-jobs/{job_id}": jobs.DeletedJob,
    "POST /api/scheduled-jobs/{job_id}/run": jobs.StartedRun,
    "GET /api/scheduled-jobs/{job_id}/runs": list[jobs.Run],
    "GET /api/scheduled-jobs/timeline": jobs.Timeline,
    "GET /api/scheduled-jobs/suggestions": jobs.Suggestions,
    "GET /api/scheduled-jobs/validate": jobs.Validation,
    "GET /api/scheduled-jobs/discover": jobs.Found,
    "POST /api/scheduled-jobs/discover": jobs.Imported,
    "GET /api/users": list[people.User],
    "POST /api/users": people.User,
    "PUT /api/users/{user_id}": Ok,
    "PATCH /api/users/{user_id}": Ok,
    "DELETE /api/users/{user_id}": Ok,
    "POST /api/users/{user_id}/api-key": people.IssuedKey,
    "GET /api/users/{user_id}/api-keys": list[people.Key],
    "DELETE /api/users/{user_id}/api-keys/{key_id}": Ok,
    "GET /api/settings/telegram": people.Chat | None,
    "PUT /api/settings/telegram": Ok,
    "DELETE /api/settings/telegram": Ok,
    "GET /api/settings/subscriptions": list[people.Subscription],
    "PUT /api/settings/subscriptions": Ok,
    "GET /api/settings/fleet": dict[str, bool],
    "PUT /api/settings/fleet": Ok,
    "GET /api/settings/webhook": people.Hook | None,
    "PUT /api/settings/webhook": Ok,
    "DELETE /api/settings/webhook": Ok,
    "GET /api/models/explain": fleet.Explanation,
    "GET /api/models/registry-check": fleet.RegistryCheck,
    "POST /api/models/pull": fleet.Begun,
    "POST /api/models/actions/{action_id}/cancel": Ok,
    "POST /api/models/delete": fleet.Done,
    "POST /api/models/load": fleet.Done,
    "POST /api/models/unload": fleet.Done,
    "GET /api/models/actions": list[fleet.Action],
    "GET /healthz": fleet.Health,
    "GET /livez": fleet.Health,
    "GET /health": fleet.Health,
    "GET /readyz": fleet.Health,
}
#: Calls whose answers are not JSON: call -> media types.
MEDIA: dict[str, tuple[str, ...]] = {
    "GET /api/state/stream": ("text/event-stream",),
    "GET /api/state/live": ("text/event-stream",),
    "GET /api/state/view/{name}": ("text/html",),
    "GET /state": ("text/html",),
    "GET /state/{name}": ("text/html", "text/css", "text/javascript"),
    "GET /dashboard": ("text/html",),
    "GET /dashboard/{path}": ("*/*",),
    "GET /api/client": ("text/html",),
    "GET /api/client/{path}": ("*/*",),
    "GET /metrics": ("text/plain", "application/openmetrics-text"),
    "POST /api/query": ("application/json", "text/csv"),
    "POST /api/servers/test": ("application/json", "application/x-ndjson"),
    "POST /api/servers/{server_id}/test": ("application/json", "application/x-ndjson"),
    "GET /api/analytics/series": ("application/json", "text/csv"),
    "GET /api/analytics/residency": ("application/json", "text/csv"),
    "GET /api/requests": ("application/json", "text/csv", "application/x-ndjson", "application/vnd.apache.parquet"),
}
#: Further statuses that are no refusals: call -> status -> words.
FURTHER: dict[str, dict[str, str]] = {
    "GET /api/state/view/{name}": {"204": "There is no such view."},
    "GET /readyz": {"503": "What is missing is in `failed`."},
    "GET /dashboard": {"304": "As the caller has it.", "503": "No dashboard was built."},
    "GET /dashboard/{path}": {"304": "As the caller has it.", "503": "No dashboard was built."},
}
