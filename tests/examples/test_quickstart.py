"""The quickstart does what the README says of it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from scipy.integrate import solve_ivp
from scipy.stats import ks_2samp, lognorm, truncnorm

from tests import forking
from tests.small import ROOT

EXAMPLE = ROOT / "examples" / "quickstart.py"
PICTURES = ("loss.png", "check.png", "posterior.png", "predictions.png")

pytestmark = pytest.mark.timeout(900)  # whichever test is first runs the example


class Run(NamedTuple):
    """What a run of the example printed and where it left its pictures."""

    output: str
    folder: Path

    def table(self) -> dict[str, tuple[float, float, float, float]]:
        """Return our mean and spread, and the published ones, by name of the parameter."""
        number = r"(\d+\.\d+)"
        pair = rf"{number} ± {number}"
        rows = re.findall(rf"^(.{{12}})  .{{24}} *{pair} +{pair} ", self.output, re.MULTILINE)
        numbers: Any = {name.strip(): tuple(map(float, found)) for name, *found in rows}
        return numbers


def run(folder: Path, *budget: str) -> Run:
    """Run the example in a process of its own, from `folder`."""
    done = forking.run(str(EXAMPLE), *budget, "--out", "pictures", cwd=folder, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return Run(done.stdout, folder / "pictures")


@pytest.fixture(scope="module")
def quick_look(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with the smallest budget."""
    return run(tmp_path_factory.mktemp("quickstart"), "--simulations", "2000", "--max-epochs", "2")


@pytest.fixture(scope="module")
def example() -> ModuleType:
    """The example as a module."""
    specification = importlib.util.spec_from_file_location("quickstart", EXAMPLE)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", PICTURES)
def test_it_leaves_a_picture(quick_look: Run, name: str):
    """One that can be read and is not blank."""
    pixels = imread(quick_look.folder / name)
    assert min(pixels.shape[:2]) > 400
    assert pixels[..., :3].std() > 0.01


def test_it_leaves_no_other_files_beside_the_pictures(quick_look: Run):
    assert sorted(path.name for path in quick_look.folder.iterdir()) == sorted(PICTURES)


def test_it_prints_both_posteriors_side_by_side(quick_look: Run, example: ModuleType):
    table = quick_look.table()
    assert list(table) == [parameter.name for parameter in example.PARAMETERS]
    for parameter in example.PARAMETERS:
        assert table[parameter.name][2:] == (parameter.published_mean, parameter.published_sd)


def test_it_prints_progress_in_all_rounds(quick_look: Run, example: ModuleType):
    rounds = len(example.ROUNDS)
    assert len(re.findall(r"^ +1 +-?\d", quick_look.output, re.MULTILINE)) == rounds
    assert len(re.findall(r"^ +2 +-?\d", quick_look.output, re.MULTILINE)) == rounds


def test_it_prints_a_check_of_its_own_posterior_in_one_line(quick_look: Run):
    """Of a network of two epochs, which is not expected to be calibrated."""
    (line,) = re.findall(r"^Check of this posterior: (.+)$", quick_look.output, re.MULTILINE)
    assert re.match(r"(Fine|Biased|\w+confident|Miscalibrated)\b", line)
    assert "300 simulations" in line
    assert "a calibrated posterior fails at most 5% of such checks" in line


def test_the_data_say_where_they_come_from(example: ModuleType):
    assert "Hudson's Bay Company" in example.DATA.read_text(encoding="utf-8").splitlines()[0]
    pelts = example.read_pelts(example.DATA)
    assert pelts.shape == (21, 2)
    assert pelts[0].tolist() == [30.0, 4.0]
    assert pelts[-1].tolist() == pytest.approx([24.7, 8.6])


def test_the_simulator_solves_the_equations(example: ModuleType):
    """A general solver with small steps finds the same populations."""
    values = torch.tensor([0.549, 0.028, 0.797, 0.024, 33.96, 5.949, 0.25, 0.25])

    def slope(_: float, state: np.ndarray) -> list[float]:
        hares, lynxes = state
        alpha, beta, gamma, delta = values[:4].tolist()
        return [(alpha - beta * lynxes) * hares, (delta * hares - gamma) * lynxes]

    exact = solve_ivp(slope, (0, 20), values[4:6].tolist(), t_eval=range(21), rtol=1e-8, atol=1e-8)
    ours = example.populations(values.log()[None]).exp()[0]
    np.testing.assert_allclose(ours, exact.y.T, rtol=1e-3)


def test_the_noise_is_that_of_the_parameters(example: ModuleType):
    values = torch.tensor([0.549, 0.028, 0.797, 0.024, 33.96, 5.949, 0.1, 0.4])
    theta = values.log().expand(20_000, 8)
    deviation = (example.simulate(theta).reshape(-1, 21, 2) - example.populations(theta)).std(0)
    torch.testing.assert_close(deviation, values[6:].expand(21, 2), rtol=0.05, atol=0)


