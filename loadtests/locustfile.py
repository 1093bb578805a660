"""The users: `locust -f loadtests/locustfile.py --host http://127.0.0.1:11434`. See loadtests/README.md."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable
from typing import Any

import gevent
from locust import FastHttpUser, task
from websocket import WebSocketException

from loadtests import report
from loadtests.storm import StormWorker, asked
from loadtests.streams import BROKEN_OFF, StreamsMixin, fire, said

WORDS = (
    "why",
    "is",
    "the",
    "sky",
    "blue",
    "what",
    "is",
    "a",
    "fleet",
    "who",
    "serves",
    "this",
    "model",
    "tell",
    "more",
)
#: Pause after an answer, without --pace.
PAUSE_S = 0.5
#: Share of streams that go past the proxy, with --direct.
DIRECT_SHARE = 1 / 3
#: A worker that dialled in must be asked, and one that left be forgotten, within this.
NOTICED_S = 5.0


class FleetUser(FastHttpUser):
    """A caller with a key."""

    abstract = True

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self.options = environment.parsed_options
        key = self.options.api_key
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._next_s = time.monotonic()

    def wait_time(self) -> float:
        """Closed loop: a pause after each answer. With --pace open: the next begins when it is due."""
        pace_s = self.options.pace
        if pace_s <= 0:
            return PAUSE_S * random.uniform(0.5, 1.5)
        now_s = time.monotonic()
        self._next_s = max(self._next_s + pace_s, now_s)
        return self._next_s - now_s

    def question(self) -> list[dict[str, str]]:
        text = " ".join(random.choices(WORDS, k=random.randint(5, 40)))
        return [{"role": "user", "content": text}]


class ChatStreamer(StreamsMixin, FleetUser):
    """Chats, and reads the answer as it comes: newline-delimited JSON or server-sent events."""

    weight = 10

    @task
    def ndjson(self) -> None:
        self._chat("/api/chat", {})

    @task
    def sse(self) -> None:
        self._chat("/v1/chat/completions", {"stream_options": {"include_usage": True}})

    def _chat(self, path: str, more: dict[str, Any]) -> None:
        body = {"model": self.options.chat_model, "stream": True, "messages": self.question(), **more}
        direct = [url.rstrip("/") for url in self.options.direct.split(",") if url]
        if direct and random.random() < DIRECT_SHARE:
            self.stream(path, body, name=report.DIRECT + path, base=random.choice(direct))
        else:
            self.stream(path, body, name=path, headers=self.headers)


class Embedder(FleetUser):
    """Embeds many texts at once; an answer has one vector for each of them, in order."""

    weight = 2

    @task
    def ollama(self) -> None:
        self._embed("/api/embed", "embeddings")

    @task
    def openai(self) -> None:
        self._embed("/v1/embeddings", "data")

    def _embed(self, path: str, field: str) -> None:
        texts = [" ".join(random.choices(WORDS, k=8)) for _ in range(random.randint(1, 32))]
        body = {"model": self.options.embed_model, "input": texts}
        with self.client.post(path, json=body, headers=self.headers, catch_response=True) as response:
            if response.status_code != 200:
                response.failure(said(response))
                return
            vectors = listed(response, field)
            if vectors is None or len(vectors) != len(texts):
                response.failure("not as many vectors as texts")
            elif field == "data" and [vector.get("index") for vector in vectors] != list(range(len(texts))):
                response.failure("the vectors are not numbered in order")


class Lister(FleetUser):
    """Looks what there is."""

    weight = 2

    @task
    def models(self) -> None:
        path, field = random.choice((("/api/tags", "models"), ("/v1/models", "data"), ("/api/ps", "models")))
        with self.client.get(path, headers=self.headers, catch_response=True) as response:
            if response.status_code != 200:
                response.failure(said(response))
            elif listed(response, field) is None:
                response.failure("there is no list in it")


class Leaver(FleetUser):
    """Asks for a stream and hangs up after a few lines."""

    weight = 2

    @task
    def leave(self) -> None:
        body = {"model": self.options.chat_model, "stream": True, "messages": self.question()}
        with self.client.post(
            "/api/chat",
            json=body,
            headers=self.headers,
            name="/api/chat (leaves)",
            stream=True,
            catch_response=True,
        ) as response:
            if response.status_code != 200:
                response.failure(said(response))
                return
            try:
                for _ in range(random.randint(0, 5)):
                    if not response.stream.readline(b"\n"):
                        break
            except BROKEN_OFF as error:
                response.failure(f"it broke off: {error or type(error).__name__}")
            response.release()


class WorkerStorm(FleetUser):
    """Dials in as a worker with a model nobody else has, is asked for it, leaves: politely or not.

    Rows: JOIN, from dialling to the first answer by the new worker; LEAVE, from leaving until nobody is sent there.
    """

    weight = 1

    @task
    def come_and_go(self) -> None:
        options, host = self.options, str(self.host)
        model = f"storm-{secrets.token_hex(6)}"
        began_s = time.perf_counter()
        try:
            worker = StormWorker(host, options.client_key, model)
        except (OSError, WebSocketException) as error:
            fire(self, "JOIN", "/api/llm/connect", _ms(began_s), error=error)
            return
        try:
            joined = self._noticed("JOIN", began_s, lambda status: status == 200, worker)
            if joined:
                gevent.sleep(random.uniform(0.2, 2.0))
        finally:
            began_s = time.perf_counter()
            worker.leave(politely=random.random() < 0.5)
        if joined:
            self._noticed("LEAVE", began_s, lambda status: status not in (0, 200), worker)

    def _noticed(self, kind: str, began_s: float, noticed: Callable[[int], bool], worker: StormWorker) -> bool:
        """Ask for the worker's model until the answer shows it; fire the row."""
        status = 0
        while _ms(began_s) < NOTICED_S * 1000 and not (kind == "JOIN" and worker.lost):
            status = asked(str(self.host), worker.model, self.options.api_key)
            if noticed(status):
                fire(self, kind, "/api/llm/connect", _ms(began_s))
                return True
            gevent.sleep(0.02)
        why = "the server closed the connection" if worker.lost else f"not within {NOTICED_S:g} s"
        error = TimeoutError(f"{why}; the last status was {status}")
        fire(self, kind, "/api/llm/connect", _ms(began_s), error=error)
        return False


def listed(response: Any, field: str) -> list[Any] | None:
    """A list in an answer's JSON; None when there is none."""
    try:
        value = response.json()
    except ValueError:
        return None
    found = value.get(field) if isinstance(value, dict) else None
    return found if isinstance(found, list) else None


def _ms(since_s: float) -> float:
    return (time.perf_counter() - since_s) * 1000
