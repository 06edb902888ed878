"""The model card: what a run is, how good it was found to be, and what is not known."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diptych.config.data import ImagesConfig
from diptych.config.files import to_toml
from diptych.config.model import EncoderConfig
from diptych.config.run import RunConfig
from diptych.export.write import export_encoder
from diptych.models.weights import TrainedOn, save_encoder, save_trained_on, untrained_encoder
from diptych.runs.folder import RunFolder

EVALUATION = {
    "knn": {"trained": 0.712, "untrained": 0.5},
    "linear": None,
    "details": {
        "knn": {
            "metrics": {
                "accuracy": {
                    "intervals": {
                        "trained": {"value": 0.712, "low": 0.65, "high": 0.77},
                        "untrained": {"value": 0.5, "low": None, "high": None},
                    }
                }
            },
            "split": {
                "train_images": 1072,
                "tested": "268 images that pretraining did not see",
                "test_images_in_train": 3,
                "left_out": [{"names": ["secret.png"]}],
                "words": "Measured on 268 images. In /home/secret/test: 3 files are no images.",
            },
        }
    },
}


SEEN = TrainedOn(np.zeros((1076, 2), np.uint64), labels_used=False)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run folder as far as a card reads it."""
    folder = RunFolder(tmp_path / "run")
    config = RunConfig(
        recipe="moco_v2", encoder=EncoderConfig(width=4), images=ImagesConfig(path="secret/place")
    )
    save_encoder(folder.encoder, untrained_encoder(config), config)
    folder.config.write_text(to_toml(config))
    save_trained_on(folder.trained_on, SEEN)
    folder.metrics.write_text('{"step": 1}\n{"step": 1600}\n')
    folder.evaluation.write_text(json.dumps(EVALUATION))
    return folder


def card_of(run: RunFolder, out: Path, licence: str = "") -> str:
    folder = export_encoder(run.path, out, form="safetensors", licence=licence).folder
    return (folder / "README.md").read_text()


def test_data_method_figures_and_limits(run: RunFolder, tmp_path: Path) -> None:
    card = card_of(run, tmp_path / "out", "apache-2.0")
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert "- Method: contrastive, recipe `moco_v2`" in card
    assert "- Length: 1,600 steps of 256 images." in card
    assert "- Data: 1,076 images, without labels." in card
    assert "| this encoder | 71.2% | 65.0% to 77.0% |" in card
    assert "| the same network, untrained | 50.0% |  |" in card
    assert (
        "Fitted on 1,072 images and measured on 268 images that pretraining did not see, 3 of them "
        "also among those fitted on."
    ) in card
    assert "# small_resnet, trained without labels\n" in card
    assert "- self-supervised\n- contrastive-learning\n---" in card
    assert "secret" not in card
    assert "linear classifier" not in card


@pytest.mark.parametrize("content", ["{", "[]", '{"knn": 3, "details": []}', "null"])
def test_what_is_damaged_is_left_out(run: RunFolder, tmp_path: Path, content: str) -> None:
    run.evaluation.write_text(content)
    run.metrics.write_text("nothing")
    run.trained_on.write_bytes(b"nothing")
    card = card_of(run, tmp_path / "out")
    assert "None were measured" in card
    assert "Length" not in card
    assert "No licence is stated" in card


def test_a_licence_in_words_stays_one_line(run: RunFolder, tmp_path: Path) -> None:
    """What the weights of others say may be anything."""
    card = card_of(run, tmp_path / "out", "free\n---\n# Hello")
    assert 'license: other\nlicense_name: "free\\n---\\n# Hello"\n' in card


def test_the_licence_of_the_start_weights_goes_on(run: RunFolder, tmp_path: Path) -> None:
    config = RunConfig(encoder=EncoderConfig(width=4))
    save_encoder(run.start, untrained_encoder(config), config, texts={"licence": "cc-by-nc-4.0"})
    assert "license: cc-by-nc-4.0\n" in card_of(run, tmp_path / "out")
    assert "license: mit\n" in card_of(run, tmp_path / "out", "mit")


def test_the_card_of_the_encoders_file_is_that_of_its_run(run: RunFolder, tmp_path: Path) -> None:
    config = RunConfig(encoder=EncoderConfig(width=4))
    save_encoder(run.start, untrained_encoder(config), config, texts={"licence": "cc-by-nc-4.0"})
    folder = export_encoder(run.encoder, tmp_path / "out", form="safetensors").folder
    assert (folder / "README.md").read_text() == card_of(run, tmp_path / "other")


def test_no_card_says_more_of_labels_than_is_known(run: RunFolder, tmp_path: Path) -> None:
    def told(out: str) -> tuple[str, bool]:
        card = card_of(run, tmp_path / out)
        [title] = [line for line in card.splitlines() if line.startswith("# small")]
        return title, "self-supervised" in card

    save_trained_on(run.trained_on, replace(SEEN, labels_used=True))
    assert told("a") == ("# small_resnet, trained with labels", False)
    run.trained_on.unlink()
    assert told("b") == ("# small_resnet", False)
    save_trained_on(run.trained_on, SEEN)
    begun = RunConfig(encoder=EncoderConfig(width=4, weights="/home/secret/supervised.pth"))
    save_encoder(run.encoder, untrained_encoder(begun), begun)
    assert told("c") == ("# small_resnet", False)
    run.config.unlink()  # a folder of something else, as a classifier
    assert told("d") == ("# small_resnet", False)


def test_the_licence_of_foreign_weights_stands_on_their_card(tmp_path: Path) -> None:
    export_encoder(
        _encoder_file(tmp_path / "a.safetensors"),
        tmp_path / "theirs",
        form="timm",
        licence="cc-by-nc-4.0",
    )
    source = f"local-dir:{tmp_path / 'theirs'}"
    folder = export_encoder(source, tmp_path / "out", form="safetensors").folder
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense: cc-by-nc-4.0\n")
    assert "self-supervised" not in card
    assert "# resnet18\n" in card


def _encoder_file(path: Path) -> Path:
    config = RunConfig(encoder=EncoderConfig(name="resnet18", stem="imagenet"))
    save_encoder(path, untrained_encoder(config), config)
    return path
