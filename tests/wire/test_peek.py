from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fleetproxy.errors import BadJson, MissingBody
from fleetproxy.wire.peek import around, elements, inject, peek, rewrite_model

SCALARS = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(-1e9, 1e9) | st.text(max_size=12)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=10,
)
OTHER_FIELDS = st.dictionaries(
    st.text(max_size=8).filter(lambda key: key.casefold() not in ("model", "name", "stream", "source", "keep_alive")),
    VALUES,
    max_size=6,
)
MODELS = st.text(min_size=1, max_size=40)
BLANKS = st.sampled_from(["", " ", "\n\t ", "\r\n"])


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, dict[str, Any]]:
    """A JSON object with model and stream among other fields, in any order and layout."""
    fields = dict(draw(OTHER_FIELDS))
    fields["model"] = draw(MODELS)
    if draw(st.booleans()):
        fields["stream"] = draw(st.booleans() | st.none())
    order = draw(st.permutations(list(fields)))
    fields = {key: fields[key] for key in order}
    blank = draw(BLANKS)
    separators = (blank + "," + draw(BLANKS), blank + ":" + blank)
    text = json.dumps(fields, ensure_ascii=draw(st.booleans()), separators=separators)
    return (draw(BLANKS) + text + draw(BLANKS)).encode(), fields


@given(bodies())
def test_a_peek_sees_what_a_full_parse_sees(made: tuple[bytes, dict[str, Any]]) -> None:
    body, fields = made
    seen = peek(body)
    assert seen.model == fields["model"]
    assert seen.stream == fields.get("stream")
    assert set(seen.fields) == set(fields)
    assert all(seen.has(field) for field in fields)


@given(st.binary(max_size=60) | st.text('{}[]":,\\u0model123 tfn-eE.', max_size=60).map(str.encode))
@example(b'{"\\ud800":1}')
def test_garbage_raises_nothing_but_its_own_errors(body: bytes) -> None:
    try:
        seen = peek(body)
    except (BadJson, MissingBody):
        return
    assert set(seen.fields) == set(json.loads(body))


@given(bodies(), MODELS)
def test_rewriting_the_model_changes_its_value_and_no_other_byte(
    made: tuple[bytes, dict[str, Any]], model: str
) -> None:
    body, fields = made
    changed = rewrite_model(body, model)
    assert json.loads(changed) == {**fields, "model": model}
    new = json.dumps(model, ensure_ascii=False).encode()
    assert any(
        changed[:at] == body[:at] and body.endswith(changed[at + len(new) :])
        for at in range(len(changed))
        if changed.startswith(b'"', at)
    )
    assert rewrite_model(changed, fields["model"]) == rewrite_model(body, fields["model"], peek(body))


@given(bodies(), st.sampled_from(["30m", "-1", "0", "5h30m"]), st.integers(1, 131072))
def test_defaults_are_added_only_where_the_caller_set_none(
    made: tuple[bytes, dict[str, Any]], keep_alive: str, num_ctx: int
) -> None:
    body, fields = made
    changed = inject(body, peek(body), keep_alive=keep_alive, num_ctx=num_ctx)
    parsed = json.loads(changed)
    wanted = int(keep_alive) if keep_alive.lstrip("-").isdigit() else keep_alive
    options = fields.get("options")
    expected = {**fields, "keep_alive": wanted}
    if options is None:
        expected["options"] = {"num_ctx": num_ctx}
    elif isinstance(options, dict):
        expected["options"] = {"num_ctx": num_ctx, **options}
    assert parsed == expected
    assert inject(changed, peek(changed), keep_alive=keep_alive, num_ctx=num_ctx) == changed


