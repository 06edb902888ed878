"""Recipes carry the papers' settings, and every one builds a method that takes a step."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diptych.config.data import ViewsConfig
from diptych.config.files import overlay, parse_toml, to_toml
from diptych.config.method import KeyEncoderConfig
from diptych.config.policies import Crop, as_text, branches
from diptych.config.recipes import HAVE_CIFAR10, RECIPES, recipe_config
from diptych.config.run import OptimizerConfig, RunConfig
from diptych.config.scales import SCALES
from diptych.config.suited import fitted_batch, learning_on, suited_side
from diptych.errors import ConfigError
from diptych.logging.metrics import task_accuracy
from diptych.methods.build import METHODS, build_with_keys
from diptych.methods.method import Method
from diptych.models.heads import build_head
from diptych.optimization.optimizers import build_optimizer, peak_learning_rate
from diptych.resolve import Overrides, asked_start, in_effect, resolve
from diptych.training.step import train_step
from diptych.views.batches import Batch
from foreign_networks import small_stem


@pytest.mark.parametrize("scale", ["tiny", "small", "paper"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_survives_its_config_file(recipe: str, scale: str) -> None:
    config = recipe_config(recipe, scale)
    assert (config.recipe, config.scale) == (recipe, scale)
    assert overlay(RunConfig(), parse_toml(to_toml(config), "recipe"), "recipe") == config


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_takes_a_step_that_moves_it(recipe: str) -> None:
    config = recipe_config(recipe, "tiny")
    config = replace(config, encoder=replace(config.encoder, width=4, stage_blocks=(1, 1)))
    method = built(config).train()
    optimizer = build_optimizer(config.optimizer, method)
    before = {name: value.clone() for name, value in method.named_parameters()}
    losses = []
    for step in range(3):
        views = tuple(torch.randn(config.method.views, 32, 3, 32, 32))
        batch = Batch(views, torch.arange(32) + 32 * (step % 2), step)
        result = train_step(method, optimizer, batch, rate=0.05, momentum=0.9, config=config)
        losses.append(float(result.loss))
        assert task_accuracy({"loss": 1.0, **result.metrics}) is not None
    assert all(loss == loss for loss in losses)
    moved = [
        name for name, value in method.named_parameters() if not torch.equal(value, before[name])
    ]
    assert {name.split(".")[0] for name in moved} >= {"network"}
    follows = config.method.key_encoder.kind == "momentum"
    assert ("momentum_encoder" in {name.split(".")[0] for name in moved}) == follows


def built(config: RunConfig) -> Method:
    """The method, of 64 images."""
    if config.method.kind in ("contrastive", "dense"):
        return build_with_keys(config, image_count=64)
    return METHODS[config.method.kind].build(config, None, None)


def test_the_papers_settings() -> None:
    """Tables and appendices as the recipes' docstrings name them."""
    v1, v2, v3 = (recipe_config(f"moco_v{n}", "paper") for n in (1, 2, 3))
    assert v1.method.loss.temperature == 0.07
    assert v2.method.loss.temperature == 0.2
    assert v1.method.dictionary.queue.size == v2.method.dictionary.queue.size == 65536
    assert v1.method.key_encoder.momentum == v2.method.key_encoder.momentum == 0.999
    assert (v1.head.layers, v2.head.layers, v2.head.hidden_features) == (1, 2, None)  # of 2048
    assert (v1.schedule.kind, v1.schedule.step.drops) == (
        "step",
        (0.6, 0.8),
    )  # 120, 160 of 200 epochs
    assert v2.schedule.kind == "cosine"
    assert v1.norm.kind == v2.norm.kind == "shuffle"
    for preset, config in (("moco_v1", v1), ("moco_v2", v2), ("moco_v3", v3)):
        assert config.views.branches == branches(preset, None)
        assert config.views.strength == 1.0
    assert peak_learning_rate(v1.optimizer, v1.training.batch_size) == pytest.approx(0.03)
    assert (v3.head.predictor_layers, v3.head.output_features) == (2, 256)
    assert (v3.method.key_encoder.momentum, v3.method.key_encoder.momentum_schedule) == (
        0.99,
        "cosine",
    )
    assert v3.training.batch_size == 4096

    first, second = recipe_config("simclr", "paper"), recipe_config("simclr_v2", "paper")
    assert first.method.loss.temperature == 0.1
    assert first.training.batch_size == 4096
    assert peak_learning_rate(first.optimizer, 4096) == pytest.approx(4.8)
    assert (first.optimizer.kind, first.optimizer.weight_decay) == ("lars", 1e-6)
    assert first.views.branches == second.views.branches == branches("simclr", None)
    assert second.head.layers == 3
    assert second.encoder.selective_kernels
    assert peak_learning_rate(second.optimizer, 4096) == pytest.approx(6.4)

    cifar = recipe_config("simclr", "cifar10")
    assert (cifar.encoder.stem, cifar.views.strength) == ("small", 0.5)
    assert cifar.views.branches == branches("simclr_cifar", None)
    assert (cifar.method.loss.temperature, cifar.training.epochs) == (0.5, 1000)

    bank, batch = recipe_config("memory_bank", "paper"), recipe_config("end_to_end", "paper")
    assert bank.method.dictionary.kind == "bank"
    assert bank.method.dictionary.bank.momentum == 0.5
    assert (batch.method.dictionary.kind, batch.method.key_encoder.kind) == ("batch", "shared")
    assert not batch.method.dictionary.batch.both_views


