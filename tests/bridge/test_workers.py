"""The patch reaches worker processes, however they are started, and their runs stay apart."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from sbi_ignite import SbiIgniteWarning, patch_sbi, unpatch_sbi
from sbi_ignite.bridge.workers import STARTUP
from tests.small import ROOT, python

TASK = """\
import torch
from sbi.inference import NPE
from sbi.neural_nets import posterior_nn
from sbi.utils import BoxUniform

prior = BoxUniform(-torch.ones(2), torch.ones(2))
theta = torch.linspace(-1, 1, 160).reshape(80, 2)

def one(seed):
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    build = posterior_nn("maf", hidden_features=6, num_transforms=1)
    trainer = NPE(prior, build, show_progress_bars=False)
    trainer.append_simulations(theta, theta.sin())
    trainer.train()
    summary = getattr(trainer, "training_summary", None)
    if summary is None:
        return len(trainer.summary["training_loss"]), None, None, None
    path, loss = summary.run_directory, summary.best_validation_loss
    return summary.epochs_trained, path, summary.resumed_from_epoch, loss
"""
"""An ensemble's member, as users write it; the data are the same for all."""

ENSEMBLE = (
    TASK
    + """
if __name__ == "__main__":
    import json
    from joblib import Parallel, delayed

    twice = [Parallel(n_jobs=2)(delayed(one)(seed) for seed in seeds) for seeds in ((0, 1), (1, 0))]
    print()
    print(json.dumps([*twice, one(0)]))
"""
)


def shown(folder: Path, text: str, *arguments: str, **variables: str):
    """Return what an unmodified script prints last, run with two epochs and a run directory."""
    (folder / "script.py").write_text(text)
    variables = {
        "SBI_IGNITE_TRAIN__MAX_EPOCHS": "2",
        "SBI_IGNITE_CHECKPOINT__DIRECTORY": str(folder / "runs"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]),
        **variables,
    }
    script = str(folder / "script.py")
    done = python("-W", "ignore", "-m", "sbi_ignite", script, *arguments, **variables)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_an_ensemble_by_joblib_is_trained_by_sbi_ignite_in_its_workers(tmp_path):
    """With the variables' settings, in directories that are found again, with the same numbers."""
    first, again, here = shown(tmp_path, ENSEMBLE)
    assert [epochs for epochs, *_ in (*first, *again, here)] == [3] * 5
    assert here[1] == str(tmp_path / "runs")
    assert {Path(path).parent for _, path, *_ in first} == {tmp_path / "runs"}
    assert len({path for _, path, *_ in first}) == len({loss for *_, loss in first}) == 2
    assert [resumed for _, _, resumed, _ in (*first, here)] == [0, 0, 0]
    assert again == [[3, path, 3, loss] for _, path, _, loss in reversed(first)]
    assert here[3] == first[0][3]


EVERY_WAY = (
    TASK
    + """
if __name__ == "__main__":
    import json, multiprocessing, subprocess, sys
    from concurrent.futures import ProcessPoolExecutor
    from joblib import Parallel, delayed

    found = {"loky": Parallel(n_jobs=2)(delayed(one)(seed) for seed in (0, 1))}
    for method in ("spawn", "forkserver", "fork"):
        context = multiprocessing.get_context(method)
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            found[method] = list(pool.map(one, (0, 1)))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found["pool"] = pool.map(one, (0, 1))
    text = "import json, script; print(json.dumps([script.one(0), script.one(1)]))"
    command = [sys.executable, "-W", "ignore", "-c", text]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    found["subprocess"] = json.loads(done.stdout.splitlines()[-1])
    print()
    print(json.dumps(found))
"""
)


@pytest.mark.slow
def test_workers_are_reached_however_they_are_started_and_so_are_their_runs(tmp_path):
    first, again = shown(tmp_path, EVERY_WAY), shown(tmp_path, EVERY_WAY)
    made = first.pop("loky")
    assert [(epochs, resumed) for epochs, _, resumed, _ in made] == [(3, 0), (3, 0)]
    found_again = [[3, path, 3, loss] for _, path, _, loss in made]
    assert set(first) == {"spawn", "forkserver", "fork", "pool", "subprocess"}
    for way, found in (*first.items(), *again.items()):
        assert found == found_again, way


def is_patched_there(_: object = None) -> bool:
    """Return whether sbi is patched in the process that is asked."""
    import sbi.inference

    return hasattr(sbi, "training") and hasattr(sbi.inference.NPE.train, "__wrapped__")


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name[:7] != "PYTEST_"}


@pytest.fixture
def _unpatched():
    """Begin and end without a patch, and require that the environment is as before."""
    unpatch_sbi()
    before = environment()
    yield
    unpatch_sbi()
    assert environment() == before


def asked_in_a_new_worker() -> bool:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(is_patched_there).result()


