"""Operations and bytes of networks against hand counts and against real backward passes."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diptych.config.data import ViewsConfig
from diptych.config.method import (
    DictionaryConfig,
    InBatchConfig,
    KeyEncoderConfig,
    MethodConfig,
    QueueConfig,
)
from diptych.config.model import EncoderConfig, HeadConfig, NormConfig
from diptych.config.run import RunConfig, TrainingConfig
from diptych.methods.contrastive import build_contrastive
from diptych.models import activations
from diptych.models.activations import offload, recompute_stages
from diptych.planning.compute import (
    Counter,
    count_networks,
    evaluation_peak,
    random_batch,
    without_logits,
)

SIDE, IMAGES, WIDTH, HIDDEN, OUT = 16, 6, 4, 8, 5
SIMCLR = RunConfig(
    views=ViewsConfig(side_pixels=SIDE),
    encoder=EncoderConfig(width=WIDTH, stage_blocks=(1,), stem_stride=1),
    head=HeadConfig(hidden_features=HIDDEN, output_features=OUT),
    training=TrainingConfig(batch_size=IMAGES),
)
MOCO = replace(
    SIMCLR,
    method=MethodConfig(
        dictionary=DictionaryConfig("queue", queue=QueueConfig(size=8)),
        key_encoder=KeyEncoderConfig("momentum"),
    ),
)
AGAIN = replace(SIMCLR, training=replace(SIMCLR.training, recompute="stages"))
CONFIGS = {
    "plain": SIMCLR,
    "predictor": replace(
        SIMCLR,
        head=replace(SIMCLR.head, predictor_layers=2, batch_norm=True),
        method=MethodConfig(
            symmetric=True,
            dictionary=DictionaryConfig("batch", batch=InBatchConfig(both_views=False)),
            key_encoder=KeyEncoderConfig("momentum"),
        ),
    ),
    "split": replace(SIMCLR, norm=NormConfig("split", images_per_group=2)),
    "layer": replace(SIMCLR, norm=NormConfig("layer")),
    "stages again": AGAIN,
    "bf16": replace(SIMCLR, training=replace(SIMCLR.training, precision="bf16")),
}


def one_view_forward() -> int:
    """By hand: three convolutions of 3x3 at full side, two linear layers; 2 for each product."""
    pixels = SIDE * SIDE
    convolutions = 9 * (3 * WIDTH + WIDTH * WIDTH + WIDTH * WIDTH) * pixels
    return 2 * (convolutions + WIDTH * HIDDEN + HIDDEN * OUT)


def stem() -> int:
    return 2 * 9 * 3 * WIDTH * SIDE * SIDE


def test_a_small_network_takes_the_operations_that_a_hand_counts() -> None:
    passes = count_networks(SIMCLR, IMAGES)
    views = 2 * IMAGES
    assert passes.forward_flops == views * one_view_forward()
    # Backward takes as many for the weights and for the inputs; images need none.
    assert passes.backward_flops == views * (2 * one_view_forward() - stem())
    assert passes.extra_flops == 0
    assert passes.flops == views * (3 * one_view_forward() - stem())


def test_a_momentum_encoder_adds_a_forward_pass_of_the_keys() -> None:
    passes = count_networks(MOCO, IMAGES)
    assert passes.forward_flops == passes.extra_flops == IMAGES * one_view_forward()


def test_a_bank_encodes_no_keys() -> None:
    config = replace(SIMCLR, method=MethodConfig(dictionary=DictionaryConfig("bank")))
    passes = count_networks(config, IMAGES)
    assert passes.forward_flops == IMAGES * one_view_forward()
    assert passes.extra_flops == 0


def test_chunks_are_encoded_once_more_and_need_the_memory_of_one() -> None:
    config = replace(SIMCLR, training=replace(SIMCLR.training, chunk_size=2))
    whole = count_networks(SIMCLR, IMAGES)
    parts = count_networks(config, IMAGES)
    assert (parts.forward_flops, parts.backward_flops) == (
        whole.forward_flops,
        whole.backward_flops,
    )
    assert parts.extra_flops == whole.forward_flops
    assert whole.saved_bytes / 3.1 < parts.saved_bytes < whole.saved_bytes / 2.9


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_saves_half_the_bytes_of_the_activations(precision: Any) -> None:
    config = replace(SIMCLR, training=replace(SIMCLR.training, precision=precision))
    half, full = count_networks(config, IMAGES), count_networks(SIMCLR, IMAGES)
    assert half.flops == full.flops
    assert 0.5 * full.saved_bytes <= half.saved_bytes < 0.6 * full.saved_bytes


def test_stages_that_are_computed_again_take_their_forward_pass_once_more() -> None:
    """By hand: the two convolutions of the only block; stem and head are not run again."""
    plain = count_networks(SIMCLR, IMAGES)
    again = count_networks(AGAIN, IMAGES)
    assert again.forward_flops == plain.forward_flops
    block = 2 * 9 * 2 * WIDTH * WIDTH * SIDE * SIDE
    assert again.backward_flops - plain.backward_flops == 2 * IMAGES * block
    assert again.saved_bytes < plain.saved_bytes


def test_of_several_stages_one_at_a_time_has_its_inside_in_memory() -> None:
    views = ViewsConfig(side_pixels=224)
    encoder = EncoderConfig("vit_tiny_patch16_224", stem="imagenet")  # twelve alike
    plain, again = (
        count_networks(config, IMAGES)
        for config in (replace(one, encoder=encoder, views=views) for one in (SIMCLR, AGAIN))
    )
    inside = (plain.saved_bytes - again.saved_bytes) / 12
    assert again.peak_bytes < again.saved_bytes + 2 * inside
    assert plain.peak_bytes > 10 * inside


@pytest.mark.parametrize("recompute", ["none", "stages"])
def test_offloaded_bytes_are_those_that_a_real_pass_sends_away(
    recompute: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oracle is torch's own ``save_on_cpu``, each of whose tensors is counted."""
    training = replace(SIMCLR.training, recompute=recompute, offload_activations=True)
    config, sent = replace(SIMCLR, training=training), list[int]()

    class Counting(torch.autograd.graph.save_on_cpu):
        def __init__(self, pin_memory: bool) -> None:
            super().__init__(pin_memory)
            send = self.pack_hook

            def pack(tensor: Tensor) -> Any:
                sent.append(tensor.nbytes)
                return send(tensor)

            self.pack_hook = pack

    monkeypatch.setattr(activations, "save_on_cpu", Counting)
    method = build_contrastive(config).train().to(memory_format=torch.channels_last)
    if recompute == "stages":
        recompute_stages(method.encoder)
    assert offload(method.encoder, torch.device("meta"))  # any that is no CPU; all tensors are
    vectors = method.encode_queries(tuple(torch.randn(2, IMAGES, 3, SIDE, SIDE)))
    away = sum(sent)
    vectors.sum().backward()  # type: ignore[no-untyped-call]
    kept = replace(config, training=replace(training, offload_activations=False))
    planned = count_networks(config, IMAGES)
    plain = count_networks(kept, IMAGES)
    assert planned.away_bytes == away
    assert planned.flops == plain.flops
    assert plain.away_bytes == 0
    assert planned.saved_bytes < 0.5 * plain.saved_bytes