@pytest.mark.parametrize(
    ("body", "options"),
    [
        (b'{"model":"m","options":{}}', {"num_ctx": 9}),
        (b'{"model":"m","options": { "seed": 1 }}', {"num_ctx": 9, "seed": 1}),
        (b'{"model":"m","options":{"num_ctx":2}}', {"num_ctx": 2}),
        (b'{"options":null,"model":"m"}', {"num_ctx": 9}),
        (b'{"options":"x","model":"m"}', "x"),
        (b'{"a":1,"a":2,"options":{"b":"}"},"model":"m"}', {"num_ctx": 9, "b": "}"}),
        (b"{}", {"num_ctx": 9}),
    ],
)
def test_num_ctx_goes_into_options_of_any_form(body: bytes, options: object) -> None:
    assert json.loads(inject(body, peek(body), num_ctx=9))["options"] == options


def test_nothing_to_add_is_the_same_object() -> None:
    body = b'{"model":"m","keep_alive":0,"options":{"num_ctx":1}}'
    seen = peek(body)
    assert inject(body, seen) is body
    assert inject(body, seen, keep_alive="5m", num_ctx=7) is body
    assert rewrite_model(b'{"a":1}', "x") == b'{"a":1}'


GUARDED = [
    b'"model":"b"',
    b'"MODEL":"b"',
    b'"Model" : "b"',
    b'"mod\\u0065l":"b"',
    b'"\\u004dodel":"b"',
    b'"stream":true,"stream":false',
    b'"stream":true,"\\u0073tream":false',
    b'"Stream":true',
    b'"\xc5\xbftream":true',
    b'"\\u017ftream":true',
]


@given(OTHER_FIELDS, st.sampled_from(GUARDED), st.booleans())
def test_fields_we_decide_by_stand_once_and_in_lower_case(other: dict[str, Any], second: bytes, after: bool) -> None:
    rest = json.dumps(other, ensure_ascii=False).encode()[1:-1]
    parts = [b'"model":"a"', *([rest] if rest else []), second]
    body = b"{" + b",".join(parts if after else parts[::-1]) + b"}"
    assert json.loads(body) is not None
    with pytest.raises(BadJson):
        peek(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"x}","model":"cd"}',
        b'{"stream":{"":1,     "model":"b"},"model":"c","stream":true}',
        b'{"model":"a","x":{"model":1},"y":[{"stream":1}],"model":"a"}',
        b'{"model":"a","model":"a","x":1}',
    ],
)
def test_no_layout_hides_a_second_model(body: bytes) -> None:
    with pytest.raises(BadJson, match="stands twice"):
        peek(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","tools":[{"model":"b","stream":1}],"x":"\\"model\\":"}',
        b'{"model":"a","extra":1,"extra":{"model":"b","n":"}"},"extra":12}',
        b'{"model":"a","caf\\u00e9":1,"caf\\u00e9":2}',
        b'{"model":"a","MESSAGES":[]}',
        b'{"model":"a","unheard_of":"' + b"x" * 5000 + b'"}',
    ],
)
def test_what_we_do_not_decide_by_may_look_as_it_likes(body: bytes) -> None:
    seen = peek(body)
    assert seen.model == "a"
    assert json.loads(rewrite_model(body, "z", seen))["model"] == "z"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"[]", "must be a JSON object"),
        (b'"model"', "must be a JSON object"),
        (b"{" + b'"a":' + b"[" * 100_000, "nested too deeply"),
        (b'{"a":"\xff"}', "not UTF-8"),
        (b'{"a":"\xed\xa0\x80"}', "not UTF-8"),
        (b'{"messages":[{"content":"\xc0\xae"}]}', "not UTF-8"),
        (b'{"\xff":1}', "not UTF-8"),
        (b'{"a":"\\ud800"}', "not valid JSON"),
        (b'\xef\xbb\xbf{"a":1}', "not valid JSON"),
        ('{"a":1}'.encode("utf-16"), "not valid JSON"),
        (b'{"temperature":NaN}', "not valid JSON"),
        (b'{"temperature":Infinity}', "not valid JSON"),
        (b'{"temperature":1e999}', "not valid JSON"),
        (b'{"options":{"seed":-1e999}}', "not valid JSON"),
        (b'{"n":' + b"9" * 5000 + b"}", "`n` is a number out of range"),
        (b'{"model":"a"}{"model":"b"}', "not valid JSON"),
        (b'{"model":"a"', "not valid JSON"),
        (b'{"model":null}', "`model` must be a string"),
        (b'{"model":["a"]}', "`model` must be a string"),
        (b'{"model":1}', "`model` must be a string"),
        (b'{"model":"\xff"}', "not UTF-8"),
        (b'{"model":"' + b"m" * 257 + b'"}', "at most 256 characters"),
        (b'{"name":3}', "`name` must be a string"),
        (b'{"stream":"true"}', "`stream` must be"),
        (b'{"stream":1}', "`stream` must be"),
    ],
)
def test_bodies_two_readers_could_read_differently_are_refused(body: bytes, says: str) -> None:
    with pytest.raises(BadJson, match=says):
        peek(body)


