"""A typed look at a JSON body: the few fields we decide by, nothing else decoded, nothing rebuilt.

The bytes forwarded are the bytes received, so what we read must be what the backend reads. One pass of msgspec checks
the whole grammar and finds the top-level fields; what it leaves open is closed here: bytes that are no UTF-8 inside
skipped strings, numbers out of range among the parameters, and the fields we decide by written twice or in another
case (Go matches names in any case and lets the last win; Python takes the exact one).

Where bytes must change after all (an alias, a default the operator asked for) they are spliced: one value is replaced
or inserted, everything around it stays.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Annotated

import msgspec
from msgspec import Meta, Raw

from fleetproxy.errors import BadJson, MissingBody

MAX_MODEL_CHARACTERS = 256
#: Where Ollama's paths carry the model; `/v1/*` has "model" alone, `/api/copy` has "source".
MODEL_OR_NAME = ("model", "name")

#: Fields whose content is not ours to judge: prompts, schemas, vectors of tokens.
_CONTENT_WORDS = (
    "messages prompt input images tools system context suffix template format response_format functions documents "
    "query instructions text stop guided_json guided_grammar grammar json_schema structured_outputs model name source "
    "destination stream from modelfile adapters files parameters license metadata"
)
#: Fields that are plainly spelled as some API has them: no look at their case is needed.
_PARAMETER_WORDS = (
    "options keep_alive think raw truncate shift dimensions logprobs top_logprobs verbose insecure digest quantize "
    "temperature top_p top_k min_p n seed max_tokens max_completion_tokens max_output_tokens presence_penalty "
    "frequency_penalty repetition_penalty logit_bias user stream_options tool_choice parallel_tool_calls "
    "encoding_format reasoning reasoning_effort thinking store previous_response_id include service_tier "
    "prompt_cache_key stop_sequences echo best_of extra_body chat_template_kwargs"
)
_CONTENT, _PARAMETERS = frozenset(_CONTENT_WORDS.split()), frozenset(_PARAMETER_WORDS.split())
_FIELDS = msgspec.json.Decoder(dict[str, Raw])
_ANYTHING = msgspec.json.Decoder()
_NAME = msgspec.json.Decoder(Annotated[str, Meta(max_length=MAX_MODEL_CHARACTERS)])
_FLAG = msgspec.json.Decoder(bool | None)
_ITEMS = msgspec.json.Decoder(list[Raw])
_OBJECT = msgspec.json.Decoder(dict[str, Raw] | None)
#: Parameters longer than this are not looked into.
_PARAMETER_BYTES = 4096
_NUMBERS = b"-0123456789"

_BLANKS = rb"[ \t\n\r]*"
_KEY = re.compile(_BLANKS + rb'"([^"\\]*(?:\\.[^"\\]*)*)"' + _BLANKS + b":" + _BLANKS, re.DOTALL)
_AFTER = re.compile(_BLANKS + rb"([,}])")


class Peek(msgspec.Struct, frozen=True, gc=False):
    """What a body says about itself."""

    #: As written by the caller; None when absent or empty.
    model: str | None
    #: None when the body does not say.
    stream: bool | None
    #: The field the model was read from.
    model_key: str
    #: Top-level field -> its bytes, undecoded.
    fields: dict[str, Raw]

    def has(self, field: str) -> bool:
        return field in self.fields

    @property
    def inputs(self) -> int:
        """Inputs of an embeddings request: texts or token arrays; a flat array of tokens is one. Raises BadJson."""
        raw = self.fields.get("input")
        if raw is None:
            return 1 if "prompt" in self.fields else 0
        if _first(raw) != b"[":
            return 1
        items = _ITEMS.decode(raw)
        return 1 if items and _first(items[0]) in _NUMBERS else len(items)


def peek(body: bytes, keys: tuple[str, ...] = MODEL_OR_NAME) -> Peek:
    """Read model and stream from a JSON object. `keys` are the fields that may carry the model, first filled one wins.

    Raises MissingBody for nothing, BadJson for what no two readers would surely read alike.
    """
    try:
        fields = _FIELDS.decode(body)
        if not body.isascii():
            str(body, "utf-8")
        for field, raw in fields.items():
            if field in _CONTENT:
                continue
            if field not in _PARAMETERS:
                _check_case(field, keys)
            if 4 < len(raw) <= _PARAMETER_BYTES:
                _ANYTHING.decode(raw)
            elif len(raw) > _PARAMETER_BYTES and _first(raw) in _NUMBERS:
                raise BadJson(f"`{field[:64]}` is a number out of range.")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _refusal(body, error) from None
    model: str | None = None
    key = keys[0]
    for candidate in keys:
        named = fields.get(candidate)
        if named is not None:
            try:
                model = _NAME.decode(named)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                raise BadJson(f"`{candidate}` must be a string of at most {MAX_MODEL_CHARACTERS} characters.") from None
            key = candidate
            if model:
                break
    streamed = fields.get("stream")
    stream: bool | None = None
    if streamed is not None:
        try:
            stream = _FLAG.decode(streamed)
        except msgspec.MsgspecError:
            raise BadJson("`stream` must be true or false.") from None
    if body.count(b'"%b"' % key.encode()) > 1 or body.count(b'"stream"') > 1 or body.find(b"\\u00") >= 0:
        _check_once(body, fields, (*keys, "stream"))
    return Peek(model or None, stream, key, fields)


def rewrite_model(body: bytes, model: str, seen: Peek | None = None) -> bytes:
    """The body with another model name; every other byte as it was. `seen` is this body's peek, where it is at hand."""
    seen = seen or peek(body)
    for key, start, end in _entries(body, seen.fields):
        if key == seen.model_key:
            return body[:start] + msgspec.json.encode(model) + body[end:]
    return body


