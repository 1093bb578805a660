from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.core.operation import Endpoint
from fleetproxy.core.usage import NOTHING, Usage
from fleetproxy.families.registry import find
from fleetproxy.wire import report
from fleetproxy.wire.tap import HEAD_BYTES, TAIL_BYTES, Seen, Tap, ends_marked

PATHS = {
    "ndjson_done": "/api/chat",
    "ndjson_status": "/api/pull",
    "sse_done": "/v1/chat/completions",
    "sse_message_stop": "/v1/messages",
    "sse_response_completed": "/v1/responses",
    None: "/v1/rerank",
}
COUNTS = st.integers(0, 10**6)
TEXT = st.text(max_size=12) | st.sampled_from(
    [
        '"done":true',
        "[DONE]",
        "data: [DONE]",
        '{"error":"x"}',
        "message_stop",
        "response.completed",
        '"success"',
        "true",
    ]
)


def endpoint(marker: str | None) -> Endpoint:
    found = find("POST", PATHS[marker])
    assert found is not None
    assert found.marker_stream == marker
    return found


def dumps(value: Any, spaced: bool = False) -> bytes:
    separators = (", ", ": ") if spaced else (",", ":")
    return json.dumps(value, ensure_ascii=False, separators=separators).encode()


@st.composite
def answers(draw: st.DrawFn) -> tuple[str, bytes, Usage]:
    """A whole stream of some dialect, as its lines, and the usage it reports."""
    marker = draw(st.sampled_from([name for name in PATHS if name]))
    texts = draw(st.lists(TEXT, max_size=5))
    tokens_in, tokens_out = draw(COUNTS), draw(COUNTS)
    spaced = draw(st.booleans())
    end = draw(st.sampled_from([b"\n", b"\r\n"]))
    usage = Usage(tokens_in, tokens_out)
    lines: list[bytes] = []
    if marker == "ndjson_done":
        lines += [dumps({"message": {"content": text}, "done": False}, spaced) for text in texts]
        lines += [
            dumps({"message": {"tool_calls": [{"done": True, "error": text}]}, "done": False}) for text in texts[:1]
        ]
        final = {"done": True, "done_reason": "stop", "prompt_eval_count": tokens_in, "eval_count": tokens_out}
        lines.append(dumps(final | {"load_duration": 2_000_000}, spaced))
        usage = Usage(tokens_in, tokens_out, 2.0)
    elif marker == "ndjson_status":
        lines += [dumps({"status": text, "total": tokens_in}, spaced) for text in texts]
        lines.append(dumps({"status": "success"}, spaced))
        usage = NOTHING
    else:
        lines += [b": comment", b"", b"retry: 5"]
        event = {
            "sse_done": lambda text: {"choices": [{"delta": {"content": text}}], "usage": None},
            "sse_message_stop": lambda text: {"type": "content_block_delta", "delta": {"text": text}},
            "sse_response_completed": lambda text: {"type": "response.output_text.delta", "delta": text},
        }[marker]
        if marker == "sse_message_stop":
            start = {"type": "message_start", "message": {"usage": {"input_tokens": tokens_in, "output_tokens": 1}}}
            lines += [b"event: message_start", b"data: " + dumps(start, spaced), b""]
        for text in texts:
            lines += [b"data: " + dumps(event(text), spaced), b""]
        if marker == "sse_done":
            counts = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": 9}
            lines += [b"data: " + dumps({"choices": [], "usage": counts}, spaced), b"", b"data: [DONE]"]
        elif marker == "sse_message_stop":
            delta = {"type": "message_delta", "usage": {"output_tokens": tokens_out}}
            lines += [b"data: " + dumps(delta, spaced), b"", b"event: message_stop"]
            lines.append(b"data: " + dumps({"type": "message_stop"}, spaced))
        else:
            counts = {"input_tokens": tokens_in, "output_tokens": tokens_out}
            final = {"type": "response.completed", "response": {"error": None, "usage": counts}}
            lines += [b"event: response.completed", b"data: " + dumps(final, spaced)]
    return marker, end.join(lines) + end, usage


