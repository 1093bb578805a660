from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.wire import frames, payloads
from fleetproxy.wire.frames import Decoder, Frame, FrameError, encode

STREAM_KINDS = sorted(frames.STREAM_KINDS)
ZERO_KINDS = sorted(set(frames.NAMES) - frames.STREAM_KINDS)


@st.composite
def any_frame(draw: st.DrawFn) -> Frame:
    payload = draw(st.binary(max_size=300))
    if draw(st.booleans()):
        return Frame(draw(st.sampled_from(STREAM_KINDS)), draw(st.integers(1, frames.MAX_STREAM)), payload)
    return Frame(draw(st.sampled_from(ZERO_KINDS)), 0, payload)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    marks = sorted({min(place, len(data)) for place in places} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(marks)]


def read(pieces: list[bytes], max_bytes: int = frames.MAX_PAYLOAD_BYTES) -> tuple[list[Frame], str | None]:
    decoder, out = Decoder(max_bytes), []
    try:
        for piece in pieces:
            out.extend(decoder.feed(piece))
    except FrameError as error:
        return out, str(error)
    return out, None


@given(st.lists(any_frame(), max_size=8), st.lists(st.integers(0, 3000), max_size=12))
def test_what_is_encoded_comes_out_again_in_any_chunking(sent: list[Frame], places: list[int]) -> None:
    wire = b"".join(encode(*frame) for frame in sent)
    assert read(cut(wire, places)) == (sent, None)
    assert read([wire[i : i + 1] for i in range(len(wire))]) == (sent, None)


@given(st.binary(max_size=2000), st.lists(st.integers(0, 2000), max_size=12), st.integers(0, 600))
def test_any_bytes_give_the_same_frames_and_the_same_error_in_any_chunking(
    data: bytes, places: list[int], max_bytes: int
) -> None:
    assert read(cut(data, places), max_bytes) == read([data], max_bytes)


@given(any_frame(), st.data())
def test_a_partial_frame_waits(frame: Frame, data: st.DataObject) -> None:
    wire = encode(*frame)
    held = data.draw(st.integers(0, len(wire) - 1))
    decoder = Decoder()
    assert list(decoder.feed(wire[:held])) == []
    assert decoder.held_bytes == held
    assert list(decoder.feed(wire[held:])) == [frame]
    assert decoder.held_bytes == 0


@given(st.integers(0, 500), st.integers(1, 500))
def test_an_oversize_frame_is_refused_by_its_header_alone(max_bytes: int, over: int) -> None:
    decoder = Decoder(max_bytes)
    assert list(decoder.feed(encode(frames.DATA, 1, bytes(max_bytes)))) == [Frame(frames.DATA, 1, bytes(max_bytes))]
    with pytest.raises(FrameError, match="larger"):
        list(decoder.feed(frames.header(frames.DATA, 1, max_bytes + over)))
    assert decoder.held_bytes == 0


def test_an_oversize_payload_is_not_encoded() -> None:
    with pytest.raises(FrameError):
        encode(frames.DATA, 1, bytes(frames.MAX_PAYLOAD_BYTES + 1))


@given(st.integers(0, 255), st.integers(0, frames.MAX_STREAM))
def test_only_known_kinds_on_their_own_streams_pass(kind: int, stream: int) -> None:
    _, error = read([frames.HEADER.pack(kind << 24, stream)])
    known = kind in frames.NAMES and (kind in frames.STREAM_KINDS) == (stream != 0)
    assert (error is None) == known


@given(st.lists(st.binary(min_size=1, max_size=4096), min_size=1, max_size=20))
def test_no_more_than_one_incomplete_frame_is_held(pieces: list[bytes]) -> None:
    decoder, limit = Decoder(1024), 1024 + frames.HEADER_BYTES
    for piece in pieces:
        try:
            for _ in decoder.feed(piece):
                pass
        except FrameError:
            return
        assert decoder.held_bytes < limit


@given(st.integers(0, 0xFFFF_FFFF), st.integers(1, frames.MAX_STREAM))
def test_credit_round_trips(credit: int, stream: int) -> None:
    (frame,) = Decoder().feed(frames.window(stream, credit))
    assert (frame.kind, frame.stream, frames.credit(frame.payload)) == (frames.WINDOW, stream, credit)


@given(st.binary(max_size=10).filter(lambda payload: len(payload) != 4))
def test_a_credit_of_another_length_is_refused(payload: bytes) -> None:
    with pytest.raises(FrameError):
        frames.credit(payload)


PAYLOADS = sorted(payloads.Payload.__subclasses__(), key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", PAYLOADS)
@given(data=st.binary(max_size=200))
def test_garbage_payloads_raise_only_the_frame_error(kind: type[payloads.Payload], data: bytes) -> None:
    try:
        value = payloads.decode(data, kind)
    except FrameError:
        return
    assert payloads.decode(payloads.encode(value), kind) == value


@given(
    st.integers(1, 0xFFFF_FFFF),
    st.text(max_size=256),
    st.lists(st.integers(0, 4095), min_size=1, max_size=20),
    st.integers(0, 86_400_000),
)
def test_a_wait_payload_round_trips(number: int, principal: str, columns: list[int], timeout_ms: int) -> None:
    wait = payloads.Wait(number, principal, tuple(columns), timeout_ms)
    assert payloads.decode(payloads.encode(wait), payloads.Wait) == wait


@pytest.mark.parametrize(
    "wait",
    [
        payloads.Wait(0, "p", (1,), 1),
        payloads.Wait(1, "p", (), 1),
        payloads.Wait(1, "p", (4096,), 1),
        payloads.Wait(1, "p", (-1,), 1),
        payloads.Wait(1, "p" * 257, (1,), 1),
        payloads.Wait(1, "p", (1,), -1),
    ],
)
def test_payloads_out_of_bounds_are_refused(wait: payloads.Wait) -> None:
    with pytest.raises(FrameError):
        payloads.decode(payloads.encode(wait), payloads.Wait)
