"""The verb `recipes`: the papers' settings, listed or as TOML."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

from tyro.conf import Positional

from diptych.cli.flags import parse
from diptych.config.files import to_toml
from diptych.config.recipes import RECIPES, recipe_config


@dataclass(frozen=True)
class RecipesFlags:
    """What `diptych recipes` takes."""

    recipe: Positional[str | None] = None
    """Print this recipe's settings; list all recipes when not given."""
    scale: str = "paper"
    """At which scale: tiny, small, paper, or cifar10 where the paper gives it."""


def recipes(arguments: Sequence[str]) -> None:
    """List the recipes, or print one as a config file.

    Examples:
      diptych recipes
      diptych recipes moco_v2 --scale small > moco.toml
    """
    flags = parse(RecipesFlags, recipes, arguments)
    if flags.recipe is not None:
        print(to_toml(recipe_config(flags.recipe, flags.scale)), end="")
        return
    for name, make in RECIPES.items():
        print(f"{name:12} {inspect.cleandoc(make.__doc__ or '').splitlines()[0]}")
    print("\n`diptych recipes NAME --scale tiny|small|paper` prints one as a config file.")