def cut(draw: st.DrawFn, data: bytes) -> list[bytes]:
    places = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    return [data[start:stop] for start, stop in zip([0, *places], [*places, len(data)], strict=True)]


def feed(marker: str | None, chunks: list[bytes], streamed: bool = True) -> tuple[list[bool], Seen, Tap]:
    tap = Tap(endpoint(marker), streamed)
    seen = [tap.see(chunk) for chunk in chunks]
    return seen, tap.end(), tap


# --- laws ------------------------------------------------------------------------------------------------------------


@given(answers(), st.sampled_from([b"", b"\n", b"more", b'data: {"error":"late"}\n\n']), st.data())
def test_any_chunking_sees_the_same(answer: tuple[str, bytes, Usage], more: bytes, data: st.DataObject) -> None:
    marker, body, usage = answer
    chunks = cut(data.draw, body + more) if data.draw(st.booleans()) else [bytes([byte]) for byte in body + more]
    flags, seen, tap = feed(marker, chunks)
    assert seen == Seen(usage, True, None)
    assert tap.terminal
    assert flags.count(True) == 1
    # ... and the flag is raised by the chunk in which the last line's end begins.
    last_line_end = len(body.rstrip(b"\r\n")) + 1
    passed = 0
    for flag, chunk in zip(flags, chunks, strict=True):
        assert flag == (passed < last_line_end <= passed + len(chunk))
        passed += len(chunk)


@given(answers(), st.data())
def test_a_stream_cut_before_its_last_line_never_counts_as_whole(
    answer: tuple[str, bytes, Usage], data: st.DataObject
) -> None:
    marker, body, _ = answer
    last_line = body.rstrip(b"\r\n").splitlines()[-1]
    shorter = body[: len(body.rstrip(b"\r\n")) - data.draw(st.integers(1, len(last_line)))]
    flags, seen, tap = feed(marker, cut(data.draw, shorter))
    assert not any(flags)
    assert not tap.terminal
    assert (seen.terminal, seen.error) == (False, None)


@given(answers())
def test_the_last_line_counts_without_its_end(answer: tuple[str, bytes, Usage]) -> None:
    marker, body, usage = answer
    flags, seen, tap = feed(marker, [body.rstrip(b"\r\n")])
    assert flags == [False]
    assert tap.terminal
    assert seen == Seen(usage, True, None)
    assert tap.mid_line


@given(st.sampled_from(list(PATHS)), st.lists(st.binary(max_size=40), max_size=8), st.booleans())
def test_garbage_is_looked_at_without_harm(marker: str | None, chunks: list[bytes], streamed: bool) -> None:
    whole = feed(marker, [b"".join(chunks)], streamed)
    pieces = feed(marker, chunks, streamed)
    assert whole[1] == pieces[1]
    assert whole[2].terminal == pieces[2].terminal
    assert whole[2].mid_line == pieces[2].mid_line == (b"".join(chunks)[-1:] not in (b"", b"\n", b"\r"))


NEAR_JSON = st.text('{}[]":,\\ \n\rdatue:nors1', max_size=60).map(str.encode)
FRAGMENTS = st.sampled_from(
    [b'{"error":', b'"x"}', b"data: ", b"[DONE]", b"\n", b"\r", b'"usage":{', b'"prompt_tokens":1', b"}", b"true", b"{"]
)


@given(st.sampled_from(list(PATHS)), st.lists(NEAR_JSON | FRAGMENTS, max_size=12), st.booleans())
def test_near_misses_look_the_same_in_any_chunking(marker: str | None, chunks: list[bytes], streamed: bool) -> None:
    assert feed(marker, [b"".join(chunks)], streamed)[1] == feed(marker, chunks, streamed)[1]


