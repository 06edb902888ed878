"""The verb `views`: what the encoder will see, before it is trained."""

from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tyro.conf import Positional

from diptych.cli.flags import explicit_settings, parse
from diptych.config.data import ImagesConfig, ViewsConfig
from diptych.config.model import EncoderConfig
from diptych.config.run import RunConfig
from diptych.errors import ConfigError
from diptych.runs.folder import require_writable
from diptych.runtime.devices import BATCH_SIZE

if TYPE_CHECKING:
    from diptych.report.costs_of_views import CostsOfViews


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
    labelled: str | None = None
    """Measure what each operation costs of that which the labels of these images say, one folder
    for each class; without a folder behind it, the labels of PATH itself."""
    weights: str | None = None
    """As for `diptych pretrain`: the views of a run that begins with these weights, which are
    milder. With --labelled, labels are read from their features too; slow for large encoders."""
    threads: int | None = None
    """CPU threads; all cores by default."""
    images: ImagesConfig = field(default_factory=ImagesConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)


COMMON: Final = {
    "what is shown": ("out", "rows", "columns", "seed"),
    "what the labels need": ("labelled",),
    "whose views": (
        *("recipe", "scale", "weights", "encoder.name", "config"),
        *("views.policy", "views.second", "views.side_pixels"),
        *("views.strength", "views.small_views", "images.color", "images.group_by"),
    ),
}
"""Flags that most people need."""


def views(arguments: Sequence[str]) -> None:
    """Preview random views: a contact sheet (.png) or a page that opens offline (.html).

    Shows images beside their views and each operation alone from weak to strong. Prints the
    operations in words, with advice where the images do not suit them. With --labelled it measures
    which operations destroy what labels say, and proposes a policy that does not.

    Examples:
      diptych views photos/ --out sheet.png
      diptych views photos/ --weights resnet18.pth --out views.html
      diptych views photos/ --views.policy "crop(area=0.3..1) + flip + color" --rows 12
      diptych views photos/ --labelled photos/labelled --out views.html
    """
    arguments = _with_own_labels(arguments)
    flags = parse(ViewsFlags, views, arguments, common=COMMON)

    from rich.console import Console

    from diptych.images.open import open_images
    from diptych.report.costs_of_views import print_costs
    from diptych.report.preview_page import write_preview
    from diptych.resolve import asked_setting, asked_start, overlay_all, overrides_of, resolve
    from diptych.runtime.devices import use_threads
    from diptych.views.preview.advice import advise
    from diptych.views.preview.policy_in_words import images_in_words, policy_in_words

    _require_picture(flags.out, flags.rows, flags.columns)
    settings = explicit_settings(flags, arguments)
    layers = overrides_of(settings, flags.config)
    asked = overlay_all(RunConfig(), layers)
    require_writable(flags.out.parent)
    with ThreadPoolExecutor(use_threads(asked.training.threads)) as executor:
        collection = open_images(asked.images, executor)
        images, start = collection.train, asked_start(layers)
        config, _ = resolve(
            layers,
            image_count=len(images),
            median_side_pixels=images.median_side_pixels,
            channels=images.channels,
            start=start,
        )
        collection = collection.decoded_for(config.images)
        advice = advise(collection.train, config.views, executor)
        measured = None
        if flags.labelled is not None:
            # Of an encoder of diptych the name is known, and may stand in a config.
            is_foreign = start is not None and start.file.own is None
            name = asked_setting(layers, "encoder.name") if is_foreign else None
            measured = _measured(flags.labelled, config, name, executor)
        write_preview(
            flags.out,
            collection,
            config,
            advice,
            executor,
            image_count=flags.rows,
            view_count=flags.columns,
            measured=measured,
        )
    print(collection.description)
    begun = "" if config.encoder.weights is None else f", from {config.encoder.weights}"
    print(
        f"Views of recipe {config.recipe} at scale {config.scale}{begun}, of "
        f"{config.views.side_pixels} pixels:"
    )
    for line in policy_in_words(config.views, images.channels):
        print(f"  {line}")
    if about := images_in_words(config.images):
        print(about)
    if advice:
        print("Before you train:")
    for sentence in advice:
        print(f"  - {sentence}")
    if measured is not None:
        print_costs(Console(markup=False), measured)
    print(f"Preview: {flags.out}")


def _with_own_labels(arguments: Sequence[str]) -> list[str]:
    """The same arguments; a --labelled without a folder gets an empty one, for PATH's labels."""
    found = list[str]()
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue="--"):
        found.append(argument)
        if argument == "--labelled" and following.startswith("--"):
            found.append("")
    return found


def _measured(
    labelled: str, config: RunConfig, encoder_name: str | None, executor: Executor
) -> "CostsOfViews":
    """What each operation costs of what the labels say; without a folder, those of the images."""
    from rich.console import Console

    from diptych.evaluation.labelled import open_labelled
    from diptych.evaluation.operations.costs import measure_costs
    from diptych.evaluation.operations.proposal import advice_on_costs
    from diptych.evaluation.operations.readers import EncoderReader
    from diptych.evaluation.operations.trials import trials_for
    from diptych.evaluation.subject import require_same_channels
    from diptych.models.start import open_encoder
    from diptych.report.costs_of_views import CostsOfViews
    from diptych.runtime.console import ProgressBars

    images, reader, weights = config.images, None, config.encoder.weights
    if weights is not None:
        opened = open_encoder(weights, encoder=encoder_name)
        for sentence in opened.sentences:
            print(sentence)
        encoder = opened.encoder
        require_same_channels(config, encoder.config, f"--weights {weights}")
        reader = EncoderReader(encoder, BATCH_SIZE)
        sides = (images.decoded_side, encoder.config.images.decoded_side)
        # Decoded small, a photograph lacks what an encoder of larger views has learned to see.
        whole = None in sides
        images = replace(images, decoded_side=None if whole else max(filter(None, sides)))
    found = open_labelled(images, executor, train=labelled or None)
    views = config.views
    trials = trials_for(views.branches, found.train.channels, views.strength, others=True)
    with ProgressBars(Console(stderr=True)) as bars:
        costs = measure_costs(
            found,
            trials,
            views,
            executor,
            encoder=reader,
            seed=config.seed,
            on_trials=partial(bars.images, "Trying operations"),
        )
    advice = advice_on_costs(costs, views.branches, strength=views.strength)
    return CostsOfViews(costs, [costs.on_images, *advice])


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