@pytest.mark.parametrize("before", [None, "", "one", os.pathsep.join(["one", "two"])])
def test_the_environment_is_handed_back_as_it_was(monkeypatch, before):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if before is not None:
        monkeypatch.setenv("PYTHONPATH", before)
    with patch_sbi():
        assert os.environ["PYTHONPATH"].split(os.pathsep)[0] == STARTUP
        patch_sbi()
        os.environ["PYTHONPATH"] += os.pathsep + "added"
    after = os.environ.pop("PYTHONPATH")
    assert after.split(os.pathsep) == [*(before.split(os.pathsep) if before else []), "added"]
    if before is not None:
        monkeypatch.setenv("PYTHONPATH", before)
    with patch_sbi():
        pass
    assert os.environ.get("PYTHONPATH") == before
    assert not is_patched_there()


@pytest.mark.slow
@pytest.mark.usefixtures("_unpatched")
def test_workers_are_patched_while_the_patch_is_on_and_not_afterwards():
    with patch_sbi():
        assert asked_in_a_new_worker()
    assert not asked_in_a_new_worker()


@pytest.mark.slow
@pytest.mark.usefixtures("_unpatched")
def test_workers_that_run_already_are_named_in_one_warning():
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(os.getpid).result() != os.getpid()
        with pytest.warns(SbiIgniteWarning, match=r"not reach 1 worker process.*plain sbi") as said:
            patch_sbi()
        assert len(said) == 1
        assert said[0].filename == __file__
        assert not pool.submit(is_patched_there).result()


def started(folder: Path, script: str, *options: str, **variables: str) -> str:
    """Return what a script prints in a process that a patched one would start."""
    path = os.pathsep.join([STARTUP, str(folder), str(ROOT)])
    done = python(*options, "-c", script, **{"PYTHONPATH": path, **variables})
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_a_sitecustomize_of_the_users_own_runs_as_before(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.of_the_user = __file__\n")
    script = "import sys, sitecustomize as s; print(sys.of_the_user, s.__file__, sys.path)"
    said = started(tmp_path, script)
    assert said.split()[:2] == [str(tmp_path / "sitecustomize.py")] * 2
    assert STARTUP not in said


def test_a_process_that_does_not_use_sbi_loads_nothing(tmp_path):
    script = "import sys; print({m.split('.')[0] for m in sys.modules} & {'torch', 'sbi_ignite'})"
    assert started(tmp_path, script) == "set()\n"


@pytest.mark.slow
def test_sbis_module_is_what_it_is_without_us(tmp_path):
    """Its loader and spec, too, which other tools look at."""
    script = (
        "import importlib.util, inspect, sys, sbi.inference as s\n"
        "assert hasattr(sys.modules['sbi'], 'training')\n"
        "print(type(s.__loader__).__name__, s.__spec__.loader is s.__loader__,"
        " inspect.getsource(s)[:1] != '', importlib.util.find_spec('sbi.inference') is s.__spec__)"
    )
    assert started(tmp_path, script).split() == ["SourceFileLoader", "True", "True", "True"]


@pytest.mark.slow
@pytest.mark.parametrize("first", ["sbi_ignite.inference", "sbi_ignite", "sbi.inference"])
def test_the_patch_is_on_whatever_is_imported_first_with_warnings_as_errors(tmp_path, first):
    script = (
        "import warnings; warnings.simplefilter('error', UserWarning)\n"
        f"import {first}\nfrom sbi.inference.trainers.npe import NPE_C\n"
        "from sbi_ignite.bridge.patch import is_patched\nprint(is_patched())"
    )
    assert started(tmp_path, script) == "True\n"


def test_where_sbi_ignite_cannot_be_used_sbi_still_works_and_one_line_says_so(tmp_path):
    """As in a process of another environment."""
    package = tmp_path / "sbi"
    package.mkdir()
    (package / "__init__.py").write_text("__version__ = '0.99.0'\n")
    (package / "inference.py").write_text("NPE = 'of another version'\n")
    said = started(tmp_path, "from sbi.inference import NPE; print(NPE)")
    assert said.startswith("of another version\n")
    assert "trains with plain sbi" in said
    assert "0.99.0" in said


FOREIGN = (
    TASK
    + """
if __name__ == "__main__":
    import json, sys, script

    found = {}
    if "dask" in sys.argv:
        from distributed import Client, LocalCluster
        with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
            with Client(cluster) as client:
                found = client.gather(client.map(script.one, (0, 1)))
    else:
        import ray
        ray.init(num_cpus=1, include_dashboard=False, logging_level="error")
        task = ray.remote(script.one)
        found = ray.get([task.remote(0), task.remote(1)])
        ray.shutdown()
    print()
    print(json.dumps(found))
"""
)


@pytest.mark.slow
@pytest.mark.parametrize(("library", "module"), [("dask", "distributed"), ("ray", "ray")])
def test_workers_of_ray_and_dask_on_this_machine_train_by_sbi_ignite(tmp_path, library, module):
    pytest.importorskip(module, reason=f"{library} is not installed")
    path = os.pathsep.join([str(ROOT), str(tmp_path), *filter(None, sys.path)])
    found = shown(tmp_path, FOREIGN, library, PYTHONPATH=path)
    assert [epochs for epochs, *_ in found] == [3, 3]
    assert len({path for _, path, *_ in found}) == 2
