"""What looking keys up costs: operations and bytes, as functions of queries, keys and dimension."""

from dataclasses import dataclass

from diptych.methods.logits import CPU_TILE, DEVICE_TILE
from diptych.planning.case import Case

_FLOAT_BYTES = 4  # scores are never narrower
_WHOLE_MATRICES = 4  # scores, divided, the loss's and their gradient; masks are a byte each


@dataclass(frozen=True)
class LookUpCost:
    """Of one process in a step.

    Attributes:
        comparisons: looks-up of a set of queries, one after the other.
        queries: in each.
        keys: that each query meets.
        flops: of all.
        bytes: that are alive at once at most.
    """

    comparisons: int
    queries: int
    keys: int
    flops: int
    bytes: int


def look_up_cost(case: Case, dim: int, *, tile: int) -> LookUpCost:
    """Of a whole step: every query of the process against the keys of all.

    Args:
        case: the run.
        dim: of a vector.
        tile: scores in a row of a tile.
    """
    images, whole = case.images, case.config.training.batch_size
    if case.queries_are_keys:
        comparisons, queries, keys = 1, case.query_views * images, case.query_views * whole
    else:
        comparisons, queries, keys = case.query_views, images, _others(case)
    flops = comparisons * _flops(case, queries, keys, dim, tile)
    return LookUpCost(comparisons, queries, keys, flops, _bytes(case, queries, keys, dim, tile))


def tile_of(device: str) -> int:
    """Scores in a row of a tile on a device."""
    return CPU_TILE if device == "cpu" else DEVICE_TILE


def drawn_images(case: Case) -> int:
    """Images whose keys are drawn from a full bank: one more than the negatives, if there are."""
    return min(case.config.method.dictionary.bank.negatives + 1, case.image_count)


def _others(case: Case) -> int:
    dictionary = case.config.method.dictionary
    if dictionary.kind == "queue":
        return dictionary.queue.size
    if dictionary.kind == "bank":
        return drawn_images(case)
    return case.config.training.batch_size


def _flops(case: Case, queries: int, keys: int, dim: int, tile: int) -> int:
    """2 dim for each pair that is multiplied.

    In a matrix of all scores: each pair forward, and backward for each side that learns. In tiles:
    scores and, if queries learn, their mean key on the way forward; both again on the way back if
    keys learn. Among the queries themselves: the upper triangle of tiles forward; backward again,
    and its product with the rows and, off the diagonal, with the columns.
    """
    pairs = queries * keys
    if case.config.method.loss.kind in ("nt_logistic", "triplet"):
        return 2 * dim * pairs * (2 + case.keys_learn)
    if case.queries_are_keys and case.processes == 1:
        diagonal, above = _triangle(queries, tile)
        learning = 3 * diagonal + 4 * above
        looking = diagonal + above if case.looks_up_many else 0
        return 2 * dim * (learning + looking)
    looking = pairs if case.looks_up_many else 0
    return 2 * dim * (pairs * (4 if case.keys_learn else 2) + looking)


def _triangle(rows: int, tile: int) -> tuple[int, int]:
    """Pairs in the tiles on the diagonal, and in those above it."""
    whole, rest = divmod(rows, tile)
    diagonal = whole * tile**2 + rest**2
    return diagonal, (rows**2 - diagonal) // 2


def _bytes(case: Case, queries: int, keys: int, dim: int, tile: int) -> int:
    """Scaled queries, their mean keys and gradients; keys and theirs; one or two tiles.

    Keys of a batch lie there once as gathered and once as put together. So do those fetched from a
    bank in shares, the batch's own among them, and once more in their order.
    """
    rows = 4 * queries * dim * _FLOAT_BYTES
    if case.config.method.loss.kind in ("nt_logistic", "triplet"):
        return rows + queries * keys * (_WHOLE_MATRICES * _FLOAT_BYTES + 1)
    tiles = min(tile, queries) * min(tile, keys) * _FLOAT_BYTES
    if case.queries_are_keys and case.processes == 1:
        return rows + 2 * tiles
    copies = {"batch": 3, "bank": 1, "queue": 0}[case.config.method.dictionary.kind]
    left_out = queries * keys * (_FLOAT_BYTES + 1) if copies == 1 else 0  # which key is its own
    fetched = 3 * (case.config.training.batch_size + keys) if _is_shared(case) else 0
    return rows + (copies * keys + fetched) * dim * _FLOAT_BYTES + tiles + left_out


def _is_shared(case: Case) -> bool:
    dictionary = case.config.method.dictionary
    return dictionary.kind == "bank" and dictionary.bank.placement == "sharded"
