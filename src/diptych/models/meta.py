"""Networks whose tensors have shapes and no memory, on torch's meta device."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


@contextmanager
def without_memory() -> Iterator[None]:
    """What is built inside takes no memory, and no random numbers are drawn for it.

    torch knows the shape that ``normal_`` gives without help, but asks ``torch._dynamo`` for it,
    whose import takes two seconds of each command that reads an encoder.
    """
    with torch.device("meta"), _NothingDrawn():
        yield


class _NothingDrawn(TorchFunctionMode):
    """Leaves a tensor without memory as it is where normal numbers would be drawn into it."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Iterable[type],
        arguments: tuple[Any, ...] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        if function is Tensor.normal_ and arguments[0].is_meta:
            return arguments[0]
        return function(*arguments, **(options or {}))
