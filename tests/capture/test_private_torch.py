"""Where torch lacks a private name, trainings give the same bits and say what was slower."""

from __future__ import annotations

import json
import logging
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sbi_ignite import NPE, SbiIgniteWarning, TrainConfig, run_training
from sbi_ignite.capture import private_torch
from sbi_ignite.capture.executors import TorchScript
from sbi_ignite.capture.private_torch import RECORDING, REPLACED, TORCHSCRIPT
from sbi_ignite.optim import private_torch as optim_names
from tests.small import box, draw, flow, python

X = torch.linspace(-1, 1, 64).reshape(32, 2)
BATCHES = [(X[i : i + 8], X[i : i + 8].sum(dim=1, keepdim=True)) for i in range(0, 32, 8)]


KERNEL = "torch.ops.aten.add.Tensor._op"


def squared(model, batch):
    """Decide by a value, read one by index and write to a buffer: all that recordings know."""
    x, y = batch
    if not torch.isfinite(x).all():
        raise ValueError("not finite")
    return (model(x[:, torch.tensor([1, 0])]) * 2.0 - y).square().mean(dim=1)


def trained(compile="trace", checkpoint=None, callbacks=None, **config):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 8), nn.ELU(), nn.Dropout(0.1), nn.Linear(8, 1))
    config = TrainConfig(compile=compile, max_epochs=6, **config)
    model, summary = run_training(
        config, model, squared, BATCHES, BATCHES, callbacks=callbacks, checkpoint=checkpoint
    )
    return [tensor.clone() for tensor in model.state_dict().values()], summary


def same(first, second):
    return all(map(torch.equal, first[0], second[0])) and (
        first[1].training_loss == second[1].training_loss
    )


@contextmanager
def without(*names):
    """Take names away from torch, wherever they are kept."""
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            path, _, last = name.rpartition(".")
            owner = private_torch.found(path) if path != "torch" else torch
            owners = [owner, *type(owner).__mro__]  # a method is kept by classes
            for keeper in [keeper for keeper in owners if last in getattr(keeper, "__dict__", ())]:
                patch.delattr(keeper, last)
        yield


@pytest.fixture(scope="module")
def whole():
    """Return what a torch that lacks nothing gives, by setting of `compile`."""
    return {compile: trained(compile) for compile in ("trace", "off")}


def test_every_private_name_is_there_to_be_taken_away():
    """Otherwise the tests below would show nothing; with an older torch, some may be missing."""
    names = [*RECORDING, *TORCHSCRIPT, *REPLACED]
    assert len(names) == len(set(names)) > 20
    if torch.__version__.startswith("2.13."):
        assert [name for name in names if private_torch.found(name) is None] == []


@pytest.mark.parametrize("name", TORCHSCRIPT)
def test_without_a_name_of_torchscript_recordings_run_as_generated_python(name, whole, caplog):
    assert (whole["trace"][1].executor, whole["trace"][1].executor_reason) == ("torchscript", "")
    with without(name):
        assert name in TorchScript().missing()
        generated = trained()
    assert generated[1].executor == "generated_python"
    assert name in generated[1].executor_reason
    assert same(whole["trace"], generated)
    said = [r for r in caplog.records if r.levelno == logging.WARNING and name in r.message]
    assert len(said) == 1


def test_an_interpreter_that_fails_or_computes_something_else_is_not_used(whole, monkeypatch):
    def broken(*args):
        raise RuntimeError("was removed")

    monkeypatch.setattr(torch._C, "_create_function_from_graph", broken)
    generated = trained()
    assert "was removed" in generated[1].executor_reason
    assert generated[1].executor == "generated_python"
    assert same(whole["trace"], generated)
    wrong = lambda *args: lambda *tensors: (torch.tensor(4.0),)  # noqa: E731
    monkeypatch.setattr(torch._C, "_create_function_from_graph", wrong)
    generated = trained()
    assert "something else" in generated[1].executor_reason
    assert same(whole["trace"], generated)


@pytest.mark.parametrize("name", sorted({*REPLACED} - {KERNEL}))
def test_without_a_name_that_is_replaced_steps_are_recorded_all_the_same(name, whole):
    with without(name):
        replaced = trained()
    assert replaced[1].executor == "torchscript", replaced[1].executor_reason
    assert same(whole["trace"], replaced)


