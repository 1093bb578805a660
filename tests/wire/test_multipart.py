"""Laws of reading forms as they go by."""

from __future__ import annotations

import io
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multipart import MultipartParser

from fleetproxy.wire import multipart
from fleetproxy.wire.multipart import BadForm, Field, FormReader, boundary_of

BOUNDARY = b"----WebKitFormBoundary7MA4YWxk"
WANTED = ("model", "stream")


def part(name: str, content: bytes, filename: str = "", boundary: bytes = BOUNDARY) -> bytes:
    file = f'; filename="{filename}"\r\nContent-Type: audio/wav' if filename else ""
    head = f'Content-Disposition: form-data; name="{name}"{file}'.encode()
    return b"--" + boundary + b"\r\n" + head + b"\r\n\r\n" + content + b"\r\n"


def form(*parts: bytes, boundary: bytes = BOUNDARY, preamble: bytes = b"", epilogue: bytes = b"\r\n") -> bytes:
    return preamble + b"".join(parts) + b"--" + boundary + b"--" + epilogue


def read(body: bytes, cuts: list[int] | None = None, boundary: bytes = BOUNDARY) -> dict[str, Field]:
    reader = FormReader(boundary, WANTED)
    edges = sorted({0, len(body), *(cut % (len(body) + 1) for cut in cuts or ())})
    for start, end in itertools.pairwise(edges):
        reader.feed(body[start:end])
    reader.finish()
    return reader.fields


#: Contents that look like boundaries where they may.
NASTY = st.sampled_from([b"\r\n", b"\r", b"\n", b"--", BOUNDARY, b"--" + BOUNDARY, b"\r\n-", b"\r\n--", b"x" * 300])
CONTENTS = st.lists(st.binary(max_size=20) | NASTY, max_size=8).map(b"".join)


def sound(content: bytes) -> bool:
    """No line of it begins with the boundary."""
    return b"\n--" + BOUNDARY not in b"\n" + content


FILES = CONTENTS.filter(sound)
VALUES = st.binary(max_size=60).filter(sound)
FORMS = st.tuples(
    VALUES,
    st.lists(st.tuples(st.sampled_from(["file", "language", "prompt", "Model", "model "]), FILES), max_size=4),
    st.integers(0, 4),
)


@given(FORMS, st.lists(st.integers(0, 10_000), max_size=40))
def test_any_chunking_finds_the_same_fields_where_they_stand(
    made: tuple[bytes, list[tuple[str, bytes]], int], cuts: list[int]
) -> None:
    model, others, place = made
    parts = [part(name, content, "a.wav" if name == "file" else "") for name, content in others]
    parts.insert(place, part("model", model))
    body = form(*parts)
    fields = read(body, cuts)
    assert set(fields) == {"model"}
    field = fields["model"]
    assert field.value == body[field.start : field.end] == model


@given(FILES, st.integers(1, 60))
def test_a_boundary_is_found_at_every_split_point(content: bytes, size: int) -> None:
    body = form(part("file", content, "a.wav"), part("model", b"whisper"), part("stream", b"true"))
    cuts = list(range(0, len(body), size))
    assert {name: field.value for name, field in read(body, cuts).items()} == {"model": b"whisper", "stream": b"true"}
    for cut in range(len(body)):
        assert read(body, [cut])["model"].value == b"whisper"


@given(FORMS)
def test_a_reader_of_whole_forms_reads_the_same(made: tuple[bytes, list[tuple[str, bytes]], int]) -> None:
    model, others, place = made
    parts = [part(name, content) for name, content in others if name != "model "]
    parts.insert(place, part("model", model))
    body = form(*parts)
    known = {found.name: found.raw for found in MultipartParser(io.BytesIO(body), BOUNDARY, strict=True)}
    assert read(body)["model"].value == known["model"]


@given(st.lists(st.binary(max_size=5000), max_size=30))
def test_memory_does_not_grow_with_the_body(pieces: list[bytes]) -> None:
    reader = FormReader(BOUNDARY, WANTED)
    reader.feed(part("file", b"", "a.wav")[:-2])
    for piece in pieces:
        reader.feed(piece.replace(b"\n", b" "))
        assert len(reader._held) <= len(BOUNDARY) + 8


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=10))
def test_anything_is_read_or_refused_with_the_one_error(body: bytes, cuts: list[int]) -> None:
    try:
        read(body, cuts)
    except BadForm:
        pass


