"""A stock nfrx agent as its users run it: dials in, registers, and passes what it is sent to a server beside it."""

from __future__ import annotations

import base64
import http.client
import json
import threading
from contextlib import suppress
from typing import Any, Self
from urllib.parse import urlsplit

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect


class StockAgent:
    """Lives in threads of its own. `hold` keeps answers back until it is set."""

    def __init__(self, server: str, backend: str, worker_id: str, models: list[str], **register: Any) -> None:
        self.id = worker_id
        self._backend = urlsplit(backend)
        self._register = {
            "type": "register",
            "worker_id": worker_id,
            "worker_name": worker_id,
            "client_key": "",
            "models": models,
            "max_concurrency": 2,
            "version": "0.9.6",
            **register,
        }
        self._url = server.replace("http", "ws", 1) + "/api/llm/connect"
        self._lock = threading.Lock()
        self._socket: ClientConnection | None = None
        self._threads: list[threading.Thread] = []
        self.orders: list[dict[str, Any]] = []
        self.hold = threading.Event()
        self.hold.set()

    def __enter__(self) -> Self:
        self._connecting = connect(self._url, compression=None, max_size=None)
        self._socket = self._connecting.__enter__()
        self._say(**self._register)
        self._start(self._listen)
        return self

    def __exit__(self, *_: object) -> None:
        self.hold.set()
        self._connecting.__exit__(None, None, None)
        for thread in self._threads:
            thread.join(10)

    def _start(self, target: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _say(self, **message: Any) -> None:
        assert self._socket is not None
        with self._lock, suppress(ConnectionClosed):
            self._socket.send(json.dumps(message))

    def _listen(self) -> None:
        assert self._socket is not None
        with suppress(ConnectionClosed):
            for message in self._socket:
                order = json.loads(message)
                if order.get("type") == "http_proxy_request":
                    self.orders.append(order)
                    self._start(self._serve, order)

    def _serve(self, order: dict[str, Any]) -> None:
        identity = order["request_id"]
        self.hold.wait(30)
        connection = http.client.HTTPConnection(self._backend.hostname or "", self._backend.port, timeout=20)
        try:
            body = base64.b64decode(order.get("body", ""))
            connection.request(order["method"], "/v1" + order["path"], body, order["headers"])
            answer = connection.getresponse()
            headers = {"Content-Type": answer.getheader("content-type", "")}
            self._say(type="http_proxy_response_headers", request_id=identity, status=answer.status, headers=headers)
            while piece := answer.read1(32 * 1024):
                data = base64.b64encode(piece).decode()
                self._say(type="http_proxy_response_chunk", request_id=identity, data=data)
            self._say(type="http_proxy_response_end", request_id=identity)
        finally:
            connection.close()
