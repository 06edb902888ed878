"""Cached gradients: the loss and gradients of a large batch in the memory of a part of it.

GradCache (Gao et al. 2021, section 3): encode all parts without keeping a graph; compute the loss
of the whole batch once, and its gradient for each vector; encode each part again, with a graph,
and send its vectors' gradients back. Every query meets all the negatives of the whole batch. That
is not accumulation, in which it would meet those of its own part only.

Batch norm sees one part at a time. With ``split``, ``shuffle``, ``layer`` and ``group`` the result
is that of the whole batch to rounding; with ``batch`` and ``sync`` it is exact for a network whose
statistics are those of a part.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from diptych.methods.contrastive import Method, Output, Views
from diptych.models.norms import frozen_statistics, pooled_statistics
from diptych.runtime.stopwatch import watch
from diptych.views.batches import Batch

Encode = Callable[[Views], Tensor]


def backward_in_chunks(
    method: Method,
    batch: Batch,
    *,
    chunk_size: int,
    weight: float = 1.0,
    enlarge: Callable[[Tensor], Tensor] = lambda loss: loss,
) -> Output:
    """Computes the loss of a batch and adds its gradients to the parameters.

    Args:
        method: in training mode.
        batch: the whole of it.
        chunk_size: images that are encoded at once; divides the batch.
        weight: the gradient is multiplied by it.
        enlarge: multiplies the loss before the backward pass, for gradients in half precision.

    Returns:
        What a call of the method gives; backward has been done.
    """
    panels = method.arrange(batch)
    query_parts = _parts(panels.queries, chunk_size)
    key_parts = _parts(panels.keys, chunk_size)
    learned_keys = bool(key_parts) and method.keys_learn
    keys, key_draws = None, list[GeneratorState]()
    with watch("forward"):
        if learned_keys:
            keys, key_draws = _without_graph(method, method.encode_keys, key_parts)
        elif key_parts:
            keys = _once(method, method.encode_keys, key_parts)
        queries, query_draws = _without_graph(method, method.encode_queries, query_parts)

        queries.requires_grad_()
        if keys is not None:
            keys.requires_grad_(learned_keys)
        output = method.compare(queries, keys, batch)
    with watch("backward"):
        torch.autograd.backward(enlarge(output.look_up.loss * weight))

    if keys is not None and learned_keys:
        _again(method, method.encode_keys, key_parts, keys.grad, key_draws)
    _again(method, method.encode_queries, query_parts, queries.grad, query_draws)
    return output


def _parts(views: Views, chunk_size: int) -> list[Views]:
    """The views of each part of the images."""
    return list(zip(*(torch.split(view, chunk_size) for view in views), strict=True))


GeneratorState = tuple[Tensor, Tensor | None]
"""Where torch's generators stood before a part was encoded: dropout must drop the same again."""


def _draws(device: torch.device) -> GeneratorState:
    module = torch.get_device_module(device)
    return torch.get_rng_state(), None if device.type == "cpu" else module.get_rng_state()


def _draw_again(draws: GeneratorState, device: torch.device) -> None:
    torch.set_rng_state(draws[0])
    if draws[1] is not None:
        torch.get_device_module(device).set_rng_state(draws[1])


@torch.no_grad()
def _without_graph(
    network: nn.Module, encode: Encode, parts: Sequence[Views]
) -> tuple[Tensor, list[GeneratorState]]:
    """Vectors of all parts, (views, batch, dim); batch-norm statistics stay for the second time."""
    encoded, draws = list[Tensor](), list[GeneratorState]()
    with frozen_statistics(network):
        for part in parts:
            draws.append(_draws(part[0].device))
            encoded.append(encode(part))
    return torch.cat(encoded, dim=1), draws


@torch.no_grad()
def _once(network: nn.Module, encode: Encode, parts: Sequence[Views]) -> Tensor:
    """Vectors that need no gradient, (views, batch, dim)."""
    encoded = list[Tensor]()
    for index, part in enumerate(parts):
        with pooled_statistics(network, index, len(parts)):
            encoded.append(encode(part))
    return torch.cat(encoded, dim=1)


def _again(
    network: nn.Module,
    encode: Encode,
    parts: Sequence[Views],
    gradient: Tensor | None,
    draws: Sequence[GeneratorState],
) -> None:
    """Encodes with a graph and sends each vector's gradient back to the weights."""
    assert gradient is not None
    start = 0
    for index, (part, drawn) in enumerate(zip(parts, draws, strict=True)):
        _draw_again(drawn, part[0].device)
        with watch("forward"), pooled_statistics(network, index, len(parts)):
            vectors = encode(part)
        with watch("backward"):
            torch.autograd.backward(vectors, gradient[:, start : start + vectors.shape[1]])
        start += vectors.shape[1]
