"""`locust -f loadtests/locustfile.py,loadtests/spike.py`: see `shapes.spike`."""

from __future__ import annotations

from loadtests import shapes
from loadtests.shaped import Shaped


class Spike(Shaped):
    shape = staticmethod(shapes.spike)
