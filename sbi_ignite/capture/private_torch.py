"""All private names of torch that graph capture uses, and what happens if one is missing.

None of them is taken for granted: the names themselves, not torch's version, are checked when a
training starts. Without a name in `RECORDING` no step is recorded and all are computed eagerly;
without one in `TORCHSCRIPT` recordings run as generated Python, without one in `INDUCTOR` none is
compiled; each of the others has its own
replacement. Results are the same in every case, and the training's summary says how steps were
computed.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as torch_module

if TYPE_CHECKING:
    from torch._ops import OpOverload
    from torch.utils import _pytree as pytree
    from torch.utils._python_dispatch import TorchDispatchMode
else:
    # The type has no public name; its instances do.
    OpOverload = type(torch.ops.aten.add.Tensor)

RECORDING: Mapping[str, str] = {
    "torch.utils._python_dispatch.TorchDispatchMode": "sees operations below autograd",
    "torch.utils._pytree.tree_flatten": "finds the tensors of a batch of any structure",
    "torch.utils._pytree.tree_leaves": "finds the tensors of a batch of any structure",
    "torch.utils._pytree.tree_structure": "compares the structure of two batches",
    "torch.utils._pytree.tree_unflatten": "builds a batch with other tensors in it",
    "torch._C.DispatchKey.CPU": "tells which operations have a kernel of their own",
    "torch._C.DispatchKey.CompositeImplicitAutograd": "tells which operations are made of others",
    "torch.ops.aten.add.Tensor._schema": "says what an operation writes to and returns views of",
    "torch.ops.aten.add.Tensor._overloadname": "finds the form that writes in place",
    "torch.ops.aten.add.Tensor._can_decompose": "tells which operations are made of others",
    "torch.ops.aten.add.Tensor.has_kernel_for_dispatch_key": "tells which ones have a kernel",
}
"""Names without which nothing can be recorded, and what each is needed for."""

TORCHSCRIPT: Mapping[str, str] = {
    "torch._C.Graph": "the interpreter's form of a graph",
    "torch._C.TensorType": "types of values in it",
    "torch._C.TupleType": "types of values in it",
    "torch._C.ListType": "types of values in it",
    "torch._C.OptionalType": "types of values in it",
    "torch._C.FloatType": "types of values in it",
    "torch._C._create_function_from_graph": "makes a graph callable",
    "torch._C._get_graph_executor_optimize": "reads whether the interpreter may fuse operations",
    "torch._C._set_graph_executor_optimize": "keeps it from fusing, for fused results differ",
}
"""Names without which TorchScript's interpreter cannot be used, and what each is needed for."""

INDUCTOR: Mapping[str, str] = {
    "torch._C._aoti.AOTIModelContainerRunnerCpu": "loads compiled steps and runs them",
}
"""Names without which compiled steps cannot be used, and what each is needed for. What compiles
them, `torch._inductor.aot_compile`, is imported when a step is not in the cache: it takes seconds.
"""

REPLACED: Mapping[str, str] = {
    "torch._C._AutoDispatchBelowADInplaceOrView": "`torch.no_grad()`, slower by operation",
    "torch._C._current_graph_task_id": "gradients are added up by index with a check of the range",
    "torch.utils._python_dispatch._disable_current_modes": "values are read under others' modes",
    "torch.ops.aten.add.Tensor._op": "operations are called through one more Python function",
    "torch._foreach_copy_": "inputs of CUDA graphs are copied one by one",
    "torch.jit.ScriptModule": "no network can be one",
}
"""Names that are replaced where they are missing, and by what."""

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Where a module keeps hooks, which are not recorded: networks that have one are left alone."""

NO_BACKWARD_PASS = -1
"""What autograd says while it computes no gradients."""


def found(name: str) -> Any:
    """Return what a dotted name of torch refers to; None if this torch lacks it.

    Example:
        >>> found("torch.no_grad") is torch.no_grad, found("torch._C._no_such_name")
        (True, None)
    """
    value: Any = torch
    for part in name.split(".")[1:]:
        inner = getattr(value, part, None)
        if inner is None and isinstance(value, ModuleType):
            inner = sys.modules.get(f"{value.__name__}.{part}")
        if inner is None:
            return None
        value = inner
    return value


if not TYPE_CHECKING:
    # Code that needs these two is imported only if `cannot_record` finds nothing missing.
    pytree = found("torch.utils._pytree")
    TorchDispatchMode = found("torch.utils._python_dispatch.TorchDispatchMode") or object


def lacks(names: Iterable[str]) -> str:
    """Return which of these names this torch lacks, in words; "" if it has all of them."""
    missing = [name for name in names if found(name) is None]
    return f"torch {torch.__version__} has no {', '.join(missing)}" if missing else ""


def cannot_record() -> str:
    """Return why nothing can be recorded with this torch; "" if recording works."""
    reason = lacks(RECORDING)
    if reason:
        return reason
    bare = nn.Module()
    hooks = [name for name in HOOKS if not hasattr(bare, name)]
    hooks += [] if any(name.startswith("_global") for name in vars(torch_module)) else ["_global*"]
    hooks += [] if hasattr(torch.empty(0), "_backward_hooks") else ["Tensor._backward_hooks"]
    hooks += [] if hasattr(torch.empty(0).untyped_storage(), "_cdata") else ["Storage._cdata"]
    return f"torch {torch.__version__} has no {', '.join(hooks)}" if hooks else ""


def structure_key(structure: Any) -> Any:
    """Return what tells the structure of a batch from others, to be looked up in a dictionary.

    Args:
        structure: What `pytree.tree_flatten` returned. In torch 2.6, it cannot be hashed if the
            batch is a list or has one in it.
    """
    try:
        hash(structure)
    except TypeError:
        return repr(structure)
    return structure


def below_autograd() -> AbstractContextManager[Any]:
    """Return a context in which autograd does not see operations.

    torch's own guard even skips the check whether gradients are needed, 0.3 us per operation.
    """
    guard = found("torch._C._AutoDispatchBelowADInplaceOrView")
    return torch.no_grad() if guard is None else guard()


def without_modes() -> AbstractContextManager[Any]:
    """Return a context in which no mode sees operations, for reading values."""
    disabled = found("torch.utils._python_dispatch._disable_current_modes")
    return nullcontext() if disabled is None else disabled()


def in_backward_pass() -> bool:
    """Return whether autograd is computing gradients at this moment, in this thread."""
    task = _graph_task()
    return task is not None and task() != NO_BACKWARD_PASS


@cache
def _graph_task() -> Callable[[], int] | None:
    """Return torch's function, looked up once: it is called for every operation."""
    return found("torch._C._current_graph_task_id")


