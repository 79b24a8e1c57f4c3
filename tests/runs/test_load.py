"""What was written can be read back, and estimators are rebuilt with equal values."""

from __future__ import annotations

import math
import pickle
from functools import partial

import pytest
import torch
from sbi.inference import (
    FMPE,
    MNLE,
    MNPE,
    NLE,
    NPE,
    NPE_A,
    NPSE,
    NRE_A,
    MarginalTrainer,
)
from sbi.neural_nets import (
    classifier_nn,
    likelihood_nn,
    posterior_flow_nn,
    posterior_nn,
    posterior_score_nn,
)
from sbi.neural_nets.embedding_nets import FCEmbedding
from sbi.neural_nets.ratio_estimators import RatioEstimator
from torch import nn

from sbi_ignite.bridge.lines import line_name
from sbi_ignite.bridge.load import load_estimator
from sbi_ignite.bridge.networks import describe_network, rebuild_network
from sbi_ignite.data.fingerprint import fingerprint_data
from sbi_ignite.exceptions import CheckpointError, CheckpointMismatchError
from sbi_ignite.runs.directory import RunDirectory
from sbi_ignite.runs.load import load_run
from sbi_ignite.runs.manifest import make_manifest
from tests.runs.conftest import SUMMARY, states_at, write_run

ROWS = 150
QUIET = {"show_progress_bars": False}


def batches(mixed_theta=False, mixed_x=False):
    """Return simulations that are neither centred nor scaled, with whole numbers where asked."""
    generator = torch.Generator().manual_seed(5)
    theta = torch.randn(ROWS, 3, generator=generator) * 2 + 1
    x = torch.randn(ROWS, 4, generator=generator) * 30 - 100
    if mixed_theta:
        theta[:, 2] = torch.randint(0, 4, (ROWS,), generator=generator)
    if mixed_x:
        x[:, 3] = torch.randint(2, 7, (ROWS,), generator=generator)
    return theta, x


def save(path, build, inputs):
    """Build a network, give it other weights than it was born with, and save it as a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *args, **kwargs: None)
        network = build(*inputs)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    description = describe_network(build, *inputs)
    with RunDirectory.open(path) as directory:
        directory.write_manifest(
            make_manifest(
                method="test",
                settings={},
                data=fingerprint_data(inputs),
                network=network,
                estimator=description,
            )
        )
        directory.write_best(network.state_dict(), {"epoch": 1})
    return network.eval()


def values(network, inputs):
    """Return losses or log probabilities of a network, under one random state."""
    torch.manual_seed(1)
    with torch.no_grad():
        if len(inputs) == 1:
            return network.log_prob(inputs[0].unsqueeze(0))
        if isinstance(network, RatioEstimator):
            return network(*inputs)
        first, second = inputs
        of_x = network.input_shape == second.shape[1:]
        return network.loss(second, first) if of_x else network.loss(first, second)


FLOWS = ("maf", "nsf", "mdn", "made", "maf_rqs", "zuko_maf", "zuko_nsf", "zuko_gf", "zuko_nice")
TRAINERS = {
    **{f"NPE {name}": partial(NPE, density_estimator=name) for name in FLOWS},
    "NPE_A mdn_snpe_a": NPE_A,
    "NLE maf": NLE,
    "NLE nsf": partial(NLE, density_estimator="nsf"),
    "MNLE": MNLE,
    "MNPE": MNPE,
    **{f"NRE {n}": partial(NRE_A, classifier=n) for n in ("linear", "mlp", "resnet")},
    **{f"FMPE {n}": partial(FMPE, vf_estimator=n) for n in ("mlp", "ada_mlp", "transformer")},
    **{
        f"NPSE {n} {sde}": partial(NPSE, vf_estimator=n, sde_type=sde)
        for n, sde in (("mlp", "ve"), ("ada_mlp", "vp"), ("mlp", "subvp"))
    },
    "marginal": MarginalTrainer,
    "marginal nsf": partial(MarginalTrainer, density_estimator="nsf"),
}


@pytest.mark.filterwarnings("ignore:Passing a string for:FutureWarning")  # sbi after 0.27
@pytest.mark.parametrize("name", TRAINERS)
def test_the_estimator_of_every_method_is_rebuilt_bit_for_bit(name, tmp_path, monkeypatch):
    """Without pickle, without data and without a change of the random state."""
    trainer = TRAINERS[name](**QUIET)
    build = trainer._build_neural_net
    if name.startswith("NPE_A") and line_name() != "main":
        build = partial(build, num_components=7)  # as its train() does
    inputs = batches(mixed_theta=name == "MNPE", mixed_x=name == "MNLE")
    inputs = inputs[1:] if name.startswith("marginal") else inputs
    network = save(tmp_path, build, inputs)

    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    random_state = torch.get_rng_state()
    loaded = load_estimator(tmp_path)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not loaded.training
    assert torch.equal(values(loaded, inputs), values(network, inputs))


@pytest.mark.parametrize(
    "build",
    [
        posterior_nn("maf", hidden_features=13, num_transforms=3, z_score_x="structured"),
        posterior_nn("nsf", z_score_theta="none", num_bins=4, dropout_probability=0.1),
        posterior_nn("mdn", num_components=3, z_score_theta=None),
        posterior_nn("zuko_maf", randperm=True),
        posterior_nn("zuko_naf"),
        classifier_nn("resnet", hidden_features=9, num_blocks=3),
        posterior_flow_nn("mlp", gaussian_baseline=True),
        posterior_score_nn("mlp", sde_type="vp", num_layers=2),
    ],
    ids=lambda build: build.__qualname__.split(".")[0],
)
def test_builders_with_arguments_are_described(build, tmp_path):
    """Numbers and names that were given to sbi's factories are kept."""
    inputs = batches()
    network = save(tmp_path, build, inputs)
    assert torch.equal(values(load_estimator(tmp_path), inputs), values(network, inputs))


