"""A student that learns a teacher's predictions over unlabelled images (SimCLR v2, section 2).

The teacher is a trained encoder with a linear classifier, fitted on few labelled images. Over all
images, labelled or not, the student learns the teacher's predictions, which say more than a label:
how likely every class is.
"""

import math
from concurrent.futures import Executor
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from diptych.config.consistency import norm_of_batch, require_consistent
from diptych.config.method import DistillationConfig
from diptych.config.run import RunConfig
from diptych.errors import ConfigError
from diptych.evaluation.features import encode
from diptych.evaluation.linear import LinearClassifier, fit_linear
from diptych.evaluation.split import groups_of_parts, units_of
from diptych.images.collection import Collection, ImageSet, balanced_share
from diptych.images.open import open_images
from diptych.methods.logits import ranks_first
from diptych.methods.method import (
    HALF_TYPES,
    Method,
    StepOutput,
    autocast_to,
    scalar,
)
from diptych.methods.objective import Loss
from diptych.models.encoders import build_encoder, count_features
from diptych.models.norms import use_norm
from diptych.models.parts import batch_norms, hold_statistics
from diptych.models.weights import PretrainedEncoder, load_encoder
from diptych.runtime.devices import choose_device
from diptych.views.batches import Batch


class Teacher(nn.Module):
    """A frozen encoder with a linear classifier on its standardised features.

    Attributes:
        encoder: frozen, in evaluation mode whatever happens.
        weight, bias, mean, scale: of the classifier, see ``LinearClassifier``.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, encoder: PretrainedEncoder, classifier: LinearClassifier) -> None:
        super().__init__()
        self.encoder = encoder
        for name in ("weight", "bias", "mean", "scale"):
            self.register_buffer(name, getattr(classifier, name))

    def train(self, mode: bool = True) -> "Teacher":
        """Stays in evaluation mode: its predictions must not depend on the batch."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(batch, channels, side, side) to logits (batch, classes)."""
        features = (self.encoder(images).to(self.weight.dtype) - self.mean) * self.scale
        return functional.linear(features, self.weight, self.bias)


