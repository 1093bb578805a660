"""Fake inference servers with real behaviour: Ollama, vLLM-like, llama.cpp-like.

    python -m fleetproxy.testing.fakes --kind ollama --port 11501 --models llama3.2:3b,nomic-embed-text

or, inside a program:

    async with Fake(Profile(kind="ollama", models=("llama3.2:3b",))) as fake:
        fake.url, fake.journal, fake.faults

Everything a fake says follows from its seed and the request, so two fakes with one seed give equal answers.
"""

from __future__ import annotations

from fleetproxy.testing.fakes.faults import Fault
from fleetproxy.testing.fakes.profile import Profile
from fleetproxy.testing.fakes.server import Fake

__all__ = ["Fake", "Fault", "Profile"]