def test_the_papers_settings_without_negatives() -> None:
    byol, simsiam, barlow, vicreg, lejepa = (
        recipe_config(name, "paper")
        for name in ("byol", "simsiam", "barlow_twins", "vicreg", "lejepa")
    )
    assert (byol.head.hidden_features, byol.head.output_features) == (4096, 256)
    assert byol.method.key_encoder == KeyEncoderConfig("momentum", 0.996, "cosine")
    assert peak_learning_rate(byol.optimizer, 4096) == pytest.approx(3.2)
    assert (simsiam.head.layers, simsiam.head.predictor_hidden_features) == (3, 512)
    assert peak_learning_rate(simsiam.optimizer, 512) == pytest.approx(0.1)
    assert (barlow.head.layers, barlow.head.output_features) == (3, 8192)
    assert barlow.method.barlow_twins.redundancy_weight == 0.005
    weights = vicreg.method.vicreg
    assert (
        weights.invariance_weight,
        weights.variance_weight,
        weights.covariance_weight,
    ) == (25.0, 25.0, 1.0)
    assert lejepa.method.lejepa.regularization_weight == 0.05
    assert (lejepa.optimizer.kind, lejepa.optimizer.weight_decay) == ("adamw", 5e-4)
    for config in (byol, barlow, vicreg):
        assert config.views.branches == branches("byol", None)
    assert simsiam.views.branches == branches("moco_v2", None)
    assert peak_learning_rate(barlow.optimizer, 2048) == pytest.approx(1.6)
    assert 1.6 * barlow.optimizer.lars.spared_share == pytest.approx(0.0048 * 2048 / 256)
    assert (lejepa.views.small_views, lejepa.views.small_side_pixels) == (6, 98)
    assert "area=0.3..1" in lejepa.views.policy
    assert "area=0.05..0.3" in str(lejepa.views.small_policy)


