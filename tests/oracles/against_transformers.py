"""The float64 forwards of the families against the ``transformers`` library itself.

``python -m tests.oracles.against_transformers`` runs every family of ``tests/families.py`` through
the class that its ``config.json`` names, in float64, prints how far the oracle is from it, and
keeps some of the library's logits in ``transformers_logits.json``.  The tests compare the oracles
with those: neither ``torch`` nor ``transformers``, which this needs, is needed for them.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from programs.models.config import tensor_shapes
from tests.families import FAMILIES, TOKENS, Family, checkpoint_of, exact_logits

KEPT = Path(__file__).with_name("transformers_logits.json")
#: Logits kept of each family: of the last position, the first ones.
COUNT = 16
#: Matrices that some classes store as one.
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
#: Largest difference between the two, relative to the greatest logit.
CLOSE = 1e-5


def library_logits(family: Family) -> NDArray[np.float64]:
    """The library's logits, float64 [tokens, vocabulary]."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    checkpoint = checkpoint_of(family)
    fields = {name: value for name, value in family.fields.items() if name != "model_type"}
    heads, hidden = fields["num_attention_heads"], fields["hidden_size"]
    if hidden % heads:  # some classes refuse that, though they compute it
        fields["hidden_size"] = heads * fields["head_dim"]
    config = AutoConfig.for_model(family.fields["model_type"], **fields)
    config.hidden_size, config.pad_token_id = hidden, None
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").double().eval()
    stored = {
        name: torch.from_numpy(checkpoint.tensor(name).astype(np.float64))
        for name in tensor_shapes(checkpoint.config)
    }
    for whole, parts in FUSED.items():
        for name in [name for name in model.state_dict() if name.endswith(f"{whole}.weight")]:
            own = [stored.pop(name.replace(whole, part)) for part in parts]
            stored[name] = torch.cat(own)
    missing, unknown = model.load_state_dict(stored, strict=False)
    assert not unknown and set(missing) <= {"lm_head.weight"}, (missing, unknown)
    model.tie_weights()
    with torch.no_grad():
        logits = model(torch.tensor([TOKENS])).logits[0]
    return np.asarray(logits.double().numpy())


def main() -> int:
    """Print the table and keep the logits; 1 where a row is far off."""
    kept, good = {}, True
    warnings.simplefilter("ignore")
    for name, family in FAMILIES.items():
        theirs = library_logits(family)
        ours = exact_logits(family, checkpoint_of(family))
        error = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
        print(f"{name:26} {error:9.2e}")
        good &= error < CLOSE
        kept[name] = [float(f"{value:.9g}") for value in theirs[-1, :COUNT]]
    lines = (f"{json.dumps(name)}: {json.dumps(row)}" for name, row in kept.items())
    KEPT.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
