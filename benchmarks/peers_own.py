"""Train one peer on a file of pairs and print seconds and held-out nats as JSON.

Runs in the peers' own environment (see `peers.py`) and imports nothing of this project:
`python peers_own.py NAME train|step FILE.npz MAX_SECONDS`. Settings are those of each package's
documentation.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np


def flowjax(data: Any) -> dict[str, float]:
    """Train flowjax's masked autoregressive flow by `fit_to_data`."""
    import jax
    import jax.numpy as jnp
    from flowjax.distributions import Normal
    from flowjax.flows import masked_autoregressive_flow
    from flowjax.train import fit_to_data

    theta, mean, scale = _standard(data["theta"])
    x, *of_x = _standard(data["x"])
    key, build = jax.random.split(jax.random.key(0))
    base = Normal(jnp.zeros(theta.shape[1]))
    flow = masked_autoregressive_flow(build, base_dist=base, cond_dim=x.shape[1])
    began = time.perf_counter()
    fit_to_data(key, flow, (theta[:400], x[:400]), max_epochs=2, show_progress=False)
    compiled = time.perf_counter()
    flow, _ = fit_to_data(key, flow, (theta, x), show_progress=False)
    ended = time.perf_counter()
    new_theta, new_x = (data["new_theta"] - mean) / scale, (data["new_x"] - of_x[0]) / of_x[1]
    log_prob = np.asarray(flow.log_prob(new_theta, new_x)) - np.log(scale).sum()
    return _found(ended - compiled, compiled - began, log_prob)


def flowjax_step() -> dict[str, float]:
    """Return ms of one jitted step of flowjax's flow at batch 200, and its number of parameters."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import optax
    from flowjax.distributions import Normal
    from flowjax.flows import masked_autoregressive_flow
    from flowjax.train.losses import MaximumLikelihoodLoss
    from flowjax.train.train_utils import step
    from paramax import NonTrainable

    theta = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
    flow = masked_autoregressive_flow(
        jax.random.key(0),
        base_dist=Normal(jnp.zeros(5)),
        cond_dim=5,
        flow_layers=5,
        nn_width=70,
        nn_depth=2,
    )
    params, static = eqx.partition(
        flow, eqx.is_inexact_array, is_leaf=lambda leaf: isinstance(leaf, NonTrainable)
    )
    optimizer, loss = optax.adam(5e-4), MaximumLikelihoodLoss()
    state, key = optimizer.init(params), jax.random.key(1)
    milliseconds = []
    for _ in range(400):
        began = time.perf_counter()
        params, state, value = step(
            params,
            static,
            theta,
            theta,
            key=key,
            optimizer=optimizer,
            opt_state=state,
            loss_fn=loss,
        )
        value.block_until_ready()
        milliseconds.append(1e3 * (time.perf_counter() - began))
    numbers = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(params, eqx.is_inexact_array)))
    return {"ms": float(np.median(milliseconds[100:])), "parameters": int(numbers)}


def lampe(data: Any) -> dict[str, float]:
    """Train LAMPE's NPE by the loop of its documentation: 8 epochs of 256 batches of 256."""
    import torch
    from lampe.inference import NPE, NPELoss
    from lampe.utils import GDStep
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(0)
    theta, mean, scale = _standard(data["theta"])
    x, *of_x = _standard(data["x"])
    theta, x = torch.from_numpy(theta), torch.from_numpy(x)
    estimator = NPE(
        theta.shape[1], x.shape[1], transforms=3, hidden_features=[64] * 3, activation=nn.ELU
    )
    loss = NPELoss(estimator)
    step = GDStep(torch.optim.Adam(estimator.parameters(), lr=1e-3), clip=1.0)
    began = time.perf_counter()
    for _ in range(8 * 256):
        rows = torch.randint(len(theta), (256,))
        step(loss(theta[rows], x[rows]))
    seconds = time.perf_counter() - began
    with torch.no_grad():
        new = [
            torch.from_numpy((data[f"new_{n}"] - m) / s).float()
            for n, m, s in (("theta", mean, scale), ("x", *of_x))
        ]
        log_prob = estimator(*new).numpy() - np.log(scale).sum()
    return _found(seconds, 0.0, log_prob)


def bayesflow(data: Any) -> dict[str, float]:
    """Train BayesFlow's basic workflow offline, with all its defaults, a coupling flow."""
    began = time.perf_counter()
    import bayesflow as bf

    workflow = bf.BasicWorkflow(
        inference_network=bf.networks.CouplingFlow(),
        inference_variables=["theta"],
        inference_conditions=["x"],
    )
    pairs = {name: data[name].astype(np.float32) for name in ("theta", "x")}
    few = {name: value[: 9 * 32] for name, value in pairs.items()}
    workflow.fit_offline(few, epochs=1, verbose=0, keep_optimizer=False)
    compiled = time.perf_counter()
    workflow.fit_offline(pairs, verbose=0)
    ended = time.perf_counter()
    new = {name: data[f"new_{name}"].astype(np.float32) for name in ("theta", "x")}
    return _found(ended - compiled, compiled - began, np.asarray(workflow.log_prob(new)))


def _standard(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return values of mean 0 and deviation 1, and that mean and deviation."""
    mean, scale = values.mean(axis=0), values.std(axis=0)
    return ((values - mean) / scale).astype(np.float32), mean, scale


def _found(seconds: float, set_up: float, log_prob: np.ndarray) -> dict[str, float]:
    return {"seconds": seconds, "set-up": set_up, "nats": -float(np.mean(log_prob))}


def main() -> None:
    """Run what the command line asks for."""
    name, what, file = sys.argv[1:4]
    if what == "step":
        found = flowjax_step()
    else:
        with np.load(file) as data:
            found = {"flowjax": flowjax, "lampe": lampe, "bayesflow": bayesflow}[name](dict(data))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
