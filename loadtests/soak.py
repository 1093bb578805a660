"""`locust -f loadtests/locustfile.py,loadtests/soak.py`: see `shapes.soak`."""

from __future__ import annotations

from loadtests import shapes
from loadtests.shaped import Shaped


class Soak(Shaped):
    shape = staticmethod(shapes.soak)
