"""`diptych embed` on the command line: any encoder, any form of output."""

from pathlib import Path

import pytest
import torch

from diptych import read_vectors
from diptych.cli.main import main
from embedding_runs import write_run
from foreign_networks import LINEAR, prefixed, resnet18


def test_foreign_weights_embed_images_without_a_run(
    class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = resnet18(small_border=1).state_dict() | prefixed("fc.", LINEAR)
    torch.save(state, tmp_path / "w.pth")
    command = ["embed", str(tmp_path / "w.pth"), str(class_folder), "--side", "16"]
    common = ["--threads", "1", "--batch-size", "16"]
    assert main([*command, "-o", str(tmp_path / "v.csv"), *common]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "the layout of torchvision or timm" in said
    assert "v.csv done: 48 images in" in said
    found = read_vectors(tmp_path / "v.csv")
    assert found.features.shape == (48, 512)
    assert found.settings is not None
    assert found.settings["views"]["side_pixels"] == 16
    assert main([*command, "-o", str(tmp_path / "g.csv"), "--layer", "g", *common]) == 2
    assert "have no projection head here" in capsys.readouterr().err


def test_a_second_call_says_what_it_kept(
    class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    command = ["embed", str(run), str(class_folder), "-o", str(tmp_path / "v"), "--threads", "1"]
    assert main(command) == 0
    (class_folder / "class0" / "003.png").unlink()
    capsys.readouterr()
    assert main(command) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "is made anew: images came or went" in said
    assert "done: 47 images" in said
    assert "47 kept and 0 new" in said
    assert "1 vector is dropped: the images are gone or have changed." in said
    assert main(command) == 0
    assert "was there: 47 images" in capsys.readouterr().out
