"""A shape as Locust wants it: a class that is asked each second, with --users and --run-time from the command line."""

from __future__ import annotations

from locust import LoadTestShape

from loadtests.shapes import DEFAULT_LENGTH_S, DEFAULT_USERS, Shape, Tick


class Shaped(LoadTestShape):
    """Users over time by `shape`."""

    abstract = True
    use_common_options = True
    shape: Shape

    def tick(self) -> Tick:
        assert self.runner is not None
        options = self.runner.environment.parsed_options
        users = getattr(options, "num_users", None) or DEFAULT_USERS
        length_s = getattr(options, "run_time", None) or DEFAULT_LENGTH_S
        return type(self).shape(self.get_run_time(), users, float(length_s))
