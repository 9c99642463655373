"""``lpu experiment speculative``: LPUs draft, GPUs verify, and what that is worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.commands import experiment_load as load
from cluster.commands import options
from cluster.errors import InputError, RunError

DEFAULT_PROMPT = "def "
#: Rows of a sweep that people see; --json has all.
MOST_ROWS = 60
HEADINGS = (
    "variant", "gamma", "accepted", "tokens\nper step", "speed-up", "by\nformula", "tokens/s",
    "draft/\nverify/\nlink/\nhost, %",
)  # fmt: skip
PARTS = ("draft", "verify", "link", "host")
LOSSLESS = {True: "yes", False: "NO", None: "not proven"}
SWEEP_HEADINGS = (*HEADINGS[:5], "T", "link")


def speculative(
    context: typer.Context,
    prompt: Annotated[str, typer.Option(help="Text to continue.")] = DEFAULT_PROMPT,
    prompts: Annotated[
        Path | None,
        typer.Option(help="A file with one prompt per line, instead.", show_default="none"),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens per prompt.")] = 32,
    gamma: Annotated[int, typer.Option(help="Tokens drafted per step.")] = 4,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of everything drawn at random.")] = 0,
    mode: Annotated[
        str, typer.Option(help="What crosses the link: tokens, or kv (tokens and KV).")
    ] = "tokens",
    drafter: Annotated[
        str, typer.Option(help="lpu, gpu, or lookup (n-grams of the text itself).")
    ] = "lpu",
    gpu: load.Gpu = "h100",
    gpu_tp: Annotated[int, typer.Option(help="GPUs that share the target.")] = 1,
    concurrent: Annotated[
        int, typer.Option(help="Prompts under way at once; they share drafter, link and GPUs.")
    ] = 1,
    gpu_nodes: Annotated[
        int,
        typer.Option(
            help="Processes that compute the verification; several are actors. The time charged "
            "is that of one group of --gpu-tp GPUs."
        ),
    ] = 1,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="All GPU nodes in this process, without Ray.")
    ] = False,
    kill_after: Annotated[
        int | None,
        typer.Option(help="End GPU node 0 after so many steps.", show_default="never"),
    ] = None,
    replace_lost: Annotated[
        bool, typer.Option("--replace-lost", help="Start a GPU node for each one that ends.")
    ] = False,
    link: load.Link = "pcie5-x16",
    chips: Annotated[
        int | None,
        typer.Option(
            help="LPUs that share a model: 1, 2, 4 or 8; of a --draft-model without weights those "
            "of its plan.",
            show_default="1, or as few as hold it",
        ),
    ] = None,
    chip: options.ChipType = "groq-lpu-1",
    alpha: Annotated[
        float | None,
        typer.Option(
            help="Acceptance rate to draw from, without running models.", show_default="measured"
        ),
    ] = None,
    lpu_cycles_per_token: Annotated[
        int | None,
        typer.Option(
            help=f"With --alpha: {load.CYCLES_HELP}", show_default="the draft's, compiled"
        ),
    ] = None,
    gpu_model: Annotated[str, typer.Option(help="With --alpha: the target's shape.")] = "target",
    draft_model: Annotated[
        str,
        typer.Option(
            "--draft-model", "--lpu-model",
            help="With --alpha: the draft's shape; LPUs are charged the cycles of its plan.",
        ),
    ] = "draft",
    prompt_tokens: Annotated[int, typer.Option(help="With --alpha: length of the prompt.")] = 512,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Every gamma to 8, link preset and temperature 0 to 1.")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(help="With --sweep: write a picture, .png or .svg.", show_default="none"),
    ] = None,
    save: options.Save = None,
    report: options.Report = None,
    metrics_port: options.MetricsPort = 0,
    metrics_host: options.MetricsHost = options.METRICS_HOST,
    metrics_linger: options.MetricsLinger = options.METRICS_LINGER_SECONDS,
    as_json: options.Json = False,
) -> None:
    """Speculative decoding: drafts on LPUs, verification on GPUs, against either alone.

    Speed-ups are against the target alone on the same GPUs, with as many prompts at once;
    lpu-only is the target alone on LPUs, one prompt after another.
    """
    if draft_model == "draft" and chips is not None and chips not in options.CHIPS:
        raise InputError(f"--chips {chips}: a node has 1, 2, 4 or 8 chips; use one of these")
    if plot is not None and not sweep:
        raise InputError(f"--plot {plot}: the picture is of a sweep; add --sweep")
    options.check_plot(plot)
    from cluster.experiments.speculative import Settings

    settings = Settings(
        gamma=gamma, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, mode=mode,
        drafter=drafter, gpu=gpu, gpu_tp=gpu_tp, link=link, gpu_nodes=gpu_nodes,
        in_process=in_process, chips=chips, chip=chip, sweep=sweep, kill_after=kill_after,
        alpha=alpha, lpu_cycles_per_token=lpu_cycles_per_token, gpu_model=gpu_model,
        draft_model=draft_model, prompt_tokens=prompt_tokens, concurrent=concurrent,
        replace_lost=replace_lost,
    )  # fmt: skip
    texts = [prompt] if prompts is None else _lines(prompts)
    board = options.open_board(context, metrics_port, metrics_host, metrics_linger)

    # The heavy imports wait until the arguments are known to make sense.
    from cluster.commands.output import print_json, stderr_console, working
    from cluster.experiments.speculative import DraftWatch, run
    from cluster.plots import draw_speculative
    from cluster.report import report_request
    from programs.models import open_model

    reporting = report_request(save, report)
    tokenizer = open_model("target").tokenizer
    with working("reading prompts ...", stderr_console()) as tell:
        result = run(
            [tokenizer.encode(text).ids for text in texts], settings,
            lambda text: tell(f"{text} ..."), None if board is None else DraftWatch(board),
        )  # fmt: skip
    result["text"] = [tokenizer.decode(tokens) for tokens in result["texts"]]
    if plot is not None:
        draw_speculative(result["rows"], plot)
    if reporting.wanted:
        from chip.spec import load_chip_spec
        from cluster.report import speculative_run

        told = _facts(result)
        if result["text"]:
            told.append(("text", texts[0] + result["text"][0]))
        reporting.finish(lambda: speculative_run(told, result, load_chip_spec(chip), chips or 1))
    if as_json:
        print_json(result)
    else:
        _show(result, texts)
    if result["lossless"] is False:
        raise RunError("the text is not the target's own: speculative decoding lost something")


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"--prompts {path}: cannot be read: {reason}") from None
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise InputError(f"--prompts {path}: has no prompt; put one on each line")
    return lines


def _show(result: dict[str, Any], prompts: Sequence[str]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from cluster.commands.output import print_table

    if len(prompts) == 1 and result["text"]:
        typer.echo(prompts[0] + result["text"][0])
    rows = result["rows"]
    swept = len({(row["gamma"], row["temperature"], row["link"]) for row in rows}) > 3
    table = Table(
        title="speculative decoding, virtual time", title_justify="left", box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )  # fmt: skip
    for heading in SWEEP_HEADINGS if swept else HEADINGS:
        table.add_column(heading, justify="left" if heading in ("variant", "link") else "right")
    for row in rows[:MOST_ROWS]:
        table.add_row(*_cells(row, swept))
    Console(highlight=False).print(table)
    if len(rows) > MOST_ROWS:
        typer.echo(f"{len(rows) - MOST_ROWS} more rows: see --json")
    print_table("result", _facts(result))


def _facts(result: dict[str, Any]) -> list[tuple[str, str]]:
    """The headline and what stands behind it, for people."""
    slower = result["crossover"]["slower"]
    checked = result["crossover"]["checked"]
    facts = [
        ("lossless", f"{LOSSLESS[result['lossless']]}: {result['lossless_check']}"),
        ("headline", f"{result['variant']}: decoding {result['speedup']:.2f} x as fast, "
                     f"{result['end_to_end_speedup']:.2f} x with the prompt"),
        ("it compares", result["compares"]),
        ("shipping KV", f"makes it slower than GPU-only in {len(slower)} of {checked} cases"),
        *[(f"  {case['link']}, gamma {case['gamma']}", _case(case)) for case in slower[:10]],
    ]  # fmt: skip
    if result["alpha"] is not None:
        cycles = result["lpu_cycles_per_token"]
        facts.insert(0, (
            "not measured",
            f"--alpha {result['alpha']:g} is given, no model ran; {result['draft_model']} drafts "
            f"for {result['gpu_model']}; LPU cycles per token: "
            + ("of the shipped draft" if cycles is None else f"given with transfers, {cycles:,}"),
        ))  # fmt: skip
    if result["concurrent"] > 1:
        share = result["wait_seconds"] / result["decode_seconds"]
        facts += [
            ("waiting", f"{share:.0%} of the decoding time, for machines others use"),
            ("assumed", "the LPUs hold the draft's KV cache of every prompt under way"),
        ]
    facts += [
        (row["variant"], f"the target in int8 on LPUs; it agrees with the GPUs' on "
                         f"{row['agreement']:.1%} of the tokens; one prompt after another")
        for row in result["rows"] if "agreement" in row
    ]  # fmt: skip
    facts += [(f"no {name}", why) for name, why in result["left_out"].items()]
    if result["nodes_lost"]:
        replayed = result["positions_replayed"]
        facts.append(("GPU nodes lost", f"{result['nodes_lost']}; {replayed} positions replayed"))
    return facts


def _cells(row: dict[str, Any], swept: bool) -> list[str]:
    def number(name: str, form: str) -> str:
        value = row.get(name)
        return "-" if value is None else format(value, form)

    cells = [
        row["variant"], str(row["gamma"] or "-"), number("acceptance", ".1%"),
        number("tokens_per_step", ".2f"), number("speedup", ".2f"),
    ]  # fmt: skip
    if swept:
        return [*cells, number("temperature", "g"), row["link"] or "-"]
    parts = [row[f"{name}_seconds"] / row["decode_seconds"] for name in PARTS]
    return [
        *cells, number("formula_tokens_per_step", ".2f"), number("tokens_per_second", ",.0f"),
        "/".join(f"{100 * part:.0f}" for part in parts) if any(parts) else "-",
    ]  # fmt: skip


def _case(case: dict[str, Any]) -> str:
    if case["cause"] == "kv":
        return (
            f"{case['speedup_kv']:.2f} x ({case['speedup_tokens']:.2f} without): "
            f"{case['kv_bytes_per_step']:,.0f} bytes per step, "
            f"even at {case['break_even_kv_bytes_per_step']:,.0f}"
        )
    return (
        f"{case['end_to_end_speedup_kv']:.2f} x with the prompt "
        f"({case['end_to_end_speedup_tokens']:.2f} without): its KV is "
        f"{case['prompt_kv_bytes']:,} bytes"
    )