@pytest.mark.parametrize("name", CONFIGS)
def test_saved_bytes_are_those_of_a_real_forward_pass(name: str) -> None:
    """The oracle is autograd itself: it tells of each tensor that it saves for the way back."""
    config = CONFIGS[name]
    planned = count_networks(config, IMAGES).saved_bytes
    method = build_contrastive(config).train().to(memory_format=torch.channels_last)
    if config.training.recompute == "stages":
        recompute_stages(method.encoder)
    weights = {p.untyped_storage().data_ptr() for p in method.parameters()}
    saved: dict[int, int] = {}
    kept = list[Tensor]()  # so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            saved[place] = tensor.untyped_storage().nbytes()
            kept.append(tensor)
        return tensor

    views = torch.randn(2, IMAGES, 3, SIDE, SIDE)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        method.encode_queries(tuple(views))
    # What comes out of the network is not saved by it, nor are keys; both are tiny here.
    assert planned == pytest.approx(sum(saved.values()), rel=0.01)


def test_the_peak_of_a_chain_is_that_of_its_widest_place() -> None:
    """Without a graph a layer holds its input and its output, and the caller the images.

    In megabytes: 4 + 8, then 4 + 8 + 1, then 4 + 1 + 2.
    """
    layers = [nn.Linear(wide, wider) for wide, wider in pairwise((1000, 2000, 250, 500))]
    chain = nn.Sequential(*layers).to("meta")
    with torch.no_grad(), Counter() as live:
        output = chain(torch.empty(1000, 1000, device="meta"))
    assert live.peak == 4 * 1000 * (1000 + 2000 + 250)
    assert live.now == output.nbytes == 4 * 1000 * 500


def test_an_evaluation_needs_less_than_a_step() -> None:
    evaluation = evaluation_peak(SIMCLR, 2 * IMAGES)
    assert evaluation < count_networks(SIMCLR, IMAGES).peak_bytes
    assert evaluation >= 2 * 2 * IMAGES * WIDTH * SIDE * SIDE * 4  # two maps of a residual block


def test_attention_is_counted_as_its_two_products() -> None:
    """By hand: each is 2 x tokens x tokens x dim; on the way back there are five."""
    heads, tokens, dim = 3, 10, 4
    one = torch.randn(2, heads, tokens, dim, requires_grad=True)
    with Counter() as counter:
        attended = nn.functional.scaled_dot_product_attention(one, one, one)
        forward = counter.flops
        attended.sum().backward()  # type: ignore[no-untyped-call]
    product = 2 * heads * 2 * tokens * tokens * dim
    assert forward == 2 * product
    assert counter.flops - forward == 5 * product


@pytest.mark.parametrize("name", ["plain", "predictor"])
def test_what_replaces_the_logits_leaves_the_method_as_it_was(name: str) -> None:
    config = CONFIGS[name]
    method, batch = build_contrastive(config), random_batch(config, IMAGES)
    before = method(batch).loss
    with without_logits(method):
        without = method(batch).loss
        assert without != before
        torch.autograd.backward(without)
    reached = [one.grad is not None for one in method.parameters() if one.requires_grad]
    assert all(reached)
    assert method(batch).loss == before  # batch statistics, and weights that stayed
