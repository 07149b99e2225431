"""Networks on the meta device: shapes alone, and nothing imported that only compilers need."""

import subprocess
import sys

import torch
from torch import nn

from tokcli.device import on_meta

PROGRAM = """
import sys
from tokcli import build
from tokcli.device import on_meta
from tokcli.stages import evaluate, sample, tokenize, train_proposal
recipe = {"seed": 0, "proposal": {"name": "ar", "width": 8, "depth": 1, "heads": 2, "mlp_width": 8, "position": "learned"}}
with on_meta():
    network = build.build_proposal(recipe, 16, (2, 2), 3)
assert {p.device.type for p in network.parameters()} == {"meta"}
assert "torch._dynamo" not in sys.modules, "it takes longer to import than all of tok"
"""


def test_no_command_imports_the_compiler_before_it_trains_or_compiles() -> None:
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-1000:]


def test_tensors_inside_have_shapes_and_no_storage() -> None:
    with on_meta() as device:
        layer = nn.Linear(3, 4)
        nn.init.trunc_normal_(tensor=layer.weight)
    assert (
        device.type == "meta" and layer.weight.is_meta and tuple(layer(torch.ones(2, 3, device=device)).shape) == (2, 4)
    )
    assert not nn.Linear(3, 4).weight.is_meta
