"""Forty and more configurations that are no good: each is refused with the key, the place and what is wanted (P-15)."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleetproxy.settings.load import load
from fleetproxy.settings.problems import ConfigError

#: Name -> (file, environment, --server words, what the message must contain).
Case = tuple[str, dict[str, str], tuple[str, ...], tuple[str, ...]]
_A = '[[servers]]\nname = "a"\nurl = "http://h:1"\n'

CASES: dict[str, Case] = {
    # --- keys ---
    "unknown key": ("prot = 1\n", {}, (), ("fleetproxy.toml:1:1", 'unknown key "prot"', 'did you mean "port"?')),
    "unknown section": ("\n[rooting]\nx = 1\n", {}, (), ("toml:2:1: rooting", 'did you mean "routing"?')),
    "unknown list of tables": ("\n[[server]]\nname = 'x'\n", {}, (), ("toml:2:1: server", 'did you mean "servers"?')),
    "unknown table around a table": ("[pol.x]\ny = 1\n", {}, (), ("toml:1:1: pol", 'did you mean "poll"?')),
    "unknown key in a section": (
        "[poll]\n  intervall_s = 3\n",
        {},
        (),
        ("toml:2:3: poll.intervall_s", 'did you mean "interval_s"?'),
    ),
    "unknown key in a server": (_A + "vram = 24\n", {}, (), ("toml:4:1: servers[0].vram", 'did you mean "vram_gb"?')),
    "unknown key in an inline table": ("poll = { timeout = 3 }\n", {}, (), ("toml:1:10: poll.timeout", "timeout_s")),
    "unknown dotted key": ("log.levle = 'info'\n", {}, (), ("toml:1:1: log.levle", 'did you mean "level"?')),
    "unknown variable": ("", {"FLEETPROXY_PROT": "1"}, (), ("unknown variable FLEETPROXY_PROT", "FLEETPROXY_PORT")),
    "unknown variable of a section": ("", {"FLEETPROXY_QUEUE__SZIE": "1"}, (), ("FLEETPROXY_QUEUE__SIZE",)),
    # --- types and ranges ---
    "text for a number": ('port = "x"\n', {}, (), ("port: wants a whole number from 0 to 65535", 'got "x"')),
    "port too large": ("port = 70000\n", {}, (), ("from 0 to 65535", "got 70000")),
    "truth for a number": ("processes = true\n", {}, (), ("wants a whole number from 1 to 64", "got true")),
    "zero processes": ("processes = 0\n", {}, (), ("wants a whole number from 1 to 64",)),
    "negative time": ("[poll]\ntimeout_s = -1\n", {}, (), ("poll.timeout_s: wants a number above 0",)),
    "not a number": ("[poll]\ntimeout_s = nan\n", {}, (), ("poll.timeout_s: wants a number above 0",)),
    "for ever": ("[timeouts]\nconnect_s = inf\n", {}, (), ("timeouts.connect_s: wants a number above 0",)),
    "wrong word": ('[log]\nlevel = "loud"\n', {}, (), ('wants one of "all"', 'got "loud"')),
    "text for a list": ('hosts = "a"\n', {}, (), ("hosts: wants a list of texts",)),
    "value for a section": ("poll = 5\n", {}, (), ("poll: wants a table: [poll]",)),
    "table for a list of tables": (
        '[servers]\nname = "a"\n',
        {},
        (),
        ("servers: wants a list of tables: [[servers]]",),
    ),
    "number in a list of tables": ("servers = [5]\n", {}, (), ("toml:1:12: servers[0]: wants a table",)),
    "a secret of the wrong type is not shown": (
        "[auth]\napi_key = 12345678\n",
        {},
        (),
        ("auth.api_key: wants a text that is not empty\n",),
    ),
    "empty secret": ('[auth]\napi_key = ""\n', {}, (), ("auth.api_key: wants a text that is not empty",)),
    "variable of the wrong type": ("", {"FLEETPROXY_PORT": "many"}, (), ("FLEETPROXY_PORT: port", 'got "many"')),
    "variable that is neither true nor false": ("", {"FLEETPROXY_OPEN": "perhaps"}, (), ("true or false", "perhaps")),
    "variable that is no JSON": ("", {"FLEETPROXY_SERVERS": '[{"name"'}, (), ("servers", "not valid JSON")),
    # --- files ---
    "no TOML": ("port 5\n", {}, (), ("fleetproxy.toml:1:6: is not valid TOML",)),
    "unfinished TOML": ("servers = [", {}, (), ("fleetproxy.toml: is not valid TOML",)),
    "key twice": ("port = 1\nport = 2\n", {}, (), ("is not valid TOML",)),
    # --- servers ---
    "server without a name": ('[[servers]]\nurl = "h"\n', {}, (), ('toml:1:1: servers[0]: "name" is missing',)),
    "server without a url": ('[[servers]]\nname = "a"\n', {}, (), ('servers[0]: "url" is missing',)),
    "two servers of one name": (_A + _A.replace('"a"', '"A"'), {}, (), ("toml:5:1: servers[1].name", "case does not")),
    "a name with a line break": (_A.replace('"a"', '"a\\nb"'), {}, (), ("servers[0].name", "control characters")),
    "a name that turns the line": (_A.replace('"a"', '"a\\u202eb"'), {}, (), ("servers[0].name", "invisible marks")),
    "a scheme that is none": (_A.replace("http:", "ftp:"), {}, (), ("toml:3:1: servers[0].url", "use http or https")),
    "a password in a URL": (_A.replace("h:1", "me:secretword@h"), {}, (), ("put the token in api_key",)),
    "a query in a URL": (_A.replace("h:1", "h:1/?x=1"), {}, (), ("no query or fragment",)),
    "dots in a prefix": (_A.replace("h:1", "h:1/a/../b"), {}, (), ("plain path segments",)),
    "a space in a URL": (_A.replace("h:1", "h :1"), {}, (), ("no spaces or control characters",)),
    "a port that is none": (_A.replace("h:1", "h:99999"), {}, (), ("a port is a number from 1 to 65535",)),
    "IPv6 without brackets": (_A.replace("h:1", "fe80::1"), {}, (), ("stands in brackets: [fe80::1]",)),
    "an address that is none": (_A.replace("h:1", "10.0.0.256"), {}, (), ('"10.0.0.256" is no IPv4 address',)),
    "a host that is none": (_A.replace("h:1", "-h-"), {}, (), ('"-h-" is no host name',)),
    "ourselves": ('servers = ["me=localhost:11434"]\n', {}, (), ("servers[0].url: is the address of this fleetproxy",)),
    "TLS options without TLS": (_A + 'tls_ca_file = "/x"\n', {}, (), ("tls_ca_file: has no meaning for an http://",)),
    "a token with a line break": (_A + 'api_key = "a\\nb"\n', {}, (), ("servers[0].api_key: a token is printable",)),
    "a flag that is no server": ("", {}, ("gpu1=ftp://x",), ("--server gpu1=ftp://x", "use http or https")),
    # --- keys and access ---
    "short key": ('keys = ["anna=short"]\n', {}, (), ("keys[0].key: a key has at least 8 characters",)),
    "a hash that is none": ('keys = ["anna=sha256:1234"]\n', {}, (), ("wants sha256: and 64 hexadecimal digits",)),
    "one key for two": ('keys = ["a=abcdefgh", "b=abcdefgh"]\n', {}, (), ("keys[1].key: is the key of keys[0]",)),
    "a hash where the key is needed": (f'[auth]\nclient_key = "sha256:{"a" * 64}"\n', {}, (), ("the key itself",)),
    "administrator without a password": ('[auth]\nadmin_username = "root"\n', {}, (), ("belong together",)),
    "short password": (
        '[auth]\nadmin_username = "root"\nadmin_password = "123456789"\n',
        {},
        (),
        ("toml:3:1: auth.admin_password: a password has at least 10 characters",),
    ),
    "a network with host bits": (
        '[auth]\ntrusted_proxies = ["10.0.0.1/8"]\n',
        {},
        (),
        ("toml:2:20: auth.trusted_proxies[0]", "did you mean 10.0.0.0/8?"),
    ),
    "a network that is none": ('[auth]\ntrusted_proxies = ["lan"]\n', {}, (), ('"lan" is no network',)),
    "half of TLS": ('[tls]\ncert = "/c.pem"\n', {}, (), ("tls.key: is missing: TLS needs both",)),
    "a secret with a line break": ("", {"FLEETPROXY_AUTH__API_KEY": "abcd\nefgh"}, (), ("a secret is one line",)),
    "a secret twice": (
        "",
        {"FLEETPROXY_AUTH__API_KEY": "abcdefgh", "FLEETPROXY_AUTH__API_KEY_FILE": "/x"},
        (),
        ("FLEETPROXY_AUTH__API_KEY and FLEETPROXY_AUTH__API_KEY_FILE are both set",),
    ),
    "a secret file that is not there": (
        "",
        {"FLEETPROXY_AUTH__API_KEY_FILE": "/nowhere/key"},
        (),
        ("FLEETPROXY_AUTH__API_KEY_FILE: /nowhere/key cannot be read",),
    ),
    # --- the rest ---
    "host with a scheme": ('host = "http://0.0.0.0"\n', {}, (), ("host: ", "wants an address of this machine")),
    "one address twice": (
        '[metrics]\nlisten = "127.0.0.1:9"\n[hub]\nlisten = ":9"\n',
        {},
        (),
        ("hub.listen", "metrics"),
    ),
    "the public port twice": (
        '[dashboard]\nlisten = "11434"\n',
        {},
        (),
        ("dashboard.listen", "the public port already"),
    ),
    "no listening address": ('[metrics]\nlisten = "here"\n', {}, (), ("metrics.listen: wants host:port",)),
    "a host that is served": ('hosts = ["http://x"]\n', {}, (), ("hosts[0]", "without scheme, port or path")),
    "a path of our own": (
        'passthrough = ["/v1/rerank"]\n',
        {},
        (),
        ("passthrough[0]", "answered by fleetproxy itself"),
    ),
    "a path that is none": ('passthrough = ["rerank"]\n', {}, (), ("passthrough[0]", "such as /rerank")),
    "an origin that is none": ('[cors]\norigins = ["example"]\n', {}, (), ("cors.origins[0]", "scheme://host[:port]")),
    "an alias of itself": (
        '[routing.aliases]\na = "b"\nb = "a"\n',
        {},
        (),
        ("toml:2:1: routing.aliases.a", "leads back to itself"),
    ),
    "a duration that is none": ('[routing]\ndefault_keep_alive = "a while"\n', {}, (), ('such as "30m"',)),
    "a source that is no address": ('[routing.source_names]\nlaptop = "x"\n', {}, (), ('"laptop" is no IP address',)),
    "a family that is none": ('plugins = ["lmm"]\n', {}, (), ('unknown family "lmm"', 'did you mean "llm"?')),
    "bodies that do not fit": ("[limits]\nbuffered_bytes = 1000\n", {}, (), ("at least one body",)),
    # --- other programs' names ---
    "OLLAMA_SERVERS that is no JSON": ("", {"OLLAMA_SERVERS": "gpu1"}, (), ("OLLAMA_SERVERS: is not valid JSON",)),
    "OLLAMA_SERVERS without a host": (
        "",
        {"OLLAMA_SERVERS": '[{"name": "a"}]'},
        (),
        ("OLLAMA_SERVERS: entry 1 wants",),
    ),
    "OLLAMA_SERVERS of a kind that serves nothing": (
        "",
        {"OLLAMA_SERVERS": '[{"name": "a", "host": "http://h", "type": "generic"}]'},
        (),
        ('of type "generic" takes no requests',),
    ),
    "PORT that is none": ("", {"PORT": "http"}, (), ("PORT: wants a whole number",)),
    "DRAIN_TIMEOUT that is none": ("", {"DRAIN_TIMEOUT": "soon"}, (), ("DRAIN_TIMEOUT: wants a duration",)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_bad_configuration_is_refused_with_its_place_and_what_is_wanted(name: str, tmp_path: Path) -> None:
    text, environment, servers, wanted = CASES[name]
    (tmp_path / "fleetproxy.toml").write_text(text)
    with pytest.raises(ConfigError) as refused:
        load(servers=servers, environment=environment, folder=tmp_path)
    message = f"{refused.value}\n"
    for part in wanted:
        assert part in message


def test_every_mistake_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "fleetproxy.toml").write_text('port = "x"\nprot = 1\n[poll]\ntimeout_s = 0\n')
    with pytest.raises(ConfigError) as refused:
        load(environment={"FLEETPROXY_QUEUE__SIZE": "-1"}, folder=tmp_path)
    assert [problem.key for problem in refused.value.problems] == ["port", "prot", "poll.timeout_s", "queue.size"]


def test_no_secret_is_in_a_message(tmp_path: Path) -> None:
    secret = "very\tsecret"
    (tmp_path / "fleetproxy.toml").write_text(
        f'keys = ["a={secret}"]\n[auth]\nadmin_key = "{secret}"\nclient_key = "{secret}"\n'.replace("\t", "\\t")
    )
    with pytest.raises(ConfigError) as refused:
        load(environment={}, folder=tmp_path)
    assert len(refused.value.problems) == 3
    assert "secret\n" not in f"{refused.value}\n"
    assert secret not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"port = 1\n# \xff\n", "fleetproxy.toml:2: is not UTF-8 text"),
        (b"a = " + b"[" * 5000, "nested too deeply"),
        (b"#" * (4 * 1024 * 1024 + 1), "is larger than"),
    ],
    ids=["bytes", "depth", "size"],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "fleetproxy.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        load(environment={}, folder=tmp_path)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("none.toml", "there is no such file"),
        ("old.yaml", "is TOML"),
        ("folder.toml", "cannot be read: Is a directory"),
    ],
)
def test_a_named_file_must_be_there_and_readable(tmp_path: Path, config: str, says: str) -> None:
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "old.yaml").touch()
    with pytest.raises(ConfigError, match=says):
        load(config=config, environment={}, folder=tmp_path)
