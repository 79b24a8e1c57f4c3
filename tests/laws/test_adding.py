"""Adding a method, a stopping rule or a logger takes the files that CONTRIBUTING names."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path

import pytest
import sbi

from tests.small import ROOT, python

SBIS_TRAINER = """
from dataclasses import dataclass

import torch
from sbi.inference.trainers._contracts import LossArgsNRE
from sbi.inference.trainers.nre.nre_base import RatioEstimatorTrainer


@dataclass(frozen=True, kw_only=True)
class SbiLossArgs(LossArgsNRE):
    temperature: float


class Tempered(RatioEstimatorTrainer):
    def train(
        self, num_atoms: int = 4, temperature: float = 1.0, max_num_epochs: int = 2**31 - 1,
        stop_after_epochs: int = 20,
    ):
        args = SbiLossArgs(num_atoms=num_atoms, temperature=temperature)
        return super().train(
            loss_kwargs=args, max_num_epochs=max_num_epochs, stop_after_epochs=stop_after_epochs
        )

    def _loss(self, theta, x, num_atoms, temperature):
        logits = self._classifier_logits(theta, x, num_atoms).reshape(len(theta), num_atoms)
        logits = logits / temperature
        return -torch.mean(logits[:, 0] - torch.logsumexp(logits, dim=-1))
"""
METHOD = '''
"""Ratio estimation with a temperature."""

from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field

from sbi_ignite.methods.base import ClassifierLogits, LossArgs, Method, TrainerView


class LossArgsTempered(LossArgs):
    """Loss arguments of Tempered."""

    num_atoms: int = Field(default=4, ge=2, description="Pairs in one classification.")
    temperature: float = Field(default=1.0, gt=0, description="Divides the logits.")


@dataclass(frozen=True)
class TemperedLoss:
    classifier_logits: ClassifierLogits
    num_atoms: int
    temperature: float

    def __call__(self, model: Any, batch: Any) -> torch.Tensor:
        theta, x = batch[0], batch[1]
        logits = self.classifier_logits(theta, x, self.num_atoms)
        logits = logits.reshape(len(theta), self.num_atoms) / self.temperature
        return -torch.mean(logits[:, 0] - torch.logsumexp(logits, dim=-1))


def _loss(trainer: TrainerView) -> TemperedLoss:
    args = trainer.arguments
    return TemperedLoss(trainer.classifier_logits, args.num_atoms, args.temperature)


TEMPERED = Method(LossArgsTempered, _loss, rows_needed=4)
'''
RULE = '''
"""Stop when the validation loss is low enough."""

from sbi_ignite.callback import TrainingState, watched_loss
from sbi_ignite.handlers.rules.base import PlainState, WithoutPatience
from sbi_ignite.settings import EarlyStopping


class LossBelow(WithoutPatience, PlainState):
    limits = frozenset({"target"})
    reason = "rule"

    def __init__(self, target: float) -> None:
        self.target = target

    def should_stop(self, state: TrainingState) -> bool:
        return watched_loss(state) < self.target

    def already_stopped(self, state: TrainingState) -> bool:
        return state.epoch > 0 and self.should_stop(state)


def make(asked: EarlyStopping, smoothing: float) -> LossBelow:
    return LossBelow(asked.target)
'''
LOGGER = '''
"""Write the losses to a table of comma-separated values."""

from pathlib import Path
from typing import Any

from sbi_ignite.loggers.base import Backend, EpochRow


class Csv(Backend):
    name = "csv"

    def __init__(self, *, log_dir: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._path = Path(log_dir) / "losses.csv"

    def log_epoch(self, row: EpochRow) -> None:
        with self._path.open("a") as file:
            file.write(f"{row.step},{row.values['validation_loss']}\\n")
'''
TABLES = {
    "a method": (
        "tempered.py",
        METHOD,
        {
            "TRAINERS: dict[str, Row] = {\n": "TRAINERS: dict[str, Row] = {\n"
            '    "Tempered": Row("tempered", "TEMPERED", "LossArgsTempered"),\n'
        },
    ),
    "a stopping rule": (
        "loss_below.py",
        RULE,
        {
            "Kind = Literal[": 'Kind = Literal["loss_below", ',
            '    "never": (),\n': '    "never": (),\n    "loss_below": ("target",),\n',
            "    @property\n": '    target: float = Field(default=0.0, description="Limit.")\n\n'
            "    @classmethod\n    def loss_below(cls, target: float = 0.0) -> Self:\n"
            '        return cls(kind="loss_below", target=target)\n\n    @property\n',
        },
    ),
    "a logger": (
        "csv.py",
        LOGGER,
        {
            "Backend = Literal[": 'Backend = Literal["csv", ',
            '    "none": (),\n': '    "none": (),\n    "csv": ("log_dir",),\n',
        },
    ),
}
"""Name of the page, its text, and what to replace in the file that names it."""

PREAMBLE = """
import json, sys, torch, warnings
import sbi.inference
from sbi.utils import BoxUniform
warnings.simplefilter("ignore")

class Silent:
    log_dir = None
    def __getattr__(self, name):
        return lambda *args, **kwargs: None

def ready(home, name="NRE_B"):
    torch.manual_seed(1)
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    trainer = getattr(home, name)(prior, "mlp", tracker=Silent(), show_progress_bars=False)
    theta = prior.sample((200,))
    return trainer.append_simulations(theta, theta + 0.3 * torch.randn_like(theta))

def weights(trainer):
    return torch.cat([p.flatten() for p in trainer._neural_net.parameters()])

def train(trainer, *args, **kwargs):
    torch.manual_seed(2)
    trainer.train(*args, **kwargs)
    return weights(trainer)