def test_the_papers_settings_of_neighbours_and_prototypes() -> None:
    nnclr, swav, dino = (recipe_config(name, "paper") for name in ("nnclr", "swav", "dino"))
    assert (nnclr.method.nnclr.queue_size, nnclr.method.nnclr.temperature) == (98304, 0.1)
    assert peak_learning_rate(nnclr.optimizer, 4096) == pytest.approx(4.8)
    assert (nnclr.head.layers, nnclr.head.output_features) == (3, 256)
    assert nnclr.head.predictor_hidden_features == 4096
    assert (swav.method.swav.prototypes, swav.method.swav.epsilon) == (3000, 0.05)
    assert peak_learning_rate(swav.optimizer, 4096) == pytest.approx(4.8)
    assert (swav.views.small_views, swav.training.epochs) == (6, 800)
    assert swav.views.policy.startswith("crop(area=0.14..1) + flip")
    assert str(swav.views.small_policy).startswith("crop(area=0.05..0.14) + flip")
    assert dino.method.dino.prototypes == 65536
    assert (dino.method.dino.teacher_temperature, dino.method.dino.warmup_epochs) == (0.07, 30.0)
    assert dino.method.key_encoder == KeyEncoderConfig("momentum", 0.996, "cosine")
    assert (dino.optimizer.weight_decay, dino.optimizer.weight_decay_end) == (0.04, 0.4)
    assert peak_learning_rate(dino.optimizer, 1024) == pytest.approx(2e-3)
    assert (dino.encoder.name, dino.views.small_views) == ("timm:vit_small_patch16_224", 10)
    assert dino.views.policy.startswith("crop(area=0.25..1, interpolation=bicubic)")
    assert str(dino.views.small_policy).startswith("crop(area=0.05..0.25, interpolation=bicubic)")


def test_simsiam_has_settings_for_cifar10() -> None:
    """Appendix D."""
    config = recipe_config("simsiam", "cifar10")
    assert (config.encoder.name, config.encoder.stem) == ("resnet18", "small")
    assert (config.head.layers, config.head.output_features) == (2, 2048)
    assert (config.training.batch_size, config.training.epochs) == (512, 800)
    assert peak_learning_rate(config.optimizer, 512) == pytest.approx(0.06)
    assert (config.optimizer.kind, config.optimizer.weight_decay) == ("sgd", 5e-4)
    assert config.views.branches == branches("crop + color + gray + flip", None)
    assert config.views.side_pixels == 32


def test_only_two_papers_have_settings_for_cifar10() -> None:
    with pytest.raises(ConfigError, match="moco_v2 has no scale cifar10"):
        recipe_config("moco_v2", "cifar10")
    with pytest.raises(ConfigError, match="no recipe 'moco_v9'; wanted one of memory_bank"):
        recipe_config("moco_v9", "tiny")
    with pytest.raises(ConfigError, match="no scale 'huge'"):
        recipe_config("simclr", "huge")


@pytest.mark.parametrize(("scale", "side"), [("tiny", 24), ("small", 72), ("paper", 168)])
def test_the_fast_recipe_is_simclr_on_smaller_views_at_first(scale: str, side: int) -> None:
    fast, plain = (recipe_config(name, scale) for name in ("simclr_fast", "simclr"))
    assert fast.views.early_side_pixels == side
    assert plain.views.early_side_pixels == plain.views.side_pixels == fast.views.side_pixels
    assert fast.head.layers == 1
    same = replace(fast, views=replace(fast.views, early_side=1.0), head=plain.head)
    assert replace(same, recipe="simclr") == plain
    assert learning_on(fast, parts=6).views == learning_on(plain, parts=6).views


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("images", [2, 20, 33, 500])
def test_a_batch_is_made_to_fit_few_images(recipe: str, images: int) -> None:
    for scale in SCALES[:2]:
        config = fitted_batch(recipe_config(recipe, scale), images)
        assert config.training.batch_size <= images


