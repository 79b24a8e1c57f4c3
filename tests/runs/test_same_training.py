"""A run directory is continued by the training that it belongs to: the same loss, the same seed."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

from sbi_ignite import CheckpointMismatchError, LossArgsNRE, SbiIgniteWarning, TrainConfig
from sbi_ignite.runs.directory import RunDirectory
from sbi_ignite.runs.loss_record import describe_loss
from sbi_ignite.training.run import run_training
from tests.small import SBI_WARNS, ready

pytestmark = SBI_WARNS

X = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
BATCHES = [(X[i : i + 8], X[i : i + 8].sum(dim=1, keepdim=True)) for i in (0, 8, 16)]
WEIGHT = 1.0
STEPS = 0


def squares(model, batch, weight=1.0):
    """Return squared errors."""
    return weight * (model(batch[0]) - batch[1]).square().mean(dim=1)


def absolute(model, batch, weight=1.0):
    return weight * (model(batch[0]) - batch[1]).abs().mean(dim=1)


def closed_over(weight):
    return lambda model, batch: weight * squares(model, batch)


def reads_global(model, batch):
    return WEIGHT * squares(model, batch)


def counts(model, batch):
    global STEPS
    STEPS += 1
    return squares(model, batch)


def helper(model, batch):
    return squares(model, batch)


def calls_helper(model, batch):
    return helper(model, batch)


class Weighted:
    """A loss with a weight of its own, and what it remembers about its calls."""

    def __init__(self, weight, device="cpu"):
        self.weight, self.device, self.calls = weight, device, 0

    def __call__(self, model, batch):
        self.calls += 1
        return self.weight * squares(model, batch)


class Module(nn.Module):
    def forward(self, model, batch):
        return squares(model, batch)


class OtherModule(nn.Module):
    def forward(self, model, batch):
        return absolute(model, batch)


class Validates(Weighted):
    def validate(self, model, batch):
        return absolute(model, batch)


def go(directory, loss_fn, epochs=2, **fields):
    torch.manual_seed(fields.pop("script_seed", 0))
    model = nn.Linear(3, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    config = TrainConfig(max_epochs=epochs, **fields)
    return model, run_training(config, model, loss_fn, BATCHES, checkpoint=str(directory))[1]


OTHERS = {
    "another function": (squares, absolute, "squares, now it is .*absolute"),
    "another lambda": (
        lambda model, batch: squares(model, batch),
        lambda model, batch: 2 * squares(model, batch),
        "<lambda> has other code",
    ),
    "another argument": (
        functools.partial(squares, weight=1.0),
        functools.partial(squares, weight=2.0),
        r"squares had weight=1\.0 \(now 2\.0\)",
    ),
    "another closure": (closed_over(1.0), closed_over(0.5), r"weight=1\.0 \(now 0\.5\)"),
    "another module": (Module(), OtherModule(), "Module, now it is .*OtherModule"),
    "another method": (Module().forward, OtherModule().forward, "now it is .*OtherModule.forward"),
    "another validation": (Weighted(1.0), Validates(1.0), "Weighted, now it is .*Validates"),
}


@pytest.mark.parametrize("epochs", [2, 4], ids=["complete", "to be continued"])
@pytest.mark.parametrize("name", OTHERS)
def test_another_loss_is_refused_with_both_named(name, epochs, tmp_path):
    first, second, message = OTHERS[name]
    go(tmp_path, first)
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(
        CheckpointMismatchError, match=rf'loss function differs.*{message}.*"never"'
    ):
        go(tmp_path, second, epochs)
    assert (tmp_path / "run.json").read_bytes() == before
    assert go(tmp_path, first, epochs)[1].epochs_trained == epochs


def test_another_helper_of_the_same_module_is_another_loss(tmp_path, monkeypatch):
    go(tmp_path, calls_helper)
    monkeypatch.setitem(globals(), "helper", lambda model, batch: absolute(model, batch))
    with pytest.raises(CheckpointMismatchError, match="calls_helper has other code"):
        go(tmp_path, calls_helper, 4)


SAME = {
    "itself": squares,
    "a module": Module(),
    "what counts its calls": Weighted(1.0),
    "what counts in a global": counts,
    "a partial": functools.partial(squares, weight=2.0),
    "torch's": torch.nn.functional.pairwise_distance,
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_loss_is_continued_without_a_word(name, tmp_path):
    loss = SAME[name]
    if name == "torch's":
        assert describe_loss(loss)["code"] is None
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        go(tmp_path, loss)
        assert go(tmp_path, loss, 4)[1].resumed_from_epoch == 2


def test_lines_comments_docstrings_names_and_devices_are_not_the_loss():
    texts = (
        'def a(model, batch):\n    """Say it."""\n    return model(batch[0]) * D\n',
        "\n\n# moved\ndef b(model, batch):\n    # a comment\n    return model(batch[0]) * D\n",
    )
    described = []
    for text, device in zip(texts, ("cpu", "cuda:0"), strict=True):
        space = {"D": device}
        exec(text, space)  # as two states of a user's script
        described.append(describe_loss(space["a" if "a" in space else "b"]))
    assert described[0]["code"] == described[1]["code"]
    assert described[0]["variables"] == described[1]["variables"] == {}


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_every_process_records_the_same(hash_seed, tmp_path):
    """Sets among constants have another order in every process."""
    script = tmp_path / "script.py"
    script.write_text(
        "import json\nfrom sbi_ignite.runs.loss_record import describe_loss\n"
        "def loss(model, batch, kind='b', tags=(1, None)):\n"
        "    return [model for k in batch if kind in {'a', 'b', 'c', 'd', k and 'e'}\n"
        "            or k in {'x', 'y', 'z'}]\n"
        "print(json.dumps(describe_loss(loss)))\n"
    )
    env = {"PYTHONHASHSEED": hash_seed, "PATH": "", "OMP_NUM_THREADS": "1"}
    found = json.loads(
        subprocess.run([sys.executable, script], env=env, check=True, capture_output=True).stdout
    )
    space = {}
    exec(script.read_text().split("print(")[0], space)
    assert found["code"] == describe_loss(space["loss"])["code"]
    assert found["arguments"] == {"kind": "b", "tags": [1, None]}


@pytest.mark.parametrize("kind", ["global", "attribute"])
def test_other_variables_of_a_loss_are_told_once_and_taken(kind, tmp_path, monkeypatch):
    """They may be meant to change on the way, such as a weight that is annealed."""
    go(tmp_path, reads_global if kind == "global" else Weighted(1.0))
    monkeypatch.setitem(globals(), "WEIGHT", 0.5)
    loss = reads_global if kind == "global" else Weighted(0.5)
    with pytest.warns(
        SbiIgniteWarning, match=r"(?i)loss function .*weight=1\.0 \(now 0\.5\)"
    ) as told:
        assert go(tmp_path, loss, 4)[1].epochs_trained == 4
    assert len(told) == 1


def test_a_run_that_recorded_no_loss_and_no_seed_is_continued(tmp_path):
    """Run directories of earlier versions."""
    go(tmp_path, squares)
    with RunDirectory.open(tmp_path, 1) as directory:
        manifest = {**(directory.read_manifest() or {})}
        del manifest["loss"], manifest["torch_seed"]
        directory.write_manifest(manifest)
    assert go(tmp_path, absolute, 4, script_seed=5)[1].resumed_from_epoch == 2


def test_another_loss_argument_of_a_trainer_is_refused(tmp_path):
    def train(num_atoms, epochs):
        config, args = TrainConfig(max_epochs=epochs, seed=1), LossArgsNRE(num_atoms=num_atoms)
        return ready("NRE_B").train(config, loss_args=args, checkpoint=str(tmp_path))

    train(4, 1)
    with pytest.raises(CheckpointMismatchError, match=r"argument num_atoms differs: .*4, now .*3"):
        train(3, 2)
    train(4, 2)


# --- the seed of the script


def test_another_seed_of_the_script_is_told_when_a_complete_run_is_returned(tmp_path):
    """Each time, with the seed that the run began with."""
    go(tmp_path, squares, script_seed=1)
    for epochs in (2, 3):
        go(tmp_path, squares, epochs, script_seed=1)
        message = r"complete and is returned.*manual_seed\(1\).*manual_seed\(2\) changes nothing"
        with pytest.warns(SbiIgniteWarning, match=message):
            summary = go(tmp_path, squares, epochs, script_seed=2)[1]
        assert summary.resumed_from_epoch == epochs


def test_a_run_that_is_continued_keeps_its_random_numbers_without_a_word(tmp_path):
    go(tmp_path, squares, script_seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert go(tmp_path, squares, 3, script_seed=2)[1].epochs_trained == 3


def test_a_complete_run_says_in_its_summary_that_it_was_complete(tmp_path):
    go(tmp_path, squares)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, summary = go(tmp_path, squares)
    for text in (str(summary), summary._repr_html_()):
        assert "the run was complete and is returned as it was" in " ".join(text.split())
    assert "was complete" not in str(go(tmp_path, squares, 3)[1])


def test_a_seed_that_nobody_has_set_is_not_told(tmp_path):
    """Torch seeds itself at the start of every process, from the operating system."""
    go(tmp_path, squares, script_seed=2**40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        go(tmp_path, squares, script_seed=2**41)
        go(tmp_path / "other", squares, seed=3, script_seed=1)
        go(tmp_path / "other", squares, 3, seed=3, script_seed=2)


def continued(tmp_path, network, other, loaders=None):
    """Train a network for two epochs, then another one in the same directory for two more."""
    config, loaders = (
        [TrainConfig(max_epochs=epochs) for epochs in (2, 4)],
        loaders or [BATCHES] * 2,
    )
    run_training(config[0], network, squares, loaders[0], checkpoint=str(tmp_path))
    return run_training(config[1], other, squares, loaders[1], checkpoint=str(tmp_path))[1]


class Halves(nn.Linear):
    def forward(self, x):
        return super().forward(x) / 2


def test_other_code_of_a_network_is_refused(tmp_path, monkeypatch):
    """Its shapes are the same, so that nothing else would tell."""
    assert continued(tmp_path / "same", Halves(3, 1), Halves(3, 1)).epochs_trained == 4
    network = Halves(3, 1)
    monkeypatch.setattr(Halves, "forward", lambda self, x: nn.Linear.forward(self, x) / 3)
    other = Halves(3, 1)
    monkeypatch.undo()
    config = TrainConfig(max_epochs=2)
    run_training(config, network, squares, BATCHES, checkpoint=str(tmp_path / "other"))
    monkeypatch.setattr(Halves, "forward", lambda self, x: nn.Linear.forward(self, x) / 3)
    with pytest.raises(CheckpointMismatchError, match=r"network differs: .*Halves has other code"):
        run_training(config, other, squares, BATCHES, checkpoint=str(tmp_path / "other"))


@pytest.mark.parametrize(
    "modules",
    [(nn.Dropout(0.1), nn.Dropout(0.2)), (nn.LeakyReLU(0.1), nn.LeakyReLU(0.3))],
    ids=["dropout", "slope"],
)
def test_other_options_of_a_networks_modules_are_refused(modules, tmp_path):
    networks = [nn.Sequential(nn.Linear(3, 1), module) for module in modules]
    with pytest.raises(CheckpointMismatchError, match=r"network differs: .*other options"):
        continued(tmp_path, *networks)


def test_other_frozen_weights_are_told_and_the_runs_own_are_kept(tmp_path):
    """Whoever draws them without a seed continues all the same."""
    networks = [nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)) for _ in range(2)]
    for network in networks:
        network[0].requires_grad_(False)
    kept = networks[0][0].weight.clone()
    with pytest.warns(SbiIgniteWarning, match="frozen weights are not those that the run began"):
        assert continued(tmp_path, *networks).resumed_from_epoch == 2
    assert torch.equal(networks[1][0].weight, kept)


class Simulated(torch.utils.data.Dataset):
    """Rows that are made as they are asked for."""

    def __init__(self, noise):
        self.noise = noise

    def __len__(self):
        return 20

    def __getitem__(self, index):
        x = torch.full((3,), float(index))
        return x, x[:1] + self.noise


class Doubled(Simulated):
    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x, 2 * y


def test_other_code_of_data_made_on_the_fly_is_refused(tmp_path):
    loaders = [torch.utils.data.DataLoader(d, batch_size=5) for d in (Simulated(0.1), Doubled(0.1))]
    with pytest.raises(CheckpointMismatchError, match=r"dataset differs: .*Simulated.*Doubled"):
        continued(tmp_path, nn.Linear(3, 1), nn.Linear(3, 1), loaders)


def test_other_values_of_data_made_on_the_fly_are_told(tmp_path):
    loaders = [torch.utils.data.DataLoader(Simulated(s), batch_size=5) for s in (0.1, 0.2)]
    with pytest.warns(SbiIgniteWarning, match=r"dataset .*Simulated.*noise=0\.1 \(now 0\.2\)"):
        assert continued(tmp_path, nn.Linear(3, 1), nn.Linear(3, 1), loaders).epochs_trained == 4
