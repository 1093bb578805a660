from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.core import worker
from fleetproxy.core.backend import DiskModel, ResidentModel
from fleetproxy.core.worker import Host, Listing, Offer, Worker

HOSTS = st.builds(Host, *[st.text(max_size=300)] * 5)
OFFERS = st.builds(
    Offer,
    models=st.lists(st.text(max_size=300), max_size=20).map(tuple),
    max_concurrency=st.integers(),
    embedding_batch_size=st.integers(),
    status=st.sampled_from(["idle", "not_ready", "draining"]),
    kind=st.sampled_from(["worker", "ollama", "openai"]),
    host=HOSTS,
    vram_bytes=st.none() | st.integers(),
    listing=st.none() | st.builds(Listing, tags=st.integers(0, 700_000).map(bytes)),
)


@given(OFFERS)
def test_a_bounded_offer_is_within_the_limits_and_stays_as_it_is(offer: Offer) -> None:
    bounded = offer.bounded()
    assert bounded.bounded() == bounded
    assert 0 <= bounded.max_concurrency <= worker.MAX_CONCURRENCY
    assert 0 <= bounded.embedding_batch_size <= worker.MAX_BATCH
    assert len(bounded.models) == len(set(bounded.models)) <= worker.MAX_MODELS
    assert all(model.isprintable() and 0 < len(model) <= worker.MAX_NAME_CHARACTERS for model in bounded.models)
    assert set(bounded.models) <= set(offer.models)
    assert all(len(label) <= worker.MAX_LABEL_CHARACTERS for label in (bounded.host.hostname, bounded.host.os_name))
    assert bounded.listing is None or bounded.listing.size_bytes <= worker.MAX_LISTING_BYTES


def test_a_hundred_thousand_models_are_cut() -> None:
    offer = Offer(models=tuple(f"m{number}" for number in range(100_000)))
    assert offer.bounded().models == offer.models[: worker.MAX_MODELS]


def test_names_of_many_bytes_are_fewer() -> None:
    wide = tuple(f"{number:04}" + "\U0001f600" * 252 for number in range(1000))
    kept = Offer(models=wide).bounded().models
    assert kept == wide[: len(kept)]
    assert worker.MAX_MODELS_BYTES - 2000 < sum(len(model.encode()) for model in kept) <= worker.MAX_MODELS_BYTES
    assert Offer(models=wide[:1] * 1000 + ("m",)).bounded().models == (wide[0], "m")


@given(OFFERS)
def test_only_an_idle_worker_with_room_gets_work(offer: Offer) -> None:
    offer = offer.bounded()
    one = Worker(id="w", name="w", column=2048, offer=offer, connected_at_s=5.0)
    backend = worker.backend_of(one)
    assert (offer.slots > 0) == (offer.status == "idle" and offer.max_concurrency > 0)
    assert worker.state_of(one).online == backend.enabled == (offer.slots > 0)
    assert (backend.scheme, backend.host, backend.column) == ("hub", "w", 2048)
    assert backend.id == worker.number_of("llm", "w") > 2**32
    assert backend.max_concurrent is not None
    assert backend.max_concurrent >= 1


@given(st.text(max_size=20), st.text(min_size=1, max_size=20), st.lists(st.text(max_size=20), max_size=5))
def test_a_name_is_never_one_that_is_taken(wanted: str, worker_id: str, taken: list[str]) -> None:
    name = worker.unique_name(wanted, worker_id, taken)
    assert name.lower() not in {other.lower() for other in taken}
    if wanted and wanted.lower() not in {other.lower() for other in taken}:
        assert name == wanted


def test_names_grow_only_as_long_as_they_must() -> None:
    taken: list[str] = []
    for expected in ("gpu", "gpu-abcdefgh", "gpu-abcdefghij", "gpu-2", "gpu-3"):
        assert worker.unique_name("gpu", "abcdefghij", taken) == expected
        taken.append(expected.upper())


def test_what_a_worker_lists_is_resident_unless_its_backend_is_an_ollama() -> None:
    def state(family: str, listing: Listing | None = None) -> tuple[list[str], list[str]]:
        offer = Offer(models=("a", "b"), max_concurrency=1, host=Host(backend_family=family), listing=listing)
        seen = worker.state_of(Worker(id="w", name="w", column=2048, offer=offer))
        return [model.name for model in seen.resident], [model.name for model in seen.on_disk]

    assert state("vllm") == (["a", "b"], ["a", "b"])
    assert state("ollama") == ([], ["a", "b"])
    listed = Listing(resident=(ResidentModel(name="a"),), on_disk=(DiskModel(name="a", size_bytes=5),))
    assert state("ollama", listed) == (["a"], ["a", "b"])


@given(st.text(max_size=60), st.integers(0, 30))
def test_labels_are_printable_and_short(text: str, most: int) -> None:
    label = worker.printable(text, most)
    assert len(label) <= most
    assert label.isprintable()
