"""The one limit on the size of a picture, asked of its header before anything is decoded."""

from diptych.configs import ImagesConfig
from diptych.errors import UnreadableImage


def check_size(height: int, width: int, config: ImagesConfig) -> None:
    """Refuses a picture with more pixels than may be."""
    megapixels = width * height / 1e6
    if megapixels > config.max_megapixels:
        raise UnreadableImage(
            f"{width} x {height} is {megapixels:.5g} megapixels, more than "
            f"images.max_megapixels = {config.max_megapixels:g}"
        )
    if height < 1 or width < 1:
        raise UnreadableImage(f"damaged: a picture of {width} x {height} pixels")
