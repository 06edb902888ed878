"""Each norm against torch's batch norm on the images that it should take together."""

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision.models
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from diptych.config.model import GroupNormConfig, HeadConfig, NormConfig
from diptych.errors import ConfigError
from diptych.models import norms
from diptych.models.heads import build_head
from diptych.models.norms import (
    GlobalBatchNorm,
    SplitBatchNorm,
    frozen_statistics,
    pooled_statistics,
    use_norm,
)
from diptych.models.resnets import SmallResNet
from processes import Results, run_processes

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
SPLIT = NormConfig(kind="split", images_per_group=4)
SYNC = NormConfig(kind="sync")


@pytest.fixture(autouse=True)
def _one_generator() -> None:
    torch.manual_seed(0)


def batch_norm(channels: int, dimensions: int, *, affine: bool = True) -> _BatchNorm:
    """A batch norm of torch's whose weights and statistics are not the initial ones."""
    kind = nn.BatchNorm2d if dimensions == 4 else nn.BatchNorm1d
    norm = kind(channels, eps=1e-3, momentum=0.3, affine=affine).double()
    with torch.no_grad():
        for value in [*norm.parameters(), norm.running_mean, norm.running_var]:
            assert value is not None
            value.copy_(torch.rand(channels) + 0.5)
    return norm


def statistics(norm: nn.Module) -> list[Tensor]:
    return [getattr(norm, name).clone() for name in STATISTICS]


def passed(norm: nn.Module, values: Tensor, slopes: Tensor) -> Results:
    """One forward and backward of a loss in which each output has a slope of its own."""
    values = values.detach().clone().requires_grad_()
    output = norm(values)
    torch.autograd.backward((output * slopes).sum())
    assert values.grad is not None
    results = {"output": output.detach(), "values": values.grad}
    results |= {name: p.grad for name, p in norm.named_parameters() if p.grad is not None}
    return results | {name: getattr(norm, name).clone() for name in STATISTICS}


