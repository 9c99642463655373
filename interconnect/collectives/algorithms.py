"""Which algorithms exist for an operation on a topology, and the steps of each."""

from __future__ import annotations

from interconnect.collectives import one_shot, steps
from interconnect.collectives.steps import OPERATIONS, Groups, Step, group_sizes
from interconnect.wiring import FabricError, Topology

#: Chips up to which an all-to-all may send every message by itself.
MOST_DIRECT = 1056


def algorithms_for(operation: str, topology: Topology) -> tuple[str, ...]:
    """Algorithms that exist for an operation on a topology.

    Raises FabricError for an operation that does not exist.
    """
    if operation not in OPERATIONS:
        raise FabricError(f"collective {operation!r}: known are {', '.join(OPERATIONS)}")
    groups = Groups(group_sizes(topology))
    if operation == "point-to-point":
        return ("direct",)
    if operation in ("all-reduce", "broadcast") and one_shot.connected(topology, groups):
        return ("hierarchical", "one-shot")
    if operation == "all-to-all" and groups.depth > 1 and topology.chips <= MOST_DIRECT:
        return ("hierarchical", "direct")
    return ("hierarchical",)


def collective_steps(
    topology: Topology, operation: str, algorithm: str, words: int, *, root: int = 0
) -> list[Step]:
    """Steps of ``operation`` on ``words`` words.

    words: all-reduce, broadcast: of the tensor; else of the part of one chip (``words_needed``).
    Raises FabricError with one line for what does not exist; a point-to-point has no steps.
    """
    known = algorithms_for(operation, topology)
    if algorithm not in known:
        raise FabricError(f"{operation} by {algorithm!r} on {topology.chips} chips: {known}")
    if words < 1 or not 0 <= root < topology.chips:
        raise FabricError(f"{words} words from chip {root}: at least 1, of {topology.chips} chips")
    groups = Groups(group_sizes(topology))
    if algorithm == "one-shot":
        if operation == "broadcast":
            return one_shot.one_shot_broadcast(topology, groups, words, root)
        return one_shot.one_shot_all_reduce(topology, groups, words)
    if algorithm == "direct":
        groups = Groups((topology.chips,))
    if operation == "broadcast":
        return steps.broadcast(groups, words, root)
    build = {
        "all-reduce": steps.all_reduce,
        "reduce-scatter": steps.reduce_scatter,
        "all-gather": steps.all_gather,
        "all-to-all": steps.all_to_all,
    }
    return build[operation](groups, words)
