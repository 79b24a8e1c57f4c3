"""A small problem: two parameters, three numbers observed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from sbi.neural_nets import classifier_nn, posterior_flow_nn, posterior_nn
from sbi.utils import BoxUniform
from torch import Tensor
from torch.distributions import MultivariateNormal

from tests.parity.observe import Recorder

X_O = torch.tensor([[0.4, -0.6, -0.2]])


def box() -> BoxUniform:
    """Return the prior."""
    return BoxUniform(-2 * torch.ones(2), 2 * torch.ones(2))


def normal() -> MultivariateNormal:
    """Return a prior with full support, which sampling never has to reject."""
    return MultivariateNormal(torch.zeros(2), torch.eye(2))


def simulate(theta: Tensor) -> Tensor:
    """Return noisy functions of the parameters."""
    mean = torch.cat([theta, theta.prod(dim=1, keepdim=True)], dim=1)
    return mean + 0.3 * torch.randn_like(mean)


def draw(n: int = 200, prior: Any = None) -> tuple[Tensor, Tensor]:
    """Return n simulations."""
    theta = (prior or box()).sample((n,))
    return theta, simulate(theta)


def small(model: str = "maf", **kwargs: Any) -> Callable[..., Any]:
    """Return a builder of a small network for the posterior."""
    sizes = {"mdn": {"num_components": 3}}.get(model, {"num_transforms": 2})
    return posterior_nn(model, hidden_features=12, **{**sizes, **kwargs})


def make(trainer_class: Any, **kwargs: Any) -> Any:
    """Return a trainer whose tracker records, with the box as prior."""
    return trainer_class(**{"prior": box(), "tracker": Recorder(), **kwargs})


def small_npe(inference: ModuleType, n: int = 200, **kwargs: Any) -> Any:
    """Return an NPE trainer with a small network and n simulations."""
    kwargs = {"density_estimator": small(), **kwargs}
    return make(inference.NPE_C, **kwargs).append_simulations(*draw(n))


def sample(posterior: Any, n: int) -> Tensor:
    """Draw parameters from a posterior without its progress bar, which shows times."""
    return posterior.sample((n,), show_progress_bars=False)


SHORT = {"training_batch_size": 50, "max_num_epochs": 3}


def two_rounds(trainer: Any, second: dict[str, Any] | None = None, first_from: Any = None) -> Any:
    """Train on the prior, then once more on draws from the first posterior."""
    trainer.append_simulations(*draw(150, trainer._prior), proposal=first_from)
    trainer.train(**SHORT)
    posterior = trainer.build_posterior().set_default_x(X_O)
    theta = sample(posterior, 120)
    trainer.append_simulations(theta, simulate(theta), proposal=posterior)
    trainer.train(**{**SHORT, **(second or {})})
    return trainer


def small_ratio(inference: ModuleType, name: str, n: int = 200) -> Any:
    """Return a trainer of the NRE family with a small network and n simulations."""
    builder = classifier_nn("resnet", hidden_features=12)
    return make(getattr(inference, name), classifier=builder).append_simulations(*draw(n))


def small_flow_matching(inference: ModuleType, n: int = 200) -> Any:
    """Return an FMPE trainer with a small network and n simulations."""
    builder = posterior_flow_nn("mlp", hidden_features=16)
    return make(inference.FMPE, vf_estimator=builder).append_simulations(*draw(n))


def small_marginal(inference: ModuleType, n: int = 200) -> Any:
    """Return a trainer of a marginal density with n numbers to learn from."""
    trainer = inference.MarginalTrainer(density_estimator="nsf", tracker=Recorder())
    return trainer.append_samples(simulate(box().sample((n,))))


def require(condition: bool) -> None:
    """Fail a scenario that no longer does what its name says."""
    if not condition:
        raise RuntimeError("the scenario does not do what its name says")


def scalars() -> list[list[Any]]:
    """Read back what the default tracker wrote to its folder of TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    calls = []
    for folder in sorted(Path("sbi-logs").glob("*/*")):
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            for event in events.Scalars(tag):
                kept = 0.0 if tag == "epoch_durations_sec" else event.value
                calls.append([folder.parent.name, tag, kept, event.step])
    return calls


def kernel(x: Tensor) -> Tensor:
    """Weigh simulations by their distance to the observation."""
    return torch.exp(-0.1 * (x - X_O).square().sum(dim=1))