if hasattr(sbi.inference, "Tempered"):
    keywords = {"temperature": 3.0, "max_num_epochs": 2}
    plain = train(ready(sbi.inference, "Tempered"), **keywords)
import sbi_ignite
from sbi_ignite import EarlyStopping, LoggingConfig, TrainConfig, patch_sbi
"""
PROGRAMS = {
    "a method": """
import sbi_ignite.inference
from sbi_ignite import LossArgsNRE, LossArgsTempered
from sbi_ignite.bridge.losses import loss_of

ours = ready(sbi_ignite, "Tempered")
assert torch.equal(train(ours, **keywords), plain)
args = type("Args", (), {"num_atoms": 4, "temperature": 3.0})
assert type(loss_of(ours, args, True)).__name__ == "TemperedLoss"
asked = TrainConfig(max_epochs=3), LossArgsTempered(temperature=3.0)
typed = train(ready(sbi_ignite, "Tempered"), *asked)
assert not torch.equal(typed, train(ready(sbi_ignite, "Tempered"), asked[0]))
with patch_sbi():
    again = train(ready(sbi.inference, "Tempered"), *asked)
assert torch.equal(again, typed)
assert issubclass(sbi_ignite.inference.Tempered, sbi.inference.Tempered)
try:
    ours.train(TrainConfig(), LossArgsNRE())
except TypeError as error:
    assert "LossArgsTempered" in str(error)
else:
    raise SystemExit("foreign loss arguments were taken")
""",
    "a stopping rule": """
import os

def epochs(**kwargs):
    trainer = ready(sbi_ignite)
    trainer.train(TrainConfig(max_epochs=3), **kwargs)
    return trainer.training_summary.epochs_trained, trainer.training_summary.stop_reason

assert epochs(early_stopping=EarlyStopping.loss_below(1e9)) == (1, "rule")
assert epochs(early_stopping=EarlyStopping.loss_below(-1e9)) == (3, "max_epochs")
os.environ["SBI_IGNITE_EARLY_STOPPING__TARGET"] = "1e9"
assert epochs() == (1, "rule")
del os.environ["SBI_IGNITE_EARLY_STOPPING__TARGET"]
""",
    "a logger": """
trainer = ready(sbi_ignite)
trainer.train(TrainConfig(max_epochs=3), logging=LoggingConfig("csv", log_dir=sys.argv[1]))
lines = [line.split(",") for line in open(sys.argv[1] + "/losses.csv")]
assert [int(step) for step, _ in lines] == [1, 2, 3]
assert [float(loss) for _, loss in lines] == list(trainer.training_summary.validation_loss)
from sbi_ignite.loggers import make_loggers
assert len(make_loggers([LoggingConfig("csv", log_dir=name) for name in "ab"]).backends) == 2
try:
    make_loggers([LoggingConfig("csv", log_dir=name) for name in "aa"])
except TypeError as error:
    assert "csv in a" in str(error)
else:
    raise SystemExit("the same place was taken twice")
""",
}


def said(kind: str) -> tuple[str, str]:
    """Return the folder of the page and the file that names it, by CONTRIBUTING."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = re.search(rf"^\| {kind} \| `([^`]+)` \| `([^`]+)` \|$", text, flags=re.MULTILINE)
    assert found, f"CONTRIBUTING does not say what {kind} takes"
    return found[1], found[2]


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def add(kind: str, house: Path) -> set[str]:
    """Add a dummy of a kind to a copy of the package, and return the files that this takes."""
    folder, table = said(kind)
    name, text, changes = TABLES[kind]
    page = house / folder / name
    assert not page.exists()
    page.write_text(text.lstrip(), encoding="utf-8")
    content = (house / table).read_text(encoding="utf-8")
    for before, after in changes.items():
        assert content.count(before) == 1, before
        content = content.replace(before, after)
    (house / table).write_text(content, encoding="utf-8")
    return {f"{folder}{name}", table}


@pytest.fixture(scope="module")
def with_a_new_trainer(tmp_path_factory):
    """Return a folder with a copy of sbi that has one trainer more."""
    folder = tmp_path_factory.mktemp("sbi")
    shutil.copytree(
        Path(str(sbi.__file__)).parent,
        folder / "sbi",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    inference = folder / "sbi" / "inference"
    (inference / "trainers" / "nre" / "tempered.py").write_text(SBIS_TRAINER, encoding="utf-8")
    front = inference / "__init__.py"
    line = "\nfrom sbi.inference.trainers.nre.tempered import Tempered\n"
    front.write_text(front.read_text(encoding="utf-8") + line, encoding="utf-8")
    return folder


def test_adding_one_takes_a_page_and_a_line_in_one_table(tmp_path, with_a_new_trainer):
    """No other file of a copy changes, and the new ones train for real."""
    house = tmp_path / "house"
    shutil.copytree(
        ROOT / "sbi_ignite", house / "sbi_ignite", ignore=shutil.ignore_patterns("__pycache__")
    )
    before = digests(house)
    for kind in TABLES:
        taken = add(kind, house)
        after = digests(house)
        changed = {name for name in before | after if before.get(name) != after.get(name)}
        assert changed == taken, kind
        before = after
    programs = [f"\n# --- {kind}\n{PROGRAMS[kind]}" for kind in TABLES]
    script = tmp_path / "program.py"
    script.write_text("".join([PREAMBLE, *programs]), encoding="utf-8")
    path = os.pathsep.join(map(str, (house, with_a_new_trainer)))
    done = python(str(script), str(tmp_path), PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert digests(house) == after
