"""Language models: the Ollama, OpenAI and Anthropic surfaces of the public port."""

from __future__ import annotations

from fleetproxy.families.base import Family
from fleetproxy.families.llm import anthropic, nfrx, ollama, openai

family = Family(
    name="llm",
    summary="Chat, completion and embeddings in the dialects of Ollama, OpenAI and Anthropic.",
    endpoints=ollama.ENDPOINTS + openai.ENDPOINTS + anthropic.ENDPOINTS + nfrx.ENDPOINTS,
)
