"""`diptych import`: a file of another library becomes an encoder that other verbs take."""

from pathlib import Path

import pytest
import torch

from diptych.cli.main import main
from diptych.models.weights import load_encoder
from foreign_networks import moco_v2


@pytest.mark.slow
def test_a_file_is_imported_and_embeds_images(
    tmp_path: Path, class_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(moco_v2().content, tmp_path / "moco.pth.tar")
    out = tmp_path / "encoders" / "x.safetensors"
    arguments = ["--encoder", "resnet18", "--out", str(out), "--side", "32"]
    assert main(["import", str(tmp_path / "moco.pth.tar"), *arguments]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "the layout of MoCo v1 and v2" in said
    assert "resnet18 for images of 32 pixels" in said
    assert load_encoder(out).config.views.side_pixels == 32
    assert main(["embed", str(out), str(class_folder), "-o", str(tmp_path / "f")]) == 0
    assert list((tmp_path / "f").glob("*.parquet"))


def test_what_cannot_be_imported_is_the_users_to_mend(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "w.pt").write_bytes(b"nothing")
    assert main(["import", str(tmp_path / "w.pt"), "--out", str(tmp_path / "x")]) == 2
    assert "is not a file of weights that can be read" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_folder_is_not_what_an_import_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    assert main(["import", str(tmp_path / "w.pt"), "--out", str(tmp_path / "out")]) == 2
    assert "is a folder; wanted a file, as x.safetensors" in capsys.readouterr().err


def test_an_import_does_not_replace_the_weights_that_it_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "w.pt"
    weights.write_bytes(b"of another library")
    (tmp_path / "link.pt").symlink_to(weights)
    assert main(["import", str(weights), "--out", str(tmp_path / "link.pt")]) == 2
    assert "is what this command reads" in capsys.readouterr().err
    assert weights.read_bytes() == b"of another library"
