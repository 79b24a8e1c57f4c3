"""Compiled steps are equal up to rounding, also after interruptions, and kept for next time."""

from __future__ import annotations

import itertools
import logging
import shutil
import time
from functools import partial

import pytest
import torch
from sbi.neural_nets import posterior_nn
from torch import nn

from sbi_ignite import SbiIgniteWarning
from sbi_ignite.bridge.in_context import InContext
from sbi_ignite.capture.executors import inductor
from sbi_ignite.capture.executors.inductor import Inductor
from sbi_ignite.capture.guards import NotTraceable
from sbi_ignite.kernels.replacing import Replacing
from sbi_ignite.kernels.tanh import BY_SIGMOID
from tests.capture.recorded import recorded
from tests.capture.test_verification import BATCHES, check_equal, mlp, squared, trained


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Keep compiled steps of these tests in a place of their own."""
    with pytest.MonkeyPatch.context() as patch:
        directory = tmp_path_factory.mktemp("compiled")
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(directory))
        patch.setattr(inductor, "_verdict", lambda *of: "")  # steps are tiny here
        yield directory / "sbi_ignite" / "steps"


verdict = inductor._verdict


def with_dropout():
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1))


def doubled(x):
    return [2.0 * x]


def compiled(**kwargs):
    return trained(with_dropout, "inductor", **kwargs)


@pytest.fixture(scope="module")
def once(cache):
    """Return a training with compiled steps, whose steps are then in the cache."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in every test; steps are compiled for a number of threads
    yield compiled()
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_a_compiled_training_is_that_of_torch_up_to_rounding_with_the_same_random_draws(once):
    eager = trained(with_dropout, "off")
    assert once[1].executor == "inductor"
    assert once[1].training_loss == pytest.approx(eager[1].training_loss, rel=1e-4)
    assert torch.equal(once[2][0], eager[2][0])


@pytest.mark.slow
def test_the_next_training_finds_the_compiled_step_and_takes_the_same_steps(once, monkeypatch):
    monkeypatch.setattr(inductor, "compile_ahead", lambda *of: pytest.fail("compiled again"))
    check_equal(compiled(), once)


@pytest.mark.slow
def test_steps_do_not_depend_on_when_a_training_was_interrupted(once, tmp_path):
    """Every batch counts as compiled steps compute it, also those that prove them."""
    for epochs in (1, 2, 4):
        model = compiled(epochs=epochs, checkpoint=str(tmp_path))
    assert all(map(torch.equal, once[0].parameters(), model[0].parameters()))


@pytest.mark.slow
def test_a_run_that_continues_without_a_compiler_says_that_last_bits_may_differ(
    once, tmp_path, monkeypatch
):
    import torch._inductor.config as settings

    compiled(epochs=2, checkpoint=str(tmp_path / "run"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "elsewhere"))
    with (
        settings.patch({"cpp.cxx": (None, "no-such-compiler")}),
        pytest.warns(SbiIgniteWarning) as warned,
    ):
        compiled(epochs=4, checkpoint=str(tmp_path / "run"))
    said = [str(warning.message) for warning in warned]
    assert [line for line in said if "computed by a compiled step" in line]
    assert [line for line in said if "no C++ compiler was found" in line]


def test_without_a_compiler_recorded_steps_run_as_before_and_one_warning_says_why():
    import torch._inductor.config as settings

    with (
        settings.patch({"cpp.cxx": (None, "no-such-compiler")}),
        pytest.warns(SbiIgniteWarning, match=r"no C\+\+ compiler was found") as warned,
    ):
        found = trained(mlp(nn.ELU), "inductor")
    assert len(warned) == 1
    assert found[1].executor == "torchscript"
    assert "no C++ compiler was found" in found[1].executor_reason
    check_equal(trained(mlp(nn.ELU), "off"), found)


@pytest.mark.slow
def test_a_compiled_step_that_is_wrong_is_not_used(monkeypatch, once):
    """Off by half a percent, it is refused with a reason, and recorded steps take over."""
    load = inductor.compiled_library

    def wrong(library):
        run = load(library)
        return lambda tensors: [1.005 * output for output in run(tensors)]

    monkeypatch.setattr(inductor, "compiled_library", wrong)
    with pytest.warns(SbiIgniteWarning, match="more than rounding"):
        found = compiled()
    assert found[1].executor == "torchscript"
    assert "more than rounding" in found[1].executor_reason
    check_equal(trained(with_dropout, "off"), found)


