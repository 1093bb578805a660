"""A worker as small as can be, in nfrx's words over a WebSocket: it dials in with a model of its own, serves it from
memory, and leaves."""

from __future__ import annotations

import base64
import http.client
import json
from typing import Any
from urllib.parse import urlsplit

import gevent
from websocket import WebSocket, WebSocketException, create_connection

ANSWER = json.dumps(
    {
        "id": "storm",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "here"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
).encode()
DIAL_S = 10.0


class StormWorker:
    """One connection, from dialling to leaving."""

    def __init__(self, host: str, client_key: str, name: str) -> None:
        """Dial in and register. Raises OSError or WebSocketException when that fails."""
        self.model = name
        headers = {"Authorization": f"Bearer {client_key}"} if client_key else {}
        url = host.replace("http", "ws", 1) + "/api/llm/connect"
        self._socket: WebSocket = create_connection(url, timeout=DIAL_S, header=headers)
        self._say(
            type="register",
            worker_id=name,
            worker_name=name,
            client_key=client_key,
            models=[name],
            max_concurrency=4,
            version="storm",
        )
        self._serving = gevent.spawn(self._serve)

    @property
    def lost(self) -> bool:
        """The server closed the connection."""
        return bool(self._serving.dead)

    def leave(self, *, politely: bool) -> None:
        """With a close frame, or as a machine does whose power is gone."""
        self._serving.kill()
        if politely:
            self._socket.close(timeout=1)
        else:
            self._socket.shutdown()

    def _say(self, **message: Any) -> None:
        self._socket.send(json.dumps(message))

    def _serve(self) -> None:
        self._socket.settimeout(None)
        try:
            while text := self._socket.recv():
                order = json.loads(text)
                if order.get("type") == "http_proxy_request":
                    self._answer(order["request_id"])
        except (OSError, WebSocketException):
            pass  # it was closed: whoever asks for the model sees it

    def _answer(self, request_id: str) -> None:
        headers = {"Content-Type": "application/json"}
        self._say(type="http_proxy_response_headers", request_id=request_id, status=200, headers=headers)
        data = base64.b64encode(ANSWER).decode()
        self._say(type="http_proxy_response_chunk", request_id=request_id, data=data)
        self._say(type="http_proxy_response_end", request_id=request_id)


def asked(host: str, model: str, api_key: str) -> int:
    """The status of one short chat; 0 when nobody answers. Fires no row."""
    parts = urlsplit(host)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=DIAL_S)
    headers = {"Content-Type": "application/json"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "are you there?"}]})
    try:
        connection.request("POST", "/v1/chat/completions", body, headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()
