"""An example of every instruction and when its effect takes place, for the reference page."""

from __future__ import annotations

import re

from chip.isa import VXM_ARITY, Op
from chip.spec import ChipSpec

_FIELD = re.compile(r"\{(\w+)\}")

_ALU = "register at T + {alu_cycles}, `out` at T + {alu_cycles} + {alu_entry_cycles}"

#: When: T is the cycle of dispatch, names in braces are fields of the chip spec.
_WHEN: dict[Op, str] = {
    Op.SYNC: "parked from T on",
    Op.NOTIFY: "released at T + {notify_cycles}",
    Op.READ: "`out` at T + {read_cycles}",
    Op.WRITE: "readable from T + {write_cycles}",
    Op.GATHER: "`out` at T + {gather_cycles}",
    Op.SCATTER: "readable from T + {write_cycles}",
    Op.LW: "in the buffer after T",
    Op.IW: "in force from T + {mxm_install_cycles}",
    Op.ABC: "its ACC at T + {mxm_multiply_cycles}",
    Op.ACC: "`out` at T + {mxm_accumulate_cycles}",
    Op.DISTRIBUTE: "`out` at T + {distribute_cycles}",
    Op.TRANSPOSE: "`out` at T + {transpose_cycles}",
    Op.PERMUTE: "`out` at T + {permute_cycles}",
    Op.SHIFT: "`out` at T + {shift_cycles}",
    Op.ROTATE: "`out` at T + {rotate_cycles}",
    Op.SEND: "leaves at T",
    Op.RECEIVE: "`out` at T + {receive_cycles}",
    Op.DESKEW: "nothing inside one clock domain",
}

#: A line of assembler each, VXM's by the number of operands.
_EXAMPLE: dict[Op, str] = {
    Op.SYNC: "0: mem_w[0] SYNC",
    Op.NOTIFY: "0: c2c[0] NOTIFY",
    Op.READ: "0: mem_w[0-3] READ a=8 out=W4 wo=1 dsg=1",
    Op.WRITE: "20: mem_e[0-3] WRITE a=8 s0=E0 w0=1 dsg=1 x320/1/1",
    Op.GATHER: "9: mem_e[5] GATHER a=0 s1=E2 w1=2 out=W3 wo=1 lo=0 hi=63",
    Op.SCATTER: "9: mem_e[5] SCATTER a=0 s0=E4 w0=1 s1=E2 w1=2 lo=0 hi=63",
    Op.LW: "21: mxm[0].weights LW a=0 s0=W0 x20/1/1",
    Op.IW: "41: mxm[0].weights IW a=20",
    Op.ABC: "44: mxm[0].activations ABC s0=W16 w0=1 x320/1",
    Op.ACC: "57: mxm[0].activations ACC a=0 mode=SET_EMIT out=E0 x320/1/1",
    Op.DISTRIBUTE: "9: sxm_e.distributor[0] DISTRIBUTE s0=E0 w0=4 s1=E8 w1=1 out=W4",
    Op.TRANSPOSE: "9: sxm_e.transposer[0] TRANSPOSE s0=E0 out=W0",
    Op.PERMUTE: "9: sxm_e.permutor PERMUTE s0=E0 w0=1 imm=0 out=W0",
    Op.SHIFT: "9: sxm_e.permutor SHIFT s0=E0 w0=1 imm=-160 out=W0",
    Op.ROTATE: "9: sxm_e.rotator ROTATE s0=E0 w0=1 imm=3 out=W0",
    Op.SEND: "41: c2c[0] SEND s0=W4 w0=1 x4/24",
    Op.RECEIVE: "678: c2c[0] RECEIVE out=E16 wo=1 x4/24",
    Op.DESKEW: "0: c2c[0] DESKEW",
}


def when(op: Op) -> str:
    """When the effect takes place, with the numbers of the default chip and their fields."""
    spec = ChipSpec()
    return _FIELD.sub(lambda m: f"{getattr(spec, m[1])} (`{m[1]}`)", _WHEN.get(op, _ALU))


def example(op: Op) -> str:
    """One line of assembler with ``op``; its operands come from elsewhere."""
    if op in _EXAMPLE:
        return _EXAMPLE[op]
    second = " s1=W0 w1=4" if VXM_ARITY[op] == 2 else ""
    return f"7: alu[0] {op.name} s0=E4 w0=4{second} out=W8 wo=4"
