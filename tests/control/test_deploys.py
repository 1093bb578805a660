"""New versions: of servers told at most so often, of fleetproxy told when it starts with another."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as some

from fleetproxy.control.analytics.rows import Row, ServerEvent
from fleetproxy.control.deploys import MOST, WITHIN_S, Deploys, tell_of_own


def told(path: Path, version: str) -> list[Row]:
    rows: list[Row] = []
    tell_of_own(path, version, 1_800_000_000.5, rows.append)
    return rows


def test_fleetproxy_tells_of_its_own_new_version_once(tmp_path: Path) -> None:
    path = tmp_path / "fleetproxy.version"
    assert told(path, "1.0") == [], "the first start is no news"
    assert told(path, "1.0") == []
    assert told(path, "1.1") == [
        ServerEvent(
            occurred_at_us=1_800_000_000_500_000, server_id=0, server="fleetproxy", event="deploy", detail="1.0 -> 1.1"
        )
    ]
    assert told(path, "1.1") == []


def test_a_file_nobody_can_read_is_no_news_and_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "fleetproxy.version"
    for damaged in (b"", b"\xff\xfe", b"1.0\x00"):
        path.write_bytes(damaged)
        assert told(path, "1.1") == []
        assert path.read_text() == "1.1\n"
    assert told(tmp_path / "no-such-folder" / "version", "1.1") == []


@given(some.lists(some.floats(0, 3 * WITHIN_S), max_size=60))
def test_a_server_is_told_of_so_often_and_no_oftener(moments_s: list[float]) -> None:
    deploys = Deploys()
    moments_s.sort()
    heard = [at_s for at_s in moments_s if deploys.worth_telling("a", at_s)]
    for at_s in moments_s:
        assert sum(at_s - WITHIN_S < one <= at_s for one in heard) <= MOST
    assert len(heard) + deploys.dropped == len(moments_s)
    assert len(heard) >= min(len(moments_s), MOST)


def test_servers_do_not_count_for_each_other_and_are_forgotten() -> None:
    deploys = Deploys()
    assert [deploys.worth_telling("a", 1.0) for _ in range(MOST + 1)] == [True] * MOST + [False]
    assert deploys.worth_telling("b", 1.0)
    assert deploys.worth_telling("a", 0.5), "a clock that was set back silences nobody"
    deploys.keep({"b"})
    assert deploys.worth_telling("a", 1.0)