def schema_of(operation: OpOverload) -> Any:
    """Return an operation's schema: its name, arguments and results, and what it writes to."""
    return operation._schema


def overload_name(operation: OpOverload) -> str:
    """Return which overload of an operation this is, for instance "Tensor"."""
    return operation._overloadname


def is_composite(operation: OpOverload) -> bool:
    """Return whether an operation is composed of other operations."""
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return operation._can_decompose() and operation.has_kernel_for_dispatch_key(key)


def has_cpu_kernel(operation: OpOverload) -> bool:
    """Return whether an operation has a kernel of its own on the CPU."""
    return operation.has_kernel_for_dispatch_key(torch._C.DispatchKey.CPU)


def kernel_of(operation: OpOverload) -> Callable[..., Any]:
    """Return an operation's function without its Python wrapper, which costs 1.5 us a call."""
    return getattr(operation, "_op", operation)


def is_script_module(part: nn.Module) -> bool:
    """Return whether a module was compiled by TorchScript, whose operations Python does not see."""
    kind = found("torch.jit.ScriptModule")
    return kind is not None and isinstance(part, kind)


def global_hooks() -> bool:
    """Return whether hooks are registered for all modules of this process."""
    values = [value for name, value in vars(torch_module).items() if name.startswith("_global")]
    return any(isinstance(value, dict) and value for value in values)


def has_hooks(tensor: Tensor) -> bool:
    """Return whether hooks are registered for a parameter."""
    return bool(tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None))


def storage_of(tensor: Tensor) -> int:
    """Return a number that all views of the same memory share."""
    return tensor.untyped_storage()._cdata


def compile_ahead(
    graph: fx.Graph, tensors: Sequence[Tensor], library: Path, options: Mapping[str, Any]
) -> None:
    """Compile a flat graph into a shared library.

    Args:
        graph: Its placeholders take the tensors; it may write to them.
        tensors: Tensors like those it will be called with; they are not changed.
        library: File to write; what torch leaves beside it may be needed too.
        options: Settings of torch's inductor.

    Raises:
        Exception: Whatever torch raises if it cannot compile it.
    """
    import torch._inductor

    module = fx.GraphModule(nn.Module(), graph)
    settings = {**options, "aot_inductor.output_path": str(library)}
    like = tuple(tensor.detach() for tensor in tensors)
    log = logging.getLogger("torch._inductor")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns of operations that it calls in another way
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # it uses deprecated parts of torch itself
            made = torch._inductor.aot_compile(module, like, options=settings)
    finally:
        log.setLevel(level)
    if Path(str(made)) != library:
        raise RuntimeError(f"torch wrote {made} instead of {library}")


def compiled_library(library: Path) -> Callable[[list[Tensor]], list[Tensor]]:
    """Return a function that runs what `compile_ahead` has compiled."""
    runner: Any = found("torch._C._aoti.AOTIModelContainerRunnerCpu")
    return runner(str(library), 1).run


def copy_each(to: list[Tensor], values: list[Tensor]) -> None:
    """Copy tensors in place, all of them in one call if torch has it."""
    together = found("torch._foreach_copy_")
    if together is not None:
        together(to, values)
        return
    for tensor, value in zip(to, values, strict=True):
        tensor.copy_(value)
