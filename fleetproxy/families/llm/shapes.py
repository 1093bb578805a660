"""What the bodies of the inference paths look like: JSON Schemas by endpoint name, for the OpenAPI document.

They name what callers use; servers take more, so nothing here is closed, and nothing is checked against it.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_YES: Schema = {"type": "boolean"}
_NUMBER: Schema = {"type": "number"}
_COUNT: Schema = {"type": "integer"}
_OBJECT: Schema = {"type": "object"}
_ANY: Schema = {}
_MODEL: Schema = {"type": "string", "description": "Name of the model, or an alias.", "examples": ["llama3.2:3b"]}
_KEEP: Schema = {"type": ["string", "number"], "description": "How long the model stays in memory: 5m, 300, -1, 0."}
_STREAM: Schema = {"type": "boolean", "description": "Answer piece by piece."}
_FORMAT: Schema = {"type": ["string", "object"], "description": '"json", or a JSON Schema the answer must follow.'}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _object(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    return (
        {"type": "object", "required": list(required), "properties": properties}
        if required
        else {
            "type": "object",
            "properties": properties,
        }
    )


_MESSAGE = _object(
    ("role",),
    role=_TEXT,
    content={"description": "Text, or a list of parts."},
    images=_list(_TEXT),
    tool_calls=_list(_OBJECT),
)
_INPUTS: Schema = {
    "description": "One input or many: texts, or arrays of tokens. Many are split over the fleet.",
    "oneOf": [_TEXT, _list(_TEXT), _list(_COUNT), _list(_list(_COUNT))],
}
_NATIVE = {"options": _OBJECT, "keep_alive": _KEEP}
_SAMPLING = {
    "temperature": _NUMBER,
    "top_p": _NUMBER,
    "max_tokens": _COUNT,
    "stop": {"type": ["string", "array", "null"]},
    "seed": _COUNT,
    "stream": _STREAM,
    "stream_options": _object(include_usage=_YES),
}

CHAT = _object(
    ("model", "messages"),
    model=_MODEL,
    messages=_list(_MESSAGE),
    tools=_list(_OBJECT),
    tool_choice=_ANY,
    response_format=_OBJECT,
    **_SAMPLING,
)
COMPLETION = _object(("model", "prompt"), model=_MODEL, prompt=_ANY, suffix=_TEXT, **_SAMPLING)
RESPONSE = _object(
    ("model", "input"), model=_MODEL, input=_ANY, instructions=_TEXT, tools=_list(_OBJECT), stream=_STREAM
)
EMBEDDINGS = _object(
    ("model", "input"),
    model=_MODEL,
    input=_INPUTS,
    encoding_format={"type": "string", "enum": ["float", "base64"]},
    dimensions=_COUNT,
    user=_TEXT,
)
MESSAGES = _object(
    ("model", "messages", "max_tokens"),
    model=_MODEL,
    messages=_list(_MESSAGE),
    system=_ANY,
    max_tokens=_COUNT,
    stream=_STREAM,
    tools=_list(_OBJECT),
)

#: Endpoint name -> schema of its JSON body.
BODIES: dict[str, Schema] = {
    "generate": _object(
        ("model",), model=_MODEL, prompt=_TEXT, suffix=_TEXT, images=_list(_TEXT), system=_TEXT, template=_TEXT,
        format=_FORMAT, raw=_YES, think=_ANY, stream=_STREAM, **_NATIVE,
    ),
    "chat": _object(
        ("model",), model=_MODEL, messages=_list(_MESSAGE), tools=_list(_OBJECT), format=_FORMAT, think=_ANY,
        stream=_STREAM, **_NATIVE,
    ),
    "embed": _object(("model", "input"), model=_MODEL, input=_INPUTS, truncate=_YES, dimensions=_COUNT, **_NATIVE),
    "embeddings": _object(("model", "prompt"), model=_MODEL, prompt=_TEXT, **_NATIVE),
    "show": _object(("model",), model=_MODEL, verbose=_YES),
    "pull": _object(("model",), model=_MODEL, insecure=_YES, stream=_STREAM),
    "push": _object(("model",), model=_MODEL, insecure=_YES, stream=_STREAM),
    "create": _object(
        ("model",), model=_MODEL, files=_OBJECT, adapters=_OBJECT, template=_TEXT, system=_TEXT, parameters=_OBJECT,
        quantize=_TEXT, stream=_STREAM, **{"from": _MODEL},
    ),
    "copy": _object(("source", "destination"), source=_MODEL, destination=_TEXT),
    "delete": _object(("model",), model=_MODEL),
    "web_search": _object(("query",), query=_TEXT, max_results=_COUNT),
    "web_fetch": _object(("url",), url=_TEXT),
    "v1_messages_count_tokens": _object(("model", "messages"), model=_MODEL, messages=_list(_MESSAGE), system=_ANY),
    "v1_messages": MESSAGES,
    "v1_rerank": _object(
        ("model", "query", "documents"), model=_MODEL, query=_TEXT, documents=_list(_ANY), top_n=_COUNT
    ),
    "v1_score": _object(("model",), model=_MODEL, text_1=_ANY, text_2=_ANY),
    "v1_moderations": _object(("input",), model=_MODEL, input=_ANY),
    "v1_images_generations": _object(("prompt",), model=_MODEL, prompt=_TEXT, n=_COUNT, size=_TEXT),
    "v1_audio_speech": _object(("model", "input"), model=_MODEL, input=_TEXT, voice=_TEXT, response_format=_TEXT),
}  # fmt: skip
for _prefix in ("v1", "llm", "llm_id"):
    BODIES[f"{_prefix}_chat_completions"] = CHAT
    BODIES[f"{_prefix}_completions"] = COMPLETION
    BODIES[f"{_prefix}_responses"] = RESPONSE
    BODIES[f"{_prefix}_embeddings"] = EMBEDDINGS

#: Names of paths whose body is a form with a file in it.
FORMS = frozenset({"v1_images_edits", "v1_audio_transcriptions", "v1_audio_translations", "asr_audio_transcriptions"})
