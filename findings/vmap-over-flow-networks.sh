#!/usr/bin/env bash
# Which of sbi's networks can be trained as a stack of K by torch.func.vmap, and which refuse.
#
# Ensembles of small networks could share one step: stack_module_state, and vmap over grad of the loss.
# The affine flows of nflows and the flows of zuko, neural splines included, do so, with the gradients
# of each network alone. Others refuse, for reasons of their own:
#   maf (nflows) on one batch for all members: it adds the log-determinants of the stack in place to a
#                          tensor made for one member; a copy of the batch per member helps;
#   nsf, maf_rqs (nflows): the spline picks the values inside its interval by a boolean mask, whose
#                          number of rows differs between members;
#   mdn (sbi's port):      index_put_ writes values of the whole stack into a tensor made for one member;
#   flow matching (sbi):   the loss branches in Python on values of tensors.
# zuko_nsf has the same splines as nsf without a mask: with it, an ensemble can be stacked.
#
# Seen with sbi 0.27.0, nflows 0.14, zuko 1.6.0, torch 2.13.0, Python 3.11:
#   maf: stacks
#   maf, one batch for all: RuntimeError: output with shape [100] doesn't match the broadcast shape
#   zuko_maf: stacks
#   zuko_nsf: stacks
#   nsf: RuntimeError: vmap: We do not support batching operators that can support dynamic shape.
#   maf_rqs: RuntimeError: vmap: We do not support batching operators that can support dynamic shape.
#   mdn: RuntimeError: vmap: index_put_(self, *extra_args) is not possible
#   flow matching: RuntimeError: vmap: It looks like you're either (1) calling .item()
#
# Exits with 0 if that is still so, with 1 if it behaves otherwise, with 2 if it cannot be installed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet sbi==0.27.0 nflows==0.14 zuko==1.6.0 torch==2.13.0 six || {
    echo "The packages could not be installed." >&2
    exit 2
}
cd "$folder"
OMP_NUM_THREADS=1 MPLBACKEND=Agg venv/bin/python -W ignore - <<'PYTHON'
import sys

import torch
from sbi.neural_nets import posterior_flow_nn, posterior_nn
from torch.func import functional_call, grad, stack_module_state, vmap

MEMBERS = 3
torch.manual_seed(0)
theta, x = torch.randn(100, 3), torch.randn(100, 4)


class Loss(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, theta, x):
        return self.network.loss(theta, x).mean()


def outcome(build, one_batch=False):
    members = [Loss(build(theta, x)) for _ in range(MEMBERS)]
    parameters, buffers = stack_module_state(members)

    def loss(parameters, buffers, theta, x):
        return functional_call(members[0], (parameters, buffers), (theta, x))

    batch = [t if one_batch else t.expand(MEMBERS, *t.shape) for t in (theta, x)]
    in_dims = (0, 0, None, None) if one_batch else (0, 0, 0, 0)
    together = vmap(grad(loss), in_dims=in_dims, randomness="different")
    try:
        stacked = together(parameters, buffers, *batch)
    except RuntimeError as error:
        return f"RuntimeError: {str(error).splitlines()[0]}"
    for number, member in enumerate(members):
        member(theta, x).backward()
        for name, parameter in member.named_parameters():
            if not torch.allclose(stacked[name][number], parameter.grad, atol=1e-5):
                return f"stacks, but the gradient of {name} is another"
    return "stacks"


builders = {name: posterior_nn(name) for name in ("maf", "zuko_maf", "zuko_nsf")}
builders |= {name: posterior_nn(name) for name in ("nsf", "maf_rqs", "mdn")}
builders["flow matching"] = posterior_flow_nn("mlp")
found = {name: outcome(build) for name, build in builders.items()}
found["maf, one batch for all"] = outcome(builders["maf"], one_batch=True)
for name, what in found.items():
    print(f"{name}: {what[:110]}")
as_seen = [
    *["stacks"] * 3,
    *["RuntimeError: vmap: We do not support batching operators that can support dynamic shape."] * 2,
    "RuntimeError: vmap: index_put_(self, *extra_args) is not possible",
    "RuntimeError: vmap: It looks like you're either (1) calling .item()",
    "RuntimeError: output with shape [100] doesn't match the broadcast shape",
]
sys.exit(not all(map(str.startswith, found.values(), as_seen)))
PYTHON
