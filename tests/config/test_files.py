"""Settings: what is unknown or wrong is refused with the nearest right one; nothing is lost."""

import math
import os
import re
import subprocess
import sys
import tomllib
import typing
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.config.consistency import require_consistent
from diptych.config.data import ImagesConfig, ViewsConfig
from diptych.config.files import (
    differing_keys,
    flatten,
    load_run_config,
    nest,
    overlay,
    parse_toml,
    read_config_file,
    to_toml,
)
from diptych.config.model import EncoderConfig
from diptych.config.policies import branches
from diptych.config.recipes import RECIPES, recipe_config
from diptych.config.run import RunConfig
from diptych.config.suited import choose_scale, fitted_batch
from diptych.errors import ConfigError
from diptych.methods.losses import require_fitting_loss


def test_a_recipe_survives_its_file(tmp_path: Path) -> None:
    config = recipe_config("moco_v3", "small")
    (tmp_path / "config.toml").write_text(to_toml(config))
    assert load_run_config(tmp_path / "config.toml") == config


def test_awkward_values_survive() -> None:
    config = RunConfig(
        seed=2**62, images=ImagesConfig(path='a "quoted" \\ path\nüñ', limit=7), scale="x"
    )
    assert overlay(RunConfig(), tomllib.loads(to_toml(config)), "text") == config


def settings_of(config: object, prefix: str = "") -> dict[str, Any]:
    """The type of every setting by its dotted name."""
    types, found = typing.get_type_hints(type(config)), dict[str, Any]()
    for one in fields(config):  # type: ignore[arg-type]
        value, name = getattr(config, one.name), f"{prefix}{one.name}"
        found |= settings_of(value, f"{name}.") if is_dataclass(value) else {name: types[one.name]}
    return found


