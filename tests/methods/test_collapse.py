"""A network that gives one point for every image finds no key, however the scores are computed."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diptych.config.method import (
    BankConfig,
    DictionaryConfig,
    InBatchConfig,
    LossConfig,
    MethodConfig,
    QueueConfig,
)
from diptych.diagnostics.label_free import neighbour_agreement
from diptych.diagnostics.leak import compare_groupings
from diptych.evaluation.knn import knn_predict, leave_one_out
from diptych.methods.contrastive import Contrastive, build_dictionary
from diptych.methods.dictionaries import Dictionary
from diptych.methods.distillation import agreement
from diptych.methods.logits import (
    in_batch_logsumexp,
    logit_rounding,
    negative_logits,
    negatives_logsumexp,
    positive_logits,
    pretext_accuracy,
    row_ranks_first,
)
from diptych.runtime.distributed import own_slice
from diptych.views.batches import Batch
from processes import Results, run_processes

BATCH, DIM, STEPS, IMAGES = 24, 128, 4, 72
DICTIONARIES = {
    "both views": DictionaryConfig("batch"),
    "keys of the batch": DictionaryConfig("batch", batch=InBatchConfig(both_views=False)),
    "queue": DictionaryConfig("queue", queue=QueueConfig(size=40)),
    "bank": DictionaryConfig("bank", bank=BankConfig(negatives=30)),
    "bank in fp16": DictionaryConfig("bank", bank=BankConfig(negatives=30, precision="fp16")),
}
LOSSES = ("info_nce", "decoupled", "nt_logistic", "triplet", "supervised")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class OnePoint(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.point = nn.Parameter(torch.randn(DIM, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        return self.point.expand(len(images), -1).clone()


def accuracies(
    dictionary: Dictionary,
    config: MethodConfig,
    seed: int,
    *,
    shuffle: bool = False,
    half: torch.dtype | None = None,
) -> list[float]:
    """Of some steps; those of an empty dictionary, where there is nothing to choose, left out."""
    method = Contrastive(
        OnePoint(seed),
        nn.Identity(),
        dictionary,
        config,
        shuffle_seed=1 if shuffle else None,
        autocast_type=half,
    )
    found = []
    for step in range(STEPS):
        indices = torch.arange(step * BATCH, (step + 1) * BATCH)[own_slice(BATCH)] % IMAGES
        views = tuple(torch.zeros(len(indices), 3, 2, 2) for _ in range(config.views))
        output = method(Batch(views, indices, step, labels=indices % 5))
        if output.metrics["candidates"] > 1:
            found.append(float(output.metrics["pretext_accuracy"]))
        method.after_step(output)
    return found


def dictionary_of(kind: str) -> Dictionary:
    return build_dictionary(
        DICTIONARIES[kind], dim=DIM, image_count=IMAGES, unit_length=True, seed=0
    )


@pytest.mark.parametrize("half", [None, torch.bfloat16])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("kind", DICTIONARIES)
def test_no_dictionary_finds_keys_in_one_point(
    kind: str, shuffle: bool, half: torch.dtype | None
) -> None:
    config = MethodConfig(dictionary=DICTIONARIES[kind], loss=LossConfig(temperature=0.07))
    for seed in range(12):
        found = accuracies(dictionary_of(kind), config, seed, shuffle=shuffle, half=half)
        assert found
        assert set(found) == {0.0}, f"vector {seed}"


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize(
    ("loss", "views"), [*((loss, 2) for loss in LOSSES), ("info_nce", 3), ("supervised", 3)]
)
def test_no_loss_finds_keys_in_one_point(loss: str, views: int, similarity: str) -> None:
    config = MethodConfig(
        views=views,
        loss=LossConfig(loss, temperature=0.3, similarity=similarity),  # type: ignore[arg-type]
    )
    for seed in range(12):
        assert set(accuracies(dictionary_of("both views"), config, seed)) == {0.0}


def one_point_over_processes(rank: int, count: int) -> Results:
    found = []
    for kind, dictionary in DICTIONARIES.items():
        config = MethodConfig(dictionary=dictionary, loss=LossConfig(temperature=0.07))
        found += accuracies(dictionary_of(kind), config, seed=3, shuffle=True)
    return {"found": torch.tensor(found)}


@pytest.mark.slow
def test_several_processes_find_no_keys_in_one_point() -> None:
    for results in run_processes(one_point_over_processes, 2):
        assert len(results["found"]) > len(DICTIONARIES)
        assert not results["found"].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [2, 48, 128, 2048])
def test_equal_scores_are_no_find_in_any_type_and_tile(dim: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(dim)
    itself = torch.arange(50)[:, None]
    for temperature in (0.05, 0.2, 1.0):
        point = torch.randn(dim, generator=generator, dtype=torch.float64)
        same = (point / point.norm()).to(dtype).expand(50, -1).contiguous()
        own = positive_logits(same, same, temperature=temperature)
        apart = logit_rounding(same, same, temperature=temperature)
        for tile in (7, 50, None):
            plain = negatives_logsumexp(
                same, same, temperature=temperature, excluded=itself, tile=tile
            )
            among = in_batch_logsumexp(same, temperature=temperature, excluded=itself, tile=tile)
            for best in (plain.largest, among.largest):
                assert float(pretext_accuracy(own, best, apart)) == 0.0
        matrix = negative_logits(same, same, temperature=temperature, excluded=itself)
        assert float(pretext_accuracy(own, matrix.amax(dim=1), apart)) == 0.0
    assert not row_ranks_first(same, same).any()


def test_what_counts_as_a_tie_is_far_below_what_an_encoder_tells_apart() -> None:
    """In cosines: some 1e-5, where the best of 65,536 random keys differ by more."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.nn.functional.normalize(torch.randn(4096, DIM, generator=generator), dim=1)
    noise = 0.3 * torch.randn(4096, DIM, generator=generator) / DIM**0.5
    queries = torch.nn.functional.normalize(keys + noise, dim=1)
    assert float(logit_rounding(queries, keys, temperature=1.0).max()) < 2e-5
    exact = queries.double() @ keys.double().T
    wanted = (exact.argmax(dim=1) == torch.arange(4096)).double().mean()
    assert float(row_ranks_first(queries, keys).double().mean()) == pytest.approx(float(wanted))


