"""Files of every layout that is known, read and compared with the networks they are of."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from foreign_networks import FILES, Foreign, moco_v2, resnet18, torchvision_vit, with_fc
from torch import Tensor

from diptych.config.model import EncoderConfig
from diptych.config.run import RunConfig
from diptych.errors import ConfigError
from diptych.models.encoders import build_encoder
from diptych.models.fit_weights import fit_weights
from diptych.models.foreign import candidates
from diptych.models.start import import_encoder
from diptych.models.weights import load_encoder


def images(count: int = 2, side: int = 32) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(3))


def require_same_features(foreign: Foreign, folder: Path) -> list[str]:
    """The sentences on a file that was written, imported and read again."""
    torch.save(foreign.content, folder / "theirs.pth")
    started, config = import_encoder(str(folder / "theirs.pth"), side_pixels=32)
    assert config.encoder.name == foreign.encoder
    assert f"the layout of {foreign.layout}" in started.sentences[0]
    started.write(folder / "ours.safetensors", config)
    ours = load_encoder(folder / "ours.safetensors")
    with torch.no_grad():
        wanted, came = foreign.network(images()), ours(images())
    assert float(wanted.std()) > 1e-3
    torch.testing.assert_close(came, wanted, rtol=1e-5, atol=1e-5)
    return started.sentences


@pytest.mark.parametrize("name", FILES)
def test_features_are_those_of_the_network_that_wrote_the_file(name: str, tmp_path: Path) -> None:
    require_same_features(FILES[name](), tmp_path)
