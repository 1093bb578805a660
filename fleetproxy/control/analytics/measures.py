"""What is counted and timed of requests, and by what they are told apart: the same words for rows and for roll-ups.

    DIMENSIONS   what rows can be grouped by -> SQL over `requests`
    COUNTS       numbers that add up         -> SQL over a group of `requests`
    HISTOGRAMS   times, counted by size      -> which time, of which requests

`core.histogram` says what a bucket is.
"""

from __future__ import annotations

import msgspec

from fleetproxy.control.analytics.views import FAILED, GENERATION_MS
from fleetproxy.core.histogram import LAST, LEAST_MS, PER_DOUBLING

#: More than any counter needs; a backend that lies about its tokens must not stop the sum.
_MOST = 10**18

DIMENSIONS: dict[str, str] = {
    "all": "NULL::VARCHAR",
    "model": "model",
    "server": "backend",
    "source": "source",
    "user": '"user"',
    "status": "status::VARCHAR",
    "dialect": "dialect",
    "reason": "route_reason",
    "outcome": "outcome",
}
#: Dimensions whose names callers make up: of each hour the most frequent are told apart, the others are added up.
OPEN = frozenset({"model", "server", "source", "user"})

_ITL_MS = (
    "CASE WHEN tokens_out > 0 THEN CASE WHEN eval_ms IS NOT NULL THEN eval_ms / tokens_out "
    "WHEN streamed AND tokens_out > 1 THEN (total_ms - ttft_ms) / (tokens_out - 1) END END"
)


class Count(msgspec.Struct, frozen=True):
    type: str
    #: Aggregate over rows of `requests`.
    sql: str
    doc: str


class Histogram(msgspec.Struct, frozen=True):
    #: Milliseconds, over one row of `requests`.
    value: str
    #: The rows that have one.
    where: str
    doc: str

    @property
    def bucket(self) -> str:
        value = self.value
        return (
            f"CASE WHEN {value} <= {LEAST_MS} THEN 0 "
            f"ELSE least({LAST}, ceil({PER_DOUBLING} * log2({value} / {LEAST_MS}))) END::UTINYINT"
        )


_GENERATED = f"FILTER (({GENERATION_MS}) > 0)"


def _sum(column: str, doc: str, rows: str = "") -> Count:
    # `least` would make a sum of nothing the limit.
    total = f"sum({column}) {rows}"
    return Count("BIGINT", f"(CASE WHEN {total} > {_MOST} THEN {_MOST} ELSE {total} END)::BIGINT", doc)


COUNTS: dict[str, Count] = {
    "requests": Count("BIGINT", "count(*)", "Requests."),
    "errors": Count("BIGINT", f"count(*) FILTER ({FAILED})", "Those that went wrong; a caller who left is no error."),
    "client_gone": Count("BIGINT", "count(*) FILTER (outcome = 'client_gone')", "Those whose caller left first."),
    "retried": Count("BIGINT", "count(*) FILTER (retries > 0)", "Those that took more than one attempt."),
    "retries": _sum("retries", "Attempts after the first."),
    "tokens_in": _sum("tokens_in", "Prompt tokens."),
    "tokens_out": _sum("tokens_out", "Answer tokens."),
    "bytes_in": _sum("bytes_in", "Body bytes received."),
    "bytes_out": _sum("bytes_out", "Body bytes sent."),
    "queued": Count("BIGINT", "count(*) FILTER (queue_ms > 0)", "Those that waited in line."),
    "queue_sum_ms": Count("DOUBLE", "sum(queue_ms)", "Time they waited, together."),
    "total_sum_ms": Count("DOUBLE", "sum(total_ms)", "Time all requests took, together."),
    "generated_tokens": _sum("tokens_out", "Answer tokens whose writing was timed.", _GENERATED),
    "generation_sum_ms": Count("DOUBLE", f"sum({GENERATION_MS}) {_GENERATED}", "Time their writing took."),
    "routed": Count("BIGINT", "count(route_reason)", "Those that were sent to a server by choice."),
    "resident": Count(
        "BIGINT", "count(*) FILTER (route_reason LIKE 'model_loaded%')", "Those whose server had the model in memory."
    ),
    "forced": Count(
        "BIGINT",
        "count(*) FILTER (route_reason LIKE 'model_available%' OR route_reason = 'fallback_most_vram')",
        "Those whose server had to load the model first.",
    ),
}

HISTOGRAMS: dict[str, Histogram] = {
    "total_ms": Histogram("total_ms", "total_ms IS NOT NULL", "Whole time: bucket -> requests."),
    "ttft_ms": Histogram(
        "ttft_ms", "streamed AND ttft_ms IS NOT NULL", "Time to the first byte of streamed answers: bucket -> requests."
    ),
    "itl_ms": Histogram(
        _ITL_MS, f"({_ITL_MS}) IS NOT NULL", "Time between tokens, the mean of each answer: bucket -> requests."
    ),
    "queue_ms": Histogram("queue_ms", "queue_ms > 0", "Time in line of those that waited: bucket -> requests."),
    "overhead_ms": Histogram("overhead_ms", "overhead_ms IS NOT NULL", "Our own share: bucket -> requests."),
}