@pytest.mark.parametrize("size", [1, 7, 1000, 16_384, 100_000])
@pytest.mark.parametrize("line", [50, 1000, 200_000])
@pytest.mark.parametrize("marker", [None, "ndjson_done", "sse_done"])
def test_memory_is_bounded(marker: str | None, size: int, line: int) -> None:
    total = 600_000 if size > 1 else 150_000
    data = (b"x" * line + b"\n") * (total // line)
    tap = Tap(endpoint(marker), True)
    most = 0
    for at in range(0, len(data), size):
        tap.see(data[at : at + size])
        most = max(most, sum(map(len, tap._pieces)) + 64 * len(tap._pieces))
    assert most <= 2 * TAIL_BYTES + size + 2 * 64
    assert len(tap.head()) <= HEAD_BYTES


# --- usage and errors, by dialect ------------------------------------------------------------------------------------


def ndjson(*objects: Any) -> bytes:
    return b"".join(dumps(value) + b"\n" for value in objects)


def sse(*events: Any) -> bytes:
    return b"".join(b"data: " + (event if isinstance(event, bytes) else dumps(event)) + b"\n\n" for event in events)


DONE = b"[DONE]"


@pytest.mark.parametrize(
    ("marker", "body", "seen"),
    [
        ("ndjson_done", ndjson({"done": True}), Seen(Usage(0, 0), True, None)),
        ("ndjson_done", ndjson({"done_reason": "stop", "eval_count": 3}), Seen(Usage(None, 3), True, None)),
        ("ndjson_done", ndjson({"done": False, "done_reason": "stop"}), Seen(NOTHING, False, None)),
        ("ndjson_done", ndjson({"done": False}, {"error": "out of memory"}), Seen(NOTHING, True, "out of memory")),
        ("ndjson_done", ndjson({"error": {"message": "m"}}), Seen(NOTHING, True, "m")),
        ("ndjson_done", ndjson({"error": 5}), Seen(NOTHING, True, "error")),
        ("ndjson_done", ndjson({"error": None}, {"error": ""}, {"error": False}), Seen(NOTHING, False, None)),
        (
            "ndjson_done",
            ndjson({"done": True, "eval_count": -1, "prompt_eval_count": 1e99}),
            Seen(Usage(0, 0), True, None),
        ),
        ("ndjson_status", ndjson({"status": "pulling"}, {"error": "no space"}), Seen(NOTHING, True, "no space")),
        ("ndjson_status", ndjson({"status": "success"}), Seen(NOTHING, True, None)),
        ("ndjson_status", b'"success"\n', Seen(NOTHING, False, None)),
        ("sse_done", sse(DONE), Seen(NOTHING, True, None)),
        ("sse_done", b"data:[DONE]\n\n", Seen(NOTHING, True, None)),
        ("sse_done", sse({"error": {"message": "boom"}}, DONE), Seen(NOTHING, True, "boom")),
        ("sse_done", sse({"error": {"code": 1}}), Seen(NOTHING, True, "error")),
        ("sse_done", b'event: error\ndata: {"error":"x"}\n\n', Seen(NOTHING, True, "x")),
        ("sse_done", sse(b"[DONE]x", {"choices": ["[DONE]"]}), Seen(NOTHING, False, None)),
        ("sse_done", sse({"usage": {"prompt_tokens": 1}}, {"choices": []}), Seen(Usage(1), False, None)),
        (
            "sse_done",
            sse(
                {"timings": {"prompt_n": 3, "cache_n": 2, "predicted_n": 7, "prompt_ms": 1.5, "predicted_ms": 9}}, DONE
            ),
            Seen(Usage(5, 7, None, 1.5, 9.0), True, None),
        ),
        (
            "sse_done",
            sse({"usage": {"prompt_tokens": 10, "completion_tokens": 8}, "timings": {"predicted_ms": 4}}, DONE),
            Seen(Usage(10, 8, None, None, 4.0), True, None),
        ),
        (
            "sse_message_stop",
            sse({"type": "message_start", "message": {"usage": {"input_tokens": 2, "cache_read_input_tokens": 3}}}),
            Seen(Usage(5), False, None),
        ),
        (
            "sse_message_stop",
            sse({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}),
            Seen(NOTHING, True, "busy"),
        ),
        ("sse_message_stop", sse({"type": "message_stop"}), Seen(NOTHING, True, None)),
        (
            "sse_response_completed",
            sse({"type": "response.failed", "response": {"error": {"message": "bad"}, "usage": None}}),
            Seen(NOTHING, True, "bad"),
        ),
        (
            "sse_response_completed",
            sse({"type": "response.incomplete", "response": {"usage": {"input_tokens": 1, "output_tokens": 2}}}),
            Seen(Usage(1, 2), True, None),
        ),
        ("sse_response_completed", sse({"type": "error", "message": "late"}), Seen(NOTHING, True, "late")),
        ("sse_response_completed", sse({"type": "response.completed", "response": "?"}), Seen(NOTHING, True, None)),
        ("sse_response_completed", sse({"type": "response.failed"}), Seen(NOTHING, True, None)),
    ],
)
def test_streams_are_read(marker: str, body: bytes, seen: Seen) -> None:
    assert feed(marker, [body])[1] == seen
    assert feed(marker, [body[:10], body[10:]])[1] == seen


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        (
            {"response": "x", "done": True, "prompt_eval_count": 1, "eval_count": 2, "eval_duration": 3_000_000},
            Usage(1, 2, eval_ms=3.0),
        ),
        ({"model": "m", "embeddings": [[1.0]], "prompt_eval_count": 4, "load_duration": 0}, Usage(4, None, 0.0)),
        ({"object": "list", "data": [], "usage": {"prompt_tokens": 5, "total_tokens": 5}}, Usage(5)),
        ({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 6}}, Usage(5, 6)),
        ({"type": "message", "content": [], "usage": {"input_tokens": 1, "output_tokens": 2}}, Usage(1, 2)),
        ({"object": "response", "status": "completed", "usage": {"input_tokens": 3, "output_tokens": 4}}, Usage(3, 4)),
        ({"choices": [], "timings": {"prompt_n": 1, "predicted_n": 2, "prompt_ms": -1}}, Usage(1, 2)),
        ({"choices": []}, NOTHING),
        ({"usage": "none"}, NOTHING),
        ([1, 2], NOTHING),
    ],
)
def test_whole_bodies_are_read(body: Any, usage: Usage) -> None:
    data = dumps(body)
    assert report.of_body(data) == usage
    assert feed("sse_done", [data], streamed=False)[1] == Seen(usage, False, None)
    assert feed(None, [data[:7], data[7:]])[1] == Seen(usage, False, None)


