"""Verbs for before a run: `views`, `plan`, `recipes`."""

from collections.abc import Sequence
from pathlib import Path

from diptych.errors import ConfigError


def views(arguments: Sequence[str]) -> None:
    """Preview random views: a contact sheet (.png) or a page that opens offline (.html).

    Shows images beside their views and each operation alone from weak to strong; says in words what
    a view goes through, and what in the images does not go with it.

    Examples:
      diptych views photos/ --out sheet.png
      diptych views photos/ --recipe moco_v2 --scale small --out views.html
      diptych views photos/ --views.policy "crop(area=0.3..1) + flip + color" --rows 12
    """
    from concurrent.futures import ThreadPoolExecutor

    from diptych.cli.flags import ViewsFlags, explicit_settings, parse
    from diptych.config.sections import RunConfig
    from diptych.images.open import open_images
    from diptych.report.preview_page import write_preview
    from diptych.resolve import layers_of, overlay_all, resolve
    from diptych.runs.folder import require_writable
    from diptych.runtime.device import use_threads
    from diptych.views.preview.advice import advise
    from diptych.views.preview.words import policy_in_words

    flags = parse(ViewsFlags, views, arguments)
    _require_picture(flags.out, flags.rows, flags.columns)
    settings = explicit_settings(flags, arguments)
    layers = layers_of(settings, flags.config)
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


def plan(arguments: Sequence[str]) -> None:
    """Say what a run will cost before it starts, and which part breaks first.

    Takes what `diptych pretrain` takes, trains nothing and writes nothing. docs/scale.md has the
    formulas.

    Examples:
      diptych plan photos/ --measure
      diptych plan --recipe moco_v2 --images-count 1_000_000_000 --on h100 --processes 64
    """
    from rich.console import Console

    from diptych.cli.flags import PlanFlags, explicit_settings, parse
    from diptych.planning.machine import machine_named
    from diptych.planning.plan import plan_run
    from diptych.planning.plan_tables import print_plan
    from diptych.planning.planned_run import PlanRequest
    from diptych.runs.folder import require_writable, write_aside
    from diptych.runtime.device import available_threads, divided

    flags = parse(PlanFlags, plan, arguments)
    if flags.json is not None:
        require_writable(flags.json.parent)
    cores = divided(flags.threads or available_threads(), flags.processes_here)
    request = PlanRequest(
        machine_named(flags.on, flags.machine, cores=cores),
        processes=flags.processes,
        images_count=flags.images_count,
        image_side=flags.image_side,
        image_kilobytes=flags.image_kilobytes,
        measure=flags.measure,
        processes_here=flags.processes_here,
    )
    made = plan_run(request, explicit_settings(flags, arguments), flags.config)
    if not flags.quiet:
        print_plan(Console(markup=False), made)
    if flags.json is not None:
        import json

        write_aside(flags.json, (json.dumps(made.as_json(), indent=1) + "\n").encode())


def recipes(arguments: Sequence[str]) -> None:
    """List the recipes, or print one as a config file.

    Examples:
      diptych recipes
      diptych recipes moco_v2 --scale small > moco.toml
    """
    import inspect

    from diptych.cli.flags import RecipesFlags, parse
    from diptych.config.files import to_toml
    from diptych.config.recipes import RECIPES, recipe_config

    flags = parse(RecipesFlags, recipes, arguments)
    if flags.recipe is not None:
        print(to_toml(recipe_config(flags.recipe, flags.scale)), end="")
        return
    for name, make in RECIPES.items():
        print(f"{name:12} {inspect.cleandoc(make.__doc__ or '').splitlines()[0]}")
    print("\n`diptych recipes NAME --scale tiny|small|paper` prints one as a config file.")


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
