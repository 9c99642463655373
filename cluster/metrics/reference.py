"""The page ``docs/reference/metrics.md``, made of the table (``cluster.reference_pages``)."""

from __future__ import annotations

from cluster.metrics.places import MOST_CHIPS, MOST_NODES
from cluster.metrics.table import METRICS, Metric

_HEAD = f"""# Metrics

Made from the one table in `cluster/metrics/table.py`; how to watch them is in
[watching.md](../watching.md).

Where a value comes from: *exact*: cycles and programs; *estimated*: a model of GPUs, of links to
them or of host transfers is part of it; *wall clock*: this machine's clock; *fact of the run*: a
plain count or property.

`rack`, `node` and `chip` place a chip, `link` is the sending chip's link number. Machines of up to
{MOST_CHIPS} chips have a series for each chip and directed link; larger ones are summed by node
(`chip` and `link` empty), those of more than {MOST_NODES} nodes by rack. The chips of a topology
file count as nodes of eight. `experiment` is generate, speculative, disaggregated, agentic or load;
`platform` is what served: lpu, a pool of the load, a platform, a variant or a way of routing.
"""


def row(metric: Metric) -> str:
    """A metric's row of the table."""
    labels = ", ".join(f"`{label}`" for label in metric.labels) or "none"
    return (
        f"| `{metric.exported}` | {metric.kind} | {metric.unit.replace('_', ' ')} | {labels} | "
        f"{metric.basis} | {metric.help} | {metric.derived} |"
    )


def metrics_page() -> str:
    """The whole page."""
    lines = [
        _HEAD,
        "| name | type | unit | labels | basis | what it says | derived from |",
        "|---|---|---|---|---|---|---|",
        *map(row, METRICS),
    ]
    return "\n".join(lines) + "\n"