@pytest.mark.parametrize("recipe", ["simclr", "simclr_v2", "moco_v2"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("encoder", [None, "resnet50", "resnet18", "small_resnet"])
def test_the_head_is_as_wide_as_the_features_of_the_encoder_asked_for(
    recipe: str, scale: str, encoder: str | None
) -> None:
    if scale == "cifar10" and recipe not in HAVE_CIFAR10:
        return
    asked = {} if encoder is None else {"encoder": {"name": encoder}}
    layers: Overrides = [({"recipe": recipe, "scale": scale, "images": {"path": "x"}, **asked}, "")]
    config, _ = resolve(layers, image_count=9000, median_side_pixels=224, channels=3)
    with torch.device("meta"):
        head = build_head(config.head, features=640, seed=0)
    wide = [tuple(p.shape) for p in head.parameters() if p.ndim > 1]
    assert wide == [(640, 640)] * (len(wide) - 1) + [(128, 640)]
    assert len(wide) == (3 if recipe == "simclr_v2" else 2)


def test_a_supervised_run_says_whom_a_query_meets() -> None:
    config = recipe_config("simclr", "tiny")
    supervised = replace(config.method, loss=replace(config.method.loss, kind="supervised"))
    said = in_effect(replace(config, method=supervised), image_count=1000, uses_labels=True)
    assert "the 255 other views of its batch: those of its class are its positives" in said


def resolved(count: int, side: int, **settings: object) -> tuple[RunConfig, str]:
    layers: Overrides = [({"images": {"path": "x"}, "training": {"device": "cpu"}, **settings}, "")]
    return resolve(layers, image_count=count, median_side_pixels=side, channels=3)


@pytest.mark.parametrize(
    ("images", "side", "views", "windows", "batch"),
    [
        (1_076, 255, 64, 1, 128),  # magnetic tiles
        (364, 480, 64, 3, 128),  # blood cells
        (364, 260, 64, 2, 128),
        (200, 100, 64, 1, 64),
        (50_000, 32, 32, 1, 128),  # CIFAR-10
        (5_000, 63, 32, 1, 128),
        (5_000, 64, 64, 1, 128),  # as large as those of Tiny ImageNet
        (2_000_000, 375, 64, 1, 128),
    ],
)
def test_defaults_suit_the_set(
    images: int, side: int, views: int, windows: int, batch: int
) -> None:
    config, said = resolved(images, side)
    assert config.views.side_pixels == views
    assert config.images.windows == windows
    assert ("windows" in said) == (windows > 1)
    assert config.training.batch_size == batch
    count = images * windows**2
    steps = config.training.epochs * (count // batch)
    assert steps >= 2_000
    assert config.training.epochs == 1 or config.training.epochs * count <= 1_500_000
    assert 1 <= config.training.epochs / config.probe.health_every_epochs <= 60


def test_at_a_scale_that_is_asked_for_the_recipe_stays() -> None:
    config, _ = resolved(364, 480, scale="tiny")
    recipe = recipe_config("simclr", "tiny")
    assert config.views == recipe.views
    assert config.images.windows == 1
    assert config.training.epochs == recipe.training.epochs
    assert config.training.batch_size == recipe.training.batch_size


def test_a_queue_holds_no_more_keys_than_there_are_images() -> None:
    def resolved(count: int, **more: object) -> RunConfig:
        asked: dict[str, object] = {"recipe": "moco_v2", "training": {"device": "cpu"}}
        layers: Overrides = [(asked | {"images": {"path": "x"}} | more, "")]
        return resolve(layers, image_count=count, median_side_pixels=32, channels=3)[0]

    def size(config: RunConfig) -> int:
        return config.method.dictionary.queue.size

    assert size(resolved(50_000)) == 2048
    assert size(resolved(500)) == size(resolved(500, scale="tiny")) == 500
    assert size(resolved(500, method={"dictionary": {"queue": {"size": 900}}})) == 900


def test_a_warm_up_begins_when_a_bank_teaches() -> None:
    bank, queue = (recipe_config(name, "tiny") for name in ("memory_bank", "moco_v2"))
    warm = replace(bank.schedule, warmup_epochs=1.5)
    assert replace(bank, schedule=warm).schedule_of_steps.warmup_epochs == 2.5
    assert replace(queue, schedule=warm).schedule_of_steps.warmup_epochs == 1.5
    without = replace(bank.schedule, warmup_epochs=0.0)
    assert replace(bank, schedule=without).schedule_of_steps.warmup_epochs == 0.0


def test_of_a_network_of_one_part_all_trains() -> None:
    base = recipe_config("simclr", "tiny")
    frozen = [learning_on(base, parts=parts).encoder.frozen_parts for parts in (1, 2, 5)]
    assert frozen == [0, 1, 3]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_begins_from_weights(recipe: str, tmp_path: Path) -> None:
    """That of dense positives was refused, as no anchor goes with it."""
    torch.save(small_stem().content, tmp_path / "theirs.pth")
    asked: dict[str, object] = {"recipe": recipe, "training": {"device": "cpu"}}
    asked |= {"images": {"path": "x"}, "encoder": {"weights": str(tmp_path / "theirs.pth")}}
    layers: Overrides = [(asked, "")]
    start = asked_start(layers)
    config, _ = resolve(layers, image_count=2_000, median_side_pixels=255, channels=3, start=start)
    own = recipe_config(recipe, "tiny")
    assert config.encoder.name == "resnet18"
    if recipe == "densecl":
        assert (config.optimizer, config.views.policy) == (own.optimizer, own.views.policy)
        return
    assert config.encoder.frozen_parts == 3  # of five
    assert (config.training.keep.kind, config.training.keep.images) == ("best", 2_000)
    assert config.method.anchor.weight == 1.0
    assert config.views.policy.startswith("crop(area=0.4..1) + flip + color(brightness=0.2,")
    optimizer = config.optimizer
    if own.method.kind == "contrastive":
        assert (optimizer.kind, optimizer.learning_rate) == ("sgd", 0.12)
    else:
        assert optimizer == replace(own.optimizer, learning_rate=own.optimizer.learning_rate / 4)


@pytest.mark.parametrize("recipe", ["simclr", "byol", "moco_v3", "swav", "dino", "lejepa"])
def test_a_policy_that_is_asked_for_is_that_of_all_views(recipe: str) -> None:
    own = recipe_config(recipe, "small").views
    views = resolved_views(recipe, {"policy": "crop(area=0.5..1) + flip"})
    plain = "crop(area=0.5..1) + flip"
    assert [as_text(branch) for branch in views.branches] == [plain, plain]
    crop, *others = views.small_branch
    assert [as_text([one]) for one in others] == ["flip"]
    if own.small_views:  # which keep the area that the recipe gives them
        assert isinstance(crop, Crop)
        assert isinstance(own.small_branch[0], Crop)
        assert (views.small_views, crop.area) == (own.small_views, own.small_branch[0].area)
    # What is asked for besides stays.
    second = resolved_views(recipe, {"policy": plain, "second": "crop", "small_policy": "crop"})
    assert [as_text(branch) for branch in second.branches] == [plain, "crop"]
    assert as_text(second.small_branch) == "crop"
    assert resolved_views(recipe, {"strength": 0.5}) == replace(own, strength=0.5)


def resolved_views(recipe: str, views: dict[str, object]) -> ViewsConfig:
    asked: dict[str, object] = {"recipe": recipe, "scale": "small", "images": {"path": "x"}}
    layers: Overrides = [({**asked, "views": views, "training": {"device": "cpu"}}, "")]
    return resolve(layers, image_count=50_000, median_side_pixels=255, channels=3)[0].views


def test_small_views_are_as_mild_as_the_others_where_weights_are_learned_on_from() -> None:
    config = learning_on(recipe_config("dino", "small"), parts=5)
    _, *large = config.views.branches[0]
    _, *small = config.views.small_branch
    assert small == large
    assert config.views.small_views == recipe_config("dino", "small").views.small_views > 0


def test_what_only_the_smallest_network_has_is_refused_for_others() -> None:
    for name, value in (("width", 128), ("stem_stride", 1), ("stage_blocks", [2, 2])):
        with pytest.raises(ConfigError, match=f"encoder.{name} is of small_resnet"):
            resolved(2_000, 255, encoder={"name": "resnet18", name: value})


def test_a_bank_is_not_shuffled() -> None:
    with pytest.raises(ConfigError, match="keys of a bank come from earlier batches"):
        resolved(2_000, 255, recipe="memory_bank", norm={"kind": "shuffle"})


def test_a_students_loss_has_no_weight() -> None:
    config = recipe_config("moco_v3", "tiny")
    assert config.loss_weight == config.method.loss.weight != 1.0
    student = replace(config, distillation=replace(config.distillation, teacher="runs/one"))
    assert student.loss_weight == 1.0
    views = tuple(torch.randn(2, 32, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    batch, moves = Batch(views, torch.arange(32), 0), []
    for one in (config, student):
        method = built(config).train()
        before = torch.nn.utils.parameters_to_vector(method.parameters()).detach().clone()
        optimizer = build_optimizer(OptimizerConfig(kind="sgd", weight_decay=0.0), method)
        train_step(method, optimizer, batch, rate=0.05, momentum=1.0, config=one)
        moves.append(torch.nn.utils.parameters_to_vector(method.parameters()).detach() - before)
    assert float(moves[1].abs().max()) > 1e-3
    torch.testing.assert_close(moves[0], config.loss_weight * moves[1], rtol=1e-3, atol=1e-6)


def test_weights_see_large_views_at_every_scale_that_nobody_asked_for(tmp_path: Path) -> None:
    torch.save(small_stem().content, tmp_path / "theirs.pth")
    asked = {"images": {"path": "x"}, "encoder": {"weights": str(tmp_path / "theirs.pth")}}
    layers: Overrides = [({**asked, "training": {"device": "cpu"}}, "")]
    start = asked_start(layers)
    for accelerator in (False, True):
        for side, views in ((40, 64), (255, 128)):
            config, _ = resolve(
                layers,
                image_count=2_000,
                median_side_pixels=side,
                channels=3,
                start=start,
                accelerator=accelerator,
            )
            assert config.views.side_pixels >= views
    # Of a transformer whole patches.
    small = recipe_config("simclr", "small")
    assert suited_side(small, 255, weights=True, patch=14).views.side_pixels == 126
    assert suited_side(small, 255, weights=False).views == small.views


def test_features_of_cells_are_of_the_smallest_network_where_no_scale_is_asked_for() -> None:
    def pool_and_kept(**settings: object) -> tuple[int, str]:
        config, _ = resolved(2_000, 255, **settings)
        return config.encoder.pool, config.training.keep.kind

    assert pool_and_kept() == (4, "best")
    assert pool_and_kept(encoder={"name": "small_resnet"}) == (4, "best")
    assert pool_and_kept(encoder={"width": 64}) == (2, "best")  # 4 x 4 cells are 4,096 features
    assert pool_and_kept(encoder={"width": 256}) == (1, "best")
    assert pool_and_kept(encoder={"pool": 3}) == (3, "best")
    assert pool_and_kept(encoder={"name": "resnet18"}) == (1, "best")
    assert pool_and_kept(views={"side_pixels": 16}) == (2, "best")  # maps of 2 x 2
    assert pool_and_kept(views={"side_pixels": 16}, encoder={"stem_stride": 1}) == (4, "best")
    assert pool_and_kept(scale="tiny") == (1, "auto")


def test_the_head_of_many_features_is_narrower() -> None:
    def hidden(**settings: object) -> int | None:
        return resolved(2_000, 255, **settings)[0].head.hidden_features

    assert hidden() == 512
    assert hidden(head={"hidden_features": 2048}) == 2048
    assert hidden(recipe="simsiam") == 256  # its own
    assert hidden(encoder={"name": "resnet18"}) is None  # as wide as the features
    assert hidden(encoder={"width": 8}) is None  # which are no more than 512
    assert hidden(scale="tiny") is None


def test_what_is_asked_for_decides_on_the_rest() -> None:
    training = {"device": "cpu", "batch_size": 20}
    config, _ = resolved(364, 480, images={"path": "x", "windows": 1}, training=training)
    assert config.images.windows == 1
    assert config.training.batch_size == 20
    assert config.training.epochs == -(-2_000 // (364 // 20))
    config, _ = resolved(364, 480, views={"side_pixels": 160})
    assert config.images.windows == 1  # no window is far larger than a view
    config, _ = resolved(364, 480, images={"path": "x", "group_by": "folder"})
    assert config.images.windows == 1
    config, said = resolved(10_000, 480, images={"path": "x", "windows": 3})
    assert config.training.epochs == 16
    assert "Each of the 10,000 photographs is cut into 3 x 3 windows, 90,000 images" in said
    whole, _ = resolved(10_000, 480)
    assert config.images.decoded_side == pytest.approx(2 * (whole.images.decoded_side or 0), abs=2)


def test_windows_are_not_for_distillation() -> None:
    with pytest.raises(ConfigError, match=r"leave out images\.windows"):
        resolved(
            364,
            480,
            images={"path": "x", "windows": 2},
            distillation={"teacher": "runs/teacher", "labelled": "x"},
        )