BIG = "x" * (TAIL_BYTES + 5000)


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        (
            {"choices": [BIG], "usage": {"prompt_tokens": 5, "completion_tokens": 6, "details": {"cached": 1}}},
            Usage(5, 6),
        ),
        ({"usage": {"prompt_tokens": 5}, "data": [BIG]}, Usage(5)),
        ({"embeddings": [BIG], "load_duration": 1_000_000, "prompt_eval_count": 9}, Usage(9, None, 1.0)),
        ({"choices": [BIG], "timings": {"predicted_n": 3}}, Usage(None, 3)),
        ({"choices": [BIG], "usage": {"prompt_tokens": "many"}}, NOTHING),
        ({"choices": [BIG], "usage": None}, NOTHING),
        ({"text": BIG + '"usage":{"prompt_tokens":1}'}, NOTHING),
    ],
)
@pytest.mark.parametrize("size", [997, 4096, 10**6])
def test_bodies_too_large_to_keep_are_read_at_both_ends(body: Any, usage: Usage, size: int) -> None:
    data = dumps(body)
    chunks = [data[at : at + size] for at in range(0, len(data), size)]
    assert feed(None, chunks, streamed=False)[1] == Seen(usage, False, None)
    assert report.of_body(data) == usage


@pytest.mark.parametrize("size", [1000, 65_536, 10**6])
@pytest.mark.parametrize("room", [-2, -1, 0, 1, 2, 70_000])
def test_lines_around_the_limit_end_their_streams(size: int, room: int) -> None:
    def run(marker: str, line: bytes, usage: Usage) -> None:
        data = b"data: {}\n\n" + line if line.startswith(b"data") else b"{}\n" + line
        flags, seen, _ = feed(marker, [data[at : at + size] for at in range(0, len(data), size)])
        assert seen == Seen(usage, True, None)
        assert flags.count(True) == 1

    def padded(text: bytes) -> bytes:
        return text.replace(b"PAD", b"1" * (TAIL_BYTES + room - len(text) + 3)) + b"\n"

    context = b'{"response":"","done":true,"context":[PAD],"total_duration":1,"prompt_eval_count":2,"eval_count":3}'
    run("ndjson_done", padded(context), Usage(2, 3))
    answer = b'data: {"type":"response.completed","response":{"x":PAD,"usage":{"input_tokens":2,"output_tokens":3}}}'
    run("sse_response_completed", padded(answer), Usage(2, 3))


