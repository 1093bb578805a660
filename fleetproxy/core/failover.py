"""After a backend failed: may another one be asked? And when nobody is left: what is the caller told?

    failure                                        reads                     writes and unknown paths
    connection never made                          next                      next
    closed before any answer byte                  next                      no: it may have been executed
    404 that says "no such model"                  next                      no
    500, 502, 503                                  next, once                no
    timeout, any other answer, anything committed  no                        no

"next" is bounded: each backend once, and retries of what a backend may have seen within the budget (`RetryBudget`).
"""

from __future__ import annotations

from collections.abc import Sequence

from fleetproxy.core.operation import Endpoint
from fleetproxy.errors import (
    BackendError,
    BackendRefused,
    BackendReset,
    ConnectionStale,
    FleetError,
    ModelUnknown,
)


class ModelMissing(BackendError):
    """A server answered 404: it does not have this model (our picture of it was old)."""

    status, code = 404, "model_missing"

    def __init__(self, model: str = "") -> None:
        self.model = model
        super().__init__()


class CannotServe(BackendError):
    """A server answered 500, 502 or 503."""

    code = "backend_refused"

    def __init__(self, answered_status: int) -> None:
        self.answered_status = answered_status
        super().__init__(f"The server answered {answered_status}.")


#: Failures after which a read may go to another backend although this one may have seen it.
_READS_PASS_ON = (BackendReset, ConnectionStale, ModelMissing, CannotServe)


def pass_on(error: FleetError, endpoint: Endpoint, failures: Sequence[FleetError]) -> bool:
    """Whether the next route may be asked after `error`. `failures` are all so far, this one last."""
    if error.resendable:
        return True
    if not endpoint.read or not isinstance(error, _READS_PASS_ON):
        return False
    return not isinstance(error, CannotServe) or sum(isinstance(failure, CannotServe) for failure in failures) <= 1


def final(failures: Sequence[FleetError], model: str) -> FleetError:
    """The one error the caller sees: "not found" only when everybody said so; else the last that really failed."""
    real = [failure for failure in failures if not isinstance(failure, ModelMissing)]
    if not real:
        return ModelUnknown(model)
    last = real[-1]
    return BackendRefused() if isinstance(last, CannotServe) else last


class RetryBudget:
    """Retries stay below a share of requests plus a few, counted over the last one to two windows.

    Counts only; `now_s` is an argument. With `share` 0.2 and `extra` 3 an outage of everything costs the backends at
    most 1.2 times the requests, plus three. Requests that went well before it count too: when one server of many dies
    with work on it, that work is done elsewhere.
    """

    __slots__ = ("_before", "_began_s", "_requests", "_retries", "extra", "share", "window_s")

    def __init__(self, share: float, extra: int = 3, window_s: float = 30.0) -> None:
        self.share = share
        self.extra = extra
        self.window_s = window_s
        self._began_s = 0.0
        self._requests = 0
        self._retries = 0
        #: Requests and retries of the window before this one.
        self._before = (0, 0)

    def request(self, now_s: float) -> None:
        """A request came in."""
        age_s = now_s - self._began_s
        if age_s >= self.window_s:
            self._before = (self._requests, self._retries) if age_s < 2 * self.window_s else (0, 0)
            self._began_s = now_s
            self._requests = 0
            self._retries = 0
        self._requests += 1

    def retry(self, error: FleetError | None = None) -> bool:
        """Take one retry out of the budget; False when it is used up.

        A failure of which no backend saw anything costs nothing: asking the next one adds no load anywhere.
        """
        if error is not None and error.resendable:
            return True
        requests, retries = self._before
        if retries + self._retries + 1 > (requests + self._requests) * self.share + self.extra:
            return False
        self._retries += 1
        return True