def test_an_operation_without_a_function_of_its_own_is_called_itself():
    """Torch itself could not call one, so that none can be taken away."""
    operation = torch.ops.aten.add.Tensor
    assert private_torch.kernel_of(operation) is not operation
    assert private_torch.kernel_of(len) is len


@pytest.mark.parametrize("name", RECORDING)
def test_without_a_name_that_recording_needs_steps_are_eager_and_say_why(name, whole):
    with without(name):
        with pytest.warns(SbiIgniteWarning, match="compile='trace': torch .* has no"):
            eager = trained()
        assert eager[1].executor == "eager"
        assert name in eager[1].executor_reason
        assert same(whole["off"], eager)


@pytest.mark.parametrize("name", [*private_torch.HOOKS])
def test_where_hooks_cannot_be_seen_nothing_is_recorded(name, monkeypatch):
    """A hook that is not seen would not run in a recording."""
    monkeypatch.setattr(private_torch, "HOOKS", (*private_torch.HOOKS, f"{name}_elsewhere"))
    assert f"{name}_elsewhere" in private_torch.cannot_record()


@contextmanager
def hidden(name):
    """Hide a name of torch from what steps on flat memory; torch's own optimizers need it."""
    path, _, last = name.rpartition(".")
    with pytest.MonkeyPatch.context() as patch:
        for kept, module in (("torch", torch), ("torch_optimizer", optim_names.torch_optimizer)):
            if module.__name__ in (path, path.rpartition(".")[0]):
                names = {n: value for n, value in vars(module).items() if n != last}
                if path == "torch._utils":
                    names["_utils"] = None
                patch.setattr(optim_names, kept, SimpleNamespace(**names))
        yield


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
@pytest.mark.parametrize("name", optim_names.NAMES)
def test_optimizers_step_to_the_same_numbers_without_a_private_name(optimizer, name, caplog):
    """And say so where their steps are slower for it."""
    settings = {"optimizer": optimizer, "weight_decay": 0.1, "ema_decay": 0.9}
    whole = trained("off", **settings)
    with hidden(name):
        lacking = trained("off", **settings)
    for first, second in zip(whole[0], lacking[0], strict=True):
        # torch's fused kernel rounds the end of a tensor in its own way, and a tensor's own end
        # is not that of a flat one.
        assert torch.allclose(first, second, rtol=1e-5, atol=1e-7)
    slower = name.endswith(("_hooks", "_foreach_copy_"))
    assert (name in lacking[1].executor_reason) == slower
    assert any(name in record.message for record in caplog.records) == slower


@pytest.mark.parametrize("name", optim_names.NAMES)
def test_what_hides_a_name_hides_it(name):
    """Otherwise the test above would pass without showing anything."""
    path, _, last = name.rpartition(".")
    with hidden(name):
        seen = {"torch": optim_names.torch, "torch._utils": optim_names.torch._utils}
        assert not hasattr(seen.get(path, optim_names.torch_optimizer), last)


PROGRAM = """
import hashlib, json, sys
import torch
import ignite.engine
import sbi.inference
from sbi.utils import BoxUniform

taken, folder = json.loads(sys.argv[1]), sys.argv[2]
if any("_python_dispatch" in name for name in taken):
    import torch._dynamo  # torch's optimizers import it, and it needs every name

def gone(*args, **kwargs):
    raise RuntimeError("torch.jit is no more")

for name in taken:
    owner, _, last = name.rpartition(".")
    module = torch
    for part in owner.split(".")[1:]:
        module = getattr(module, part)
    delattr(module, last)
if taken:
    torch.jit.trace = torch.jit.script = torch.jit.freeze = gone

from sbi_ignite import NPE, TrainConfig

def train(form, **settings):
    torch.manual_seed(0)
    prior = BoxUniform(-2 * torch.ones(2), 2 * torch.ones(2))
    theta = prior.sample((300,))
    x = theta + 0.1 * torch.randn_like(theta)
    trainer = NPE(prior, show_progress_bars=False).append_simulations(theta, x)
    print(form, file=sys.stderr)
    trainer.train(*settings.pop("config", ()), checkpoint=f"{folder}/{form}", **settings)
    summary = trainer.training_summary
    weights = b"".join(v.numpy().tobytes() for v in trainer._neural_net.state_dict().values())
    return {
        "weights": hashlib.sha256(weights).hexdigest(),
        "losses": summary.validation_loss,
        "executor": summary.executor,
        "executor_reason": summary.executor_reason,
        "words": str(summary),
    }

print(json.dumps({
    "sbi": train("sbi", max_num_epochs=13, training_batch_size=50),
    "typed": train("typed", config=[TrainConfig(max_epochs=14, batch_size=50)]),
}))
"""

