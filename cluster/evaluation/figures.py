"""What there is to say of an evaluation, for people and for programs."""

from __future__ import annotations

from typing import Any

from cluster.evaluation.on_prompts import PromptEvaluation
from cluster.evaluation.on_text import TextEvaluation
from programs.running import saturation_json, saturation_text

Row = dict[str, Any]
Facts = list[tuple[str, str]]


def evaluation_facts(done: TextEvaluation | PromptEvaluation) -> Facts:
    """The rows of the closing table."""
    return _text_facts(done) if isinstance(done, TextEvaluation) else _prompts_facts(done)


def evaluation_json(done: TextEvaluation | PromptEvaluation) -> Row:
    """The same for programs: the object of ``lpu evaluate --json``."""
    return _text_json(done) if isinstance(done, TextEvaluation) else _prompts_json(done)


def layer_rows(done: TextEvaluation | PromptEvaluation) -> list[Row]:
    """A row for every layer: the relative rms difference after its attention and its FFN."""
    rows: dict[int, Row] = {}
    for layer, part, error in done.layers if isinstance(done, TextEvaluation) else ():
        rows.setdefault(layer, {"layer": layer})[part] = error
    return list(rows.values())


def _text_facts(done: TextEvaluation) -> Facts:
    figures = done.figures
    rate = figures.tokens / done.wall_seconds
    return [
        *_about(done),
        ("text", f"{done.text}: {figures.tokens:,} tokens in windows of {done.context}"),
        (
            "perplexity",
            f"{figures.perplexity:.4f}, float32 {figures.reference_perplexity:.4f} "
            f"({figures.perplexity_change:+.4%})",
        ),
        (
            "most likely token",
            f"the same for {figures.agreement:.2%} ({figures.same:,} of {figures.tokens:,})",
        ),
        (
            "logit error",
            f"{figures.worst:.4g} at worst (after token {figures.worst_at:,}), "
            f"{figures.relative_rms:.3g} relative (rms)",
        ),
        ("wall time", f"{done.wall_seconds:.1f} s, {rate:,.1f} tokens/s"),
        ("saturated", saturation_text(done.saturations) or "nothing"),
    ]


def _text_json(done: TextEvaluation) -> Row:
    figures = done.figures
    return {
        **_facts_json(done),
        "text": done.text,
        "tokens": figures.tokens,
        "context": done.context,
        "perplexity": figures.perplexity,
        "perplexity_float32": figures.reference_perplexity,
        "perplexity_change": figures.perplexity_change,
        "top1_agreement": figures.agreement,
        "worst_logit_error": figures.worst,
        "worst_logit_error_after_token": figures.worst_at,
        "relative_rms_logit_error": figures.relative_rms,
        "layers": layer_rows(done) or None,
    }


def _prompts_facts(done: PromptEvaluation) -> Facts:
    """Every prompt whose continuations differ has a row."""
    facts = _about(done)
    count = sum(len(check.tokens) for _, check in done.prompts)
    facts.append(
        ("equal", f"{done.equal} of {len(done.prompts)} prompts, {count:,} tokens by float32")
    )
    for number, (_, check) in enumerate(done.prompts, 1):
        if check.first is not None and check.instead is not None:
            said, other = (done.pieces[t] for t in (check.tokens[check.first], check.instead))
            facts.append(
                (
                    f"prompt {number}",
                    f"{other!r} instead of {said!r} at token {check.first + 1} of "
                    f"{len(check.tokens)}; float32's logits are {check.float32_gap:.3g} apart, the "
                    f"emulated {check.emulated_gap:.3g}",
                )
            )
    facts.append(("wall time", f"{done.wall_seconds:.1f} s"))
    facts.append(("saturated", saturation_text(done.saturations) or "nothing"))
    return facts


def _prompts_json(done: PromptEvaluation) -> Row:
    return {
        **_facts_json(done),
        "equal": done.equal,
        "prompts": [
            {
                "prompt": prompt,
                "text": text,
                "tokens": list(check.tokens),
                "first_difference": check.first,
                "emulated_token": check.instead,
                "float32_gap": check.float32_gap,
                "emulated_gap": check.emulated_gap,
            }
            for (prompt, check), text in zip(done.prompts, done.texts, strict=True)
        ],
    }


def _about(done: TextEvaluation | PromptEvaluation) -> Facts:
    settings = done.settings
    chips = "1 chip" if settings.node == 1 else f"{settings.node} chips"
    other = [] if settings.reference is None else [("float32 is of", settings.reference)]
    return [
        ("model", f"{done.model}, {settings.dtype} on {chips}"),
        *other,
        ("computed by", done.computed_by),
    ]


def _facts_json(done: TextEvaluation | PromptEvaluation) -> Row:
    return {
        "model": done.model,
        "reference": done.settings.reference,
        "dtype": done.settings.dtype,
        "chips": done.settings.node,
        "computed_by": done.settings.on,
        "saturations": saturation_json(done.saturations),
        "wall_seconds": done.wall_seconds,
    }
