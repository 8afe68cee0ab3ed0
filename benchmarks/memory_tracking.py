"""How many bytes of tensors a computation holds, counted at every operation: on any device, whatever its allocator."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations inside it make, from their birth to their death; a shared one once.

    What was there before counts nothing: weights, inputs. What an operation allocates and frees within itself is not
    seen (the scratch of a kernel). Weights made of their 4 bits are counted by themselves (``scratch_peak``): they do
    not grow with tokens, and would hide what does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.scratch_peak = self._scratch = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self._meet((args, kwargs), counts=False)
        result = func(*args, **(kwargs or {}))
        self._meet(result, counts=True, scratch=str(func).startswith("bitsandbytes.dequantize"))
        self.peak = max(self.peak, self.live)
        self.scratch_peak = max(self.scratch_peak, self._scratch)
        return result

    def size(self, tensor: Tensor) -> int:
        """Bytes of its storage; 0 for what was there before."""
        return self._sizes.get(tensor.untyped_storage()._cdata, 0)

    def _meet(self, tree: Any, counts: bool, scratch: bool = False) -> None:
        for item in tree_iter(tree):
            if not isinstance(item, Tensor):
                continue
            storage = item.untyped_storage()
            if storage._cdata not in self._sizes:
                size = storage.nbytes() if counts else 0
                self._sizes[storage._cdata] = 0 if scratch else size
                self.live += 0 if scratch else size
                self._scratch += size if scratch else 0
                weakref.finalize(storage, self._forget, storage._cdata, size if scratch else 0)

    def _forget(self, key: int, scratch: int) -> None:
        self.live -= self._sizes.pop(key)
        self._scratch -= scratch


@contextmanager
def saved_bytes(live: LiveBytes) -> Iterator[Counter[str]]:
    """Bytes that the forward passes inside save for their backward passes, by dtype; a shared storage once.

    What a checkpoint's recomputation saves is not in it.
    """
    found: Counter[str] = Counter()
    seen: set[int] = set()

    def keep(tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in seen:
            seen.add(key)
            found[str(tensor.dtype).removeprefix("torch.")] += live.size(tensor)
        return tensor.detach()  # an output that kept itself would never be freed

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found
