"""The kinds of panels that the dashboards are made of, each a line where it is used.

A query has ``{I}`` where the chosen runs go: ``lpu_chips{I}``, ``lpu_tokens_total{I,x="y"}``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    statushistory,
    table,
    timeseries,
)
from grafana_foundation_sdk.models import common as common_model
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import heatmap as heatmap_model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
CHOSEN = 'instance=~"$instance"'

#: Grafana's names of units.
CYCLES = "short"
RATIO, SECONDS, BYTES, BYTES_PER_S, PER_S = "percentunit", "s", "bytes", "Bps", "cps"

Query = tuple[str, str]
"""PromQL and the legend of its series."""


def chosen(query: str) -> str:
    """``query`` for the runs chosen at the top of the dashboard."""
    return query.replace("{I}", "{" + CHOSEN + "}").replace("{I,", "{" + CHOSEN + ",")


def _target(
    number: int, query: Query, *, instant: bool = False, form: PromQueryFormat | None = None
) -> prometheus.Dataquery:
    expression, legend = query
    target = (
        prometheus.Dataquery()
        .expr(chosen(expression))
        .legend_format(legend)
        .ref_id(chr(ord("A") + number))
        .datasource(SOURCE)
    )
    target = target.instant() if instant else target.range()
    return target if form is None else target.format(form)


def _filled(panel: Any, title: str, text: str, queries: Sequence[Query], unit: str | None) -> Any:
    panel = panel.title(title).description(text).datasource(SOURCE)
    if unit is not None:
        panel = panel.unit(unit)
    for number, query in enumerate(queries):
        panel = panel.with_target(_target(number, query))
    return panel


def number(
    title: str,
    text: str,
    query: str,
    unit: str = "short",
    *,
    bad_above: float | None = None,
    span: int = 4,
) -> stat.Panel:
    """One large number, the last one of the time shown; red above ``bad_above``."""
    panel = _filled(stat.Panel(), title, text, [(query, "")], unit).height(4).span(span)
    steps = [model.Threshold(color="green")]
    if bad_above is not None:
        steps.append(model.Threshold(value=bad_above, color="red"))
    panel = panel.thresholds(
        dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps)
    )
    shown = common.ReduceDataOptions().calcs(["lastNotNull"])
    return panel.reduce_options(shown).graph_mode(common_model.BigValueGraphMode.NONE)


def lines(
    title: str,
    text: str,
    queries: Sequence[Query],
    unit: str = "short",
    *,
    span: int = 12,
    stacked: bool = False,
    logarithmic: bool = False,
) -> timeseries.Panel:
    """Curves over time."""
    panel = _filled(timeseries.Panel(), title, text, queries, unit).height(8).span(span)
    panel = (
        panel.min(0)
        .span_nulls(True)
        .legend(
            common.VizLegendOptions()
            .display_mode(common_model.LegendDisplayMode.LIST)
            .placement(common_model.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
    )
    if stacked:
        mode = common_model.StackingMode.NORMAL
        panel = panel.stacking(common.StackingConfig().mode(mode)).fill_opacity(40)
    if logarithmic:
        scale = common.ScaleDistributionConfig().type(common_model.ScaleDistribution.LOG).log(10)
        panel = panel.scale_distribution(scale)
    return panel


def bars(
    title: str, text: str, query: Query, unit: str, *, span: int = 12, most: float | None = None
) -> bargauge.Panel:
    """A bar for each series, at its last value."""
    panel = _filled(bargauge.Panel(), title, text, [query], unit).height(8).span(span).min(0)
    if most is not None:
        panel = panel.max(most)
    shown = common.ReduceDataOptions().calcs(["lastNotNull"])
    return (
        panel.reduce_options(shown)
        .orientation(common_model.VizOrientation.HORIZONTAL)
        .display_mode(common_model.BarGaugeDisplayMode.GRADIENT)
        .color_scheme(_heat())
    )


def strips(title: str, text: str, query: Query, unit: str) -> statushistory.Panel:
    """A heat map: a strip for each series, coloured by its value over time."""
    panel = _filled(statushistory.Panel(), title, text, [query], unit).height(10).span(24)
    return (
        panel.color_scheme(_heat())
        .show_value(common_model.VisibilityMode.NEVER)
        .row_height(0.9)
        .max_data_points(100)
    )


def matrix(
    title: str, text: str, query: str, row: str, column: str, unit: str, *, span: int = 24
) -> table.Panel:
    """A heat map: a coloured cell for each pair of two labels' values, at the end of the time."""
    panel = (
        table.Panel()
        .title(title)
        .description(text)
        .datasource(SOURCE)
        .unit(unit)
        .min(0)
        .height(10)
        .span(span)
        .with_target(_target(0, (query, ""), instant=True, form=PromQueryFormat.TABLE))
        .with_transformation(
            model.DataTransformerConfig(
                id_val="groupingToMatrix",
                options={"columnField": column, "rowField": row, "valueField": "Value"},
            )
        )
    )
    cells = common_model.TableColoredBackgroundCellOptions(
        mode=common_model.TableCellBackgroundDisplayMode.BASIC
    )
    return panel.color_scheme(_heat()).cell_options(cells)


def clouds(title: str, text: str, query: str, unit: str, *, span: int = 12) -> heatmap.Panel:
    """A heat map of a histogram's buckets over time."""
    axis = heatmap.YAxisConfig().unit(unit)
    return (
        heatmap.Panel()
        .title(title)
        .description(text)
        .datasource(SOURCE)
        .height(8)
        .span(span)
        .with_target(_target(0, (query, "{{le}}"), form=PromQueryFormat.HEATMAP))
        .calculate(False)
        .y_axis(axis)
        .show_legend()
        .color(
            heatmap.HeatmapColorOptions()
            .mode(heatmap_model.HeatmapColorMode.SCHEME)
            .scheme("Oranges")
            .steps(64)
        )
    )


def _heat() -> dashboard.FieldColor:
    return dashboard.FieldColor().mode(model.FieldColorModeId.CONTINUOUS_BL_YL_RD)


def board(uid: str, title: str, text: str) -> dashboard.Dashboard:
    """An empty dashboard with the choice of data source and runs."""
    runs = (
        dashboard.QueryVariable("instance")
        .label("Run")
        .datasource(SOURCE)
        .query("label_values(lpu_run_start_timestamp_seconds, instance)")
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".+")
        .current(model.VariableOption(selected=True, text="All", value="$__all"))
    )
    source = dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
    return (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(text)
        .tags(["lpu"])
        .editable()
        .time("now-15m", "now")
        .refresh("5s")
        .timezone("browser")
        .with_variable(source)
        .with_variable(runs)
        .link(
            dashboard.DashboardLink("LPU dashboards")
            .type(model.DashboardLinkType.DASHBOARDS)
            .tags(["lpu"])
            .as_dropdown(True)
            .keep_time(True)
            .include_vars(True)
        )
    )


def row(title: str) -> dashboard.Row:
    """A heading over the panels that follow."""
    return dashboard.Row(title)