def test_the_prior_is_the_published_one(example: ModuleType):
    """Its density is that of the logarithms of cut normals and of log-normals."""
    prior = example.log_prior()
    theta = prior.sample((100,))
    values = theta.exp().double().numpy()
    wanted = theta.double().sum(1).numpy()  # the logarithm's change of volume
    for i, (mean, sd) in enumerate([(1, 0.5), (0.05, 0.05)] * 2):
        wanted += truncnorm.logpdf(values[:, i], -mean / sd, np.inf, loc=mean, scale=sd)
    for i, centre in enumerate([10, 10, np.exp(-1), np.exp(-1)]):
        wanted += lognorm.logpdf(values[:, 4 + i], s=1, scale=centre)
    np.testing.assert_allclose(prior.log_prob(theta), wanted, atol=0.02)


@pytest.mark.parametrize("width", [0.1, 3.0])
def test_a_region_draws_the_prior_inside_a_box_around_samples(example: ModuleType, width: float):
    """As draws of the prior that are inside, whether the box is small or large."""
    torch.manual_seed(0)
    prior = example.log_prior()
    centre = torch.tensor([parameter.published_mean for parameter in example.PARAMETERS]).log()
    samples = centre + width * torch.randn(5_000, 8) @ torch.randn(8, 8) / 3
    region = example.Region(samples, prior)
    theta = torch.cat([region.sample((20_000,)) for _ in range(10)])
    assert region.holds(theta).all()
    assert 0.97 < region.holds(samples).float().mean() < 0.995
    drawn = prior.sample((200_000,))
    inside = drawn[region.holds(drawn)]
    if len(inside) > 2_000:
        for i in range(8):
            found: Any = ks_2samp(theta[:, i].numpy(), inside[:, i].numpy())
            assert found.statistic < 0.05
    else:
        weights = prior.log_prob(theta[:2_000])
        assert weights.isfinite().all()


def test_only_records_near_the_observed_one_are_kept(example: ModuleType):
    observed = example.read_pelts(example.DATA).log().flatten()
    prior = example.log_prior()
    theta, x = example.simulate_near(observed, prior.sample, 200, factor=10)
    assert theta.shape == (200, 8)
    assert x.shape == (200, 42)
    ratio = (x - observed).abs().amax(1).exp()
    assert ratio.max() < 10
    assert ratio.max() > 8


def test_simulations_that_end_early_are_the_ones_that_are_not_near(example: ModuleType):
    """Those kept are distributed as those chosen from whole simulations."""
    torch.manual_seed(0)
    observed = example.read_pelts(example.DATA).log().flatten()
    prior = example.log_prior()
    theta, x = example.simulate_near(observed, prior.sample, 2_000, factor=10)
    everything = prior.sample((100_000,))
    simulated = example.simulate(everything)
    near = (simulated - observed).abs().amax(1) < np.log(10)
    assert near.sum() > 1_000
    for mine, theirs in ((theta, everything[near]), (x, simulated[near])):
        for i in range(mine.shape[1]):
            found: Any = ks_2samp(mine[:, i].numpy(), theirs[:, i].numpy())
            assert found.pvalue > 1e-4


def test_the_summary_of_a_record_has_the_size_of_what_a_curve_leaves_over(example: ModuleType):
    """Twice the residuals of the hares give twice that number, and no other one."""
    summary = example.Summary()
    for parameter in summary.parameters():
        torch.nn.init.zeros_(parameter)  # the curve is zero, and the record left over
    x = torch.randn(5, 42)
    louder = x.clone().reshape(5, 21, 2)
    louder[..., 0] *= 2
    difference = summary(louder.flatten(1)) - summary(x)
    wanted = torch.zeros(5, 18)
    wanted[:, 16] = np.log(4)
    torch.testing.assert_close(difference, wanted, rtol=1e-3, atol=1e-3)


def test_the_table_counts_in_published_spreads(example: ModuleType):
    """A posterior one spread above the published mean is said to be that."""
    means = torch.tensor([p.published_mean for p in example.PARAMETERS])
    spreads = torch.tensor([p.published_sd for p in example.PARAMETERS])
    rows = example.comparison((means + spreads).expand(2, 8)).splitlines()[2:]
    assert all(row.endswith(" +1.0 sd") for row in rows)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(5))
def test_the_posterior_agrees_with_the_published_one_from_any_seed(tmp_path: Path, seed: int):
    """The means within half a published spread, and the spreads within a fifth."""
    table = run(tmp_path, "--seed", str(seed)).table()
    for mean, sd, published_mean, published_sd in table.values():
        assert abs(mean - published_mean) < 0.5 * published_sd
        assert 0.8 < sd / published_sd < 1.2