@pytest.mark.slow
def test_a_damaged_library_is_compiled_anew(once, cache, tmp_path, monkeypatch):
    """Loading half of a library would end the process."""
    library = next(cache.glob("*/step.so"))
    copy = tmp_path / "sbi_ignite" / "steps" / library.parent.name
    shutil.copytree(library.parent, copy)
    (copy / library.name).write_bytes(library.read_bytes()[:2_000])
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    check_equal(compiled(), once)
    assert (copy / library.name).stat().st_size > 2_000


@pytest.mark.slow
def test_a_compiled_step_that_is_not_faster_is_left_alone_also_next_time(monkeypatch):
    """Decided once and kept: by a made-up clock here, on which recorded steps take no time."""
    clock = itertools.cycle([0.0, 1.0, 1.0, 1.0])
    with monkeypatch.context() as patch:
        patch.setattr(inductor, "_verdict", verdict)
        patch.setattr(time, "thread_time", lambda: next(clock))
        patch.setattr(time, "perf_counter", lambda: next(clock))
        with pytest.raises(NotTraceable, match="not faster"):
            recorded(doubled, [torch.ones(3)], executor=Inductor())
    for _ in range(2):
        with pytest.raises(NotTraceable, match="not faster"):
            recorded(doubled, [torch.ones(3)], executor=Inductor())


@pytest.mark.slow
def test_each_compiled_step_is_announced_once_with_its_seconds(once, cache, caplog):
    with caplog.at_level(logging.INFO, logger="sbi_ignite.capture"):
        compiled()
    assert not caplog.records


@pytest.mark.slow
@pytest.mark.parametrize("name", ["maf", "zuko_nsf"])
def test_compiled_steps_of_flows_are_as_exact_as_torchs_own(name):
    """Judged by the same gradients in double precision."""
    torch.manual_seed(0)
    theta, x = torch.randn(50, 3), torch.randn(50, 2)
    net = posterior_nn(name)(theta, x)
    parameters = [p for p in net.parameters() if p.requires_grad]

    def step(theta, x):
        losses = net.loss(theta, x)
        return [losses.detach(), *torch.autograd.grad(losses.mean(), parameters)]

    given = recorded(step, [theta, x], executor=Inductor())([theta, x])
    own = step(theta, x)
    net.double()
    exact = step(theta.double(), x.double())
    for found, torchs, right in zip(given, own, exact, strict=True):
        error, torchs_error = ((of.double() - right).norm() for of in (found, torchs))
        assert error <= 2.0 * torchs_error + 1e-7 * right.norm()


@pytest.mark.slow
def test_writes_to_buffers_take_place():
    """In place and on the tensors of the network."""
    counted = torch.zeros(3)

    def function(x):
        counted.add_(x)
        return [counted * 2.0]

    run = recorded(function, [torch.ones(3)], own=[counted], executor=Inductor())
    before = counted.clone()
    (given,) = run([torch.ones(3)])
    assert torch.equal(counted, before + 1.0)
    assert torch.equal(given, counted * 2.0)


@pytest.mark.slow
def test_operations_without_a_c_interface_are_called(cache):
    """As those that add up gradients by index, which mixtures of densities and splines need."""
    at = torch.tensor([0, 2, 0])

    def gathered(x):
        x = x.detach().requires_grad_()
        return list(torch.autograd.grad((x[:, at] ** 2).sum(), x))

    x = torch.randn(4, 3)
    run = recorded(gathered, [x], executor=Inductor())
    assert "_index_put_impl_" in run.about.code
    for batch in (x, 2 * x):
        torch.testing.assert_close(run([batch]), tuple(gathered(batch)))


@pytest.mark.slow
@pytest.mark.parametrize("loss", [squared, InContext(squared, partial(Replacing, BY_SIGMOID))])
def test_every_shape_of_batch_is_compiled(loss):
    """Also what the typed form computes in its own way."""
    batches = [*BATCHES, [part[:5] for part in BATCHES[0]]]
    given, eager = (
        trained(mlp(nn.Tanh), compile, loss, batches=batches) for compile in ("inductor", "off")
    )
    assert given[1].executor == "inductor"
    assert given[1].training_loss == pytest.approx(eager[1].training_loss, rel=1e-4)


def test_compiled_steps_are_kept_where_nobody_else_can_put_any(tmp_path, monkeypatch):
    """A directory for temporary files that others may write to is not taken."""
    home, shared = tmp_path / "home", tmp_path / "tmp"
    home.write_text("a file, in which no directory can be made")
    shared.mkdir()
    for name in ("TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr("tempfile.tempdir", str(shared))
    first = inductor.cache_directory()
    assert first.parent == shared
    assert first.stat().st_mode & 0o077 == 0
    assert inductor.cache_directory() == first
    first.chmod(0o777)
    assert inductor.cache_directory() != first