@pytest.mark.parametrize("body", [b"", b" \n\t"])
def test_no_body_says_so_in_ollamas_words(body: bytes) -> None:
    with pytest.raises(MissingBody, match="missing request body"):
        peek(body)


@pytest.mark.parametrize(
    ("body", "keys", "model", "key"),
    [
        (b'{"name":"n"}', ("model", "name"), "n", "name"),
        (b'{"model":"","name":"n"}', ("model", "name"), "n", "name"),
        (b'{"model":"m","name":"n"}', ("model", "name"), "m", "model"),
        (b'{"name":"n"}', ("model",), None, "model"),
        (b'{"model":"m","source":"s"}', ("source",), "s", "source"),
        (b'{"model":""}', ("model", "name"), None, "model"),
        (b'{"model":"' + "ä".encode() * 256 + b'"}', ("model",), "ä" * 256, "model"),
    ],
)
def test_the_first_filled_field_names_the_model(
    body: bytes, keys: tuple[str, ...], model: str | None, key: str
) -> None:
    seen = peek(body, keys)
    assert (seen.model, seen.model_key) == (model, key)
    if model:
        assert json.loads(rewrite_model(body, "z", seen))[key] == "z"


@pytest.mark.parametrize(
    ("body", "inputs"),
    [
        (b'{"input":"a"}', 1),
        (b'{"input":[]}', 0),
        (b'{"input":["a","b","c"]}', 3),
        (b'{"input":[1,2,3]}', 1),
        (b'{"input":[-1]}', 1),
        (b'{"input":[[1,2],[3]]}', 2),
        (b'{"input": [ {"text":"a"}, "b" ] }', 2),
        (b'{"prompt":"a"}', 1),
        (b'{"messages":[]}', 0),
    ],
)
def test_inputs_are_texts_or_token_arrays(body: bytes, inputs: int) -> None:
    assert peek(body).inputs == inputs


@given(bodies(), st.data())
def test_what_is_around_a_field_is_everything_else(made: tuple[bytes, dict[str, Any]], data: st.DataObject) -> None:
    body, fields = made
    field = data.draw(st.sampled_from(list(fields)))
    before, after = around(body, peek(body), field)
    assert json.loads(before + b"[1]" + after) == {**fields, field: [1]}
    assert json.loads(body[len(before) : len(body) - len(after)]) == fields[field]


def test_of_a_field_that_stands_twice_the_last_is_meant() -> None:
    body = b'{"input":["a"],"model":"m","input":["b"]}'
    before, after = around(body, peek(body), "input")
    assert before + b"X" + after == b'{"input":["a"],"model":"m","input":X}'


@given(st.lists(VALUES, max_size=5))
def test_elements_are_the_bytes_of_each(values: list[Any]) -> None:
    seen = peek(json.dumps({"input": values}).encode())
    assert [json.loads(bytes(raw)) for raw in elements(seen, "input")] == values


@pytest.mark.parametrize("value", [b'"a"', b"1", b"null", b"{}"])
def test_what_is_no_array_has_no_elements(value: bytes) -> None:
    with pytest.raises(BadJson, match="`input` must be an array"):
        elements(peek(b'{"input":' + value + b"}"), "input")
