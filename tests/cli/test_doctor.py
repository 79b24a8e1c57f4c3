"""`sbi-ignite doctor` finds what works here, what does not, and how fast it is."""

from __future__ import annotations

import http.server
import json
import re
import threading
from pathlib import Path

import pytest
import torch

from sbi_ignite.cli import checks
from sbi_ignite.cli.measure import Problem, known_networks, measure
from sbi_ignite.settings import resolve
from tests.cli.terminal import in_terminal, piped

SMALL = ("--rows", "300", "--batch-size", "50", "--dim-theta", "2", "--dim-x", "2")
SECRET = "0123456789abcdef0123456789abcdef01234567"


def findings(text: str) -> dict[tuple[str, str], dict]:
    return {(each["section"], each["name"]): each for each in json.loads(text)["findings"]}


@pytest.mark.slow
def test_a_healthy_machine_is_code_0_with_versions_devices_loggers_and_speed(tmp_path):
    """In a process of its own, which leaves no files behind."""
    variables = {"HOME": str(tmp_path), "WANDB_MODE": "offline"}
    done = piped("doctor", *SMALL, "--seconds", "1", "--json", **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    answer, found = json.loads(done.stdout), findings(done.stdout)
    assert answer["ok"]
    assert found["versions", "torch"]["version"] == torch.__version__
    assert found["versions", "sbi"]["supported"] is True
    assert found["devices", "cpu"]["cores"] >= 1
    assert found["loggers", "wandb"]["text"].endswith("offline, which needs no login")
    assert found["loggers", "tensorboard"]["works"]
    assert found["steps", "cpu"]["executor"] == "torchscript"
    assert answer["speed"]["cpu"]["seconds_per_epoch"] > 0
    if not torch.cuda.is_available():
        assert answer["speed"]["faster"] == "cpu"
        assert found["speed", "faster device"]["text"].startswith("cpu, since there is no")
    assert not list(Path().glob("*.db"))
    assert not Path("sbi-logs").exists()


@pytest.mark.slow
def test_in_a_pipe_it_is_a_plain_table():
    done = piped("doctor", "--no-measure")
    assert "\x1b" not in done.stdout
    assert done.stdout.splitlines()[0].split() == ["section", "name", "status", "found"]


@pytest.fixture
def without_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the slowest part where it is not what a test is about."""
    monkeypatch.setattr(checks, "_PROBES", {"tensorboard": "found = {'version': '1'}"})


def test_the_last_words_say_what_all_findings_amount_to(ask, monkeypatch, without_backends):
    """In a pipe beside the table, which programs read."""
    answer = ask("doctor", "--no-measure")
    assert answer.err.startswith("sbi-ignite: Trainings work here.")
    assert answer.rows[-1][:3] == ["steps", "recording", "ok"]
    monkeypatch.setenv("SBI_IGNITE_TRAIN__DEVICE", "cuda:7")
    answer = ask("doctor", "--no-measure")
    assert answer.code == 1
    assert answer.err.startswith("sbi-ignite: Broken: devices cuda:7.")


def test_every_way_to_compute_steps_has_its_words():
    from sbi_ignite.capture import executors
    from sbi_ignite.cli.doctor import _EXECUTORS

    pages = Path(executors.__path__[0]).glob("*.py")
    names = {
        n for p in pages for n in re.findall(r'^    name = "(\w+)"', p.read_text(), re.MULTILINE)
    }
    assert len(names) >= 4
    assert names | {"eager"} == _EXECUTORS.keys()


@pytest.mark.slow
def test_in_a_terminal_the_findings_and_the_last_words_fit():
    """Who has a login or a server is not what this asks."""
    shown = in_terminal("doctor", "--no-measure", columns=80, WANDB_MODE="offline")
    assert shown.code == 0
    assert "pytorch-ignite" in shown.text
    assert "Trainings work here." in shown.text
    lines = [line for line in shown.text.splitlines() if "asking the loggers" not in line]
    assert max(map(len, lines)) <= 80


def test_a_wrong_setting_is_a_finding_and_code_1(ask, monkeypatch, without_backends):
    monkeypatch.setenv("SBI_IGNITE_TRAIN__BATCH_SIZE", "many")
    answer = ask("doctor", "--no-measure", "--json")
    assert answer.code == 1
    assert not json.loads(answer.out)["ok"]
    found = findings(answer.out)["settings", "variables and file"]
    assert found["status"] == "broken"
    assert "SBI_IGNITE_TRAIN__BATCH_SIZE" in found["text"]


def test_a_device_that_the_settings_ask_for_and_that_is_missing_is_code_1(
    ask, monkeypatch, without_backends
):
    monkeypatch.setenv("SBI_IGNITE_TRAIN__DEVICE", "cuda:7")
    answer = ask("doctor", "--no-measure", "--json")
    assert answer.code == 1
    assert findings(answer.out)["devices", "cuda:7"]["status"] == "broken"


def test_an_sbi_that_lacks_something_is_code_1(ask, monkeypatch, without_backends):
    from sbi_ignite.bridge import probe

    monkeypatch.setattr(probe, "_METHODS", (*probe._METHODS, "no_such_method"))
    answer = ask("doctor", "--no-measure", "--json")
    assert answer.code == 1
    found = findings(answer.out)["versions", "sbi"]
    assert found["status"] == "broken"
    assert found["lacks"] == ["NeuralInference.no_such_method"]


def test_a_package_that_does_not_import_is_a_finding(monkeypatch, tmp_path):
    (tmp_path / "numpy_broken.py").write_text("raise OSError('libfoo.so: no such file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(checks, "_NEEDED", ("numpy_broken",))
    (_, found) = checks.versions()
    assert found.status == "broken"
    assert found.text == "cannot be imported: OSError: libfoo.so: no such file"


def test_a_version_outside_the_range_is_noted():
    found = checks._version("torch", "1.0", ">=2.6")
    assert (found.status, found.details["supported"]) == ("note", False)
    assert checks._version("torch", "2.9.0+cpu", ">=2.6").details["supported"] is True


# --- loggers, each asked in a real process


def asked(monkeypatch: pytest.MonkeyPatch, backend: str, **variables: str) -> checks.Finding:
    """Return the finding on a backend that the settings ask for."""
    monkeypatch.setattr(checks, "_PROBES", {backend: checks._PROBES[backend]})
    monkeypatch.setenv("SBI_IGNITE_LOGGING__BACKEND", backend)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return checks.loggers(resolve())[-1]


def test_wandb_without_a_login_is_broken_if_it_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    found = asked(monkeypatch, "wandb", HOME=str(tmp_path), NETRC=str(tmp_path / "netrc"))
    assert found.status == "broken"
    assert "not logged in: run `wandb login`" in found.text
    again = asked(monkeypatch, "wandb", SBI_IGNITE_LOGGING__MODE="offline")
    assert again.status == "ok"


@pytest.mark.parametrize("by", ["variable", "netrc"])
def test_a_login_of_wandb_is_seen_and_its_key_is_never_shown(monkeypatch, tmp_path, by):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine api.wandb.ai\n  login user\n  password {SECRET}\n")
    netrc.chmod(0o600)
    variables = {"NETRC": str(netrc)} if by == "netrc" else {"WANDB_API_KEY": SECRET}
    found = asked(monkeypatch, "wandb", HOME=str(tmp_path / "home"), **variables)
    assert found.status == "ok"
    assert found.text.endswith(", logged in")
    assert SECRET not in str(found.to_dict())


class Healthy(http.server.BaseHTTPRequestHandler):
    """MLflow's answer to /health."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 500)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_an_mlflow_server_that_answers_is_told_from_one_that_does_not(monkeypatch):
    server = http.server.HTTPServer(("127.0.0.1", 0), Healthy)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    uri = f"http://user:{SECRET}@127.0.0.1:{server.server_port}"
    try:
        found = asked(monkeypatch, "mlflow", SBI_IGNITE_LOGGING__TRACKING_URI=uri)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert found.status == "ok"
    assert found.text.endswith(
        f"would log to http://***@127.0.0.1:{server.server_port}, which answers"
    )
    found = asked(monkeypatch, "mlflow", SBI_IGNITE_LOGGING__TRACKING_URI=uri)
    assert found.status == "broken"
    assert "no server answers at http://***@127.0.0.1" in found.text
    assert SECRET not in str(found.to_dict())


def test_a_backend_that_is_not_installed_says_how_to_install_it(monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    hidden = "tensorboard"
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == hidden else find(name, *a)
    )
    found = asked(monkeypatch, hidden)
    assert found.status == "broken"
    assert 'pip install "sbi-ignite[tensorboard]"' in found.text


def test_a_backend_whose_library_crashes_is_a_finding(monkeypatch):
    monkeypatch.setitem(checks._PROBES, "tensorboard", "import os; os._exit(9)")
    found = asked(monkeypatch, "tensorboard")
    assert found.status == "broken"
    assert "its process ended with code 9" in found.text


# --- speed


def test_a_training_is_measured_and_says_how_steps_were_computed():
    speed = measure(Problem("maf", 300, 50, 2, 2), "cpu", 1.5)
    assert speed.measured_rows == 300
    assert 0 < speed.seconds_per_epoch < 1.5
    assert speed.executor == "torchscript"


def test_long_epochs_are_estimated_from_fewer_rows():
    speed = measure(Problem("mdn", 500_000, 50, 2, 2), "cpu", 1.0)
    assert speed.measured_rows <= 2_500
    assert speed.seconds_per_epoch > 1.0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--network", "transformer"), f"--network: expected one of {', '.join(known_networks())}"),
        (("--rows", "50", "--batch-size", "200"), "batch_size=200"),
        (("--rows", "3"), "--rows"),
    ],
)
def test_what_cannot_be_measured_is_code_2(ask, without_backends, arguments, said):
    answer = ask("doctor", "--seconds", "0.5", *arguments)
    assert answer.code == 2
    assert said in answer.err
    assert "Traceback" not in answer.err


def test_a_training_that_fails_is_code_1(ask, monkeypatch, without_backends):
    from sbi_ignite.inference import NPE

    def fail(self, *args, **kwargs):
        raise RuntimeError("no luck")

    monkeypatch.setattr(NPE, "train", fail)
    answer = ask("doctor", *SMALL, "--json")
    assert answer.code == 1
    assert "RuntimeError: no luck" in findings(answer.out)["steps", "cpu"]["text"]


def test_the_faster_device_is_named_with_the_factor():
    from sbi_ignite.cli.doctor import _verdict
    from sbi_ignite.cli.measure import Speed

    speeds = [Speed("cpu", 2.0, 100, "torchscript"), Speed("cuda", 0.5, 100, "cuda_graph")]
    *_, last = _verdict(Problem(), speeds)
    assert last.text == "cuda, 4.0 times as fast as cpu for this network and data"