@given(st.data(), st.lists(st.integers(0, 2000), max_size=20))
def test_a_damaged_form_is_read_or_refused_alike_in_any_chunking(data: st.DataObject, cuts: list[int]) -> None:
    body = bytearray(form(part("file", b"RIFF\r\nx", "a.wav"), part("model", b"whisper")))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + 1] = data.draw(st.sampled_from([b"", b"\n", b"\r", b"-", b'"', b";", b"\0", b"xx"]))

    def outcome(where: list[int]) -> object:
        try:
            return read(bytes(body), where)
        except BadForm:
            return BadForm

    assert outcome(cuts) == outcome([]) == outcome(list(range(len(body))))


def test_a_field_said_twice_alike_is_one_and_unlike_is_refused() -> None:
    assert read(form(part("model", b"a"), part("model", b"a")))["model"].value == b"a"
    with pytest.raises(BadForm, match="twice"):
        read(form(part("model", b"a"), part("file", b"x"), part("model", b"b")))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--" + BOUNDARY,
        b"--" + BOUNDARY + b"\r\n",
        form(part("model", b"a"))[:-6],
        form(part("model", b"a")).replace(b"\r\n--", b"\n--"),
        form(part("file", b"x\n--" + BOUNDARY + b'\nContent-Disposition: form-data; name="model"\n\nb\n')),
        form(part("file", b"x\r\n--" + BOUNDARY + b"more")),
        form(part("model", b"a" * 5000)),
        form(part("model", b"a").replace(b"form-data;", b"form-data; name=x;")),
        form(part("mo\\del", b"a")),
        form(part("model", b"a").replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: base64\r\n\r\n", 1)),
        form(part("model", b"a").replace(b"\r\n\r\n", b'\r\nContent-Disposition: form-data; name="x"\r\n\r\n', 1)),
        form(part("model", b"a").replace(b"\r\n\r\n", b"\r\n folded: x\r\n\r\n", 1)),
        form(b"--" + BOUNDARY + b"\r\nno colon\r\n\r\nx\r\n"),
        form(b"--" + BOUNDARY + b"\r\nX: " + b"y" * 20_000 + b"\r\n\r\nx\r\n"),
        form(*[part("f", b"")] * 1001),
        b"--" + BOUNDARY + b" " * 20_000,
    ],
)
def test_forms_that_could_be_read_in_two_ways_are_refused(body: bytes) -> None:
    for cuts in ([], list(range(0, len(body), 7))):
        with pytest.raises(BadForm):
            read(body, cuts)


def test_names_hidden_in_file_names_are_no_fields() -> None:
    sly = b'Content-Disposition: form-data; filename="a; name=model"; name="file"'
    body = form(b"--" + BOUNDARY + b"\r\n" + sly + b"\r\n\r\nsly\r\n", part("model", b"real"))
    assert read(body)["model"].value == b"real"


def test_spaces_after_a_boundary_and_text_around_the_form_are_nothing() -> None:
    body = form(part("model", b"a"), preamble=b"hello\r\n", epilogue=b" bye\r\n--x").replace(
        BOUNDARY + b"\r\n", BOUNDARY + b" \t\r\n"
    )
    assert read(body)["model"].value == b"a"


def test_a_part_without_a_head_has_no_name() -> None:
    body = form(b"--" + BOUNDARY + b"\r\n\r\ncontent\r\n", part("model", b"a"))
    assert read(body)["model"].value == b"a"


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        (b"multipart/form-data; boundary=abc", b"abc"),
        (b"Multipart/Form-Data;boundary=abc", b"abc"),
        (b'multipart/form-data; charset=utf-8; boundary="a b"', b"a b"),
        (b'multipart/form-data; boundary="a\\bc"', b"abc"),
        (b"multipart/form-data; BOUNDARY=a-b_c; x=y", b"a-b_c"),
        (b'multipart/form-data; x="; boundary=no"; boundary=yes', b"yes"),
    ],
)
def test_boundaries_are_found(content_type: bytes, boundary: bytes) -> None:
    assert boundary_of(content_type) == boundary


@pytest.mark.parametrize(
    "content_type",
    [
        b"",
        b"multipart/form-data",
        b"multipart/form-data; boundary=",
        b'multipart/form-data; boundary=""',
        b"multipart/mixed; boundary=abc",
        b"application/json",
        b"multipart/form-data; boundary=" + b"x" * 60_000,
        b'multipart/form-data; boundary="a\r\nb"',
        b'multipart/form-data; boundary="a "',
        b"multipart/form-data; boundary=abc; boundary=def",
        b"multipart/form-data; boundary",
        b'multipart/form-data; boundary="abc',
    ],
)
def test_types_without_a_usable_boundary_are_refused(content_type: bytes) -> None:
    with pytest.raises(BadForm):
        boundary_of(content_type)


def test_the_numbers_are_what_the_tests_say() -> None:
    assert (multipart.MAX_PARTS, multipart.MAX_VALUE_BYTES, multipart.MAX_PART_HEAD_BYTES) == (1000, 4096, 16384)
