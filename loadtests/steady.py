"""`locust -f loadtests/locustfile.py,loadtests/steady.py`: see `shapes.steady`."""

from __future__ import annotations

from loadtests import shapes
from loadtests.shaped import Shaped


class Steady(Shaped):
    shape = staticmethod(shapes.steady)
