"""The supervisor as a process: who starts, who is replaced, who leaves when. Fault catalogue P-1 to P-8, P-14, P-18."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import threading
from pathlib import Path

import msgspec
import pytest

from fleetproxy.children import Child, product_command
from fleetproxy.folders import running
from fleetproxy.link.board import Board
from fleetproxy.settings import Auth, Log, Queue, Settings, Timeouts
from tests.serve.supervised import Start, alive, until


def test_one_line_with_the_address_when_everything_answers(start: Start) -> None:
    one = start({"processes": 2}).ready()
    assert one.said.count("\n") == 1
    assert one.get()[0] == 200
    assert sorted(one.did("started")) == ["control", "hub", "proxy-0", "proxy-1"]
    assert one.did("started").index("proxy-0") > one.did("started").index("control")


def test_the_lock_says_who_runs_where(start: Start) -> None:
    one = start().ready()
    found = running(one.data)
    assert found is not None
    assert (found.pid, found.url) == (one.popen.pid, f"http://127.0.0.1:{one.port}")
    one.finish()
    one.signal(signal.SIGTERM)
    one.leave()
    assert running(one.data) is None


def test_everything_is_private_whatever_the_umask_and_gone_after_a_clean_stop(start: Start) -> None:
    one = start().ready()
    assert stat.S_IMODE(one.runtime.stat().st_mode) == 0o700
    assert [path.name for path in one.runtime.iterdir() if path.lstat().st_mode & 0o077] == []
    one.finish()
    one.signal(signal.SIGTERM)
    assert one.leave() == 0
    assert not one.runtime.exists()


@pytest.mark.parametrize("victim", ["control", "hub", "proxy-0"])
def test_a_killed_child_is_replaced(start: Start, victim: str) -> None:
    one = start().ready()
    first = one.pid_of(victim)
    os.kill(first, signal.SIGKILL)
    until(lambda: one.did("started").count(victim) == 2)
    assert one.get()[0] == 200
    report = until(lambda: json.loads((one.runtime / "supervisor.json").read_text()))
    until(lambda: json.loads((one.runtime / "supervisor.json").read_text())["respawns"][victim] == 1)
    assert report["boot"] == (one.runtime / "boot").read_text()


def test_connections_wait_while_the_only_proxy_is_replaced_and_none_is_refused(start: Start) -> None:
    one = start().ready()
    os.kill(one.pid_of("proxy-0"), signal.SIGKILL)
    for _ in range(20):
        assert one.get()[0] == 200


def test_the_board_row_of_a_dead_proxy_is_cleared(start: Start) -> None:
    one = start().ready()
    name, pid, load = one.get("/hold")[1].split()
    board = Board(one.runtime / "board")
    assert (name, load, board.load(7)) == ("proxy-0", "1", 1)
    os.kill(int(pid), signal.SIGKILL)
    until(lambda: board.load(7) == 0)
    board.close()


def test_it_never_gives_up_at_run_time(start: Start) -> None:
    one = start().ready()
    for round_number in range(1, 9):
        os.kill(one.pid_of("hub"), signal.SIGKILL)
        until(lambda n=round_number: one.did("started").count("hub") == n + 1)  # type: ignore[misc]
    assert one.popen.poll() is None
    assert one.get()[0] == 200


def test_one_death_during_the_start_is_forgiven(start: Start) -> None:
    one = start(hub="die once").ready()
    assert one.did("started").count("hub") == 2


@pytest.mark.parametrize("child", ["control", "hub", "proxy-0"])
def test_a_crash_loop_at_the_start_ends_it_with_one_sentence_that_says_why(start: Start, child: str) -> None:
    one = start(**{child: "crash"})
    assert one.leave() == 1
    assert one.sentence == f"fleetproxy: {child} failed to start 3 times, last with: RuntimeError: no such luck"
    assert one.did("started").count(child) == 3
    assert not [pid for pid in (int(line.split()[-1]) for line in one.journal) if alive(pid)]
    assert not one.runtime.exists()


def test_a_second_one_with_the_same_data_is_refused_with_a_sentence(start: Start, tmp_path: Path) -> None:
    one = start().ready()
    out, err = one.out.read_text(), one.err.read_text()
    two = start({"runtime_dir": str(tmp_path / "other")})
    assert two.leave() == 1
    assert two.sentence.startswith(
        f"fleetproxy: fleetproxy already runs with the folder {one.data}, process {one.popen.pid};"
    )
    assert len(two.complaints.splitlines()) == 1
    one.out.write_text(out)
    one.err.write_text(err)
    assert one.get()[0] == 200


def test_a_second_one_on_the_same_port_is_refused_and_the_first_is_named(start: Start, tmp_path: Path) -> None:
    one = start().ready()
    two = start({"port": one.port, "data_dir": str(tmp_path / "d2"), "runtime_dir": str(tmp_path / "r2")})
    assert two.leave() == 1
    assert f"127.0.0.1:{one.port} is taken by " in two.sentence
    assert "(process " in two.sentence
    assert len(two.complaints.splitlines()) == 1


def test_a_port_of_a_stranger_is_refused_although_the_kernel_would_share_it(start: Start) -> None:
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        one = start({"port": stranger.getsockname()[1]})
        assert one.leave() == 1
    assert f"(process {os.getpid()}); stop it or choose another port with --port" in one.sentence


def test_an_ollama_on_the_port_is_recognised_and_both_ways_out_are_shown(start: Start) -> None:
    with socket.socket() as ollama:
        ollama.bind(("127.0.0.1", 0))
        ollama.listen()
        port = ollama.getsockname()[1]

        def answer() -> None:
            connection, _ = ollama.accept()
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\nOllama is running")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        one = start({"port": port})
        assert one.leave() == 1
        thread.join()
    assert "an Ollama answers there" in one.sentence
    assert f"--port {port + 1}" in one.sentence
    assert f"OLLAMA_HOST=127.0.0.1:{port + 1}" in one.sentence


def test_an_address_of_another_machine_is_refused_with_a_sentence(start: Start) -> None:
    one = start({"host": "192.0.2.1"})
    assert one.leave() == 1
    assert one.sentence.startswith("fleetproxy: this machine has no address 192.0.2.1")


def test_sigterm_drains_proxies_then_the_hub_then_control(start: Start) -> None:
    one = start({"processes": 2}).ready()
    one.signal(signal.SIGTERM)
    until(lambda: one.did("draining") == ["proxy-0", "proxy-1"] or one.did("draining") == ["proxy-1", "proxy-0"])
    assert one.get()[0] == 503, "the listener still accepts"
    assert one.popen.poll() is None
    one.finish()
    assert one.leave() == 0
    assert one.did("draining")[2:] == ["hub", "control"]
    assert sorted(one.did("left")[:2]) == ["proxy-0", "proxy-1"]
    assert one.did("left")[2:] == ["hub", "control"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_means_now(start: Start, number: signal.Signals) -> None:
    one = start(proxy_0="stubborn").ready()
    one.signal(number)
    until(lambda: one.did("draining"))
    assert one.popen.poll() is None
    one.signal(number)
    assert one.leave() == 0
    assert one.did("told to leave") == ["proxy-0"]


def test_a_signal_during_the_start_ends_it_cleanly(start: Start) -> None:
    one = start()
    until(lambda: one.did("started"))
    one.finish()
    one.signal(signal.SIGTERM)
    assert one.leave() == 0
    assert not [pid for pid in (int(line.split()[-1]) for line in one.journal) if alive(pid)]


def test_who_does_not_end_in_time_is_told_to_leave_and_at_last_killed(start: Start) -> None:
    one = start({"timeouts": Timeouts(drain_s=0.1)}, proxy_0="hang", hub="stubborn").ready()
    one.signal(signal.SIGTERM)
    assert one.leave() == 0
    assert one.did("told to leave") == ["hub"]
    assert not alive(one.pid_of("proxy-0"))


def test_a_child_killed_while_draining_is_not_replaced(start: Start) -> None:
    one = start({"processes": 2}).ready()
    one.signal(signal.SIGTERM)
    until(lambda: len(one.did("draining")) == 2)
    os.kill(one.pid_of("proxy-1"), signal.SIGKILL)
    one.finish()
    assert one.leave() == 0
    assert one.did("started").count("proxy-1") == 1


def test_children_leave_with_a_killed_supervisor_and_the_next_start_works(start: Start) -> None:
    one = start(control="deaf", proxy_0="hang").ready()
    port, pids = one.port, [one.pid_of(name) for name in ("control", "hub", "proxy-0")]
    one.popen.kill()
    one.leave()
    two = start({"port": port}).ready()
    assert two.get()[0] == 200
    assert not [pid for pid in pids if alive(pid)]


def test_sighup_hands_the_new_settings_to_every_child(start: Start) -> None:
    one = start({"processes": 2}).ready()
    fresh = msgspec.structs.replace(one.settings, queue=Queue(size=77), processes=3, port=0)
    one.fresh.write_bytes(msgspec.json.encode(fresh))
    one.signal(signal.SIGHUP)
    until(lambda: len(one.did("reloaded:77")) == 4)
    assert sorted(one.did("reloaded:77")) == ["control", "hub", "proxy-0", "proxy-1"]
    assert "a new processes needs a restart" in one.complaints
    written = msgspec.json.decode((one.runtime / "settings.json").read_bytes(), type=Settings)
    assert (written.processes, written.port) == (2, one.port)


def test_children_write_their_lines_by_the_new_settings(start: Start) -> None:
    one, key = start().ready(), "a-key-nobody-may-read"
    fresh = msgspec.structs.replace(one.settings, log=Log(level="debug"), auth=Auth(admin_key=key), port=0)
    one.fresh.write_bytes(msgspec.json.encode(fresh))
    one.signal(signal.SIGHUP)
    until(lambda: one.complaints.count("no key but ***") == 3)
    assert key not in one.complaints


def test_a_bad_configuration_at_sighup_is_reported_and_the_old_one_stays(start: Start) -> None:
    one = start().ready()
    before = (one.runtime / "settings.json").read_bytes()
    one.fresh.write_text('{"port": "x"}')
    one.signal(signal.SIGHUP)
    until(lambda: "configuration not reloaded" in one.complaints)
    report = until(lambda: json.loads((one.runtime / "supervisor.json").read_text()))
    assert (report["reloads"], report["reload_ok"]) == (1, False)
    assert (one.runtime / "settings.json").read_bytes() == before
    assert one.get()[0] == 200


def test_signals_that_mean_nothing_change_nothing(start: Start) -> None:
    one = start().ready()
    for _ in range(50):
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE):
            one.signal(number)
            os.kill(one.pid_of("proxy-0"), number)
    assert one.get()[0] == 200
    assert one.did("started").count("proxy-0") == 1


def test_systemd_hears_of_the_start_and_of_the_stop(start: Start, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.settimeout(20)
        one = start(environment={"NOTIFY_SOCKET": str(tmp_path / "notify")}).ready()
        assert channel.recv(4096).startswith(b"READY=1\n")
        one.finish()
        one.signal(signal.SIGTERM)
        assert channel.recv(4096) == b"STOPPING=1"


def test_open_files_may_be_as_many_as_the_system_allows(start: Start) -> None:
    one = start().ready()
    limits = Path(f"/proc/{one.pid_of('proxy-0')}/limits").read_text()
    soft, hard = next(line.split()[3:5] for line in limits.splitlines() if line.startswith("Max open files"))
    assert soft == hard


def test_no_more_connections_are_accepted_than_there_are_descriptors_for(start: Start) -> None:
    one = start(open_files=256).ready()
    written = msgspec.json.decode((one.runtime / "settings.json").read_bytes(), type=Settings)
    assert written.limits.connections == 96
    assert "at most 256 files may be open" in one.complaints
    one.fresh.write_bytes(msgspec.json.encode(one.settings))
    one.signal(signal.SIGHUP)
    until(lambda: "configuration reloaded" in one.complaints)
    assert "needs a restart" not in one.complaints


def test_children_import_nothing_from_the_folder_of_the_start(tmp_path: Path) -> None:
    (tmp_path / "fleetproxy").mkdir()
    (tmp_path / "fleetproxy" / "__init__.py").write_text("raise SystemExit('not ours')")
    words = product_command(Child("hub"), tmp_path / "run")
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert "not ours" not in done.stderr
    assert "settings.json" in done.stderr, "it came as far as its own settings"


def test_a_closed_terminal_means_stop_while_a_hangup_with_an_open_one_means_reload(start: Start) -> None:
    one = start(on_terminal=True).ready()
    one.fresh.write_bytes(msgspec.json.encode(one.settings))
    one.signal(signal.SIGHUP)
    until(lambda: "configuration reloaded" in one.complaints)
    one.finish()
    one.close_terminal()
    assert one.leave() == 0
    assert one.did("left") == ["proxy-0", "hub", "control"]
