from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.control.live.catalogue import Catalogue
from fleetproxy.core.backend import BackendState, DiskModel, ResidentModel

names = st.sampled_from(["a:1", "b:1", "c:1", "d:1"])
models = st.builds(DiskModel, name=names, size_bytes=st.integers(0, 3), digest=st.sampled_from(["x", "y"]))
states = st.builds(
    lambda on_disk, resident: BackendState(
        on_disk=tuple({one.name: one for one in on_disk}.values()),
        resident=tuple(ResidentModel(name=name) for name in resident),
    ),
    st.lists(models, max_size=4),
    st.sets(names, max_size=2),
)
fleets = st.dictionaries(st.integers(1, 3), states, max_size=3)


@given(st.lists(fleets, max_size=6))
def test_a_watcher_that_merges_the_differences_knows_what_a_newcomer_is_told(story: list[dict[int, Any]]) -> None:
    catalogue, merged = Catalogue(), dict[str, Any]()
    for fleet in story:
        catalogue.update(fleet.items())
        changed, removed = catalogue.take()
        merged |= {model["name"]: model for model in changed}
        for name in removed:
            del merged[name]
        fresh = Catalogue()
        fresh.update(fleet.items())
        fresh.take()
        assert merged == {model["name"]: model for model in catalogue.all()}
        assert merged == {model["name"]: model for model in fresh.all()}
        assert len(catalogue) == len(merged)
        assert catalogue.take() == ([], [])


def test_a_model_says_where_it_is_and_whether_its_builds_differ() -> None:
    catalogue = Catalogue()
    disk = DiskModel(name="m:1", size_bytes=5, digest="x", parameter_size="8B")
    other = DiskModel(name="m:1", size_bytes=7, digest="y", quantization="Q4_0")
    catalogue.update(
        [(1, BackendState(on_disk=(disk,), resident=(ResidentModel(name="m:1"),))), (2, BackendState(on_disk=(other,)))]
    )
    assert catalogue.take()[0] == [
        {
            "name": "m:1",
            "sizeBytes": 7,
            "parameterSize": "8B",
            "quantization": "Q4_0",
            "digests": 2,
            "onDisk": [1, 2],
            "resident": [1],
        }
    ]
