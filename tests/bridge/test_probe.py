"""An sbi is judged by what it has, and refused by what it lacks."""

from __future__ import annotations

import importlib

import pytest
import sbi
import sbi.inference
from sbi.inference import NeuralInference

from sbi_ignite import UnsupportedSbiError, patch_sbi
from sbi_ignite.bridge import probe
from sbi_ignite.bridge.lines import line_name, sbi_0_26, sbi_0_27, sbi_main
from tests.small import python, ready


def test_the_installed_sbi_lacks_nothing():
    assert probe.missing() == []
    assert line_name() in ("0.26", "0.27", "main")


@pytest.mark.parametrize("name", ["_run_training_loop", "get_dataloaders", "_converged"])
def test_an_sbi_without_a_method_is_refused_by_its_name(name, monkeypatch):
    monkeypatch.delattr(NeuralInference, name)
    with pytest.raises(UnsupportedSbiError, match=rf"lacks .*: NeuralInference\.{name}\. Install"):
        probe.check_sbi()


def test_an_sbi_without_a_trainer_or_a_module_is_refused_by_its_name(monkeypatch):
    monkeypatch.delattr(sbi.inference, "NRE_C")
    with pytest.raises(UnsupportedSbiError, match=r"sbi\.inference\.NRE_C"):
        probe.check_sbi()
    monkeypatch.undo()
    original = importlib.import_module

    def without_contracts(name, *args):
        if name.endswith("._contracts"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return original(name, *args)

    monkeypatch.setattr(importlib, "import_module", without_contracts)
    with pytest.raises(UnsupportedSbiError, match=r"_contracts\.TrainConfig"):
        probe.check_sbi()


def test_an_error_inside_sbi_is_not_taken_for_something_that_is_missing(monkeypatch):
    def broken(name, *args):
        raise ModuleNotFoundError("No module named 'six'", name="six")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="six"):
        probe.check_sbi()


def test_an_sbi_whose_trainers_keep_their_network_elsewhere_is_refused(monkeypatch):
    monkeypatch.setattr(probe, "_ATTRIBUTES", ("_neural_net", "_renamed_net"))
    with pytest.raises(UnsupportedSbiError, match="the attribute _renamed_net of trainers"):
        probe.check_sbi()


@pytest.mark.parametrize("name", ["_run_training_loop", "_report_convergence_at_end"])
def test_an_sbi_whose_method_is_called_otherwise_is_refused(name, monkeypatch):
    def otherwise(self, everything):
        """Take other arguments than sbi's."""

    monkeypatch.setattr(NeuralInference, name, otherwise)
    with pytest.raises(UnsupportedSbiError, match=rf"NeuralInference\.{name}\("):
        probe.check_sbi()


@pytest.mark.parametrize("version", ["0.28.0", "1.0.0", "0.27.0+local"])
def test_an_unknown_version_that_has_everything_is_accepted(version, monkeypatch):
    monkeypatch.setattr(sbi, "__version__", version)
    probe.check_sbi()


@pytest.mark.parametrize("name", ["NPE_C", "MarginalTrainer"])
def test_trainers_refuse_an_sbi_that_lacks_something_before_they_build_a_network(name, monkeypatch):
    trainer = ready(name)
    monkeypatch.delattr(NeuralInference, "_describe_round")
    with pytest.raises(UnsupportedSbiError, match="_describe_round") as caught:
        trainer.train(max_num_epochs=1)
    assert isinstance(caught.value, ImportError)
    assert trainer._neural_net is None


def test_an_sbi_that_lacks_something_is_not_patched(monkeypatch):
    monkeypatch.delattr(NeuralInference, "_summarize")
    with pytest.raises(UnsupportedSbiError, match="_summarize"):
        patch_sbi()
    monkeypatch.undo()
    assert not hasattr(sbi, "training")


@pytest.mark.parametrize("module", ["sbi_ignite.inference", "sbi_ignite.bridge.patch"])
def test_an_sbi_that_lacks_something_is_refused_at_import(module):
    """Also if it is something that modules of the bridge import by name."""
    script = (
        "import sbi.inference.trainers._contracts as contracts\n"
        "del contracts.TrainConfig\n"
        f"try:\n    import {module}\n"
        "except ImportError as error:\n    print(type(error).__name__, error)\n"
    )
    done = python("-c", script)
    assert done.stdout.startswith("UnsupportedSbiError"), done.stderr[-500:]
    assert "sbi.inference.trainers._contracts.TrainConfig" in done.stdout


def test_the_line_follows_from_what_sbi_has(monkeypatch):
    """Whatever it calls itself."""

    def report_of_0_26(self, epoch, stop_after_epochs, max_num_epochs):
        """Report, in sbi 0.26.1."""

    def report_of_0_27(self, epoch, max_num_epochs):
        """Report, since sbi 0.27."""

    monkeypatch.delattr(NeuralInference, "_wrap_builder", raising=False)
    monkeypatch.setattr(NeuralInference, "_report_convergence_at_end", report_of_0_26)
    assert probe.line() is sbi_0_26
    monkeypatch.setattr(NeuralInference, "_report_convergence_at_end", report_of_0_27)
    assert probe.line() is sbi_0_27
    monkeypatch.setattr(NeuralInference, "_wrap_builder", report_of_0_27, raising=False)
    assert probe.line() is sbi_main


def test_where_sbi_has_no_pretrained_trainer_there_is_none_here():
    """The other names are all there, and patching works."""
    script = (
        "import sbi.inference\n"
        "if hasattr(sbi.inference, 'NPE_PFN'):\n    del sbi.inference.NPE_PFN\n"
        "import sbi_ignite, sbi_ignite.inference\n"
        "from sbi_ignite import *\n"
        "print(hasattr(sbi_ignite, 'NPE_PFN'), 'NPE_PFN' in sbi_ignite.__all__, NPE.__name__)\n"
        "with sbi_ignite.patch_sbi():\n    pass\n"
        "try:\n    sbi_ignite.NPE_PFN\nexcept AttributeError as error:\n    print(error)\n"
    )
    done = python("-c", script)
    first, second = done.stdout.splitlines()
    assert first == "False False NPE_C", done.stderr[-500:]
    assert "has no NPE_PFN; sbi 0.27 and later do" in second