NEEDED_BY_TORCH = ("torch.ops.", "torch._C.DispatchKey.", "torch.jit.ScriptModule")
"""Names without which torch's own modules do not work."""


def run(taken, folder):
    """Return what both forms leave behind, and what was said during each."""
    done = python("-c", PROGRAM, json.dumps(taken), str(folder))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr.partition("typed\n")[::2]


@pytest.fixture(scope="module")
def unharmed(tmp_path_factory):
    """Return what a torch that lacks nothing gives, by form."""
    return run([], tmp_path_factory.mktemp("whole"))[0]


@pytest.mark.parametrize(
    ("taken", "executor"),
    [
        pytest.param([*TORCHSCRIPT, *REPLACED], "generated_python", id="no torch.jit"),
        pytest.param([*TORCHSCRIPT, *RECORDING], "eager", id="nothing"),
    ],
)
def test_a_torch_without_private_names_imports_trains_the_same_and_says_so(
    taken, executor, unharmed, tmp_path
):
    """In a fresh process, before anything of this package is imported."""
    found, said = run([n for n in taken if not n.startswith(NEEDED_BY_TORCH)], tmp_path)
    for form, words in zip(("sbi", "typed"), said, strict=True):
        whole, lacking = unharmed[form], found[form]
        assert (whole["executor"], whole["executor_reason"]) == ("torchscript", "")
        assert lacking["weights"] == whole["weights"]
        assert lacking["losses"] == whole["losses"]
        manifest = json.loads((tmp_path / form / "run.json").read_text())
        summary = json.loads((tmp_path / form / "summary.json").read_text())["summary"]
        for record in (lacking, manifest, summary):
            assert record["executor"] == executor
            assert "has no torch." in record["executor_reason"]
        assert f"{executor} (torch" in lacking["words"]
        for reason in lacking["executor_reason"].split("; optimizer: "):
            assert words.count(reason) == 1  # one line each


def keeping_more(patch):
    """Let torch's Adam keep one number more for each parameter, as another version of it might."""
    before = torch.optim.Adam._init_group

    def more(self, *arguments):
        found = before(self, *arguments)
        for state in self.state.values():
            state.setdefault("another", 0)
        return found

    patch.setattr(torch.optim.Adam, "_init_group", more)


def wrapped(patch):
    """Let torch's Adam step by way of a function from elsewhere."""
    before = torch.optim.Adam.step
    patch.setattr(torch.optim.Adam, "step", lambda self, closure=None: before(self, closure))


@pytest.mark.parametrize(
    ("change", "said"),
    [(keeping_more, "keeps other numbers (another, exp_avg"), (wrapped, "Adam.step is not torch")],
)
def test_where_torchs_adam_is_another_its_own_steps_are_taken_and_the_summary_says_so(
    change, said, monkeypatch, caplog
):
    whole = trained("off")
    change(monkeypatch)
    another = trained("off")
    for first, second in zip(whole[0], another[0], strict=True):
        assert torch.allclose(first, second, rtol=1e-5, atol=1e-7)  # see above
    assert said in another[1].executor_reason
    assert said in " ".join(str(another[1]).split())
    assert [record.levelno for record in caplog.records if said in record.message] == [30]


def test_an_adam_that_its_user_has_told_to_do_more_is_not_slower_than_asked(caplog):
    """Where a setting of the user's own rules out flat memory, there is nothing to say."""
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters(), amsgrad=True)
    config = TrainConfig(compile="off", max_epochs=2)
    _, summary = run_training(config, model, squared, BATCHES, optimizer=optimizer)
    assert summary.executor_reason == "compile='off'"
    assert caplog.records == []


