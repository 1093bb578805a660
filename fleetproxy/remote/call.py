"""Calls to a running fleetproxy: plain HTTP/1.1, one connection a call, errors that say what to decide.

Keys go as X-Ollama-Api-Key: unlike an unknown Bearer token, that header never goes on to a backend.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import msgspec

from fleetproxy import __version__
from fleetproxy.control.local_call import Unreachable, call
from fleetproxy.remote.address import Target

Kind = Literal["failed", "missing", "unreachable", "refused", "timeout"]

CALL_S = 30.0
#: Whole answers read at most; lists of a large fleet stay far below it.
MOST_BYTES = 64 * 1024 * 1024
#: One line of a stream: images and logprobs make long ones, a server that never ends a line is none of ours.
MOST_LINE_BYTES = 64 * 1024 * 1024
PIN = "x-ollama-pin-server"

_KINDS: dict[int, Kind] = {401: "refused", 403: "refused", 404: "missing", 408: "timeout", 504: "timeout"}
_KEY_HINT = "give a key with --key or FLEETPROXY_KEY; `fleetproxy keys add USER` makes one"


class CallError(Exception):
    """A call that did not succeed; the text says what happened, why, and what to do."""

    def __init__(self, kind: Kind, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.kind = kind
        #: HTTP status; 0 when there was no answer.
        self.status = status


class Answer(msgspec.Struct, frozen=True):
    """A whole answer."""

    status: int
    #: Names in lower case.
    headers: dict[str, str]
    #: Decoded JSON; None for an empty or other body.
    value: Any
    text: str


class Stream(msgspec.Struct, frozen=True):
    """An answer that arrives line by line."""

    status: int
    headers: dict[str, str]
    lines: Iterator[bytes]


class Fleet:
    """One running fleetproxy."""

    def __init__(self, target: Target, *, timeout_s: float = CALL_S, bearer: bool = False) -> None:
        self.target = target
        self.timeout_s = timeout_s
        #: Send the key as a Bearer token: for servers that are no fleetproxy.
        self.bearer = bearer

    def ask(self, method: str, path: str, body: object = None, *, server: str | None = None) -> Answer:
        """A call on the public port, answered with any status. `server` pins it to one. Raises CallError."""
        with self._open(method, path, body, server, self.timeout_s) as answer:
            raw = answer.read(MOST_BYTES)
            return _answer(answer, raw)

    def get(self, path: str) -> Any:
        """JSON of a GET on the public port. Raises CallError."""
        return good(self.ask("GET", path), path)

    @contextmanager
    def stream(
        self, method: str, path: str, body: object, *, server: str | None = None, timeout_s: float | None = None
    ) -> Generator[Stream]:
        """Lines of an answer as they come; leaving the block closes the connection, which cancels the request.

        `timeout_s` is between two pieces. Raises CallError, for statuses other than 2xx too.
        """
        with self._open(method, path, body, server, timeout_s or self.timeout_s) as answer:
            if answer.status // 100 != 2:
                good(_answer(answer, answer.read(MOST_BYTES)), path)
            yield Stream(answer.status, _headers(answer), _lines(answer))

    def control(self, method: str, path: str, body: object = None) -> Any:
        """JSON of a call to control (dashboard API): over its own socket where that one is ours. Raises CallError."""
        return good(self.ask_control(method, path, body), path)

    def ask_control(self, method: str, path: str, body: object = None) -> Answer:
        """The same, answered with any status."""
        if self.target.live is None:
            return self.ask(method, path, body)
        try:
            status, value = call(self.target.live, method, path, body, timeout_s=self.timeout_s)
        except Unreachable as error:
            raise CallError("unreachable", str(error)) from None
        return Answer(status, {}, value, "")

    @contextmanager
    def _open(
        self, method: str, path: str, body: object, server: str | None, timeout_s: float
    ) -> Generator[http.client.HTTPResponse]:
        parts = urlsplit(self.target.url)
        encoded = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        headers = {"accept": "application/json, */*", "user-agent": f"fleetproxy/{__version__}"}
        if encoded is not None:
            headers["content-type"] = "application/json"
        if self.target.key:
            headers |= (
                {"authorization": f"Bearer {self.target.key}"} if self.bearer else {"x-ollama-api-key": self.target.key}
            )
        if server is not None:
            headers[PIN] = server
        connection = _connection(self.target, timeout_s)
        try:
            with _sentences(self.target.url, timeout_s):
                connection.request(method, parts.path + path, encoded, headers)
                answer = connection.getresponse()
            with _sentences(self.target.url, timeout_s, begun=True):
                yield answer
        finally:
            connection.close()


def good(answer: Answer, path: str) -> Any:
    """The JSON of a good answer; raises CallError for the others."""
    if answer.status // 100 == 2:
        return answer.value
    raise CallError(_KINDS.get(answer.status, "failed"), said(answer, path), answer.status)


def said(answer: Answer, path: str) -> str:
    """What a refusal says, in one sentence."""
    text = error_text(answer.value) or answer.text.strip()[:500] or f"{path} was answered with HTTP {answer.status}"
    if answer.status == 401 or (answer.status == 403 and answer.value):
        return f"{text.rstrip('.')}: {_KEY_HINT}"
    return text


def error_text(value: Any) -> str:
    """The text of an error in any dialect; "" when there is none."""
    error = value.get("error") if isinstance(value, dict) else None
    if isinstance(error, dict):
        error = error.get("message")
    return error if isinstance(error, str) else ""


def segment(text: str) -> str:
    """A name as one segment of a path."""
    return quote(text, safe="")


def _connection(target: Target, timeout_s: float) -> http.client.HTTPConnection:
    parts = urlsplit(target.url)
    host = parts.hostname or ""
    if parts.scheme == "https":
        context = ssl.create_default_context() if target.verified else ssl._create_unverified_context()  # noqa: S323
        return http.client.HTTPSConnection(host, parts.port, timeout=timeout_s, context=context)
    return http.client.HTTPConnection(host, parts.port, timeout=timeout_s)


@contextmanager
def _sentences(url: str, timeout_s: float, *, begun: bool = False) -> Iterator[None]:
    """Faults of the network as sentences."""
    try:
        yield
    except TimeoutError:
        raise CallError("timeout", f"no answer from {url} within {timeout_s:g} s; allow more with --timeout") from None
    except ssl.SSLCertVerificationError as error:
        raise CallError(
            "unreachable",
            f"the certificate of {url} is not trusted: {error.verify_message}; name its CA in SSL_CERT_FILE",
        ) from None
    except socket.gaierror as error:
        raise CallError("unreachable", f"the name of {url} is not known: {error.strerror}") from None
    except ConnectionRefusedError:
        raise CallError(
            "unreachable", f"nobody listens at {url}; start it with `fleetproxy serve`, or name another with --url"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        kind: Kind = "failed" if begun else "unreachable"
        what = "broke off its answer" if begun else "cannot be reached"
        raise CallError(kind, f"{url} {what}: {error or type(error).__name__}") from None


def _lines(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    while line := answer.readline(MOST_LINE_BYTES):
        yield line.rstrip(b"\r\n")


def _headers(answer: http.client.HTTPResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in answer.getheaders()}


def _answer(answer: http.client.HTTPResponse, raw: bytes) -> Answer:
    text = raw.decode(errors="replace")
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    return Answer(answer.status, _headers(answer), value, text)


def query(values: Mapping[str, object]) -> str:
    """`?name=value&...` of what is given; "" of nothing."""
    pairs = [f"{quote(name)}={quote(str(value), safe='')}" for name, value in values.items() if value not in (None, "")]
    return f"?{'&'.join(pairs)}" if pairs else ""