def around(body: bytes, seen: Peek, field: str) -> tuple[bytes, bytes]:
    """The bytes before and after the value of a top-level field that is there; of one that stands twice, the last."""
    before, after = body, b""
    for key, start, end in _entries(body, seen.fields):
        if key == field:
            before, after = body[:start], body[end:]
    return before, after


def elements(seen: Peek, field: str) -> list[Raw]:
    """The values of a field that is an array, as they stand there. Raises BadJson when it is none."""
    try:
        return _ITEMS.decode(seen.fields[field])
    except msgspec.MsgspecError:
        raise BadJson(f"`{field}` must be an array.") from None


def inject(body: bytes, seen: Peek, *, keep_alive: str | None = None, num_ctx: int | None = None) -> bytes:
    """The body with Ollama's `keep_alive` and `options.num_ctx` where the caller set none.

    What is inserted stands first in its object, so that a spelling in another case still wins on Ollama's side.
    """
    added = b""
    if keep_alive is not None and "keep_alive" not in seen.fields:
        added = b'"keep_alive":' + _duration(keep_alive) + b","
    if num_ctx is not None:
        raw = seen.fields.get("options")
        if raw is None:
            added += b'"options":{"num_ctx":%d},' % num_ctx
        else:
            body = _with_num_ctx(body, seen, raw, num_ctx)
    if not added:
        return body
    start = body.index(b"{") + 1
    return body[:start] + (added if seen.fields else added[:-1]) + body[start:]


def _with_num_ctx(body: bytes, seen: Peek, raw: Raw, num_ctx: int) -> bytes:
    try:
        options = _OBJECT.decode(raw)
    except msgspec.MsgspecError:
        return body  # wrong type: the backend says so itself
    if options is not None and "num_ctx" in options:
        return body
    setting = b'"num_ctx":%d' % num_ctx
    for key, start, end in _entries(body, seen.fields):
        if key == "options":
            if options is None:
                return body[:start] + b"{" + setting + b"}" + body[end:]
            return body[: start + 1] + setting + (b"," if options else b"") + body[start + 1 :]
    return body  # pragma: no cover  (a field that was decoded has an entry)


def _duration(keep_alive: str) -> bytes:
    """Ollama takes a number of seconds or a Go duration."""
    return keep_alive.encode() if re.fullmatch(r"-?\d{1,12}", keep_alive) else msgspec.json.encode(keep_alive)


def _first(raw: Raw) -> bytes:
    return bytes(memoryview(raw)[:1])


def _check_case(field: str, keys: tuple[str, ...]) -> None:
    folded = field.casefold()
    if folded == "stream" or folded in keys:
        raise BadJson(f"`{folded}` must be written in lower case.")


def _check_once(body: bytes, fields: dict[str, Raw], keys: tuple[str, ...]) -> None:
    """Refuse a guarded field written twice, escapes undone."""
    seen = set()
    for key, _, _ in _entries(body, fields):
        if key in seen and key in keys:
            raise BadJson(f"`{key}` stands twice in the body.")
        seen.add(key)


def _entries(body: bytes, fields: dict[str, Raw]) -> list[tuple[str, int, int]]:
    """Top-level fields in order, each with the bounds of its value in the body."""
    entries = list(_walk(body, fields))
    # A field that stands twice is once in the dictionary, so the walk loses its way: look at every value then.
    return entries if len(entries) == len(fields) and _closed(body, entries) else list(_scan(body))


def _closed(body: bytes, entries: list[tuple[str, int, int]]) -> bool:
    after = _AFTER.match(body, entries[-1][2]) if entries else None
    return after is not None and after[1] == b"}"


def _walk(body: bytes, fields: dict[str, Raw]) -> Iterator[tuple[str, int, int]]:
    """From field to field by the values the decoder found: some 0.5 us a field, whatever stands in it.

    Safe, because no JSON value begins another one: equal bytes with a comma or brace behind them are that very value.
    """
    position = body.index(b"{") + 1
    for field, raw in fields.items():
        found = _KEY.match(body, position)
        if found is None or _text(found[1]) != field:
            return
        start = found.end()
        end = start + len(raw)
        after = _AFTER.match(body, end)
        if after is None or body[start:end] != bytes(raw):
            return
        yield field, start, end
        position = after.end()


def _scan(body: bytes) -> Iterator[tuple[str, int, int]]:
    """From field to field by reading every value. As Latin-1, so that characters count as bytes do."""
    text = body.decode("latin-1")
    decoder = json.JSONDecoder()
    position = body.index(b"{") + 1
    while found := _KEY.match(body, position):
        start = found.end()
        end = decoder.raw_decode(text, start)[1]
        yield _text(found[1]), start, end
        after = _AFTER.match(body, end)
        position = after.end() if after else end


def _text(key: bytes) -> str:
    return _ANYTHING.decode(b'"' + key + b'"') if b"\\" in key else key.decode()


def _refusal(body: bytes, error: Exception) -> MissingBody | BadJson:
    if not body.strip():
        return MissingBody()
    if isinstance(error, msgspec.ValidationError) and "object" in str(error):
        return BadJson("The body must be a JSON object.")
    if isinstance(error, UnicodeDecodeError):
        return BadJson("The body is not UTF-8 text.")
    if isinstance(error, RecursionError):
        return BadJson("The body is nested too deeply.")
    return BadJson(f"The body is not valid JSON: {error}.")
