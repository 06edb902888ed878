"""From stacks with excluded files and partial labels to a run, its evaluation and its vectors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import diptych
from conftest import striped
from diptych.errors import RunFolderError

SMALL: dict[str, Any] = {
    "encoder.width": 4,
    "encoder.stage_blocks": (1,),
    "head.hidden_features": 8,
    "head.output_features": 8,
    "views.side_pixels": 16,
    "training.batch_size": 8,
    "training.device": "cpu",
    "training.threads": 1,
    "probe.images": 16,
    "epochs": 1,
}


def write_stacks(root: Path) -> None:
    """Two labelled folders of three stacks of four pages each, one stack and a mask beside them."""
    rng = np.random.default_rng(1)
    for place, label in (*(("a", 0), ("b", 1)) * 3, ("", 0)):
        folder = root / place
        folder.mkdir(parents=True, exist_ok=True)
        first, *others = (Image.fromarray(striped(label, rng)) for _ in range(4))
        number = len(list(folder.glob("*.tif")))
        first.save(folder / f"{number}.tif", save_all=True, append_images=others)
    Image.new("RGB", (32, 32)).save(root / "a" / "0_mask.png")


@pytest.mark.slow
def test_stacks_and_partial_labels_all_the_way(tmp_path: Path) -> None:
    write_stacks(tmp_path / "stacks")
    asked: dict[str, Any] = {"images.pages": "all", "images.exclude": ("*_mask.*",), **SMALL}
    run = diptych.pretrain(tmp_path / "stacks", out=tmp_path / "run", quiet=True, **asked)
    text = (run / "skipped.csv").read_text()
    assert "0_mask.png,left out by images.exclude" in text
    assert "further pages" not in text
    found = diptych.evaluate(run, ["knn"], threads=1)
    split = found["details"]["knn_leave_one_out"]["split"]
    assert split["test_images"] == 24  # the four pages without a label are not measured
    # The same images again, and no others.
    diptych.pretrain(out=run, resume=True, quiet=True)
    with pytest.raises(RunFolderError, match=r"images\.pages"):
        diptych.pretrain(
            tmp_path / "stacks",
            out=run,
            resume=True,
            quiet=True,
            **asked | {"images.pages": "first"},
        )
