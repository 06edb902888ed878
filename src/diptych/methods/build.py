"""What a run trains: a contrastive method, or a student with its teacher."""

from concurrent.futures import Executor

from diptych.config.run import RunConfig
from diptych.images.collection import Collection
from diptych.methods.contrastive import Method, build_method
from diptych.methods.distillation import Distillation, build_distillation

Learner = Method | Distillation
"""Both have ``network``, ``encoder``, ``follow``, ``remember`` and ``figures``, and are called with
a batch."""


def build_learner(config: RunConfig, collection: Collection, executor: Executor) -> Learner:
    """Builds what the config asks for, with random weights that follow from its seed."""
    if config.distillation.teacher is not None:
        return build_distillation(config, collection, executor)
    return build_method(config, image_count=len(collection.train))
