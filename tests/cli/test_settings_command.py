"""`sbi-ignite settings` says what a training would be set to, and why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sbi_ignite.settings import LoggingConfig, TrainConfig, resolve, valid_variables
from sbi_ignite.settings.sources import CONFIG, GROUPS
from tests.cli.terminal import in_terminal, piped

FILE = """
[train]
batch_size = 100
lr_schedule = {kind = "cosine", warmup_steps = 5}
[logging]
tags = {paper = "a, b", 'quoted "name"' = "line\\nbreak"}
[checkpoint]
directory = "runs/from file"
"""

VARIABLES = {
    "SBI_IGNITE_TRAIN__LEARNING_RATE": "0.003",
    "SBI_IGNITE_TRAIN__CLIP_MAX_NORM": "none",
    "SBI_IGNITE_TRAIN__MAX_TIME": "01:30:00",
    "SBI_IGNITE_TRAIN__STAGES": '[{"patience": 3}, {"lr_factor": 0.5, "max_epochs": null}]',
    "SBI_IGNITE_TRAIN__AVERAGING__KIND": "power",
    "SBI_IGNITE_TRAIN__DATALOADER_KWARGS__DROP_LAST": "true",
    "SBI_IGNITE_TRAIN__DEVICE": "cpu",
    "SBI_IGNITE_EARLY_STOPPING__MIN_LR": "1e-5",
    "SBI_IGNITE_LOGGING__BACKEND": "mlflow",
    "SBI_IGNITE_LOGGING__TRACKING_URI": "sqlite:///runs.db",
    "SBI_IGNITE_LOGGING__EVERY_N_ITERATIONS": "10",
    "SBI_IGNITE_CHECKPOINT__EVERY_SECONDS": "60",
}


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "settings.toml").write_text(FILE)
    monkeypatch.setenv(CONFIG, str(tmp_path / "settings.toml"))
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)


def listed(answer) -> dict[str, dict]:
    return {each["name"]: each for each in json.loads(answer.out)["settings"]}


def test_every_setting_is_listed_with_its_variable_and_meaning(ask):
    found = listed(ask("settings", "--json"))
    assert set(found) == {
        f"{group}.{name}" for group, c in GROUPS.items() for name in c.model_fields
    }
    for name, each in found.items():
        assert each["meaning"].endswith("."), name
        assert each["variable"] in valid_variables() or name == "early_stopping.rule"
        assert each["origin"] == "default"
    assert found["train.batch_size"]["value"] == TrainConfig().batch_size


def test_values_have_the_origin_that_won(ask, environment):
    found = listed(ask("settings", "--json"))
    assert found["train.batch_size"]["value"] == 100
    assert found["train.batch_size"]["origin"] == "file"
    assert found["train.batch_size"]["where"].endswith("settings.toml [train]")
    assert found["train.learning_rate"]["value"] == 0.003
    assert found["train.learning_rate"]["where"] == "SBI_IGNITE_TRAIN__LEARNING_RATE"
    assert found["early_stopping.min_lr"]["origin"] == "environment"
    assert found["early_stopping.kind"]["value"] == "lr_threshold"  # which min_lr implies
    assert found["logging.backend"]["value"] == "mlflow"
    assert found["train.seed"]["origin"] == "default"


def test_the_toml_file_gives_the_same_settings(ask, environment, tmp_path, monkeypatch):
    """Loaded through SBI_IGNITE_CONFIG alone, without any of the variables that it came from."""
    before, answer = resolve(), ask("settings", "--toml")
    (tmp_path / "again.toml").write_text(answer.out)
    for name in VARIABLES:
        monkeypatch.delenv(name)
    monkeypatch.setenv(CONFIG, str(tmp_path / "again.toml"))
    after = resolve()
    assert answer.err == ""
    assert after.train == before.train
    assert after.train.model_fields_set == before.train.model_fields_set
    assert after.early_stopping == before.early_stopping
    assert after.logging == before.logging
    assert after.checkpoint == before.checkpoint
    assert after.train.batch_size == 100
    assert {o.source for o in after.origins.values()} == {"file", "default"}
    assert ask("settings", "--toml").out == answer.out


def test_the_toml_file_of_defaults_sets_nothing_and_its_comments_are_valid(
    ask, tmp_path, monkeypatch
):
    """Every line that is commented out can be put in force and gives the default."""
    text = ask("settings", "--toml").out
    (tmp_path / "settings.toml").write_text(text)
    monkeypatch.setenv(CONFIG, str(tmp_path / "settings.toml"))
    assert resolve().train == TrainConfig()
    assert {origin.source for origin in resolve().origins.values()} == {"default"}
    group, tried = "", 0
    for line in text.splitlines():
        group = line if line.startswith("[") else group
        name, equals, _ = line.removeprefix("# ").partition(" = ")
        if not group or not equals or name not in GROUPS[group.strip("[]")].model_fields:
            continue
        if name in ("every_epochs", "every_seconds", "keep_last", "resume", "directory"):
            continue  # which ask for a directory
        lines = [group, line.removeprefix("# ")]
        if group == "[logging]" and name != "backend":
            lines.append(
                f'backend = "{next(b for b, f in LoggingConfig.takes.items() if name in f)}"'
            )
        (tmp_path / "settings.toml").write_text("\n".join(lines))
        assert resolve().train == TrainConfig(), line
        tried += 1
    assert tried > 35


SECRET = "hunter2hunter2"


def test_secrets_are_never_printed_and_the_file_says_what_it_leaves_out(ask, monkeypatch, tmp_path):
    monkeypatch.setenv("SBI_IGNITE_LOGGING__BACKEND", "mlflow")
    monkeypatch.setenv("SBI_IGNITE_LOGGING__TRACKING_URI", f"https://me:{SECRET}@example.org")
    monkeypatch.setenv("SBI_IGNITE_TRAIN__DATALOADER_KWARGS", f'{{"api_key": "{SECRET}"}}')
    monkeypatch.setenv("SBI_IGNITE_LOGGING__TAGS", f'{{"token": "{SECRET}"}}')
    for option in ((), ("--json",), ("--toml",)):
        answer = ask("settings", *option)
        assert answer.code == 0
        assert SECRET not in answer.out + answer.err
    for name in ("logging.tracking_uri", "train.dataloader_kwargs", "logging.tags"):
        assert f"{name} is left out of the file" in answer.err
    (tmp_path / "settings.toml").write_text(answer.out)
    monkeypatch.setenv(CONFIG, str(tmp_path / "settings.toml"))
    assert resolve().logging[0].tracking_uri.count(SECRET) == 1  # the variable still counts


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"SBI_IGNITE_TRAIN__BATCHSIZE": "1"}, "did you mean 'SBI_IGNITE_TRAIN__BATCH_SIZE'?"),
        ({"SBI_IGNITE_TRAIN__BATCH_SIZE": "many"}, "from the environment variable SBI_IGNITE_TR"),
        ({"SBI_IGNITE_CHECKPOINT__KEEP_LAST": "3"}, "expected a directory beside it"),
        ({CONFIG: "no such file.toml"}, "does not exist or is not a file"),
    ],
)
def test_a_wrong_variable_or_file_is_the_same_clear_error(ask, monkeypatch, variables, said):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    answer = ask("settings")
    assert answer.code == 2
    assert said in answer.err
    assert answer.out == ""


def test_in_a_pipe_it_is_plain_text_of_full_width(tmp_path):
    done = piped("settings", SBI_IGNITE_TRAIN__BATCH_SIZE="33", FORCE_COLOR="")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    (line,) = [ln for ln in done.stdout.splitlines() if ln.startswith("train.batch_size ")]
    assert line.split()[:4] == [
        "train.batch_size",
        "33",
        "environment",
        "SBI_IGNITE_TRAIN__BATCH_SIZE",
    ]
    assert line.endswith("Rows per optimizer step, over all processes together.")


def test_a_missing_limit_is_shown_in_words_and_stays_a_number_for_programs(ask):
    (row,) = [row for row in ask("settings").rows if row[0] == "train.max_epochs"]
    assert row[1] == "no limit"
    assert listed(ask("settings", "--json"))["train.max_epochs"]["value"] == 2**31 - 1
    assert "# max_epochs = 2147483647  # no limit\n" in ask("settings", "--toml").out
    assert "<th>max_epochs</th><td>no limit</td>" in TrainConfig()._repr_html_()


def test_every_output_says_whose_defaults_are_shown(ask):
    said = "Defaults are those of the typed form"
    in_a_pipe = ask("settings")
    assert said in in_a_pipe.err
    assert said not in in_a_pipe.out  # which programs read
    assert said in json.loads(ask("settings", "--json").out)["defaults"]
    assert f"# {said}" in ask("settings", "--toml").out
    assert said in " ".join(in_terminal("settings").text.split())


def test_a_wrong_variable_ends_the_process_with_code_2_and_no_traceback():
    done = piped("settings", SBI_IGNITE_TRAIN__BATCH_SIZE="-3")
    assert done.returncode == 2
    assert "TrainConfig.batch_size: expected a number greater than or equal to 1" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("columns", [70, 180])
def test_in_a_terminal_it_is_a_table_that_fits(columns):
    shown = in_terminal("settings", columns=columns, SBI_IGNITE_TRAIN__BATCH_SIZE="33")
    assert shown.code == 0
    assert "\x1b[" in shown.raw
    assert max(map(len, shown.text.splitlines())) <= columns
    assert "train: SBI_IGNITE_TRAIN__SETTING" in shown.text
    assert ("SBI_IGNITE_TRAIN__BATCH_SIZE" in shown.text) == (columns > 150)


def test_toml_and_json_exclude_each_other(ask):
    answer = ask("settings", "--toml", "--json")
    assert answer.code == 2
    assert "expected one of --toml and --json" in answer.err