def assert_near(found: Tensor, wanted: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


# --- groups of images -----------------------------------------------------------------------


@pytest.mark.parametrize("rows", [4, 8, 11, 3])  # one group, two, a smaller last one, only that
@pytest.mark.parametrize("shape", [(5,), (5, 3, 2)])
@pytest.mark.parametrize("affine", [True, False])
def test_split_is_batch_norm_of_each_group(rows: int, shape: tuple[int, ...], affine: bool) -> None:
    plain = batch_norm(5, 1 + len(shape), affine=affine)
    values = 3 * torch.randn(rows, *shape, dtype=torch.float64) + 2
    slopes = torch.randn_like(values)
    found = passed(use_norm(copy.deepcopy(plain), SPLIT), values, slopes)

    groups = []
    for start in range(0, rows, 4):
        norm = copy.deepcopy(plain)  # each from the same statistics
        groups.append(passed(norm, values[start : start + 4], slopes[start : start + 4]))
    for name in ("output", "values"):
        assert_near(found[name], torch.cat([group[name] for group in groups]))
    for name in ("weight", "bias") if affine else ():
        assert_near(found[name], torch.stack([group[name] for group in groups]).sum(dim=0))
    for name in ("running_mean", "running_var"):
        assert_near(found[name], torch.stack([group[name] for group in groups]).mean(dim=0))
    assert found["num_batches_tracked"] == 1


def test_split_keeps_channels_last_and_counts_batches_without_momentum() -> None:
    values = torch.randn(8, 5, 3, 3).to(memory_format=torch.channels_last)
    plain = nn.BatchNorm2d(5, momentum=None)  # torch: the mean over all batches
    split = use_norm(copy.deepcopy(plain), SPLIT)
    assert isinstance(split, SplitBatchNorm)
    assert split.running_mean is not None
    assert split(values).is_contiguous(memory_format=torch.channels_last)
    split(values + 1)
    means = [values.mean((0, 2, 3)), values.mean((0, 2, 3)) + 1]
    assert_near(split.running_mean, torch.stack(means).mean(dim=0), 1e-6)


@pytest.mark.parametrize("shape", [(5,), (5, 3, 3)])
def test_an_image_alone_in_a_group_is_refused(shape: tuple[int, ...]) -> None:
    norm = use_norm(batch_norm(5, 1 + len(shape)), SPLIT)
    with pytest.raises(ConfigError, match=r"images_per_group = 4 .* batch of 9 alone"):
        norm(torch.randn(9, *shape, dtype=torch.float64))
    norm.eval()(torch.randn(1, *shape, dtype=torch.float64))


# --- all processes --------------------------------------------------------------------------


def make_cases(count: int) -> dict[str, tuple[Tensor, nn.Module, Tensor]]:
    """Of each case the whole batch, a batch norm of torch's, and the slopes of the loss."""
    torch.manual_seed(5)
    maps = 3 * torch.randn(4 * count + 1, 6, 5, 3, dtype=torch.float64) + 2
    cases = {
        "maps": (maps, batch_norm(6, 4)),
        "channels_last": (maps.to(memory_format=torch.channels_last), batch_norm(6, 4)),
        "vectors": (maps[..., 0, 0], batch_norm(6, 2, affine=False)),
        "far": (maps + 1e6, batch_norm(6, 4)),
        "far_in_float32": ((maps + 1e4).float(), batch_norm(6, 4).float()),
        "half": (maps.bfloat16(), batch_norm(6, 4).float()),
        "all_half": (maps.bfloat16(), batch_norm(6, 4).bfloat16()),
    }
    return {
        name: (values, norm, torch.randn_like(values)) for name, (values, norm) in cases.items()
    }


def rows_of(rank: int, count: int, total: int) -> slice:
    """Unequal shares: one row for the first, the rest over the others, most for the last."""
    ends = [0, *(1 + rank * (total // count) for rank in range(count - 1)), total]
    return slice(ends[rank], ends[rank + 1])


def synchronised(rank: int, count: int) -> Results:
    """Runs in each process: every case on this process's share of the rows."""
    results: Results = {}
    for case, (values, plain, slopes) in make_cases(count).items():
        own = rows_of(rank, count, len(values))
        norm = use_norm(plain, SYNC)
        assert isinstance(norm, GlobalBatchNorm)
        for name, found in passed(norm, values[own], slopes[own]).items():
            results[f"{case}.{name}"] = found
        results[f"{case}.evaluated"] = norm.eval()(values[own]).detach()
    torch.manual_seed(6)
    network = use_norm(SmallResNet(3, 4, (1, 1), 1).double(), SYNC)
    images = torch.randn(2 * count, 3, 8, 8, dtype=torch.float64)
    own = slice(2 * rank, 2 * rank + 2)
    compiled = copy.deepcopy(network)
    compiled.compile(backend="eager")
    for kind, one in (("network", network), ("compiled", compiled)):
        torch.autograd.backward(one(images[own]).square().sum())
        for name, weight in one.named_parameters():
            assert weight.grad is not None
            results[f"{kind}.{name}"] = weight.grad
    return results


def whole_network_gradients(count: int) -> Results:
    torch.manual_seed(6)
    network = SmallResNet(3, 4, (1, 1), 1).double()
    images = torch.randn(2 * count, 3, 8, 8, dtype=torch.float64)
    torch.autograd.backward(network(images).square().sum())
    return {name: w.grad for name, w in network.named_parameters() if w.grad is not None}


TOLERANCES = {"far": 1e-7, "far_in_float32": 5e-3, "half": 2e-2, "all_half": 4e-2}


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_sync_is_batch_norm_of_the_whole_batch(count: int) -> None:
    results = run_processes(synchronised, count)
    for case, (values, plain, slopes) in make_cases(count).items():
        tolerance = TOLERANCES.get(case, 1e-12)
        wanted = passed(plain.double(), values.double(), slopes.double())
        wanted["evaluated"] = plain.eval()(values.double()).detach()
        for name, value in wanted.items():
            found = [result[f"{case}.{name}"] for result in results]
            if name in ("output", "values", "evaluated"):
                assert found[0].dtype == values.dtype
                joined = torch.cat(found)
            elif name in ("weight", "bias"):
                joined = torch.stack(found).sum(dim=0)
            else:
                joined = found[0]
                assert all(torch.equal(joined, other) for other in found)
            torch.testing.assert_close(
                joined.double(),
                value.double(),
                rtol=tolerance,
                atol=tolerance * float(value.abs().max().clamp(min=1)),
                msg=f"{case}, {name}: {joined} is not {value}",
            )
    for name, value in whole_network_gradients(count).items():
        for kind in ("network", "compiled"):
            gradients = torch.stack([result[f"{kind}.{name}"] for result in results])
            assert_near(gradients.sum(dim=0), value, 1e-11)


def test_sync_alone_is_batch_norm() -> None:
    plain = batch_norm(5, 4)
    values = torch.randn(6, 5, 3, 3, dtype=torch.float64)
    slopes = torch.randn_like(values)
    found = passed(use_norm(copy.deepcopy(plain), SYNC), values, slopes)
    for name, value in passed(plain, values, slopes).items():
        assert torch.equal(found[name], value), name


def test_in_evaluation_a_norm_without_statistics_waits_for_no_other_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = nn.BatchNorm2d(5, track_running_stats=False).eval()
    values = torch.randn(6, 5, 3, 3)
    monkeypatch.setattr(norms, "process_count", lambda: 2)
    monkeypatch.setattr(norms, "gather_rows", lambda rows: pytest.fail("an exchange"))
    assert torch.equal(use_norm(copy.deepcopy(plain), SYNC)(values), plain(values))


# --- each image alone -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["layer", "group"])
def test_an_image_does_not_see_its_batch(kind: str) -> None:
    config = NormConfig(kind=kind, group=GroupNormConfig(channel_groups=4))  # type: ignore[arg-type]
    encoder = use_norm(SmallResNet(3, 8, (1, 1, 1), 1), config)
    head = use_norm(build_head(HeadConfig(batch_norm=True), features=32, seed=0), config)
    network = nn.Sequential(encoder, head).double()
    images = torch.randn(5, 3, 16, 16, dtype=torch.float64)
    alone = torch.cat([network(image[None]) for image in images])
    assert_near(network(images), alone, 1e-11)
    assert alone.std(dim=0).min() > 1e-3


@pytest.mark.parametrize(("kind", "most", "groups"), [("layer", 9, 1), ("group", 5, 4)])
@pytest.mark.parametrize("shape", [(12,), (12, 3, 2)])
def test_channels_are_normalised_in_groups(
    kind: str, most: int, groups: int, shape: tuple[int, ...]
) -> None:
    plain = batch_norm(12, 1 + len(shape))
    config = NormConfig(kind=kind, group=GroupNormConfig(channel_groups=most))  # type: ignore[arg-type]
    norm = use_norm(copy.deepcopy(plain), config)
    values = torch.randn(3, *shape, dtype=torch.float64) + 2
    parts = values.reshape(3, groups, -1)
    spread = (parts.var(dim=2, correction=0, keepdim=True) + plain.eps).sqrt()
    wanted = ((parts - parts.mean(dim=2, keepdim=True)) / spread).reshape(values.shape)
    per_channel = (1, 12, *[1] * (values.dim() - 2))
    wanted = wanted * plain.weight.view(per_channel) + plain.bias.view(per_channel)
    assert_near(norm(values), wanted)
    assert_near(norm.eval()(values), wanted)


def test_one_feature_in_a_group_is_refused() -> None:
    config = NormConfig(kind="group", group=GroupNormConfig(channel_groups=32))
    with pytest.raises(ConfigError, match=r"channel_groups = 32 .* Use at most 8"):
        use_norm(nn.Sequential(nn.BatchNorm1d(16)), config)
    use_norm(nn.Sequential(nn.BatchNorm2d(16)), config)  # maps have more values than one


# --- networks -------------------------------------------------------------------------------

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "small_resnet": lambda: SmallResNet(3, 4, (1, 1), 1),
    "head": lambda: build_head(HeadConfig(batch_norm=True), features=8, seed=0),
    "no_affine": lambda: nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8, affine=False)),
    "torchvision": lambda: torchvision.models.resnet18(weights=None),
    "norm": lambda: nn.BatchNorm2d(4),
}


@pytest.mark.parametrize("kind", ["split", "shuffle", "sync", "layer", "group"])
@pytest.mark.parametrize("name", NETWORKS)
def test_names_and_initial_weights_stay(name: str, kind: str) -> None:
    network = NETWORKS[name]()
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.eps, module.momentum = 1e-3, 0.2
    before = copy.deepcopy(network.state_dict())
    parameters = dict(network.named_parameters())
    network.eval()
    config = NormConfig(kind=kind, group=GroupNormConfig(channel_groups=2))  # type: ignore[arg-type]
    new = use_norm(network, config)
    after = new.state_dict()
    kept = before
    if config.is_per_image:
        kept = {key: value for key, value in before.items() if not key.endswith(STATISTICS)}
    assert list(after) == list(kept)
    assert all(torch.equal(after[key], value) for key, value in kept.items())
    assert all(parameters[key] is value for key, value in new.named_parameters())
    norms = [m for m in new.modules() if isinstance(m, (_BatchNorm, nn.GroupNorm))]
    assert {norm.eps for norm in norms} == {1e-3}
    assert not any(module.training for module in new.modules())
    assert not any(type(m) in (nn.BatchNorm1d, nn.BatchNorm2d) for m in new.modules())
    if not config.is_per_image:
        assert {norm.momentum for norm in norms} == {0.2}
        NETWORKS[name]().load_state_dict(copy.deepcopy(new).double().state_dict())


def test_batch_leaves_a_network_as_it_is() -> None:
    network = SmallResNet(3, 4, (1,), 1)
    before = list(network.modules())
    assert use_norm(network, NormConfig()) is network
    assert list(network.modules()) == before


@pytest.mark.parametrize("config", [SPLIT, SYNC])
def test_evaluation_is_batch_norms(config: NormConfig) -> None:
    plain = SmallResNet(3, 4, (1, 1), 1)
    plain(torch.randn(8, 3, 8, 8))  # statistics that are not the initial ones
    new = use_norm(copy.deepcopy(plain), config)
    images = torch.randn(3, 3, 8, 8)
    before = copy.deepcopy(new.state_dict())
    assert torch.equal(new.eval()(images), plain.eval()(images))
    assert all(torch.equal(before[key], value) for key, value in new.state_dict().items())


def test_a_norm_in_two_places_stays_one() -> None:
    shared = nn.BatchNorm1d(3)
    network = use_norm(nn.Sequential(shared, nn.ModuleList([shared]), shared), SPLIT)
    assert isinstance(network, nn.Sequential)
    assert isinstance(network[0], SplitBatchNorm)
    assert network[0] is network[2] is network[1][0]  # type: ignore[index]


def test_a_norm_can_be_replaced_again_but_an_unknown_one_cannot() -> None:
    class Surprise(nn.BatchNorm2d):
        pass

    again = use_norm(use_norm(nn.BatchNorm2d(4), SPLIT), SYNC)
    assert isinstance(again, GlobalBatchNorm)
    for norm in (Surprise(4), nn.LazyBatchNorm2d()):
        with pytest.raises(ConfigError, match=f"has a {type(norm).__name__}"):
            use_norm(nn.Sequential(norm), SPLIT)


@pytest.mark.parametrize("kind", ["split", "sync", "layer"])
def test_timms_fused_activation_is_kept(kind: str) -> None:
    timm = pytest.importorskip("timm")
    plain = timm.create_model("test_efficientnet", num_classes=0, drop_path_rate=0.0)
    fused = [m for m in plain.modules() if type(m).__name__ == "BatchNormAct2d"]
    assert sum(not isinstance(m.act, nn.Identity) for m in fused) > 3
    config = NormConfig(kind=kind, images_per_group=8)  # type: ignore[arg-type]
    new = use_norm(copy.deepcopy(plain), config)
    assert not any(type(m).__name__ == "BatchNormAct2d" for m in new.modules())
    images = torch.randn(8, 3, 32, 32)
    if kind != "layer":  # one group and one process: the same as batch norm
        assert list(new.state_dict()) == list(plain.state_dict())
        assert_near(new(images), plain(images), 1e-5)
        for name, value in plain.state_dict().items():
            assert_near(new.state_dict()[name], value, 1e-5)
        assert_near(new.eval()(images), plain.eval()(images), 1e-5)
        return
    new.double()
    position, norm = next(
        (name, m)
        for name, m in plain.named_modules()
        if type(m).__name__ == "BatchNormAct2d" and not isinstance(m.act, nn.Identity)
    )
    maps = torch.randn(2, norm.num_features, 4, 4, dtype=torch.float64)
    spread = (maps.var(dim=(1, 2, 3), correction=0, keepdim=True) + norm.eps).sqrt()
    wanted = norm.act((maps - maps.mean(dim=(1, 2, 3), keepdim=True)) / spread)
    assert_near(new.get_submodule(position)(maps), wanted)


@pytest.mark.parametrize("kind", ["split", "sync", "layer", "group"])
def test_half_precision_in_autocast(kind: str) -> None:
    config = NormConfig(kind=kind, images_per_group=4, group=GroupNormConfig(channel_groups=2))  # type: ignore[arg-type]
    network = use_norm(SmallResNet(3, 4, (1,), 1), config)
    images = torch.randn(8, 3, 8, 8)
    whole = network(images)
    with torch.autocast("cpu", torch.bfloat16):
        half = network(images)
    assert_near(half.float(), whole, 0.1)
    torch.autograd.backward(half.float().square().sum())
    for name, weight in network.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.dtype == torch.float32
        assert weight.grad.isfinite().all(), name
    assert {b.dtype for b in network.buffers()} <= {torch.float32, torch.int64}


# --- statistics of a batch that passes in parts or twice ----------------------------------------


@pytest.mark.parametrize("chunks", [1, 2, 5])
@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
@pytest.mark.parametrize("config", [NormConfig(), SPLIT, SYNC])
def test_chunks_move_the_statistics_as_one_batch(
    config: NormConfig, momentum: float | None, chunks: int
) -> None:
    norm = nn.BatchNorm1d(3, momentum=momentum).double()
    network = use_norm(nn.Sequential(norm), config)
    network(torch.randn(4, 3, dtype=torch.float64))
    (module,) = network.children()
    assert isinstance(module, _BatchNorm)
    assert module.running_mean is not None
    assert module.running_var is not None
    mean, variance, batches = statistics(module)
    parts = [torch.randn(4, 3, dtype=torch.float64) + i for i in range(chunks)]
    for i, part in enumerate(parts):
        with pooled_statistics(network, i, chunks):
            network(part)
        assert module.momentum == momentum
        assert module.num_batches_tracked == batches + (i == chunks - 1)
    share = 0.5 if momentum is None else momentum  # the second batch of a plain mean
    of_parts = torch.stack([part.mean(dim=0) for part in parts]).mean(dim=0)
    assert_near(module.running_mean, (1 - share) * mean + share * of_parts)
    of_parts = torch.stack([part.var(dim=0) for part in parts]).mean(dim=0)
    assert_near(module.running_var, (1 - share) * variance + share * of_parts)


def test_a_chunk_that_does_not_exist_is_refused() -> None:
    for chunk in (-1, 3):
        with pytest.raises(ValueError, match=f"chunk {chunk} is not one of 3"):
            pooled_statistics(nn.BatchNorm1d(3), chunk, 3).__enter__()


@pytest.mark.parametrize("config", [NormConfig(), SPLIT, SYNC])
def test_frozen_statistics_stay_and_the_output_is_the_same(config: NormConfig) -> None:
    network = use_norm(SmallResNet(3, 4, (1,), 1), config)
    images = torch.randn(8, 3, 8, 8)
    before = copy.deepcopy(network.state_dict())
    with frozen_statistics(network):
        output = network(images)
        assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert torch.equal(network(images), output)
    after = network.state_dict()
    assert after["bn1.num_batches_tracked"] == 1
    assert not torch.equal(after["bn1.running_mean"], before["bn1.running_mean"])


def test_an_error_inside_leaves_no_trace() -> None:
    norm = nn.BatchNorm1d(3)

    def fail() -> None:
        norm(torch.randn(4, 3))
        raise ArithmeticError

    for context in (frozen_statistics(norm), pooled_statistics(norm, 0, 2)):
        with pytest.raises(ArithmeticError), context:
            fail()
    assert norm.track_running_stats
    assert norm.momentum == 0.1
    assert norm.num_batches_tracked == 0
