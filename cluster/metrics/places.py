"""Which series a machine's chips and links share: one each in small machines, else by node or rack.

A machine of 264 chips has thousands of directed links; a series for each would drown a Prometheus.
So chips and links are labelled one by one up to ``MOST_CHIPS``, beyond that summed by node, and
beyond ``MOST_NODES`` nodes by rack.  A label that does not apply is empty, which Prometheus takes
for absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from interconnect.wiring import NODE, RACK_NODES
from programs.artifact import Artifact

Ints = NDArray[np.int64]

#: 64 chips with 11 links each are some 4,200 series.
MOST_CHIPS, MOST_NODES = 64, 64
#: Topologies of nodes of eight; those of a file ("custom") and the small ones have their chips in
#: nodes of eight as well, in the order of numbers.
_IN_RACKS = "dragonfly"


@dataclass(frozen=True, eq=False)
class MetricPlaces:
    """Label values of every series, and the series of every chip and directed link.

    chips: (rack, node, chip) per series; chip_series: int64 [chips].
    links: (rack, node, chip, link) per series; link_series: int64 [directed links];
    link_ends: int64 [directed links, 2], the sending chip and its link number.
    """

    chips: list[tuple[str, str, str]]
    chip_series: Ints
    links: list[tuple[str, str, str, str]]
    link_series: Ints
    link_ends: Ints


def places_of(artifact: Artifact) -> MetricPlaces:
    """The series for the chips and cables of ``artifact``."""
    return places(artifact.chips, artifact.cables, artifact.topology)


def places(chips: int, cables: Sequence[Sequence[int]], topology: str) -> MetricPlaces:
    """The series of ``chips`` chips, joined by cables (chip a, link of a, chip b, link of b)."""
    numbers = np.arange(chips)
    nodes = numbers // NODE
    racks = nodes // RACK_NODES if topology == _IN_RACKS else np.zeros_like(nodes)
    ends = np.array(cables, np.int64).reshape(-1, 4)
    directed = np.concatenate([ends[:, :2], ends[:, 2:]])
    directed = directed[np.lexsort((directed[:, 1], directed[:, 0]))]
    if chips <= MOST_CHIPS:
        labels = [(str(r), str(n), str(c)) for r, n, c in zip(racks, nodes, numbers, strict=True)]
        links = [(*labels[chip], str(link)) for chip, link in directed.tolist()]
        return MetricPlaces(labels, numbers, links, np.arange(len(directed)), directed)
    if int(nodes[-1]) < MOST_NODES:
        series, names = nodes, [(str(racks[n * NODE]), str(n), "") for n in range(nodes[-1] + 1)]
    else:
        series, names = racks, [(str(r), "", "") for r in range(racks[-1] + 1)]
    of_links = series[directed[:, 0]]
    return MetricPlaces(names, series, [(*name, "") for name in names], of_links, directed)
