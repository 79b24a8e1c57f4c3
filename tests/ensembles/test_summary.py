"""The summary says what became of every member, and how far their posteriors are apart."""

from __future__ import annotations

import json

import pytest
import torch

from sbi_ignite import (
    Callback,
    EnsembleSummary,
    NonFiniteLossError,
    SbiIgniteWarning,
)
from tests.ensembles.small import CONFIG, ensemble, maker
from tests.small import same


class Fail(Callback):
    """Raises in the members with these seeds, or makes their weights NaN."""

    def __init__(self, seeds, poison: bool = False) -> None:
        self.seeds, self.poison = set(seeds), poison

    def on_epoch_end(self, state):
        """Fail."""
        if torch.initial_seed() not in self.seeds:
            return
        if not self.poison:
            raise MemoryError("no room")
        with torch.no_grad():
            next(state.model.parameters()).fill_(float("nan"))


def seeds(*members: int) -> list[int]:
    from sbi_ignite.ensembles.seeds import member_seeds

    return [member_seeds(5, member).train for member in members]


@pytest.fixture(scope="module")
def three():
    return ensemble(members=3)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_member_with_nan_is_reported_and_the_others_are_returned(n_jobs):
    poison = [Fail(seeds(1), poison=True)]
    with pytest.warns(SbiIgniteWarning, match=r"member 1 has failed.*lower learning rate"):
        found = ensemble(members=3, callbacks=poison, n_jobs=n_jobs)
    assert len(found) == 2
    (failed,) = found.summary.failed
    assert failed.index == 1
    assert failed.error.startswith("NonFiniteLossError: ")
    assert "fit" in failed.trace
    assert found.weights == (0.5, 0.5)
    assert not found.summary.complete
    assert "failed" in str(found.summary)
    assert found.build_posterior().num_components == 2


def test_out_of_memory_says_what_to_do():
    with pytest.warns(SbiIgniteWarning, match="MemoryError: no room.*Train fewer members at a"):
        ensemble(members=2, callbacks=[Fail(seeds(0))])


def test_the_error_is_raised_if_all_members_fail():
    with pytest.raises(NonFiniteLossError):
        ensemble(callbacks=[Fail(seeds(0, 1), poison=True)])
    with pytest.raises(NonFiniteLossError):
        ensemble(callbacks=[Fail(seeds(0, 1), poison=True)], n_jobs=2)


def test_the_members_that_are_left_go_on_in_later_rounds():
    with pytest.warns(SbiIgniteWarning, match="member 0 has failed"):
        found = ensemble(members=3, callbacks=[Fail(seeds(0))])
    found.train(CONFIG.model_copy(update={"max_epochs": 4, "resume_training": True}))
    assert [member.index for member in found.summary.members] == [1, 2]
    longer = CONFIG.model_copy(update={"max_epochs": 4})
    assert all(map(same, found.trainers, ensemble(members=3, only=[1, 2], config=longer).trainers))


def test_the_summary_is_text_html_and_json(three):
    summary = three.summary
    assert isinstance(summary, EnsembleSummary)
    lines = str(summary).splitlines()
    assert lines[0].startswith("EnsembleSummary: 3 members of NPE_C, seed 5")
    assert [line.split()[:2] for line in lines[2:]] == [["member", str(i)] for i in range(3)]
    assert "<caption>EnsembleSummary: 3 members" in three._repr_html_()
    plain = json.loads(json.dumps(summary.to_dict()))
    assert [m["summary"]["epochs_trained"] for m in plain["members"]] == [3, 3, 3]
    assert repr(three).startswith("Ensemble of 3: EnsembleSummary(method='NPE_C'")


def test_the_figure_has_two_curves_and_a_best_epoch_per_member(three):
    (axes,) = three.summary.plot().axes
    lengths = [len(line.get_xdata()) for line in axes.get_lines()]
    assert lengths.count(3) == 6
    assert lengths.count(1) == 3
    assert three.summary.plot()._repr_png_().startswith(b"\x89PNG")


def test_the_spread_is_that_of_the_posteriors_and_kept_in_the_summary(three):
    before = torch.get_rng_state()
    found = three.spread(torch.zeros(1, 2), num_samples=400)
    assert torch.equal(torch.get_rng_state(), before)
    assert found == three.spread(torch.zeros(1, 2), num_samples=400)
    assert three.summary.spread == found
    assert f"{found.mean:.3f} posterior standard deviations" in str(three.summary)
    matrix = torch.tensor(found.distances)
    assert matrix.shape == (3, 3)
    assert torch.equal(matrix, matrix.T)
    pairs = matrix[torch.triu(torch.ones(3, 3), diagonal=1) == 1]
    assert pairs.mean() == pytest.approx(found.mean)
    assert 0 < found.noise < found.mean


def test_members_with_equal_weights_have_a_spread_of_nothing(three):
    from sbi_ignite.ensembles.summary import spread_of

    draws = torch.randn(500, 2).numpy()
    assert spread_of({0: draws, 1: draws}).mean == 0


def test_a_line_per_member_is_printed_where_nobody_watches(capsys):
    ensemble(maker(show_progress_bars=True))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["member 0", "member 1"]
    assert "stopped by max_epochs after epoch 3" in lines[0]
