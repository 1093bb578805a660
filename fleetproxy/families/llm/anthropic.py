"""The Anthropic surface: `/v1/messages`, which Ollama and vLLM serve beside the OpenAI one."""

from __future__ import annotations

from fleetproxy.core.operation import Endpoint

ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint(
        name="v1_messages",
        methods=("POST",),
        path="/v1/messages",
        dialect="anthropic",
        has_model=True,
        generates=True,
        marker_stream="sse_message_stop",
        patient=True,
        doc="Messages API.",
    ),
    Endpoint(
        name="v1_messages_count_tokens",
        methods=("POST",),
        path="/v1/messages/count_tokens",
        dialect="anthropic",
        has_model=True,
        patient=True,
        doc="Tokens of a prompt, where the server can count them.",
    ),
)

#: Paths under /v1/messages/ that are in no table.
OTHER = Endpoint(
    name="v1_messages_other",
    methods=(),
    path="/v1/messages/*",
    dialect="anthropic",
    read=False,
    has_model=True,
    lenient=True,
    patient=True,
    doc="Any other path and method goes to a server unchanged, by its model when the body names one.",
)