class OwnEpoch(NPE):
    """A trainer with an epoch of its own."""

    def _train_epoch(self, *args, **kwargs):
        return super()._train_epoch(*args, **kwargs)


def with_own_epoch(compile, tmp_path):
    trainer = OwnEpoch(box(), density_estimator=flow(), show_progress_bars=False)
    trainer.append_simulations(*draw())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SBI_IGNITE_TRAIN__COMPILE", compile)
        trainer.train(max_num_epochs=2, training_batch_size=20, checkpoint=str(tmp_path))
    return trainer.training_summary


@pytest.mark.filterwarnings("ignore:Maximum number of epochs:UserWarning")
def test_an_epoch_method_of_the_trainers_own_is_a_reason_that_is_given(tmp_path, caplog):
    caplog.set_level(logging.INFO, "sbi_ignite.capture")
    reason = "the trainer's own epoch method was asked"
    summary = with_own_epoch("auto", tmp_path)
    manifest = json.loads((tmp_path / "run.json").read_text())
    assert (summary.executor, summary.executor_reason) == ("eager", reason)
    assert (manifest["executor"], manifest["executor_reason"]) == ("eager", reason)
    assert len([record for record in caplog.records if reason in record.message]) == 1


@pytest.mark.filterwarnings("ignore:Maximum number of epochs:UserWarning")
def test_a_trainer_with_its_own_epoch_method_warns_if_tracing_was_asked_for(tmp_path):
    with pytest.warns(SbiIgniteWarning, match="compile='trace': the trainer's own epoch method"):
        assert with_own_epoch("trace", tmp_path).executor == "eager"


def test_a_network_that_is_not_known_is_a_reason_that_is_given_and_logged(caplog):
    caplog.set_level(logging.INFO, "sbi_ignite.capture")
    summary = trained("auto")[1]
    assert summary.executor == "eager"
    said = [record for record in caplog.records if summary.executor_reason in record.message]
    assert len(said) == 1


def test_the_manifest_of_a_training_that_failed_says_how_its_steps_were_computed(tmp_path):
    class Fails:
        def on_epoch_end(self, state):
            if state.epoch == 4:
                raise OSError("gone")

    name = next(iter(TORCHSCRIPT))
    with without(name), pytest.raises(OSError, match="gone"):
        trained(checkpoint=str(tmp_path), callbacks=[Fails()])
    manifest = json.loads((tmp_path / "run.json").read_text())
    assert manifest["status"] == "failed"
    assert manifest["executor"] == "generated_python"
    assert name in manifest["executor_reason"]


def test_batches_whose_structure_cannot_be_hashed_are_traced_all_the_same(monkeypatch):
    """As torch 2.6 has it for lists, which torch's own loaders yield."""
    batches = [list(batch) for batch in BATCHES]

    def trained_on_lists():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 8), nn.ELU(), nn.Linear(8, 1))
        config = TrainConfig(compile="trace", max_epochs=6)
        model, summary = run_training(config, model, squared, batches, batches)
        return [tensor.clone() for tensor in model.state_dict().values()], summary

    whole = trained_on_lists()
    structure = private_torch.pytree.tree_structure(batches[0])
    monkeypatch.setattr(type(structure), "__hash__", None)
    with pytest.raises(TypeError, match="unhashable"):
        hash(structure)
    unhashable = trained_on_lists()
    assert unhashable[1].executor == whole[1].executor == "torchscript"
    assert same(whole, unhashable)


def test_tensors_without_numbers_keep_their_shapes(monkeypatch):
    """Torch 2.6 parts a flat tensor into (0,) for each of them."""
    before = torch._utils._unflatten_dense_tensors

    def as_torch_2_6(flat, like):
        return [t if t.numel() else t.new_empty(0) for t in before(flat, like)]

    monkeypatch.setattr(torch._utils, "_unflatten_dense_tensors", as_torch_2_6)
    like = [torch.ones(2, 2), torch.ones(0, 3), torch.ones(0), torch.ones(3, 0, 2)]
    parts = optim_names.parted(torch.arange(4.0), like)
    assert [part.shape for part in parts] == [tensor.shape for tensor in like]
