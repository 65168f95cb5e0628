"""A device that only pretends: its tensors say that they are elsewhere, and compute on the CPU.

With it a machine without a GPU can tell where code mixes devices, and how often it waits for one. What a tensor of the
device says is `meta`, the only device whose gradients torch computes without hardware.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

FAR = torch.device("meta")
aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense,
    aten.nonzero,
    aten.bincount,
    aten._unique2,
    aten.unique_dim,
    aten.masked_select,
}
"""Operations that bring a value, or a number of values, from a GPU to the host."""
JOINS = {aten.cat, aten.stack}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
COPIES = {aten._to_copy, aten.copy_, aten.copy}
FROM_LISTS = {torch.tensor, torch.as_tensor, Tensor.new_tensor}


class FarTensor(Tensor):
    """A tensor of the device; `near` has its values."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> FarTensor:
        found: FarTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            near.shape,
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            device=FAR,
            requires_grad=near.requires_grad,
        )
        found.near = near
        return found

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"far {self.near!r}"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """For threads that were started inside `far_device()`: modes hold for their own thread alone."""
        return _Compute.last(func, types, args, kwargs)


@contextmanager
def far_device() -> Iterator[Counter[str]]:
    """Inside, `FAR` is a device; gives the waits so far, by the name of what waited.

    Raises:
        RuntimeError: an operation got tensors of both devices.
    """
    mode = _Compute()
    with ExitStack() as stack:
        stack.enter_context(patch.object(torch, "autocast", lambda *_, **__: nullcontext()))
        stack.enter_context(mode)
        stack.enter_context(_Lists(mode.waits))
        yield mode.waits


class _Lists(TorchFunctionMode):
    """Tensors made of lists, which torch would leave empty on this device, and lists made of tensors."""

    def __init__(self, waits: Counter[str]) -> None:
        super().__init__()
        self._waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.tolist:
            return args[0].cpu().tolist() if isinstance(args[0], FarTensor) else func(*args)
        if func not in FROM_LISTS:
            return func(*args, **kwargs)
        device = kwargs.pop("device", args[0].device if func is Tensor.new_tensor else None)
        if func is Tensor.new_tensor:
            kwargs.setdefault("dtype", args[0].dtype)
            args = args[1:]
        made = torch.tensor(*args, **kwargs)
        return made if device is None else made.to(device)


class _Compute(TorchDispatchMode):
    """Carries out every operation on the CPU; results are far where an argument was, or the device is named."""

    last: ClassVar[Callable[..., Any]]

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        _Compute.last = self.__torch_dispatch__

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
        far = [each for each in tensors if isinstance(each, FarTensor)]
        packet = func.overloadpacket
        goes_far = bool(far)
        if kwargs.get("device") is not None:
            goes_far = torch.device(kwargs["device"]) == FAR
            kwargs["device"] = torch.device("cpu") if goes_far else kwargs["device"]
        if packet in COPIES:
            goes_far = isinstance(args[0], FarTensor) if packet is aten.copy_ else goes_far
            self._count_copy(packet, args, kwargs, goes_far=goes_far)
        elif far:
            self._check(func, packet, args, tensors)
            if packet in WAITS or (packet in INDEXING and _by_flags(args[1])):
                self.waits[func.name()] += 1
            if packet is aten.repeat_interleave and kwargs.get("output_size") is None:
                self.waits[func.name()] += 1
        return _compute(func, args, kwargs, goes_far=goes_far)

    def _count_copy(self, packet: Any, args: Any, kwargs: Any, *, goes_far: bool) -> None:
        source = args[1] if packet is aten.copy_ else args[0]
        was_far = isinstance(source, FarTensor)
        non_blocking = kwargs.get("non_blocking", len(args) > 2 and args[2])
        if was_far != goes_far and not (goes_far and non_blocking):
            self.waits[f"{packet} to {'the device' if goes_far else 'the host'}"] += 1

    def _check(self, func: Any, packet: Any, args: Any, tensors: list[Tensor]) -> None:
        """As on a GPU: numbers and, for tensors of the device, indices may be on the host."""
        allowed = args[1] if packet in INDEXING else []
        for each in tensors:
            is_number = each.dim() == 0 and packet not in JOINS
            if not (
                isinstance(each, FarTensor) or is_number or any(each is index for index in allowed)
            ):
                raise RuntimeError(
                    f"{func} got tensors of both devices: {[type(t).__name__ for t in tensors]}"
                )
        if packet in INDEXING and not isinstance(args[0], FarTensor):
            raise RuntimeError(f"{func}: a tensor of the host was indexed by one of the device")


def _by_flags(indices: Any) -> bool:
    return any(each is not None and each.dtype in (torch.bool, torch.uint8) for each in indices)


def _compute(func: Any, args: Any, kwargs: Any, *, goes_far: bool) -> Any:
    flat, layout = tree_flatten((args, kwargs))
    far_of = {id(each.near): each for each in flat if isinstance(each, FarTensor)}
    near = [each.near if isinstance(each, FarTensor) else each for each in flat]
    near_args, near_kwargs = tree_unflatten(near, layout)
    found = func(*near_args, **near_kwargs)

    def wrap(each: Any) -> Any:
        if not isinstance(each, Tensor):
            return each
        if id(each) in far_of:
            return far_of[id(each)]  # changed in place
        return FarTensor(each) if goes_far else each

    return tree_map(wrap, found)
