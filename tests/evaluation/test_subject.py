"""What is compared sees images as its own run saw them."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from diptych.config.data import ImagesConfig
from diptych.config.run import RunConfig
from diptych.evaluation.labelled import labelled_parts
from diptych.evaluation.subject import Subject
from diptych.images.open import open_images
from diptych.models.weights import PretrainedEncoder
from diptych.runs.folder import RunFolder
from diptych.runtime.devices import Runtime


def test_another_runs_encoder_is_not_shown_smaller_images(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    """A run on small views decodes large JPEGs smaller; a rival on large views needs them whole."""
    for number in range(8):
        place = tmp_path / "images" / f"class{number % 2}" / f"{number}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (128, 160, 3), dtype=np.uint8)).save(place)
    base = ImagesConfig(path=str(tmp_path / "images"), cache_folder=str(tmp_path / "cache"))
    small, large = (RunConfig(images=replace(base, decoded_side=side)) for side in (32, None))
    own, rival = (PretrainedEncoder(nn.Flatten(), config) for config in (small, large))
    with ThreadPoolExecutor(1) as executor:
        collection = open_images(small.images, executor)
        labelled = labelled_parts(collection)
        assert labelled is not None
        subject = Subject(
            folder=RunFolder(tmp_path),
            encoder=own,
            config=small,
            runtime=Runtime(threads=1),
            open_images=lambda: collection,
            open_labelled=lambda: labelled,
        )
        first = np.array([0])
        assert subject.labelled_for(own).test.pixels.gather(first).image(0).shape == (32, 40, 3)
        theirs = subject.labelled_for(rival).train
        assert theirs.pixels.gather(first).image(0).shape == (128, 160, 3)
        wanted = open_images(large.images, executor).train
    row = list(wanted.names).index(theirs.names[0])
    np.testing.assert_array_equal(
        theirs.pixels.gather(first).image(0), wanted.pixels.gather(np.array([row])).image(0)
    )
    assert torch.equal(subject.labelled_for(rival).test_labels, labelled.test_labels)