def test_the_number_of_categories_may_be_given_as_a_tensor(tmp_path):
    """Arguments that are small tensors are described too."""
    build = likelihood_nn("mnle", num_categories_per_variable=torch.tensor([5]), flow_model="maf")
    inputs = batches(mixed_x=True)
    network = save(tmp_path, build, inputs)
    assert torch.equal(values(load_estimator(tmp_path), inputs), values(network, inputs))


def embedding_builder(hidden=6):
    return posterior_nn("maf", embedding_net=FCEmbedding(4, output_dim=hidden))


def custom_builder(theta, x):
    return nn.Sequential(nn.Linear(x.shape[1], 5), nn.Tanh(), nn.Linear(5, theta.shape[1]))


@pytest.mark.parametrize(
    ("build", "why"),
    [(embedding_builder(), "embedding_net is a .*FCEmbedding"), (custom_builder, "custom_builder")],
)
def test_a_builder_that_cannot_be_described_is_asked_for(build, why, tmp_path):
    """The error says what stood in the way; with build= the estimator comes back bit for bit."""
    inputs = batches()
    network = save(tmp_path, build, inputs)
    with pytest.raises(CheckpointError, match=rf"{why}.*Pass build="):
        load_estimator(tmp_path)
    loaded = load_estimator(tmp_path, build=build)
    if build is custom_builder:
        assert torch.equal(loaded(inputs[1]), network(inputs[1]))
    else:
        assert torch.equal(values(loaded, inputs), values(network, inputs))


@pytest.mark.parametrize(
    "other",
    [
        embedding_builder(hidden=7),
        lambda theta, x: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)),
    ],
)
def test_a_builder_of_another_network_is_refused(other, tmp_path):
    """Also where the weights would fit and only a layer without weights is another."""
    save(tmp_path, custom_builder, batches())
    with pytest.raises(CheckpointMismatchError, match="is not the one that was trained"):
        load_estimator(tmp_path, build=other)


def test_a_directory_without_weights_or_description_says_so(tmp_path):
    """The error tells what is missing."""
    with pytest.raises(CheckpointError, match=r"no best\.pt"):
        load_estimator(tmp_path)
    path = write_run(tmp_path / "run")
    with pytest.raises(CheckpointError, match="does not describe the network"):
        load_estimator(path)


def test_a_description_is_plain_json_and_names_no_code():
    """What is not one of sbi's factories is refused when it is read, too."""
    description = describe_network(posterior_nn("maf"), *batches())
    description["builder"]["function"] = "__import__"
    with pytest.raises(CheckpointError, match="no function __import__"):
        rebuild_network(description)


def test_a_run_is_read_back(tmp_path):
    """Manifest, metrics and summary are what was written, infinities included."""
    path = write_run(tmp_path)
    run = load_run(path)
    assert run.status == "complete"
    assert run.manifest["method"] == "NPE_C"
    assert run.metrics[1] == {"epoch": 2, "training_loss": 0.5}
    assert run.summary == SUMMARY
    assert run.summary.validation_loss[0] == math.inf


def test_a_run_can_be_read_while_it_is_written(tmp_path):
    """A line that is not finished yet is left out, and the lock does not matter."""
    with RunDirectory.open(tmp_path) as directory:
        directory.write_manifest({"status": "running"})
        directory.append_metrics({"epoch": 1, "validation_loss": math.nan})
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"epoch": 2, "vali')
        run = load_run(tmp_path)
    assert run.status == "running"
    assert run.summary is None
    assert [row["epoch"] for row in run.metrics] == [1]
    assert math.isnan(run.metrics[0]["validation_loss"])


def test_rounds_are_read_in_their_order(tmp_path):
    """round-10 comes after round-2, and the estimator is that of the last round."""
    for number in (2, 10, 0):
        write_run(tmp_path / f"round-{number}", iterations=(number + 1,))
    run = load_run(tmp_path)
    assert [r.path.name for r in run.rounds] == ["round-0", "round-2", "round-10"]
    assert run.status == "complete"
    save(tmp_path / "round-11", posterior_nn("maf"), batches())
    assert load_estimator(tmp_path).input_shape == (3,)


def test_where_there_is_no_run_the_error_says_so(tmp_path):
    """An empty or missing folder is not a run."""
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(CheckpointError, match="holds no run"):
            load_run(path)


def test_metrics_of_a_complete_run_that_were_changed_are_noticed(tmp_path):
    """A changed digit is not taken for a result."""
    path = write_run(tmp_path)
    file = path / "metrics.jsonl"
    file.write_text(file.read_text().replace("0.5", "0.4"))
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl is not what the run wrote"):
        load_run(path)


def test_weights_without_description_can_be_read_by_hand(tmp_path):
    """For modules that no trainer of sbi made."""
    path = write_run(tmp_path)
    with RunDirectory.open(path) as directory:
        best = directory.read_best()
    wanted = states_at(3)["best_weights"]
    assert best["epoch"] == wanted["epoch"]
    assert torch.equal(best["weights"]["weight"], wanted["weights"]["weight"])


def test_a_file_of_a_run_is_not_taken_for_its_directory(tmp_path):
    write_run(tmp_path / "run", (1,))
    with pytest.raises(CheckpointError, match="expected the directory of a run, got a file"):
        load_run(tmp_path / "run" / "run.json")
