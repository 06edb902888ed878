"""Contrastive learning of visual representations: look-up in a dictionary of encoded images.

The public names are imported when they are first used, so that ``import diptych`` is cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from diptych.config_file import load_run_config as load_run_config
    from diptych.configs import MethodConfig as MethodConfig
    from diptych.configs import RunConfig as RunConfig
    from diptych.configs import ViewsConfig as ViewsConfig
    from diptych.contrast.dictionaries import ImageBank as ImageBank
    from diptych.contrast.dictionaries import InBatch as InBatch
    from diptych.contrast.dictionaries import KeyQueue as KeyQueue
    from diptych.contrast.large_batch import backward_in_chunks as backward_in_chunks
    from diptych.contrast.losses import decoupled_nt_xent as decoupled_nt_xent
    from diptych.contrast.losses import info_nce as info_nce
    from diptych.contrast.losses import nt_logistic as nt_logistic
    from diptych.contrast.losses import nt_xent as nt_xent
    from diptych.contrast.losses import supervised_contrastive as supervised_contrastive
    from diptych.contrast.losses import triplet as triplet
    from diptych.contrast.method import Method as Method
    from diptych.contrast.method import build_method as build_method
    from diptych.errors import DiptychError as DiptychError
    from diptych.evaluation.features import extract_features as extract_features
    from diptych.evaluation.features import extract_named_features as extract_named_features
    from diptych.evaluation.protocols import evaluate as evaluate
    from diptych.gallery.embed import embed as embed
    from diptych.gallery.read import read_embeddings as read_embeddings
    from diptych.model.norms import use_norm as use_norm
    from diptych.model.saved import load_encoder as load_encoder
    from diptych.model.twin import Twin as Twin
    from diptych.optimization.optimizers import Lars as Lars
    from diptych.pretraining import pretrain as pretrain
    from diptych.recipes import RECIPES as RECIPES
    from diptych.recipes import recipe_config as recipe_config
    from diptych.report.page import write_report as write_report
    from diptych.training.leak import check_leak as check_leak
    from diptych.views.batches import Batch as Batch
    from diptych.views.cpu import make_views as make_views
    from diptych.views.draw import draw_views as draw_views

_HOMES = {
    "Batch": "views.batches",
    "DiptychError": "errors",
    "ImageBank": "contrast.dictionaries",
    "InBatch": "contrast.dictionaries",
    "KeyQueue": "contrast.dictionaries",
    "Lars": "optimization.optimizers",
    "Method": "contrast.method",
    "MethodConfig": "configs",
    "RECIPES": "recipes",
    "RunConfig": "configs",
    "Twin": "model.twin",
    "ViewsConfig": "configs",
    "backward_in_chunks": "contrast.large_batch",
    "build_method": "contrast.method",
    "check_leak": "training.leak",
    "decoupled_nt_xent": "contrast.losses",
    "draw_views": "views.draw",
    "embed": "gallery.embed",
    "evaluate": "evaluation.protocols",
    "extract_features": "evaluation.features",
    "extract_named_features": "evaluation.features",
    "info_nce": "contrast.losses",
    "load_encoder": "model.saved",
    "load_run_config": "config_file",
    "make_views": "views.cpu",
    "nt_logistic": "contrast.losses",
    "nt_xent": "contrast.losses",
    "pretrain": "pretraining",
    "read_embeddings": "gallery.read",
    "recipe_config": "recipes",
    "supervised_contrastive": "contrast.losses",
    "triplet": "contrast.losses",
    "use_norm": "model.norms",
    "write_report": "report.page",
}

__all__ = ["__version__", *_HOMES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'diptych' has no attribute {name!r}")
    return getattr(import_module(f"diptych.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
