"""Whole equals chunks: cached gradients give the loss, gradients and statistics of the batch."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from diptych.config.method import (
    BankConfig,
    DictionaryConfig,
    InBatchConfig,
    KeyEncoderConfig,
    LossConfig,
    MethodConfig,
    QueueConfig,
)
from diptych.config.model import EncoderConfig, GroupNormConfig, HeadConfig, NormConfig
from diptych.config.run import RunConfig, TrainingConfig
from diptych.methods.contrastive import Contrastive, build_contrastive
from diptych.methods.dictionaries import InBatch
from diptych.views.batches import Batch

BATCH = 12
SIMCLR = RunConfig(
    encoder=EncoderConfig(width=4, stage_blocks=(1, 1)),
    norm=NormConfig("split", images_per_group=3),
    head=HeadConfig(hidden_features=8, output_features=6, batch_norm=True),
    method=MethodConfig(loss=LossConfig(temperature=0.2)),
    training=TrainingConfig(batch_size=BATCH),
)
IN_BATCH = DictionaryConfig("batch", batch=InBatchConfig(both_views=False))
METHODS = {
    "simclr": SIMCLR.method,
    "three views": replace(SIMCLR.method, views=3),
    "end_to_end": MethodConfig(dictionary=IN_BATCH),
    "moco": MethodConfig(
        dictionary=DictionaryConfig("queue", queue=QueueConfig(size=20)),
        key_encoder=KeyEncoderConfig("momentum"),
    ),
    "moco_v3": MethodConfig(
        symmetric=True, dictionary=IN_BATCH, key_encoder=KeyEncoderConfig("momentum")
    ),
    "bank": MethodConfig(dictionary=DictionaryConfig("bank", bank=BankConfig(negatives=6))),
}


def config_of(name: str, norm: NormConfig) -> RunConfig:
    predictor = 2 if name == "moco_v3" else 0
    head = replace(SIMCLR.head, predictor_layers=predictor)
    return replace(SIMCLR, method=METHODS[name], norm=norm, head=head)


def batch_of(views: int, step: int = 0, *, small: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(views + small, BATCH, 3, 16, 16, generator=generator, dtype=torch.float64)
    shown = (*images[:views], *images[views:, ..., :9, :9])
    return Batch(shown, torch.arange(BATCH), step)


def learned(config: RunConfig, chunk_size: int | None) -> tuple[float, Contrastive]:
    """One step that fills the dictionary, then the gradients of a second."""
    training = replace(config.training, chunk_size=chunk_size)
    method = build_contrastive(replace(config, training=training), image_count=2 * BATCH)
    method = method.double().train()
    views, small = config.method.views, config.views.small_views
    method.after_step(method(batch_of(views, small=small)))
    output = method(batch_of(views, step=1, small=small))
    torch.autograd.backward(output.loss * 1.5)
    method.after_step(output)
    return float(output.loss.detach()), method


@pytest.mark.parametrize("kind", ["split", "shuffle", "layer", "group"])
@pytest.mark.parametrize("name", METHODS)
def test_whole_equals_chunks(name: str, kind: str) -> None:
    if (name, kind) == ("bank", "shuffle"):
        pytest.skip("the keys of a bank are of earlier batches: none are shuffled")
    norm = NormConfig(kind, images_per_group=3, group=GroupNormConfig(channel_groups=2))  # type: ignore[arg-type]
    assert_whole_equals_chunks(config_of(name, norm))


@pytest.mark.parametrize("name", METHODS)
def test_whole_equals_chunks_with_small_views(name: str) -> None:
    norm = NormConfig("split" if name == "bank" else "shuffle", images_per_group=3)
    config = config_of(name, norm)
    small = replace(config.views, small_views=2, small_side_pixels=9)
    assert_whole_equals_chunks(replace(config, views=small))


def assert_whole_equals_chunks(config: RunConfig) -> None:
    expected, whole = learned(config, None)
    for chunk_size in (3, 6):
        loss, chunked = learned(config, chunk_size)
        assert loss == pytest.approx(expected, rel=1e-9)
        for (label, one), other in zip(whole.named_parameters(), chunked.parameters(), strict=True):
            if one.requires_grad:
                assert one.grad is not None
                assert other.grad is not None
                largest = float(one.grad.abs().max())
                torch.testing.assert_close(
                    other.grad, one.grad, rtol=1e-9, atol=1e-9 * largest + 1e-13, msg=label
                )
        for (label, ours), theirs in zip(
            chunked.state_dict().items(), whole.state_dict().values(), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12, msg=label)


@pytest.mark.parametrize("name", ["end_to_end"])
def test_plain_batch_norm_sees_a_chunk_at_a_time(name: str) -> None:
    """So the result is that of groups as large as a chunk, and not that of the whole batch."""
    _, chunked = learned(config_of(name, NormConfig("batch")), 6)
    _, grouped = learned(config_of(name, NormConfig("split", images_per_group=6)), None)
    _, whole = learned(config_of(name, NormConfig("batch")), None)
    differs = False
    for one, other, third in zip(
        chunked.network.parameters(),
        grouped.network.parameters(),
        whole.network.parameters(),
        strict=True,
    ):
        assert one.grad is not None
        assert third.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-7, atol=1e-10)
        differs |= not torch.allclose(one.grad, third.grad, rtol=1e-3)
    assert differs


def test_chunks_drop_the_same_units_twice() -> None:
    """Dropout draws anew at the second encoding unless the generator is put back."""
    encoder = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(48, 8))
    method = Contrastive(encoder, nn.Identity(), InBatch(), SIMCLR.method, chunk_size=4)
    method = method.double().train()
    images = torch.randn(2, BATCH, 3, 4, 4, dtype=torch.float64)
    batch = Batch(tuple(images), torch.arange(BATCH), 0)
    torch.manual_seed(3)
    torch.autograd.backward(method(batch).loss)
    after = torch.rand(1)
    found = [p.grad.clone() for p in method.parameters() if p.grad is not None]
    method.zero_grad()
    torch.manual_seed(3)
    # The same draws in the same order, with a graph all along.
    parts = [
        method.encode_queries(tuple(part))
        for part in zip(*(view.split(4) for view in images), strict=True)
    ]
    torch.autograd.backward(method.contrast(torch.cat(parts, dim=1), None, batch).loss)
    expected = [p.grad for p in method.parameters() if p.grad is not None]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    assert torch.equal(after, torch.rand(1))  # the next step goes on where the first pass ended


def test_an_encoding_without_gradients_is_done_once() -> None:
    passes = []
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(48, 8))
    encoder.register_forward_hook(lambda *_: passes.append(1))
    method = Contrastive(encoder, nn.Identity(), InBatch(), SIMCLR.method, chunk_size=4)
    batch = Batch(tuple(torch.randn(2, BATCH, 3, 4, 4)), torch.arange(BATCH), 0)
    with torch.no_grad():
        method(batch)
    assert len(passes) == 3
    torch.autograd.backward(method(batch).loss)
    assert len(passes) == 9
