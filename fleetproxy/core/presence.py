"""The routing table with the workers that are there now.

Control compiles workers into its snapshots, but a worker's coming and going reaches every proxy process straight from
the hub: what the hub says holds, and joins and leaves need no control.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgspec

from fleetproxy.core.fleet import Fleet, compile_table
from fleetproxy.core.names import canonical
from fleetproxy.core.table import Route, RoutedBackend, RoutingTable
from fleetproxy.core.worker import Worker, backend_of, state_of

Routes = Mapping[str, tuple[Route, ...]]


def with_workers(table: RoutingTable, workers: Iterable[Worker], families: Collection[str] = ("llm",)) -> RoutingTable:
    """The same table with exactly these workers (of some families) in it.

    A worker the table knows and the hub does not stays visible, but nobody is sent to it: its models are unavailable,
    not unknown. The very table is returned when it has no workers and there are none.
    """
    present = sorted((w for w in workers if w.family in families), key=lambda w: w.column)
    if not present and not any(routed.backend.scheme == "hub" for routed in table.backends):
        return table
    ids = {worker.id for worker in present}
    kept = [
        (index, routed)
        for index, routed in enumerate(table.backends)
        if routed.backend.scheme != "hub" or routed.backend.host not in ids
    ]
    moved = {old: new for new, (old, _) in enumerate(kept)}
    gone = {old for old, routed in kept if routed.backend.scheme == "hub"}
    fleet = Fleet(
        backends=tuple(backend_of(worker) for worker in present),
        states={worker.name: state_of(worker) for worker in present},
    )
    joined = compile_table(fleet, {})
    models = _together(table.models, joined.models, moved, gone, len(kept))
    keys = _together(table.alias_keys, joined.alias_keys, moved, gone, len(kept))
    # An alias stands for the models its routes serve; a worker may have them too.
    meant = {alias: {canonical(route.model) for route in routes} for alias, routes in table.aliases.items()}
    aliases = {
        alias: _ordered(route for name in names for route in models.get(name, ())) for alias, names in meant.items()
    }
    lost = {name for name, routes in table.models.items() if name not in models and routes}
    lost |= {alias for alias, routes in aliases.items() if not routes}
    return RoutingTable(
        backends=tuple(_standing(routed, old in gone) for old, routed in kept) + joined.backends,
        models=models,
        aliases={alias: routes for alias, routes in aliases.items() if routes},
        alias_keys=keys,
        pins={name: index + len(kept) for name, index in joined.pins.items()}
        | {name: moved[index] for name, index in table.pins.items() if index in moved},
        unavailable=frozenset((table.unavailable | joined.unavailable | lost) - models.keys()),
    )


def _standing(routed: RoutedBackend, gone: bool) -> RoutedBackend:
    return msgspec.structs.replace(routed, usable=False, online=False) if gone else routed


def _together(
    old: Routes, new: Routes, moved: Mapping[int, int], gone: set[int], offset: int
) -> dict[str, tuple[Route, ...]]:
    together = {}
    for name in old.keys() | new.keys():
        routes = _ordered(
            [
                Route(moved[route.backend], route.tier, route.model)
                for route in old.get(name, ())
                if route.backend in moved and route.backend not in gone
            ]
            + [Route(route.backend + offset, route.tier, route.model) for route in new.get(name, ())]
        )
        if routes:
            together[name] = routes
    return together


def _ordered(routes: Iterable[Route]) -> tuple[Route, ...]:
    """In static order (tier, then backend), each backend once, where it is best."""
    best: dict[int, Route] = {}
    for route in sorted(routes, key=lambda route: (route.tier, route.backend)):
        best.setdefault(route.backend, route)
    return tuple(best.values())
