"""Run directories that earlier builds have written load, and continue as with those builds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from sbi_ignite import load_estimator, load_run
from tests.runs.earlier_builds import FORMS, conditions, result, train, weights

KEPT = Path(__file__).parent / "data"
BUILDS = sorted(path.name for path in KEPT.iterdir() if path.is_dir())
FORMS_OF_BUILDS = [(build, form) for build in BUILDS for form in FORMS]

pytestmark = [
    pytest.mark.filterwarnings("ignore:Maximum number of epochs:UserWarning"),
    # Another Python or torch than the one that wrote the run is a reason to say so.
    pytest.mark.filterwarnings("ignore:.*continues under other conditions"),
]


def expected_of(build: str) -> dict[str, object]:
    return json.loads((KEPT / build / "expected.json").read_text(encoding="utf-8"))


def copied(build: str, name: str, place: Path) -> Path:
    return Path(shutil.copytree(KEPT / build / name, place / name))


def check(found: dict, expected: dict, exact: bool) -> None:
    """Compare results, up to rounding where processor, torch or build may round differently."""
    if exact:
        assert found == expected
        return
    for name in ("training_loss", "validation_loss"):
        assert found[name] == pytest.approx(expected[name], rel=1e-4)
    assert found["weights"].keys() == expected["weights"].keys()
    for name, value in expected["weights"].items():
        got = torch.tensor(found["weights"][name], dtype=torch.float64)
        torch.testing.assert_close(
            got, torch.tensor(value, dtype=torch.float64), rtol=1e-3, atol=1e-4
        )


def test_there_are_run_directories_of_earlier_builds():
    assert "92c9f48" in BUILDS


@pytest.mark.parametrize(("build", "form"), FORMS_OF_BUILDS)
def test_a_killed_run_continues_as_with_the_build_that_wrote_it(build, form, tmp_path):
    expected = expected_of(build)
    run = copied(build, f"{form}-killed", tmp_path)
    assert load_run(run).summary is None
    epochs_done = len(load_run(run).metrics)
    trainer = train(form, run)
    assert 0 < trainer.training_summary.resumed_from_epoch <= epochs_done
    # The typed form may take other arithmetic from one build to the next; sbi's form may not.
    exact = form == "sbi" and expected["conditions"] == conditions()
    check(result(trainer), expected[form], exact)


@pytest.mark.parametrize(("build", "form"), FORMS_OF_BUILDS)
def test_a_complete_run_is_read_and_returned_without_training(build, form, tmp_path):
    expected = expected_of(build)
    run = copied(build, f"{form}-complete", tmp_path)
    assert load_run(run).summary.epochs_trained == 12
    assert list(load_run(run).summary.training_loss) == expected[form]["training_loss"]
    loaded = load_estimator(run).state_dict()
    kept = {name: torch.tensor(value) for name, value in expected[form]["weights"].items()}
    assert loaded.keys() == kept.keys()
    assert all(torch.equal(loaded[name].to(kept[name].dtype), kept[name]) for name in kept)
    trainer = train(form, run)
    assert trainer.training_summary.resumed_from_epoch == 12
    assert all(torch.equal(weights(trainer)[name], loaded[name]) for name in loaded)


@pytest.mark.parametrize("build", BUILDS)
def test_what_is_kept_names_no_place_of_the_machine_that_wrote_it(build):
    files = [path for path in (KEPT / build).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 500_000
    assert not [path for path in files if path.name == ".lock"]
    for path in files:
        content = path.read_bytes()
        assert not [word for word in (b"/home", b"/root", b"/tmp", b"/work") if word in content]