@pytest.mark.parametrize("marker", [name for name in PATHS if name])
@pytest.mark.parametrize("size", [1000, 10**6])
def test_long_lines_that_end_nothing_end_nothing(marker: str, size: int) -> None:
    text = 'data: [DONE] "success" true message_stop response.completed "error" ' + BIG
    data = b"data: " + dumps({"delta": text, "error": None}) + b"\n\n"
    flags, seen, tap = feed(marker, [data[at : at + size] for at in range(0, len(data), size)])
    assert not any(flags)
    assert seen == Seen(NOTHING, False, None)
    assert not tap.terminal


def test_the_first_event_is_remembered_after_a_long_stream() -> None:
    start = sse({"type": "message_start", "message": {"usage": {"input_tokens": 11, "output_tokens": 1}}})
    delta = sse({"type": "content_block_delta", "delta": {"text": "y" * 500}})
    final = sse({"type": "message_delta", "usage": {"output_tokens": 22}}, {"type": "message_stop"})
    _, seen, _ = feed("sse_message_stop", [start, *[delta] * 1000, final])
    assert seen == Seen(Usage(11, 22), True, None)


def test_nothing_raises_the_flag_twice() -> None:
    flags, seen, tap = feed("sse_done", [sse(DONE), sse(DONE), sse({"error": "late"})])
    assert flags == [True, False, False]
    assert seen.error is None
    assert tap.error is None


def test_a_body_without_marker_raises_no_flag() -> None:
    flags, seen, tap = feed("ndjson_done", [ndjson({"done": True})], streamed=False)
    assert flags == [False]
    assert not tap.terminal
    assert seen.usage == Usage(0, 0)


@pytest.mark.parametrize(
    ("marker", "headers", "announced_bytes", "expected"),
    [
        ("sse_done", [(b"content-type", b"text/event-stream; charset=utf-8")], None, True),
        ("sse_done", [(b"content-type", b"text/event-stream")], 40, True),
        ("sse_done", [(b"content-type", b"text/plain")], None, True),
        ("sse_done", [], None, True),
        ("sse_done", [(b"content-type", b"Application/JSON; charset=utf-8")], None, False),
        ("sse_message_stop", [(b"content-type", b"application/json")], 40, False),
        ("ndjson_done", [(b"content-type", b"application/x-ndjson")], None, True),
        ("ndjson_done", [(b"content-type", b"application/json")], None, True),
        ("ndjson_done", [(b"content-type", b"application/json")], 40, False),
        ("ndjson_done", [(b"content-type", b"application/x-ndjson"), (b"content-encoding", b"gzip")], None, False),
        ("ndjson_done", [(b"content-encoding", b" Identity"), (b"content-type", b"application/x-ndjson")], None, True),
        (None, [(b"content-type", b"text/event-stream")], None, False),
    ],
)
def test_only_streams_that_can_be_read_have_to_show_their_end_marker(
    marker: str | None, headers: list[tuple[bytes, bytes]], announced_bytes: int | None, expected: bool
) -> None:
    assert ends_marked(endpoint(marker), headers, announced_bytes) is expected