class Distillation(Method):
    """What a student learns from its teacher.

    Attributes:
        network: the student's encoder, and a linear classifier as its head.
        teacher: gives the predictions to learn.
        temperature: both sides' logits are divided by it.
        autocast_type: run both networks under autocast to it, if any; the loss stays in fp32.
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        teacher: Teacher,
        *,
        temperature: float,
        views: int = 2,
        autocast_type: torch.dtype | None = None,
    ) -> None:
        super().__init__(encoder, head)
        self.teacher = teacher
        self.temperature = temperature
        self.views = views
        self.autocast_type = autocast_type

    def forward(self, batch: Batch) -> StepOutput:
        """The student's cross-entropy with the teacher over all views (SimCLR v2, eq. 2).

        ``teacher_agreement`` is the share of views on which both name the same class.
        """
        views = torch.cat(batch.views)
        with autocast_to(self.autocast_type, views):
            taught, learned = self.teacher(views), self.network(views)
        taught, learned = taught.float(), learned.float()
        loss = distillation_loss(learned, taught, temperature=self.temperature)
        classes = taught.shape[1]
        metrics = {
            "chance_loss": scalar(math.log(classes)),
            "teacher_agreement": agreement(learned.detach(), taught),
            "chance_teacher_agreement": scalar(1.0 / classes),
            "classes": scalar(classes),
        }
        return StepOutput(loss, metrics)


def distillation_loss(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """Mean of -sum_y p(y) log q(y) at a temperature, in nats (SimCLR v2, eq. 2).

    Args:
        student: (batch, classes), logits of q.
        teacher: (batch, classes), logits of p.
        temperature: both are divided by it.

    Example:
        >>> uniform = torch.zeros(2, 4)
        >>> float(distillation_loss(uniform, uniform, temperature=1.0))  # log(4)
        1.3862...
    """
    # Hinton et al. multiply by the temperature's square too; the paper's eq. 2 does not.
    wanted = functional.softmax(teacher / temperature, dim=1)
    return -(wanted * functional.log_softmax(student / temperature, dim=1)).sum(dim=1).mean()


def agreement(student: Tensor, teacher: Tensor) -> Tensor:
    """Share of views whose likeliest class is the same for student and teacher.

    A view for which several classes are likeliest for the student does not count.

    Args:
        student: (batch, classes), logits.
        teacher: (batch, classes), logits.

    Example:
        >>> float(agreement(torch.tensor([[2.0, 1.0], [1.0, 1.0]]), torch.tensor([[3.0, 0.0]] * 2)))
        0.5
    """
    named = teacher.argmax(dim=1, keepdim=True)
    of_named = student.gather(1, named)[:, 0]
    largest_other = student.scatter(1, named, -math.inf).amax(dim=1)
    return ranks_first(of_named, largest_other).to(student.dtype).mean()


def build_distillation(
    config: RunConfig,
    collection: Collection,
    executor: Executor,
    *,
    encoder: nn.Module | None = None,
    loss: Loss | None = None,
) -> Distillation:
    """Loads the teacher, fits its classifier, and builds a student with random weights.

    Args:
        config: of the student's run; ``config.distillation.teacher`` is set.
        collection: the student's images; labelled ones are taken from it if no others are named.
        executor: its threads make views.
        encoder: the student, in the place of the one that the config names.
        loss: there is no other for a student.

    Raises:
        ConfigError: there are no labels, or the teacher sees other views than the student.
    """
    require_consistent(config)
    if loss is not None:
        raise ConfigError(
            "a loss was given, and distillation.teacher: a student's loss is the cross-entropy "
            "with its teacher. Leave one of them out."
        )
    given = config.distillation
    assert given.teacher is not None
    teacher = load_encoder(Path(given.teacher)).to(choose_device(config.training.device))
    ours, theirs = config.views, teacher.config.views
    if (ours.side_pixels, ours.pixel_mean, ours.pixel_std, config.images.channels) != (
        theirs.side_pixels,
        theirs.pixel_mean,
        theirs.pixel_std,
        teacher.config.images.channels,
    ):
        raise ConfigError(
            f"the teacher {given.teacher} was trained on views of {theirs.side_pixels} pixels and "
            f"{teacher.config.images.channels} channels, normalised its own way; the student's "
            f"have {ours.side_pixels} and {config.images.channels}. Give both the same "
            "views.side_pixels, views.pixel_mean, views.pixel_std and images.color."
        )
    labelled = _labelled_images(given, config, collection, executor)
    assert labelled.labels is not None
    features = encode(teacher, labelled, theirs, executor, of=f"the teacher {given.teacher}")
    groups, _, _ = groups_of_parts(labelled, None, config.images.group_by)
    classifier = fit_linear(
        features,
        torch.from_numpy(labelled.labels),
        seed=config.seed,
        groups=units_of(labelled, groups),
    )
    channels = config.images.channels
    if encoder is None:
        encoder = build_encoder(
            config.encoder, channels=channels, side_pixels=ours.side_pixels, seed=config.seed
        )
    width = count_features(encoder, channels=channels, side_pixels=ours.side_pixels)
    with torch.random.fork_rng(devices=[]):  # leaves the generator of the run as it is
        torch.manual_seed(config.seed + 1)
        head = nn.Linear(width, len(classifier.weight))  # of as many classes as the teacher knows
    encoder = use_norm(encoder, norm_of_batch(config))
    if config.encoder.batch_statistics == "start":
        hold_statistics(batch_norms(encoder))
    return Distillation(
        encoder,
        head,
        Teacher(teacher, classifier),
        temperature=given.temperature,
        views=config.method.views,
        autocast_type=HALF_TYPES[config.training.precision],
    )


def _labelled_images(
    given: DistillationConfig, config: RunConfig, collection: Collection, executor: Executor
) -> ImageSet:
    found = collection.train
    if given.labelled is not None:
        found = open_images(config.images.at(given.labelled), executor).train
    if found.labels is None:
        raise ConfigError(
            "distillation needs labelled images for the teacher's classifier: put those of each "
            "class into a folder of its own, and give --distillation.labelled PATH."
        )
    return found.select(balanced_share(found.labels, given.labelled_share, config.seed))
