"""Classes can be told apart by people who are colour-blind, on both backgrounds."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.color import deltaE_ciede2000, rgb2lab

import diptych.gallery

PAGE = Path(diptych.gallery.__file__).parent / "page"
# Machado, Oliveira and Fernandes 2009, table 1, severity 1.0, for linear RGB.
SIGHT = {
    "full": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
LEAST_DIFFERENCE, LEAST_OF_MANY = 12.0, 10.0  # CIEDE2000; of eight classes, of sixteen
LEAST_CONTRAST = 1.9


def colours_in(text: str) -> NDArray[np.float64]:
    found = re.findall(r"#([0-9a-f]{6})", text)
    return np.array([[int(one[at : at + 2], 16) for at in (0, 2, 4)] for one in found]) / 255


def palette() -> NDArray[np.float64]:
    text = (PAGE / "colours.js").read_text()
    return colours_in("".join(re.findall(r"(?s)(?:CLASS|NONE)_COLOURS? = (.*?);", text)))


def linear(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def encoded(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    rgb = rgb.clip(0, 1)
    return np.where(rgb <= 0.0031308, rgb * 12.92, 1.055 * rgb ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("sight", SIGHT)
def test_any_two_classes_differ(sight: str) -> None:
    seen = rgb2lab(encoded(linear(palette()) @ np.array(SIGHT[sight]).T)[None])[0]
    assert len(seen) == 17  # sixteen classes, and all others
    for one, other in itertools.combinations(range(len(seen)), 2):
        difference = deltaE_ciede2000(seen[one], seen[other])  # type: ignore[no-untyped-call]
        few = one < 8 and (other < 8 or other == 16)
        assert difference > (LEAST_DIFFERENCE if few else LEAST_OF_MANY), (one, other, difference)


def test_all_colours_stand_out_from_both_backgrounds() -> None:
    backgrounds = set(re.findall(r"--map: (#\w+)", (PAGE / "style.css").read_text()))
    assert len(backgrounds) == 2
    weights = np.array([0.2126, 0.7152, 0.0722])
    light = linear(palette()) @ weights + 0.05
    for background in backgrounds:
        ground = (linear(colours_in(background)) @ weights + 0.05).item()
        assert (np.maximum(light / ground, ground / light) > LEAST_CONTRAST).all()
