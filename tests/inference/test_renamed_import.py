"""Door (a): one word changed in an import."""

from __future__ import annotations

import inspect

import pytest
import sbi.inference

import sbi_ignite
import sbi_ignite.inference
from tests.small import METHODS, SBI_WARNS, python

pytestmark = SBI_WARNS

ALIASES = {"NPE": "NPE_C", "NLE": "NLE_A", "NRE": "NRE_B"}

DEPRECATED: dict[str, str] = getattr(sbi.inference, "_DEPRECATED_ALIASES", {})
"""Names that sbi 0.27 replaces; 0.26.1 still has them as plain names."""


TRAIN_NOTHING = [name for name in ("NPE_PFN",) if hasattr(sbi.inference, name)]
"""Trainers that sbi has from 0.27 on."""


@pytest.mark.parametrize("name", [*METHODS, *ALIASES, *TRAIN_NOTHING])
def test_trainers_keep_their_names_and_are_sbis(name):
    ours, sbis = getattr(sbi_ignite.inference, name), getattr(sbi.inference, name)
    assert getattr(sbi_ignite, name) is ours
    assert issubclass(ours, sbis)
    assert ours is not sbis
    assert ours.__name__ == sbis.__name__
    assert ours.__doc__.startswith(inspect.cleandoc(sbis.__doc__))


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_short_names_are_the_same_classes(alias, name):
    assert getattr(sbi_ignite, alias) is getattr(sbi_ignite, name)


@pytest.mark.parametrize("name", sorted(DEPRECATED))
def test_deprecated_names_warn_as_in_sbi_and_are_ours(name):
    canonical = DEPRECATED[name]
    with pytest.warns(FutureWarning, match=name):
        found = getattr(sbi_ignite.inference, name)
    expected = getattr(sbi_ignite.inference, canonical)
    assert found is expected
    if canonical not in ("MCABC", "SMCABC"):
        assert found.__module__.startswith("sbi_ignite")


def test_every_name_of_sbi_inference_is_there():
    """Also after `from sbi_ignite.inference import simulate_for_sbi`."""
    for name in sbi.inference.__all__:
        assert hasattr(sbi_ignite.inference, name)
        assert name in dir(sbi_ignite.inference)
    assert sbi_ignite.inference.simulate_for_sbi is sbi.inference.simulate_for_sbi
    assert sbi_ignite.inference.DirectPosterior is sbi.inference.DirectPosterior


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="NPX"):
        _ = sbi_ignite.inference.NPX
    with pytest.raises(AttributeError, match="NPX"):
        _ = sbi_ignite.NPX


@pytest.mark.parametrize(
    ("arguments", "keywords"),
    [((sbi_ignite.TrainConfig(),), {}), ((), {"early_stopping": None}), ((100,), {})],
)
@pytest.mark.skipif(not hasattr(sbi.inference, "NPE_PFN"), reason="this sbi has none")
def test_npe_pfn_refuses_arguments_because_it_trains_nothing(arguments, keywords):
    trainer = object.__new__(sbi_ignite.inference.NPE_PFN)
    with pytest.raises(TypeError, match=r"NPE_PFN\.train\(\) takes no arguments"):
        trainer.train(*arguments, **keywords)


@pytest.mark.skipif(not hasattr(sbi.inference, "NPE_PFN"), reason="this sbi has none")
def test_npe_pfn_without_arguments_does_what_sbi_does():
    ours = object.__new__(sbi_ignite.inference.NPE_PFN)
    theirs = object.__new__(sbi.inference.NPE_PFN)

    def outcome(trainer):
        try:
            return trainer.train()
        except Exception as error:
            return type(error), str(error)

    assert outcome(ours) == outcome(theirs)


@pytest.mark.slow
def test_import_survives_warnings_as_errors():
    """As sbi does, so must the import with one word changed."""
    assert python("-W", "error", "-c", "import sbi.inference").returncode == 0
    done = python("-W", "error", "-c", "import sbi_ignite.inference")
    assert done.returncode == 0, done.stderr[-500:]


@pytest.mark.filterwarnings("ignore:We discourage the use the simple interface")
def test_infer_trains_by_sbi_ignite_and_leaves_sbi_as_it_was(monkeypatch):
    import torch
    from ignite.engine import Engine

    from tests.small import box

    runs = []
    original = Engine.run

    def counting(self, *args, **kwargs):
        runs.append(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Engine, "run", counting)
    before = dict(vars(sbi.inference.NPE_C))
    posterior = sbi_ignite.inference.infer(
        lambda theta: theta + 0.1 * torch.randn_like(theta),
        box(),
        "NPE",
        num_simulations=60,
        init_kwargs={"show_progress_bars": False},
        train_kwargs={"max_num_epochs": 1},
    )
    samples = posterior.sample((2,), x=torch.zeros(1, 2), show_progress_bars=False)
    assert samples.shape == (2, 2)
    assert runs
    assert dict(vars(sbi.inference.NPE_C)) == before
