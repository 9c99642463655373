"""Speculative decoding across machines: LPUs draft, GPUs verify, the text is the target's own.

The draft really runs as compiled programs on emulated LPUs (exact cycles), the target really runs
on GPU nodes (its logits decide), and virtual time is charged for LPU cycles, link and GPU roofline.
With ``alpha`` no model runs: acceptance is drawn, which is for models without weights at hand.

Everything is seeded: the same settings give the same result on any number of nodes.  The text has
exactly ``max_new_tokens`` new tokens per prompt, whatever end-of-text tokens come.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

from chip.spec import load_chip_spec
from cluster.errors import InputError
from cluster.experiments.serving import Belt, LpuChoice, host_seconds, lpu_belt
from cluster.experiments.speculative import charges as time_of
from cluster.experiments.speculative.charges import Charge, Machines
from cluster.experiments.speculative.publish import DraftWatch
from cluster.experiments.speculative.rig import Phase, Rig
from cluster.experiments.speculative.serving import charge, charge_gpu_only
from cluster.experiments.speculative.settings import (
    DRAFTERS,
    GPU_DRAFT,
    GPU_ONLY,
    LOOKUP,
    LPU_KV,
    LPU_ONLY,
    LPU_TOKENS,
    LPU_VERIFIED,
    SWEEP_GAMMAS,
    SWEEP_TEMPERATURES,
    SpeculativeSettings,
)
from cluster.experiments.speculative.steps import DraftStep, Job, RequestTrace, Work, target_only
from cluster.gpu import LINK_PRESETS, GpuGroup, GpuPool, load_gpu_spec, load_link, ray_pool
from programs.decoder import compile_model
from programs.models import architecture, open_model, shipped_model


def run(
    prompts: Sequence[Sequence[int]],
    settings: SpeculativeSettings,
    phase: Phase = lambda _: None,
    watch: DraftWatch | None = None,
) -> dict[str, Any]:
    """The whole experiment as plain data; ``prompts``: token ids of the shipped tokenizer.

    watch: publishes it while it goes on.
    """
    if not prompts or not all(prompts):
        raise InputError("a prompt is empty: give at least one character")
    if settings.concurrent > len(prompts):
        raise InputError(
            f"--concurrent {settings.concurrent} with {len(prompts)} prompts: give as many prompts "
            "with --prompts, or fewer at once"
        )
    if settings.alpha is not None:
        return _Study(settings, prompts, phase, watch=watch).report()
    gamma = max(settings.gamma, *SWEEP_GAMMAS) if settings.sweep else settings.gamma
    positions = max(map(len, prompts)) + settings.max_new_tokens + gamma
    most = open_model("target").config.max_position
    if positions > most:
        raise InputError(
            f"{positions} positions needed (prompt, --max-new-tokens and --gamma), but the shipped "
            f"models were made for {most}; shorten the prompt or lower --max-new-tokens"
        )
    with _pool(settings, phase) as pool:
        rig = Rig(settings, positions, phase, pool)
        return _Study(settings, prompts, phase, rig, watch).report()


@contextlib.contextmanager
def _pool(settings: SpeculativeSettings, phase: Phase) -> Iterator[GpuPool | None]:
    if settings.in_process or settings.gpu_nodes == 1:
        yield None
    else:
        phase(f"starting {settings.gpu_nodes} GPU nodes")
        with ray_pool(
            shipped_model(), settings.gpu_nodes, replace_lost=settings.replace_lost
        ) as pool:
            yield pool


class _Study:
    """The rows of one experiment."""

    def __init__(
        self,
        settings: SpeculativeSettings,
        prompts: Sequence[Sequence[int]],
        phase: Phase,
        rig: Rig | None = None,
        watch: DraftWatch | None = None,
    ) -> None:
        self.s, self.prompts, self.phase, self.rig = settings, list(prompts), phase, rig
        self.watch = watch
        self.link = load_link(settings.link)
        spec = load_chip_spec(settings.chip)
        group = GpuGroup(load_gpu_spec(settings.gpu), settings.gpu_tp)
        self.machines = Machines(
            spec.clock_hz,
            group,
            architecture(settings.gpu_model),
            architecture(settings.draft_model),
        )
        count = settings.max_new_tokens
        lengths = [settings.prompt_tokens if rig is None else len(p) for p in prompts]
        # A verification has all proposals in the cache, beside the text before them.
        gamma = max(settings.gamma, *SWEEP_GAMMAS) if settings.sweep else settings.gamma
        room = (settings.concurrent, max(lengths) + count + gamma)
        group.check_fits(self.machines.target, *room)
        self.left_out: dict[str, str] = {}
        try:
            group.check_fits(self.machines.target, *room, self.machines.draft)
        except InputError as error:
            if settings.drafter == "gpu":
                raise
            self.left_out[GPU_DRAFT] = str(error)
        self._steps = 0
        self.baseline = charge_gpu_only(lengths, count, self.machines, settings.concurrent)
        self.greedy = (
            [] if rig is None else [target_only(rig.target, p, None, count)[0] for p in prompts]
        )

    # --- traces -----------------------------------------------------------------------------------

    def _job(self, gamma: int, temperature: float) -> Job:
        return Job(gamma, self.s.max_new_tokens, temperature, self.s.seed)

    def _kill(self, request: int, step: int) -> None:
        assert self.rig is not None
        if self._steps == self.s.kill_after:
            self.rig.pool.members[0].kill()
        self._steps += 1

    def _traces(self, drafter: str, gamma: int, temperature: float) -> list[RequestTrace]:
        job = self._job(gamma, temperature)
        if self.rig is not None:
            self.phase(f"drafter {drafter}, gamma {gamma}, temperature {temperature:g}")
            traces = self.rig.traces(
                self.prompts, job, drafter, self._kill, lambda step: self._done(drafter, step)
            )
            if self.watch is not None:
                self.watch.pool(self.rig.pool)
            return traces
        assert self.s.alpha is not None
        work = self._lpu_work() if drafter == "lpu" else time_of.gpu_work
        traces = [
            time_of.simulate(self.s.alpha, job, number, self.s.prompt_tokens, work)
            for number in range(len(self.prompts))
        ]
        for trace in traces:
            for step in trace.steps:
                self._done(drafter, step)
        return traces

    def _done(self, drafter: str, step: DraftStep) -> None:
        if self.watch is not None:
            self.watch.step(drafter, step)

    @cached_property
    def _lpu_costs(self) -> tuple[int, float, float]:
        """Cycles of each of the draft's tokens, and seconds of transfers without and with logits.

        The figure that was given, transfers included; the shipped draft's longest program; or the
        plan of a draft without weights.
        """
        s = self.s
        if s.lpu_cycles_per_token is not None:
            return s.lpu_cycles_per_token, 0.0, 0.0
        if s.draft_model != "draft":
            feeding, with_logits = (c / self._lpu_belt.clock_hz for c in self._lpu_belt.host_cycles)
            return self._lpu_belt.decode_cycles[-1], feeding, with_logits
        checkpoint = open_model("draft")
        context = min(self._positions, checkpoint.config.max_position)
        compiled = compile_model(
            checkpoint, tp=s.chips or 1, dtype="int8", context=context, chip=s.chip
        )
        return max(compiled.predicted_cycles.values()), *host_seconds(compiled)

    @property
    def _positions(self) -> int:
        return self.s.prompt_tokens + self.s.max_new_tokens + self.s.gamma

    @cached_property
    def _lpu_belt(self) -> Belt:
        """The plan of a draft without weights, which works on one request at a time."""
        s = self.s
        choice = LpuChoice(s.chips, s.chip, context=self._positions, overlap=False)
        return lpu_belt(s.draft_model, choice)

    def _lpu_work(self) -> Callable[[int, int, int], Work]:
        each, feeding, with_logits = self._lpu_costs
        planned = self.s.lpu_cycles_per_token is None and self.s.draft_model != "draft"
        belt = self._lpu_belt if planned else None

        def work(cached: int, pending: int, drafted: int) -> Work:
            if belt is not None and not cached:  # a prompt: its tokens follow each other
                read = belt.prompt_work(pending)
                return Work(read.launches, read.cycles, read.host_cycles / belt.clock_hz)
            launches = pending + max(0, drafted - 1)
            io = (launches - drafted) * feeding + drafted * with_logits
            return Work(launches, launches * each, io)

        return work

    # --- rows -------------------------------------------------------------------------------------

    def _row(
        self, variant: str, traces: list[RequestTrace], gamma: int, temperature: float, link: str
    ) -> dict[str, Any]:
        on, sampling = load_link(link), temperature > 0.0
        total = charge(traces, self.machines, on, variant, sampling, self.s.concurrent)
        crosses = variant in (LPU_TOKENS, LPU_KV)
        row = {
            "variant": variant,
            "link": link if crosses else None,
            "temperature": temperature,
            **time_of.figures(traces, total, self.baseline, gamma),
        }
        asked = (self.s.gamma, self.s.temperature, self.s.link)
        if self.watch is not None and (gamma, temperature, link) == asked:
            self.watch.variant(row, traces, total)
        return row

    def _alone(self, variant: str, total: Charge, **more: Any) -> dict[str, Any]:
        tokens = self.s.max_new_tokens * len(self.prompts)
        return {
            "variant": variant,
            "link": None,
            "temperature": None,
            "gamma": 0,
            "tokens": tokens,
            "tokens_per_step": 1.0,
            "speedup": self.baseline.decode / total.decode,
            **time_of.seconds_of(total, tokens, len(self.prompts), self.baseline),
            **more,
        }

    def report(self) -> dict[str, Any]:
        """All rows, the crossover, and the headline variant's figures at the top."""
        s = self.s
        # What was asked for comes first, so that ``kill_after`` counts its steps.
        order = sorted(DRAFTERS, key=lambda name: name != s.drafter)
        gammas = sorted({s.gamma, *SWEEP_GAMMAS}) if s.sweep else [s.gamma]
        heats = sorted({s.temperature, *SWEEP_TEMPERATURES}) if s.sweep else [s.temperature]
        points = [(g, t) for t in heats for g in gammas]
        points.sort(key=lambda point: point != (s.gamma, s.temperature))
        names = list(dict.fromkeys([s.link, *LINK_PRESETS]))
        rows: list[dict[str, Any]] = []
        crossings: list[dict[str, Any]] = []
        main: list[RequestTrace] = []
        for gamma, heat in points:
            for drafter in order:
                if s.alpha is not None and drafter == "lookup":
                    continue
                if drafter == "gpu" and GPU_DRAFT in self.left_out:
                    continue
                traces = self._traces(drafter, gamma, heat)
                main = main or traces
                honest = self._honesty(traces, heat)
                new = self._rows_of(drafter, traces, gamma, heat, names, crossings)
                rows += [{**row, **honest} for row in new]
        rows.append(self._alone(GPU_ONLY, self.baseline))
        if self.rig is not None:
            self.phase("the target on LPUs alone")
            total, same = self.rig.lpu_only(self.prompts, self.greedy)
            rows.append(self._alone(LPU_ONLY, total, agreement=same))
            if s.lpu_verify:
                rows.append(self._verified(self.rig, same))
        return self._report(rows, crossings, main)

    def _verified(self, rig: Rig, agreement: float) -> dict[str, Any]:
        """The row of the target on LPUs that verifies what others draft.

        agreement: of the target alone on LPUs, led along the GPUs' text; its logits are the same.
        """
        self.phase("drafts verified on LPUs")
        total, traces, same = rig.lpu_verified(self.prompts, self._job(self.s.gamma, 0.0))
        told = "every token and its logits are those of the target alone on LPUs, bit for bit"
        return {
            "variant": LPU_VERIFIED,
            "link": None,
            "temperature": 0.0,
            **time_of.figures(traces, total, self.baseline, self.s.gamma),
            "formula_speedup": None,  # of drafts that GPUs verify
            "lossless": same,
            "lossless_check": told if same else "tokens or logits differ from the target's on LPUs",
            "agreement": agreement,
        }

    def _honesty(self, traces: list[RequestTrace], heat: float) -> dict[str, Any]:
        """lossless, and what was checked for it."""
        if self.rig is None:
            return {"lossless": None, "lossless_check": "acceptance is drawn, no model ran"}
        lossless, check = self.rig.lossless(traces, self.greedy, heat)
        if check is None:
            told = "every token and its logits are the target's own, bit for bit"
            if not lossless:
                told = "tokens or logits differ from the target's own"
            return {"lossless": lossless, "lossless_check": told}
        return {
            "lossless": lossless,
            "lossless_check": check.told,
            "sampling_p_value": check.p_value,
        }

    def _rows_of(
        self,
        drafter: str,
        traces: list[RequestTrace],
        gamma: int,
        heat: float,
        names: list[str],
        crossings: list[dict[str, Any]],
    ) -> list[dict[str, Any]]:
        if drafter != "lpu":
            variant = GPU_DRAFT if drafter == "gpu" else LOOKUP
            return [self._row(variant, traces, gamma, heat, self.s.link)]
        rows = []
        for name in names:
            pair = [self._row(v, traces, gamma, heat, name) for v in (LPU_TOKENS, LPU_KV)]
            point = time_of.crossover(pair[0], pair[1], self.baseline, load_link(name))
            crossings.append({"link": name, "temperature": heat, **point})
            if self.s.sweep or name == self.s.link:
                rows += pair
        return rows

    def _compares(self) -> str:
        """Models and machines of the headline's speed-ups."""
        s, m = self.s, self.machines
        gpus = f"{s.gpu_tp} x {m.gpu.spec.name} {m.gpu.dtype}"
        given = s.lpu_cycles_per_token
        lpus = f"{s.chips or 1} x {s.chip} int8"
        if given or s.draft_model != "draft":
            lpus = f"LPUs of {self._lpu_costs[0]:,} cycles per token"
        drafting = {
            "lpu": f"{m.draft.name} on {lpus}",
            "gpu": f"{m.draft.name} there too",
            "lookup": "n-grams of the text",
        }[s.drafter]
        return (
            f"{m.target.name} on {gpus} with drafts by {drafting}, against {m.target.name} alone "
            f"on {gpus}; prompts at once: {s.concurrent}"
        )

    def _report(
        self,
        rows: list[dict[str, Any]],
        crossings: list[dict[str, Any]],
        main: list[RequestTrace],
    ) -> dict[str, Any]:
        s = self.s
        headline = next(
            row
            for row in rows
            if (row["variant"], row["gamma"], row["temperature"])
            == (s.variant, s.gamma, s.temperature)
            and row["link"] in (None, s.link)
        )
        pool = None if self.rig is None else self.rig.pool
        return {
            **headline,
            "lossless": False
            if any(row.get("lossless") is False for row in rows)
            else headline["lossless"],
            "compares": self._compares(),
            "left_out": self.left_out,
            "concurrent": s.concurrent,
            "link": s.link,
            "drafter": s.drafter,
            "mode": s.mode,
            "gpu": s.gpu,
            "gpu_tp": s.gpu_tp,
            "alpha": s.alpha,
            "seed": s.seed,
            "prompts": len(self.prompts),
            "gpu_model": s.gpu_model,
            "draft_model": s.draft_model,
            "lpu_cycles_per_token": s.lpu_cycles_per_token,
            "texts": [] if self.rig is None else [trace.tokens for trace in main],
            "gpu_nodes": s.gpu_nodes,
            "nodes_lost": 0 if pool is None else pool.lost,
            "positions_replayed": 0 if pool is None else pool.replayed,
            "rows": rows,
            "crossover": {
                "checked": len(crossings),
                "slower": [c for c in crossings if c["cause"] in time_of.CAUSED_BY_KV],
                "points": crossings,
            },
        }
