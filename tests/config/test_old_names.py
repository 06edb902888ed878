"""Settings that had another name: refused with today's everywhere, and read in encoders only."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from diptych.cli.main import main
from diptych.config.files import (
    OLD_NAMES,
    flatten,
    load_run_config,
    nest,
    overlay,
    parse_toml,
    rename_old,
)
from diptych.config.run import RunConfig
from diptych.errors import ConfigError
from diptych.models.weights import load_encoder, untrained_encoder
from diptych.pretraining import pretrain

OLD_FILE = Path(__file__).with_name("old_names.toml")
"""As the version before wrote the config of a run: no value is its default."""


def test_every_old_name_has_one_of_today() -> None:
    settings = flatten(RunConfig())
    for old, new in OLD_NAMES.items():
        name, _, value = old.partition(" = ")
        assert name not in settings or value, old
        overlay(RunConfig(), nest({name: new.strip("'")} if value else {new: settings[new]}), "")


def test_the_config_of_an_older_run_is_refused_with_all_new_names() -> None:
    with pytest.raises(ConfigError) as refused:
        load_run_config(OLD_FILE)
    said = str(refused.value)
    assert said.startswith(f"{OLD_FILE}: ")
    for old, new in OLD_NAMES.items():
        assert f"{old} is called {new} now" in said


def test_a_keyword_of_an_older_version_is_refused() -> None:
    old: dict[str, Any] = {"method.dictionary.queue_size": 5}
    with pytest.raises(
        ConfigError, match=r"queue_size is called method\.dictionary\.queue\.size now"
    ):
        pretrain("photographs", **old)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--method.dictionary.queue-size 9", "is called --method.dictionary.queue.size now."),
        ("--method.dictionary.queue-size=9", "is called --method.dictionary.queue.size now."),
        (
            "--optimizer.lars_trust 9",
            "--optimizer.lars_trust is called --optimizer.lars.trust now.",
        ),
        ("--method.dictionary.no-both-views", "--method.dictionary.batch.both-views now."),
        ("--method.key-encoder.kind twin", "kind = 'twin' is called 'momentum' now."),
        ("--method.key-encoder.kind=twin", "kind = 'twin' is called 'momentum' now."),
    ],
)
def test_a_flag_of_an_older_version_is_refused(
    flags: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", "photographs", *flags.split()])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def old_encoder(text: str, file: Path) -> Path:
    """An encoder as the version before wrote it."""
    settings = parse_toml(text, "")
    rename_old(settings)
    weights = untrained_encoder(overlay(RunConfig(), settings, "")).state_dict()
    contiguous = {name: value.contiguous() for name, value in weights.items()}
    file.write_bytes(save(contiguous, metadata={"config": text}))
    return file


def test_an_encoder_of_the_version_before_stays_readable(tmp_path: Path) -> None:
    encoder = load_encoder(old_encoder(OLD_FILE.read_text(), tmp_path / "encoder.safetensors"))
    config, dictionary = encoder.config, encoder.config.method.dictionary
    assert config.method.key_encoder.kind == "momentum"
    assert (dictionary.kind, dictionary.batch.both_views) == ("queue", False)
    assert dictionary.queue.size == 64
    bank = dictionary.bank
    assert (bank.negatives, bank.momentum, bank.precision, bank.placement) == (
        *(7, 0.25),
        *("fp16", "sharded"),
    )
    assert config.method.loss.triplet.margin == 0.3
    assert (config.norm.kind, config.norm.group.channel_groups) == ("group", 2)
    assert (config.optimizer.lars.trust, config.optimizer.adamw.beta2) == (0.002, 0.98)
    assert (config.schedule.step.drops, config.schedule.step.factor) == ((0.5,), 0.2)
    assert encoder(torch.zeros(2, 3, 32, 32)).shape == (2, 4)


@pytest.mark.parametrize(
    ("place", "more"),
    [("[method.dictionary]", "queue = 5"), ("[norm]", "group = []"), ("[schedule]", "step = 'a'")],
)
def test_an_old_name_beside_a_section_that_is_none(place: str, more: str, tmp_path: Path) -> None:
    text = OLD_FILE.read_text()
    file = old_encoder(text, tmp_path / "encoder.safetensors")
    hostile = text.replace(place, f"{place}\n{more}")
    weights = load_encoder(file).network.state_dict()
    file.write_bytes(
        save({name: one.contiguous() for name, one in weights.items()}, {"config": hostile})
    )
    with pytest.raises(ConfigError, match="is a table"):
        load_encoder(file)


def test_a_new_name_wins_over_the_old_one() -> None:
    settings: dict[str, Any] = nest({"norm.channel_groups": 3, "norm.group.channel_groups": 4})
    rename_old(settings)
    assert settings == {"norm": {"group": {"channel_groups": 4}}}


def test_the_page_of_settings_is_that_of_today() -> None:
    from diptych.cli.help import settings_page

    page = Path(__file__).parents[2] / "docs" / "settings.md"
    assert page.read_text() == settings_page(), "docs/settings.md is old: run `make docs`"
    named = re.findall(r"^\| `([\w.]+)` \|", page.read_text(), flags=re.M)
    assert sorted(named) == sorted(flatten(RunConfig()))
    sections = re.findall(r"^## (.*)$", page.read_text(), flags=re.M)
    assert len(sections) == len(set(sections))
