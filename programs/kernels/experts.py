"""Expert routing under a static schedule: which experts count is data, not control flow.

A static machine cannot branch on a router's choice, so all experts are computed, side by side as
one wide FFN, and each tile of the gated product is multiplied by its expert's gate: the share of
a chosen expert, zero for the others.  The result is exactly that of routing; the cycles are those
of all experts.

The router's matrix has one column block per expert whose columns are all the same, so that every
expert's logit arrives on every lane and the choice is plain lane-wise arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

from chip.isa import Op
from chip.scheduling import Alu, Pass, Place, Schedule, Self
from chip.spec import ChipSpec
from programs.models import CHOSEN


@dataclass(frozen=True)
class RoutingPlaces:
    """fp32 words: ``experts`` each of logits, weights and gates (east), and single ones.

    coarse, fine: int8 only, the two parts of a logit; best, threshold: the greatest and the
    second greatest logit; above: how many are greater than the threshold (west); inverse: of the
    sum of the chosen weights (east).
    """

    experts: int
    tiles: int  # of one expert
    logits: Place
    coarse: Place | None
    fine: Place | None
    best: Place
    threshold: Place
    above: Place
    weights: Place
    inverse: Place
    gates: Place

    def targets(self) -> list[Place]:
        """Where the router's column blocks go."""
        if self.coarse is None or self.fine is None:
            return [self.logits.at(e) for e in range(self.experts)]
        return [part.at(e) for part in (self.coarse, self.fine) for e in range(self.experts)]

    def gate_of(self, tile: int) -> Place:
        """The gate of the expert that FFN tile ``tile`` belongs to."""
        return self.gates.at(tile // self.tiles)


def route(schedule: Schedule, spec: ChipSpec, ready: int, places: RoutingPlaces) -> int:
    """Gates from the router's results; returns when they are readable."""
    if places.coarse is not None and places.fine is not None:
        p = Pass(schedule, spec)
        t, n = 40, places.experts
        coarse = p.load(places.coarse, 32, t, n=n, da=1)
        fine = p.load(places.fine, 36, t, n=n, da=1)
        _, out = p.op(Op.ADD_F32, t, coarse, fine, n=n, out=4)
        p.keep(places.logits, out, t, n=n)
        ready = schedule.place(p, ready - p.blocks[0]["cycle"], "route") + p.ready
    ready = _two_greatest(schedule, spec, ready, places)
    ready = _chosen_weights(schedule, spec, ready, places)
    p = Pass(schedule, spec)
    t, n = 40, places.experts
    weight = p.load(places.weights, 32, t, n=n, da=1)
    inverse = p.load(places.inverse, 36, t, n=n, da=0)
    _, out = p.op(Op.MUL_F32, t, weight, inverse, n=n, out=4)
    p.keep(places.gates, out, t, n=n)
    first_read = min(block["cycle"] for block in p.blocks[:2])
    return schedule.place(p, ready - first_read, "route") + p.ready


def _two_greatest(schedule: Schedule, spec: ChipSpec, ready: int, places: RoutingPlaces) -> int:
    """The greatest and second greatest logit (equal ones count twice), and whether they differ."""
    p = Pass(schedule, spec)
    t, n = 40, places.experts
    logit = p.load(places.logits, 32, t, n=n, dc=3, da=1)
    first, lower, second, differ = p.pick(32, 40), p.pick(32), p.pick(44), p.pick(48)
    last = t + 3 * (n - 1)
    p.op(Op.MOV, t, logit, alu=first)
    p.op(Op.MIN_F32, t + 3, logit, Alu(first), alu=lower, n=n - 1, dc=3)
    p.op(Op.MAX_F32, t + 3, logit, Self(), alu=first, n=n - 2, dc=3)
    _, best = p.op(Op.MAX_F32, last, logit, Self(), alu=first, out=40)
    p.keep(places.best, best, last)
    if n == 2:  # the second is the lower one
        _, threshold = p.op(Op.MOV, last + 3, Alu(lower), alu=second, out=44)
    else:
        p.op(Op.MOV, t + 6, Alu(lower), alu=second)
        p.op(Op.MAX_F32, t + 9, Alu(lower), Self(), alu=second, n=n - 3, dc=3)
        _, threshold = p.op(Op.MAX_F32, last + 3, Alu(lower), Self(), alu=second, out=44)
    p.keep(places.threshold, threshold, last + 3)
    p.op(Op.MOV, last + 3, Self(), alu=first)
    _, above = p.op(Op.GT_F32, last + 6, Alu(first), Alu(second), alu=differ, out=48)
    p.keep(places.above, above, last + 6)
    p.hold_alu(first, t, last + 3)
    p.hold_alu(second, t, last + 3)
    return schedule.place(p, ready - p.blocks[0]["cycle"], "two greatest") + p.ready


def _chosen_weights(schedule: Schedule, spec: ChipSpec, ready: int, places: RoutingPlaces) -> int:
    """exp(logit - greatest) of the chosen experts, zero for others; the inverse of their sum.

    Chosen are the logits above the threshold and, of those equal to it, the first ones, as many
    as are missing to CHOSEN.  Counts are whole numbers; they compare as the subnormals they spell.
    """
    p = Pass(schedule, spec)
    t, n = 40, places.experts
    logit = p.load(places.logits, 32, t, n=n, dc=3, da=1)
    best = p.load(places.best, 8, t, n=n, dc=3)
    threshold = p.load(places.threshold, 4, t, n=n, dc=3)
    above = p.load(places.above, 12, t + 6)
    first_read = min(block["cycle"] for block in p.blocks)
    greater, _ = p.op(Op.GT_F32, t, logit, threshold, n=n, dc=3)
    enough, _ = p.op(Op.GE_F32, t, logit, threshold, n=n, dc=3)
    a, _ = p.op(Op.SUB_F32, t, logit, best, n=n, dc=3)
    equal, _ = p.op(Op.XOR, t + 3, greater, enough, n=n, dc=3)
    a, _ = p.op(Op.EXP, t + 3, a, n=n, dc=3)
    enough, _ = p.op(Op.MOV, t + 3, enough, n=n, dc=3)
    a, _ = p.op(Op.MASK, t + 6, a, enough, n=n, dc=3)
    seen = p.pick(12)
    p.op(Op.ADD_I32, t + 6, equal, above, alu=seen)
    p.op(Op.ADD_I32, t + 9, equal, Self(), alu=seen, n=n - 1, dc=3)
    p.hold_alu(seen, t + 6, t + 6 + 3 * (n - 1))
    equal, _ = p.op(Op.MOV, t + 6, equal, n=n, dc=3)
    rank, _ = p.op(Op.MASK, t + 9, Alu(seen), equal, n=n, dc=3)
    over, _ = p.op(Op.GT_F32, t + 12, rank, imm=CHOSEN, n=n, dc=3)
    a, _ = p.op(Op.MOV, t + 9, a, n=n, dc=3)
    a, _ = p.op(Op.MOV, t + 12, a, n=n, dc=3)
    a, out = p.op(Op.MASK_BAR, t + 15, a, over, n=n, dc=3, out=16)
    p.keep(places.weights, out, t + 15, n=n, dc=3)
    total = p.pick()
    p.op(Op.MOV, t + 18, a, alu=total)
    p.op(Op.ADD_F32, t + 21, a, Self(), alu=total, n=n - 1, dc=3)
    end = t + 18 + 3 * (n - 1)
    p.hold_alu(total, t + 18, end)
    root, _ = p.op(Op.RSQRT, end + 3, Alu(total))
    # the first ALU has compared its last logit by now
    _, out = p.op(Op.MUL_F32, end + 6, root, root, alu=greater.number, out=0)
    p.keep(places.inverse, out, end + 6)
    return schedule.place(p, ready - first_read, "chosen weights") + p.ready