SETTINGS = settings_of(RunConfig())
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
PATHS = st.binary(max_size=12).map(lambda raw: os.fsdecode(raw.replace(b"\0", b"")))
ENDLESS = {"images.max_megapixels", "optimizer.clip_norm", "checkpoint.every_seconds"}


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Anything of a type, whether the setting takes it or not."""
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return st.sampled_from(arguments)
    if typing.get_origin(kind) is tuple:
        if arguments[-1] is Ellipsis:
            return st.lists(values_of(arguments[0]), max_size=4).map(tuple)
        return st.tuples(*map(values_of, arguments))
    if arguments:
        return st.one_of([values_of(one) for one in arguments])
    plain = {
        bool: st.booleans(),
        int: st.integers(),
        float: st.one_of(st.floats(), st.floats(0, 2), st.floats(0, 1e5), st.integers(0, 9)),
        str: st.one_of(TEXTS, PATHS),
        NoneType: st.none(),
    }
    return plain[kind]


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_every_setting_survives_its_file_or_is_refused(data: st.DataObject) -> None:
    """Infinity, subnormals, DEL, quotes, bytes that are no text: whatever a config takes."""
    names = data.draw(st.lists(st.sampled_from(list(SETTINGS)), min_size=1, max_size=3))
    given_values = {name: data.draw(values_of(SETTINGS[name]), name) for name in names}
    try:
        config = overlay(RunConfig(), nest(given_values), "the command")
    except ConfigError:
        return
    text = to_toml(config).encode().decode()
    again = overlay(RunConfig(), parse_toml(text, "the file"), "the file")
    assert flatten(again) == flatten(config)
    assert to_toml(again) == to_toml(config)
    for name, value in flatten(config).items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float):
                assert math.isfinite(number) or (number > 0 and name in ENDLESS)


FLOATS = [name for name, kind in SETTINGS.items() if "float" in str(kind)]


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_infinity_where_it_means_something_and_no_number_nowhere(name: str, value: float) -> None:
    kind = SETTINGS[name]
    shaped: Any = value
    if typing.get_origin(kind) is tuple:
        arguments = typing.get_args(kind)
        shaped = (value,) * (1 if arguments[-1] is Ellipsis else len(arguments))
    if value == math.inf and name in ENDLESS:
        config = overlay(RunConfig(), nest({name: shaped}), "here")
        assert f"{name.rpartition('.')[2]} = inf\n" in to_toml(config)
        return
    with pytest.raises(ConfigError, match=re.escape(name)):
        overlay(RunConfig(), nest({name: shaped}), "here")


def test_a_path_of_other_bytes_than_utf_8_survives() -> None:
    path = os.fsdecode(b"/data/caf\xe9 \xff")
    text = to_toml(RunConfig(images=ImagesConfig(path=path)))
    assert r'path = { escaped = "/data/caf\\xe9 \\xff" }' in text
    again = overlay(RunConfig(), parse_toml(text, "text"), "text")
    assert os.fsencode(again.images.path) == b"/data/caf\xe9 \xff"
    for bad in ({"escaped": 3}, {"other": "a"}, {"escaped": "a", "other": "b"}, {"escaped": "\0"}):
        with pytest.raises(ConfigError, match=r"images\.path must be a string"):
            overlay(RunConfig(), {"images": {"path": bad}}, "text")


def test_papers_settings_are_the_papers() -> None:
    simclr, moco = recipe_config("simclr", "paper"), recipe_config("moco_v2", "paper")
    assert simclr.optimizer.kind == "lars"
    assert (simclr.training.batch_size, simclr.optimizer.learning_rate) == (4096, 0.3)
    assert (simclr.schedule.warmup_epochs, simclr.optimizer.weight_decay) == (10.0, 1e-6)
    assert simclr.method.loss.temperature == 0.1
    assert simclr.views.branches == branches("simclr", None)
    assert moco.views.branches == branches("moco_v2", None)
    assert moco.method.dictionary.queue.size == 65536
    assert (moco.method.key_encoder.momentum, moco.method.loss.temperature) == (0.999, 0.2)
    assert (moco.optimizer.learning_rate, moco.training.batch_size) == (0.03, 256)
    assert moco.head.hidden_features is None  # as wide as the features


@pytest.mark.parametrize(
    ("given_settings", "words"),
    [
        ({"optimizr": {"learning_rate": 1.0}}, "no setting optimizr. Did you mean optimizer"),
        ({"optimizer": {"lr": 1.0}}, "no setting optimizer.lr. Did you mean optimizer"),
        ({"optimizer": {"learning_rat": 1.0}}, "Did you mean optimizer.learning_rate"),
        ({"batch_size": 4}, "Did you mean training.batch_size"),
        ({"training": {"epochs": 2.5}}, "training.epochs must be a whole number; got 2.5"),
        ({"training": {"epochs": 2**63}}, "training.epochs must be a whole number; got 9223"),
        ({"optimizer": {"clip_norm": 10**400}}, "optimizer.clip_norm must be a number; got 1000"),
        ({"training": {"epochs": True}}, "training.epochs must be a whole number; got True"),
        ({"training": {"channels_last": 1}}, "must be true or false; got 1"),
        ({"training": {"device": "gpu"}}, "'auto' or 'cpu' or 'cuda' or 'mps'; got 'gpu'"),
        ({"method": {"dictionary": {"kind": "queu"}}}, "Did you mean queue"),
        ({"views": {"pixel_mean": [0.2]}}, "a list of 3 a number values"),
        ({"views": {"policy": "crop(area=0.9..0.2)"}}, "views.policy: crop: area must be a range"),
        ({"views": {"second": "crp"}}, "views.second: there is no operation 'crp'. Did you mean"),
        ({"views": {"polcy": "crop"}}, "Did you mean views.policy"),
        ({"views": 3}, "views is a table"),
        ({"seed": -1}, "seed must lie between"),
        ({"method": {"loss": {"temperature": 0.001}}}, "must be 0.01 or more"),
        ({"images": {"bits": 12}}, "images.bits must be 8 or 16; got 12"),
        ({"images": {"bits": 8.0}}, "images.bits must be 8 or 16; got 8.0"),
    ],
)
def test_wrong_settings_are_refused(given_settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        overlay(RunConfig(), given_settings, "run.toml")
    assert words in str(caught.value)
    assert str(caught.value).startswith("run.toml: ")


@pytest.mark.parametrize(
    ("given_settings", "words"),
    [
        ({"method": {"key_encoder": {"kind": "momentum"}}}, "which needs the key encoder 'shared'"),
        ({"method": {"views": 3, "dictionary": {"kind": "queue"}}}, "method.views above 2 go with"),
        (
            {"method": {"dictionary": {"kind": "bank"}, "key_encoder": {"kind": "momentum"}}},
            "a bank stores keys",
        ),
        (
            {"norm": {"kind": "split", "images_per_group": 48}},
            "training.batch_size to be a multiple of norm.images_per_group = 48; got 256",
        ),
        ({"training": {"chunk_size": 100}}, "must divide training.batch_size = 256; got 100"),
        ({"encoder": {"stem": "imagenet"}}, "small_resnet has the small stem only"),
        ({"head": {"predictor_layers": 2}}, "here every query is a key"),
        (
            {"images": {"group_by": "folder"}, "method": {"dictionary": {"kind": "bank"}}},
            "set method.symmetric = true",
        ),
        (
            {"norm": {"kind": "split"}, "training": {"batch_size": 96, "chunk_size": 24}},
            "training.chunk_size to be a multiple of norm.images_per_group = 32; got 24",
        ),
        ({"training": {"chunk_size": 64, "compile": True}}, "leave one of them out"),
        (
            {"distillation": {"teacher": "runs/x"}, "training": {"chunk_size": 64}},
            "distillation has no cached gradients",
        ),
        ({"images": {"group_within": 3.0}}, "give images.group_by"),
        ({"images": {"group_within": 3.0}, "method": {"kind": "simsiam"}}, "give images.group_by"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    given_settings: dict[str, object], words: str
) -> None:
    config = overlay(RunConfig(), given_settings, "run.toml")  # each is right by itself

    def check() -> None:
        require_consistent(config)
        require_fitting_loss(config)

    with pytest.raises(ConfigError) as caught:
        check()
    assert words in str(caught.value)


@pytest.mark.parametrize("scale", ["tiny", "small", "paper"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_go_together(recipe: str, scale: str) -> None:
    require_consistent(recipe_config(recipe, scale))


def test_files_that_are_not_toml_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("a = = b")
    with pytest.raises(ConfigError, match="is not TOML"):
        read_config_file(tmp_path / "bad.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not TOML"):
        read_config_file(tmp_path / "bytes.toml")
    with pytest.raises(ConfigError, match="cannot read the config file"):
        read_config_file(tmp_path / "none.toml")


def test_layers_and_differences() -> None:
    config = overlay(RunConfig(), {"training": {"epochs": 7}, "seed": 2}, "here")
    assert (config.training.epochs, config.seed) == (7, 2)
    assert differing_keys(RunConfig(), config) == ["seed", "training.epochs"]
    assert overlay(RunConfig(), nest(flatten(config)), "flat") == config


def test_configs_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        RunConfig().seed = 3  # type: ignore[misc]


def test_the_batch_is_made_to_fit_few_images() -> None:
    config = recipe_config("simclr", "tiny")
    assert fitted_batch(config, 25).training.batch_size == 16
    assert fitted_batch(config, 10**6) == config
    assert fitted_batch(config, 3).training.batch_size == 2


def test_scales_follow_device_and_size() -> None:
    def scale(side: int, accelerator: bool) -> str:
        return choose_scale(median_side_pixels=side, accelerator=accelerator)[0]

    assert [scale(side, True) for side in (32, 96, 480)] == ["tiny", "small", "small"]
    assert [scale(side, False) for side in (32, 480)] == ["tiny", "tiny"]
    assert "--scale paper" in choose_scale(median_side_pixels=480, accelerator=True)[1]
    assert "480 pixels" in choose_scale(median_side_pixels=480, accelerator=False)[1]


def test_bad_ranges_are_refused() -> None:
    for make in (
        lambda: ViewsConfig(side_pixels=4),
        lambda: ViewsConfig(policy="color(hue=0.6)"),
        lambda: ViewsConfig(strength=-1.0),
        lambda: ViewsConfig(small_views=17),
        lambda: ViewsConfig(early_side=0.0),
        lambda: ViewsConfig(early_side=1.1),
        lambda: ViewsConfig(early_share=1.5),
        lambda: ViewsConfig(small_side_pixels=4),
        lambda: ViewsConfig(small_policy="flip(2)"),
        lambda: EncoderConfig(stage_blocks=()),
        lambda: EncoderConfig(width_multiplier=0),
        lambda: replace(RunConfig().training, batch_size=1),
    ):
        with pytest.raises(ConfigError):
            make()


def test_configs_import_neither_torch_nor_numba() -> None:
    code = (
        "import sys, diptych, diptych.config.run, diptych.config.files\n"
        "import diptych.config.recipes, diptych.cli.main\n"
        "heavy = {'torch', 'numba', 'torchvision', 'matplotlib', 'numpy', 'tyro', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_file_that_an_editor_of_windows_wrote(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"\xef\xbb\xbfseed = 3\r\n")
    assert read_config_file(tmp_path / "a.toml") == {"seed": 3}


def test_a_section_is_not_given_a_value_beside_its_settings() -> None:
    with pytest.raises(ConfigError, match=r"method\.views is a setting of a section"):
        nest({"method": 3, "method.views": 2})
