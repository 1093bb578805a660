from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.families import transfer


@given(st.uuids(), st.floats(0, 4e9))
def test_a_channel_is_told_with_its_end_in_whole_seconds(identity: uuid.UUID, expires_at_s: float) -> None:
    said = json.loads(transfer.made(str(identity), expires_at_s))
    assert set(said) == {"channel_id", "expires_at"}
    assert transfer.channel_id_of(b"/api/transfer/" + said["channel_id"].encode()) == str(identity)
    parsed = datetime.strptime(said["expires_at"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    assert parsed.timestamp() == int(expires_at_s)


@pytest.mark.parametrize(
    "name", ["", "x", "../x", "A" * 36, "{channel_id}", "0" * 36, "862ec95d-ae94-4c40-a3c8-c962ae717e04\n"]
)
def test_what_cannot_be_an_id_is_none(name: str) -> None:
    assert transfer.channel_id_of(f"/api/transfer/{name}".encode()) == ""