def test_the_slack_bounds_what_rounding_does() -> None:
    """Against float64: no score is off by more than half of it."""
    generator = torch.Generator().manual_seed(1)
    for dim in (3, 100, 1000):
        queries, keys = torch.randn(2, 40, dim, generator=generator) * 7
        off = negative_logits(queries, keys, temperature=0.2).double()
        off -= queries.double() @ keys.double().T / 0.2
        apart = logit_rounding(queries, keys, temperature=0.2).double()
        assert (off.abs().amax(dim=1) < apart / 2).all()
        # Not so much that it hides what differs: some sixty times what was seen, at most.
        assert float(apart.max()) < 1e-3 * float(
            (queries.norm(dim=1).max() * keys.norm(dim=1).max()) / 0.2
        )


def test_a_leak_is_not_made_of_ties() -> None:
    point = torch.nn.functional.normalize(torch.randn(1, DIM), dim=1).expand(32, -1)
    matrix = point @ point.T
    noisy = matrix + 1e-7 * torch.eye(32)  # a query's own score, one rounding higher
    apart = logit_rounding(point, point, temperature=1.0)
    leak = compare_groupings(noisy, matrix, torch.arange(32) // 4, apart)
    assert (leak.accuracy, leak.regrouped_accuracy) == (0.0, 0.0)


def test_neighbours_of_one_point_are_chance() -> None:
    """Whatever rounding makes of equal similarities, it knows nothing of the classes."""
    labels = torch.arange(60) // 20
    point = torch.randn(1, DIM, generator=torch.Generator().manual_seed(5))
    same = point.expand(60, -1).contiguous()
    predicted = knn_predict(same, labels, same)
    assert bool((predicted == predicted[0]).all())
    left_out = leave_one_out(same, labels)
    assert float((left_out == labels).double().mean()) <= 0.5


def test_features_of_few_points_do_not_agree_by_the_order_of_images() -> None:
    """Ten points of forty images: of forty that are equally near, ten agree by chance."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(10, 32))
    features = torch.from_numpy(points[np.arange(400) % 10]).float()
    agreed = neighbour_agreement(features, features.clone())
    assert agreed == pytest.approx(10 / 39, abs=0.05)
    apart = torch.from_numpy(rng.normal(size=(400, 32)))
    assert neighbour_agreement(apart, apart.clone()) == 1.0


def test_a_student_that_names_no_class_agrees_with_none() -> None:
    teacher = torch.tensor([[3.0, 0.0, 1.0], [0.0, 2.0, 1.0]])
    assert float(agreement(torch.zeros(2, 3), teacher)) == 0.0
    assert float(agreement(teacher, teacher)) == 1.0
    assert float(agreement(teacher.roll(1, dims=1), teacher)) == 0.0


def test_an_empty_dictionary_has_nothing_to_tie_with() -> None:
    query = torch.ones(2, 3)
    best = negatives_logsumexp(query, torch.empty(0, 3), temperature=0.1).largest
    apart = logit_rounding(query, query, torch.empty(0, 3), temperature=0.1)
    assert (
        float(pretext_accuracy(positive_logits(query, query, temperature=0.1), best, apart)) == 1.0
    )
