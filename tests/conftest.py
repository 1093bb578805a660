from __future__ import annotations

from hypothesis import HealthCheck, settings

# Shared machines stall now and then; a law is about values, not about time.
settings.register_profile("laws", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("laws")
