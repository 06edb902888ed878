"""The verb `views`: what the encoder will see, before it is trained."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tyro.conf import Positional

from diptych.cli.flags import explicit_settings, parse
from diptych.config.data import ImagesConfig, ViewsConfig
from diptych.config.run import RunConfig
from diptych.errors import ConfigError
from diptych.runs.folder import require_writable


@dataclass(frozen=True)
class ViewsFlags:
    """What `diptych views` takes."""

    path: Positional[str]
    """As for `diptych pretrain`."""
    out: Path = Path("sheet.png")
    """The file to write: a contact sheet if it ends in .png, a page that opens offline if it ends
    in .html."""
    recipe: str = "simclr"
    """The recipe whose views to show."""
    scale: str | None = None
    """At which scale. By default chosen from the images' size and the device."""
    config: Path | None = None
    """A TOML file with settings that override the recipe's."""
    seed: int = 0
    """Decides every view: those shown are of the first epoch of a run with this seed."""
    rows: int = 8
    """Images shown, evenly spread over the set."""
    columns: int = 8
    """Full-sized views of each image, the two branches taking turns."""
    images: ImagesConfig = field(default_factory=ImagesConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)


COMMON: Final = {
    "what is shown": ("out", "rows", "columns", "seed"),
    "whose views": (
        *("recipe", "scale", "config", "views.policy", "views.second", "views.side_pixels"),
        *("views.strength", "views.small_views", "images.color", "images.group_by"),
    ),
}
"""Flags that most people need."""


def views(arguments: Sequence[str]) -> None:
    """Preview random views: a contact sheet (.png) or a page that opens offline (.html).

    Shows images beside their views and each operation alone from weak to strong. Prints the
    operations in words, with advice where the images do not suit them.

    Examples:
      diptych views photos/ --out sheet.png
      diptych views photos/ --recipe moco_v2 --scale small --out views.html
      diptych views photos/ --views.policy "crop(area=0.3..1) + flip + color" --rows 12
    """
    from diptych.images.open import open_images
    from diptych.report.preview_page import write_preview
    from diptych.resolve import overlay_all, overrides_of, resolve
    from diptych.runtime.devices import use_threads
    from diptych.views.preview.advice import advise
    from diptych.views.preview.policy_in_words import policy_in_words

    flags = parse(ViewsFlags, views, arguments, common=COMMON)
    _require_picture(flags.out, flags.rows, flags.columns)
    settings = explicit_settings(flags, arguments)
    layers = overrides_of(settings, flags.config)
    asked = overlay_all(RunConfig(), layers)
    require_writable(flags.out.parent)
    with ThreadPoolExecutor(use_threads(asked.training.threads)) as executor:
        collection = open_images(asked.images, executor)
        images = collection.train
        config, _ = resolve(
            layers,
            image_count=len(images),
            median_side_pixels=images.median_side_pixels,
            channels=images.channels,
        )
        collection = collection.decoded_for(config.images)
        advice = advise(collection.train, config.views, executor)
        write_preview(
            flags.out,
            collection,
            config,
            advice,
            executor,
            image_count=flags.rows,
            view_count=flags.columns,
        )
    print(collection.description)
    print(f"Views of recipe {config.recipe} at scale {config.scale}:")
    for line in policy_in_words(config.views, images.channels):
        print(f"  {line}")
    if advice:
        print("Before you train:")
    for sentence in advice:
        print(f"  - {sentence}")
    print(f"Preview: {flags.out}")


def _require_picture(out: Path, rows: int, columns: int) -> None:
    if out.suffix.lower() not in (".png", ".html"):
        raise ConfigError(
            f"--out {out}: the name decides what is written; wanted one that ends in .png (a "
            "contact sheet) or .html (a page)."
        )
    if min(rows, columns) < 1:
        raise ConfigError(
            f"--rows and --columns must be 1 or more; got {rows} images and {columns} views."
        )
