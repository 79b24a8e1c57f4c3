"""Run sbi's own tests and list those that fail under the patch but not without it.

All chosen tests run once with the patch. Those that did not simply pass are then run without
it: the outcome of each test must be the same.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .fetch import fetch

HERE = Path(__file__).parent
FILES = (
    "base_test",
    "embedding_net_test",
    "ensemble_test",
    "inference_with_NaN_simulator_test",
    "linearGaussian_mdn_test",
    "linearGaussian_simulator_test",
    "linearGaussian_snle_test",
    "linearGaussian_snpe_test",
    "linearGaussian_snre_test",
    "linearGaussian_vector_field_test",
    "marginal_estimator_test",
    "mnle_test",
    "mnpe_test",
    "plot_test",
    "posterior_nn_test",
    "save_and_load_test",
    "training_dataclasses_test",
)
MARKERS = "not slow and not gpu and not mcmc"
LONG = (
    "linearGaussian_vector_field_test.py::test_c2st_vector_field_on_linearGaussian[",
    "linearGaussian_vector_field_test.py::test_vfinference_with_different_models",
    "marginal_estimator_test.py::test_marginal_estimator[nsf-cpu-dist1]",
    "marginal_estimator_test.py::test_marginal_estimator[build_fn-cpu-dist1]",
    "embedding_net_test.py::test_embedding_api_with_multiple_trials[mcmc",
    "mnle_test.py::test_mnle_api[independent-nsf-vi]",
    "mnle_test.py::test_mnle_api[none-nsf-vi]",
)
"""A few tests that take more than half of the time, most of it sampling, left out by `--quick`."""
AGREED = ("passed", "xfailed")
"""Outcomes that need no second look: sbi's own settings make an unexpected pass a failure."""


def main(arguments: list[str] | None = None) -> int:
    """Run the tests and report; return 0 if sbi alone does no better.

    Args:
        arguments: of the command line; None takes the process's own.
    """
    options = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="sbi-tests-") as folder:
        fetch(Path(folder))
        chosen = [f"tests/{name}.py" for name in options.files]
        started = time.monotonic()
        patched = run_tests(Path(folder), "on", chosen, options)
        print(f"sbi's tests under the patch took {time.monotonic() - started:.0f} s, with {_sbi()}")
        if patched is None:
            return 1
        suspects = [test for test, came in patched["outcomes"].items() if came not in AGREED]
        if options.compare_all:
            suspects = chosen
        alone = run_tests(Path(folder), "off", suspects, options) if suspects else {"outcomes": {}}
        if alone is None:
            return 1
        return _report(patched, alone["outcomes"], everything=options.compare_all)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.downstream", description=__doc__)
    parser.add_argument("files", nargs="*", default=FILES, help="names of sbi's test files")
    parser.add_argument("-n", "--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--quick", action="store_true", help="leave out the longest tests")
    parser.add_argument("-k", dest="expression", help="pytest's -k")
    parser.add_argument(
        "--compare-all", action="store_true", help="run every test without the patch too"
    )
    return parser


def run_tests(
    folder: Path, patch: str, chosen: list[str], options: argparse.Namespace
) -> dict[str, Any] | None:
    """Run some of sbi's tests in a process of their own.

    Args:
        folder: where sbi's tests are.
        patch: "on" or "off".
        chosen: files or ids of tests.
        options: of the command line.

    Returns:
        What came of each test; None if the session as a whole failed.
    """
    outcomes = folder / f"outcomes-{patch}.json"
    command = [sys.executable, "-m", "pytest", "-p", "plugin", "-p", "no:cacheprovider"]
    command += ["--sbi-ignite", patch, "--outcomes", str(outcomes)]
    command += ["-n", str(options.workers), "-m", MARKERS, "--durations", "15"]
    # One stuck test must not take the rest with it.
    command += ["--timeout", "1800"]
    if options.quick:
        command += [f"--deselect=tests/{test}" for test in LONG]
    if options.expression and patch == "on":
        command += ["-k", options.expression]
    code = subprocess.run(
        [*command, *chosen], cwd=folder, env=environment(), check=False
    ).returncode
    # 0: all passed. 1: some failed, which is looked into. Anything else is not about single tests.
    if code not in (0, 1):
        print(f"pytest ended with {code} (patch {patch})", file=sys.stderr)
        return None
    return json.loads(outcomes.read_text())


def environment() -> dict[str, str]:
    """Return an environment with one thread, the plugin, this tree, and no settings of ours."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SBI_IGNITE", "PYTEST_"))}
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return {**kept, **one_thread, "PYTHONPATH": _python_path(), "MPLBACKEND": "Agg"}


def _python_path() -> str:
    """Return where the plugin is, where this process has sbi_ignite from, and where else it looks.

    Another sbi than the installed one may lie there.
    """
    spec = importlib.util.find_spec("sbi_ignite")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("sbi_ignite is neither installed nor in the current folder")
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return os.pathsep.join([str(HERE), str(Path(spec.origin).parents[1]), *others])


def _sbi() -> str:
    """Return where the tests have sbi from."""
    spec = importlib.util.find_spec("sbi")
    return "no sbi" if spec is None else str(spec.origin)


def _report(patched: dict[str, Any], alone: dict[str, str], everything: bool) -> int:
    """Print how the two runs differ and return 1 if they do."""
    outcomes = patched["outcomes"]
    names = outcomes.keys() | alone.keys() if everything else alone.keys()
    worse = sorted(name for name in names if alone.get(name) != outcomes.get(name))
    for name in worse:
        print(f"{name}: {alone.get(name)} with sbi alone, {outcomes.get(name)} under the patch")
    counts = {came: list(outcomes.values()).count(came) for came in sorted(set(outcomes.values()))}
    print(f"under the patch: {counts}; different with sbi alone: {len(worse)}")
    return 1 if worse else 0
