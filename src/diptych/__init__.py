"""Contrastive learning of visual representations: queries, and keys in a dictionary.

The public names are imported when they are first used, so that ``import diptych`` is cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from diptych.classification.classifier import load_classifier as load_classifier
    from diptych.classification.fit import fit_classifier as fit_classifier
    from diptych.classification.predict import predict_images as predict_images
    from diptych.config.data import ViewsConfig as ViewsConfig
    from diptych.config.files import load_run_config as load_run_config
    from diptych.config.method import MethodConfig as MethodConfig
    from diptych.config.recipes import RECIPES as RECIPES
    from diptych.config.recipes import recipe_config as recipe_config
    from diptych.config.run import RunConfig as RunConfig
    from diptych.curation.subset import choose_subset as choose_subset
    from diptych.diagnostics.leak import check_leak as check_leak
    from diptych.embeddings.embed import embed as embed
    from diptych.embeddings.embedder import Embedder as Embedder
    from diptych.embeddings.shard_files import read_embeddings as read_embeddings
    from diptych.embeddings.vectors import read_vectors as read_vectors
    from diptych.errors import DiptychError as DiptychError
    from diptych.evaluation.features import extract_features as extract_features
    from diptych.evaluation.features import extract_named_features as extract_named_features
    from diptych.evaluation.protocols import evaluate as evaluate
    from diptych.export.write import export_encoder as export_encoder
    from diptych.images.listing import Listing as Listing
    from diptych.images.open import Source as Source
    from diptych.images.splits import LocatedImages as LocatedImages
    from diptych.methods.build import MethodKind as MethodKind
    from diptych.methods.build import build_method as build_method
    from diptych.methods.contrastive import Contrastive as Contrastive
    from diptych.methods.contrastive import build_contrastive as build_contrastive
    from diptych.methods.dictionaries import ImageBank as ImageBank
    from diptych.methods.dictionaries import InBatch as InBatch
    from diptych.methods.dictionaries import KeyQueue as KeyQueue
    from diptych.methods.losses import decoupled_nt_xent as decoupled_nt_xent
    from diptych.methods.losses import info_nce as info_nce
    from diptych.methods.losses import nt_logistic as nt_logistic
    from diptych.methods.losses import nt_xent as nt_xent
    from diptych.methods.losses import supervised_contrastive as supervised_contrastive
    from diptych.methods.losses import triplet as triplet
    from diptych.methods.method import Method as Method
    from diptych.methods.method import StepOutput as StepOutput
    from diptych.methods.objective import Loss as Loss
    from diptych.models.encoders import build_encoder as build_encoder
    from diptych.models.encoders import count_features as count_features
    from diptych.models.heads import build_head as build_head
    from diptych.models.momentum_encoder import MomentumEncoder as MomentumEncoder
    from diptych.models.norms import use_norm as use_norm
    from diptych.models.weights import load_encoder as load_encoder
    from diptych.optimization.optimizers import Lars as Lars
    from diptych.pretraining import pretrain as pretrain
    from diptych.report.page import write_report as write_report
    from diptych.views.batches import Batch as Batch
    from diptych.views.cpu import make_views as make_views
    from diptych.views.draw import draw_views as draw_views

_HOMES = {
    "Batch": "views.batches",
    "Contrastive": "methods.contrastive",
    "DiptychError": "errors",
    "Embedder": "embeddings.embedder",
    "ImageBank": "methods.dictionaries",
    "InBatch": "methods.dictionaries",
    "KeyQueue": "methods.dictionaries",
    "Lars": "optimization.optimizers",
    "Listing": "images.listing",
    "LocatedImages": "images.splits",
    "Loss": "methods.objective",
    "Method": "methods.method",
    "MethodConfig": "config.method",
    "MethodKind": "methods.build",
    "MomentumEncoder": "models.momentum_encoder",
    "RECIPES": "config.recipes",
    "RunConfig": "config.run",
    "Source": "images.open",
    "StepOutput": "methods.method",
    "ViewsConfig": "config.data",
    "build_contrastive": "methods.contrastive",
    "build_encoder": "models.encoders",
    "build_head": "models.heads",
    "build_method": "methods.build",
    "check_leak": "diagnostics.leak",
    "choose_subset": "curation.subset",
    "count_features": "models.encoders",
    "decoupled_nt_xent": "methods.losses",
    "draw_views": "views.draw",
    "embed": "embeddings.embed",
    "evaluate": "evaluation.protocols",
    "export_encoder": "export.write",
    "extract_features": "evaluation.features",
    "extract_named_features": "evaluation.features",
    "fit_classifier": "classification.fit",
    "info_nce": "methods.losses",
    "load_classifier": "classification.classifier",
    "load_encoder": "models.weights",
    "load_run_config": "config.files",
    "make_views": "views.cpu",
    "nt_logistic": "methods.losses",
    "nt_xent": "methods.losses",
    "predict_images": "classification.predict",
    "pretrain": "pretraining",
    "read_embeddings": "embeddings.shard_files",
    "read_vectors": "embeddings.vectors",
    "recipe_config": "config.recipes",
    "supervised_contrastive": "methods.losses",
    "triplet": "methods.losses",
    "use_norm": "models.norms",
    "write_report": "report.page",
}

__all__ = ["__version__", *_HOMES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'diptych' has no attribute {name!r}")
    return getattr(import_module(f"diptych.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
