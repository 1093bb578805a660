"""`python -m fleetproxy.testing.fakes`, and services as subprocesses: what tests of other parts rest on."""

from __future__ import annotations

import os
import signal
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.testing.fakes import Profile
from fleetproxy.testing.fakes.__main__ import profile
from fleetproxy.testing.processes import children, cpu_s, descriptors, memory_bytes
from fleetproxy.testing.service import to_toml
from fleetproxy.testing.spawned import FakeProcess, Spawned, fetch, until


def test_options_are_the_profile() -> None:
    words = "--kind openai --port 7 --models a,b=3#x --seed 5 --speed 2 --vram-gb 8 --slots 9 --queue 1 --epoch 10"
    made, host, port = profile([*words.split(), "--any-host"])
    assert (host, port) == ("127.0.0.1", 7)
    expected = Profile(
        kind="openai", name="openai-7", models=("a", "b=3#x"), seed=5, speed=2, vram_gb=8, slots=9, queue=1,
        epoch_s=10, check_host=False,
    )  # fmt: skip
    assert made == expected


def test_a_fake_process_serves_remembers_and_leaves(tmp_path: Path) -> None:
    with FakeProcess(tmp_path, models="m:1b", seed=1, speed=0) as fake:
        status, _, body = fetch(fake.url, "POST", "/api/generate", b'{"model":"m:1b","prompt":"x","stream":false}')
        assert (status, b'"done":true' in body) == (200, True)
        fake.fault("unavailable")
        assert fetch(fake.url, "POST", "/api/show", b'{"model":"m:1b"}')[0] == 503
        assert [row["target"] for row in fake.requests()] == ["/api/generate", "/api/show"]
        assert descriptors(fake.pid) > 3
        assert memory_bytes(fake.pid) > 1 << 20
        assert cpu_s(fake.pid) > 0
        port = fake.port
        fake.kill()
        with pytest.raises(OSError, match="refused"):
            fetch(fake.url, "GET", "/")
        fake.start()
        assert fake.port == port
        assert fetch(fake.url, "GET", "/")[2] == b"Ollama is running"
        fake.signal(signal.SIGTERM)
        assert fake.wait(10) == 0


def test_children_are_found_by_their_parent(tmp_path: Path) -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    parent = Spawned([sys.executable, "-c", code], tmp_path / "out")
    parent.spawn()
    found = until(lambda: [child for child in children(parent.pid) if "-c" in child[1]], 10, "a child")
    assert found[0][1][1:3] == ["-c", "import time; time.sleep(60)"]
    for pid in (found[0][0], parent.pid):
        os.kill(pid, signal.SIGKILL)
    parent.wait(10)


def test_waiting_ends_with_what_was_waited_for() -> None:
    values = iter([0, 0, 7])
    assert until(lambda: next(values), 5, "seven") == 7
    with pytest.raises(AssertionError, match="never"):
        until(lambda: False, 0.01, "never")


_PLAIN = st.one_of(st.booleans(), st.integers(-(2**40), 2**40), st.text(st.characters(codec="ascii"), max_size=20))
_KEYS = st.text("abcdefgh_", min_size=1, max_size=8)


@given(
    st.dictionaries(_KEYS.map("p{}".format), _PLAIN, max_size=4),
    st.dictionaries(_KEYS.map("s{}".format), st.dictionaries(_KEYS, _PLAIN, max_size=4), max_size=3),
    st.lists(st.dictionaries(_KEYS, _PLAIN, min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_what_is_written_as_toml_is_read_back(
    plain: dict[str, object], sections: dict[str, dict[str, object]], tables: list[dict[str, object]]
) -> None:
    settings = {**plain, **sections, "servers": tables}
    # DEL is plain text to JSON and forbidden in TOML: no setting of a test has it.
    if "\x7f" in repr(settings) or "\\x7f" in repr(settings):
        return
    assert tomllib.loads(to_toml(settings)) == settings
