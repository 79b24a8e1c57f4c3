"""Averaged weights are what a hand computation gives, and are put in and out in place."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sbi_ignite import WeightAveraging
from sbi_ignite.handlers.averaging import AveragedWeights, TrainedWeights


def walk(steps=40):
    """Return the weights of a made-up training, one per step."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, generator=generator) for _ in range(steps)]


class Weights(nn.Module):
    def __init__(self):
        super().__init__()
        self.free = nn.Parameter(torch.zeros(3))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_buffer("seen", torch.zeros(()))


def averaged(setting, weights):
    model = Weights()
    averages = AveragedWeights(model, setting.share)
    for value in weights:
        model.free.data.copy_(value)
        model.seen += 1
        averages.update()
    return model, averages


@pytest.mark.parametrize("factor", [1.0, 3.0, 10.0])
def test_a_power_average_is_its_formula_written_out(factor):
    average = torch.zeros(3, dtype=torch.float64)
    for k, value in enumerate(walk(), 1):
        average += min(1.0, factor / k) * (value.double() - average)
    model, averages = averaged(WeightAveraging("power", factor=factor), walk())
    averages.show()
    torch.testing.assert_close(model.free.double(), average, rtol=1e-5, atol=1e-6)
    if factor == 1.0:
        mean = torch.stack(walk()).mean(dim=0)
        torch.testing.assert_close(model.free, mean, rtol=1e-5, atol=1e-6)


def test_an_ema_starts_at_the_first_weights_and_keeps_its_decay():
    """Compared with torch's own AveragedModel, too."""
    average = walk()[0].double()
    model = Weights()
    torchs = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )
    for k, value in enumerate(walk()):
        average = average if k == 0 else 0.9 * average + 0.1 * value.double()
        model.free.data.copy_(value)
        torchs.update_parameters(model)
    ours, averages = averaged(WeightAveraging("ema", decay=0.9), walk())
    averages.show()
    torch.testing.assert_close(ours.free.double(), average, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.free, torchs.module.free, rtol=1e-6, atol=1e-7)


def test_showing_and_hiding_change_the_tensors_in_place_and_nothing_else():
    model, averages = averaged(WeightAveraging("power"), walk())
    tensor, raw = model.free, model.free.detach().clone()
    averages.hide()
    assert torch.equal(model.free, raw)
    for _ in range(2):
        averages.show()
        averages.show()
        assert not torch.equal(model.free, raw)
        averages.hide()
        averages.hide()
        assert torch.equal(model.free, raw)
    assert model.free is tensor
    assert torch.equal(model.frozen, torch.ones(3))
    assert model.seen == 40


def test_before_the_first_step_there_is_nothing_to_show():
    model, averages = averaged(WeightAveraging("power"), [])
    averages.show()
    assert torch.equal(model.free, torch.zeros(3))


def test_what_is_saved_is_what_is_trained_whatever_the_network_shows():
    model, averages = averaged(WeightAveraging("power"), walk())
    trained = TrainedWeights(model, averages)
    hidden = {name: value.clone() for name, value in trained.state_dict().items()}
    averages.show()
    shown = trained.state_dict()
    assert hidden.keys() == shown.keys() == model.state_dict().keys()
    assert all(torch.equal(hidden[name], shown[name]) for name in hidden)
    assert not torch.equal(model.state_dict()["free"], shown["free"])


def test_tied_parameters_are_averaged_once_and_saved_under_both_names():
    model = nn.ModuleDict({"one": nn.Linear(2, 2), "two": nn.Linear(2, 2)})
    model["two"].weight = model["one"].weight
    averages = AveragedWeights(model, WeightAveraging("power", factor=1.0).share)
    for value in (1.0, 3.0):
        nn.init.constant_(model["one"].weight, value)
        averages.update()
    averages.show()
    assert model["two"].weight[0, 0] == 2.0
    saved = TrainedWeights(model, averages).state_dict()
    assert saved["one.weight"][0, 0] == saved["two.weight"][0, 0] == 3.0


def test_a_restart_trains_on_from_what_the_network_holds():
    model, averages = averaged(WeightAveraging("power", factor=1.0), walk())
    averages.show()
    model.free.data.fill_(7.0)
    averages.restart()
    averages.hide()
    assert torch.equal(model.free, torch.full((3,), 7.0))
    model.free.data.fill_(48.0)
    averages.update()  # the 41st step: a share of 1 / 41
    averages.show()
    torch.testing.assert_close(model.free, torch.full((3,), 8.0))
    averages.hide()
    averages.forget()
    averages.update()
    averages.show()
    assert torch.equal(model.free, torch.full((3,), 48.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_average_of_half_precision_weights_does_not_stall(dtype):
    """It is that of a float32 model with the same weights, rounded once when it is shown."""
    setting = WeightAveraging(kind="ema", decay=0.999)
    half, single = nn.Linear(1, 1).to(dtype), nn.Linear(1, 1)
    averages = [AveragedWeights(model, setting.share) for model in (half, single)]
    for step in range(2000):
        for model, average in zip((half, single), averages, strict=True):
            nn.init.constant_(model.weight, 1.0 if step else 0.0)
            average.update()
    for average in averages:
        average.show()
    assert half.weight.dtype == dtype
    assert single.weight.item() > 0.8
    assert half.weight.item() == single.weight.to(dtype).item()


def test_an_average_saved_in_half_precision_is_continued_in_float32():
    """As checkpoints of earlier versions hold it."""
    model = nn.Linear(1, 1).to(torch.bfloat16)
    averages = AveragedWeights(model, lambda step: 0.001)
    averages.load_state_dict(
        {"average": [torch.ones(1, 1).bfloat16(), torch.ones(1).bfloat16()], "steps": 7}
    )
    nn.init.constant_(model.weight, 2.0)
    averages.update()
    average = averages.state_dict()["average"][0]
    assert average.dtype == torch.float32
    torch.testing.assert_close(average, torch.full((1, 1), 1.001))
    assert averages.steps == 8


def test_parameters_of_several_precisions_are_averaged_each_in_its_own_or_better():
    model = nn.ModuleList(
        nn.Linear(1, 1).to(dtype) for dtype in (torch.float64, torch.float32, torch.float16)
    )
    averages = AveragedWeights(model, lambda step: 0.5)
    for parameter in model.parameters():
        nn.init.constant_(parameter, 3.0)
    averages.update()
    kept = [average.dtype for average in averages.state_dict()["average"][::2]]
    assert kept == [torch.float64, torch.float32, torch.float32]
    averages.show()
    averages.hide()
    assert all(parameter.item() == 3.0 for parameter in model.parameters())
