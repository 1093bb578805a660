"""Dial-in workers as control knows them."""

from __future__ import annotations

from fleetproxy.control.visitors import Visitors
from fleetproxy.core.worker import Offer, Worker
from fleetproxy.link.messages import Pulse, WorkersPulse, WorkersSeen


def worker(identity: str, family: str = "llm", *models: str) -> Worker:
    return Worker(id=identity, name=f"name-{identity}", family=family, column=3000, offer=Offer(models=models))


def names(visitors: Visitors) -> list[str]:
    return [visitor.worker.id for visitor in visitors.all()]


def test_they_come_change_and_leave() -> None:
    visitors = Visitors()
    visitors.seen(WorkersSeen((worker("a"), worker("b")), whole=True))
    visitors.seen(WorkersSeen((worker("b", "llm", "phi:1"), worker("c")), (("llm", "a"), ("llm", "unknown"))))
    assert names(visitors) == ["b", "c"]
    assert visitors.all()[0].worker.offer.models == ("phi:1",)
    visitors.seen(WorkersSeen((worker("d"),), whole=True))
    assert names(visitors) == ["d"]
    visitors.clear()
    assert names(visitors) == []


def test_signs_of_life_stay_with_their_worker() -> None:
    visitors = Visitors()
    visitors.seen(WorkersSeen((worker("a"),)))
    pulse = Pulse("llm", "a", 100.0, in_flight=2)
    visitors.pulse(WorkersPulse((pulse, Pulse("llm", "gone", 1.0), Pulse("asr", "a", 1.0))))
    visitors.seen(WorkersSeen((worker("a", "llm", "new:1"),)))
    assert [visitor.pulse for visitor in visitors.all()] == [pulse]
    visitors.seen(WorkersSeen((worker("a"),), whole=True))
    assert [visitor.pulse for visitor in visitors.all()] == [pulse], "the hub told of all again, nobody left"


def test_inference_workers_join_the_fleet() -> None:
    visitors = Visitors()
    visitors.seen(WorkersSeen((worker("a", "llm", "phi:1"), worker("ears", "asr"))))
    ((backend, state),) = visitors.guests()
    assert (backend.name, backend.scheme, backend.host) == ("name-a", "hub", "a")
    assert [model.name for model in state.on_disk] == ["phi:1"]
