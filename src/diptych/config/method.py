"""The method: which keys a query is compared with, who encodes them, how it is scored."""

from dataclasses import dataclass, field
from typing import Final, Literal

from diptych.config.checks import Checks

SIAMESE: Final = (
    *("byol", "simsiam", "barlow_twins", "vicreg", "lejepa"),
    *("nnclr", "swav", "dino"),
)
"""The methods that need no dictionary of negatives, by ``MethodConfig.kind``."""
WITH_MOMENTUM_TARGETS: Final = frozenset({"byol", "dino"})
"""Those of them that compare with what a momentum encoder gives."""
WITH_PREDICTOR: Final = frozenset({"byol", "simsiam", "nnclr"})
"""Those of them that may have a predictor."""


@dataclass(frozen=True)
class InBatchConfig:
    """Of the dictionary `batch`."""

    both_views: bool = True
    """A query meets all other views of the batch (SimCLR), not only the keys (MoCo's end-to-end
    mechanism)."""


@dataclass(frozen=True)
class QueueConfig:
    """Of the dictionary `queue` (MoCo, section 3.2)."""

    size: int = 4096
    """Keys that the queue holds."""

    def __post_init__(self) -> None:
        Checks("method.dictionary.queue", self).positive("size")


@dataclass(frozen=True)
class BankConfig:
    """Of the dictionary `bank` (Wu et al., 1805.01978)."""

    negatives: int = 4096
    """Keys of other images drawn for each query at each step."""
    momentum: float = 0.5
    """Share of its key that an image keeps when it is seen again."""
    precision: Literal["fp32", "fp16"] = "fp32"
    """Numbers that the keys are kept in."""
    placement: Literal["replicated", "sharded"] = "replicated"
    """Where several processes train together: each holds all keys, or each holds those of its share
    of the images and asks the others for theirs, for a bank too large for one."""

    def __post_init__(self) -> None:
        check = Checks("method.dictionary.bank", self)
        check.finite()
        check.positive("negatives")
        check.between(0, 1, "momentum")


@dataclass(frozen=True)
class DictionaryConfig:
    """The encoded keys that a query is compared with."""

    kind: Literal["batch", "queue", "bank"] = "batch"
    """Where the keys are from. `batch`: the other images of the batch, with gradients to the keys.
    `queue`: keys of earlier batches. `bank`: one stored key for each image."""
    batch: InBatchConfig = field(default_factory=InBatchConfig)
    queue: QueueConfig = field(default_factory=QueueConfig)
    bank: BankConfig = field(default_factory=BankConfig)


@dataclass(frozen=True)
class KeyEncoderConfig:
    """The network that encodes the keys; of methods without keys, the targets."""

    kind: Literal["shared", "momentum"] = "shared"
    """`shared`: the query encoder itself. `momentum`: a copy that follows it slowly (MoCo, eq. 2;
    BYOL's target network)."""
    momentum: float = 0.999
    """Of `momentum`: share of itself that it keeps at each step; 0 is a plain copy of each step."""
    momentum_schedule: Literal["constant", "cosine"] = "constant"
    """Of `momentum`: the momentum stays, or rises to 1 along half a cosine (MoCo v3, section 4)."""

    def __post_init__(self) -> None:
        check = Checks("method.key_encoder", self)
        check.finite()
        check.between(0, 1, "momentum")


@dataclass(frozen=True)
class TripletConfig:
    """Of the loss `triplet` (SimCLR, table 2)."""

    margin: float = 0.8
    """How much higher than a negative logit the positive one must be; logits are similarities
    divided by the temperature."""

    def __post_init__(self) -> None:
        check = Checks("method.loss.triplet", self)
        check.finite()
        check.positive("margin")


@dataclass(frozen=True)
class LossConfig:
    """What is made of the similarities of a query to its positive key and to the negatives."""

    kind: str = "info_nce"
    """Which loss. `info_nce`: cross-entropy at the positive key (over all views of a batch it is
    NT-Xent). `decoupled`: the same without the positive key in the denominator (DCL).
    `nt_logistic`, `triplet`: SimCLR's table 2. `supervised`: all images of the same class are
    positives (SupCon). `own` is a loss that was given in Python."""
    similarity: Literal["cosine", "dot"] = "cosine"
    """Compare directions only, or lengths too."""
    temperature: float = 0.2
    """Similarities are divided by this."""
    learn_temperature: bool = False
    """Begin at `temperature` and learn it with the weights; never below 0.01."""
    semi_hard: bool = False
    """Of `nt_logistic` and `triplet`: each query learns from one negative only, the closest of
    those that are farther than its positive key."""
    weight: float = 1.0
    """The gradient is multiplied by this; metrics show the plain loss."""
    triplet: TripletConfig = field(default_factory=TripletConfig)

    def __post_init__(self) -> None:
        check = Checks("method.loss", self)
        check.finite()
        check.at_least(0.01, "temperature")
        check.positive("weight")


@dataclass(frozen=True)
class AnchorConfig:
    """What holds the encoder's features near those of `encoder.weights`, without labels."""

    weight: float = 0.0
    """The loss gets so many times the distance of the features of the queries from those that the
    start gives for the same views; 0 is no anchor, and costs nothing."""
    kind: Literal["features", "similarities"] = "features"
    """The distance. `features`: one less the cosine of each view's two features. `similarities`:
    the mean squared difference of the cosines of all pairs of views of the batch (relational
    distillation, 1904.05068)."""

    def __post_init__(self) -> None:
        check = Checks("method.anchor", self)
        check.finite()
        check.not_negative("weight")


@dataclass(frozen=True)
class SimSiamConfig:
    """Of the method `simsiam` (2011.10566)."""

    stop_gradient: bool = True
    """No gradient flows to the targets. Without, all images become alike (section 4.1)."""


@dataclass(frozen=True)
class BarlowTwinsConfig:
    """Of the method `barlow_twins` (2103.03230)."""

    redundancy_weight: float = 0.005
    """Weight of the squared correlations between different dimensions (lambda of eq. 1)."""

    def __post_init__(self) -> None:
        check = Checks("method.barlow_twins", self)
        check.finite()
        check.not_negative("redundancy_weight")


@dataclass(frozen=True)
class VICRegConfig:
    """Of the method `vicreg` (2105.04906): the weights of its three terms (eq. 6)."""

    invariance_weight: float = 25.0
    """Of the mean squared difference of the views of an image."""
    variance_weight: float = 25.0
    """Of what each dimension's standard deviation lacks to 1. At 0 all images become alike."""
    covariance_weight: float = 1.0
    """Of the squared covariances of different dimensions, summed and divided by their number."""

    def __post_init__(self) -> None:
        check = Checks("method.vicreg", self)
        check.finite()
        check.not_negative("invariance_weight", "variance_weight", "covariance_weight")


@dataclass(frozen=True)
class LeJEPAConfig:
    """Of the method `lejepa` (2511.08544)."""

    regularization_weight: float = 0.05
    """Share of SIGReg in the loss (lambda); the rest is the distance of the views of an image. At 0
    all images become alike."""
    directions: int = 1024
    """Random directions in which a step compares the projections with a normal distribution."""
    points: int = 17
    """At which the characteristic functions are compared, from -5 to 5."""

    def __post_init__(self) -> None:
        check = Checks("method.lejepa", self)
        check.finite()
        check.between(0, 1, "regularization_weight")
        check.positive("directions")
        check.at_least(3, "points")


@dataclass(frozen=True)
class NNCLRConfig:
    """Of the method `nnclr` (2104.14548)."""

    queue_size: int = 98304
    """Projections of earlier images among which a view's nearest neighbour is found."""
    temperature: float = 0.1
    """Cosines are divided by this."""

    def __post_init__(self) -> None:
        check = Checks("method.nnclr", self)
        check.finite()
        check.positive("queue_size")
        check.at_least(0.01, "temperature")


@dataclass(frozen=True)
class SwAVConfig:
    """Of the method `swav` (2006.09882)."""

    prototypes: int = 3000
    """Directions that images are assigned to."""
    temperature: float = 0.1
    """Of the predictions: cosines are divided by this."""
    epsilon: float = 0.05
    """The same for the assignments; the smaller, the surer they are."""
    sinkhorn_iterations: int = 3
    """Turns in which all prototypes get the same share of a batch. With 0 an assignment is the
    softmax of its own cosines, and all images may get the same."""
    queue_size: int | None = None
    """Projections of earlier images that take part in the assignments, for batches that are small
    beside the number of prototypes. None when not given."""
    queue_from_epoch: float = 15.0
    """The queue is used from this epoch on."""
    frozen_prototype_epochs: float = 1.0
    """Epochs in which the prototypes do not learn; at most half of the run."""

    def __post_init__(self) -> None:
        check = Checks("method.swav", self)
        check.finite()
        check.at_least(2, "prototypes")
        check.at_least(0.01, "temperature", "epsilon")
        check.positive("queue_size")
        check.not_negative("sinkhorn_iterations", "queue_from_epoch", "frozen_prototype_epochs")


@dataclass(frozen=True)
class DINOConfig:
    """Of the method `dino` (2104.14294); the teacher is `method.key_encoder`."""

    prototypes: int = 65536
    """Outputs of the last layer, K."""
    student_temperature: float = 0.1
    """The student's logits are divided by this."""
    teacher_temperature: float = 0.04
    """The same for the teacher, after the warm-up."""
    warmup_temperature: float = 0.04
    """The teacher's temperature at the start; from there it goes to `teacher_temperature` along a
    line."""
    warmup_epochs: float = 0.0
    """Epochs that this takes; at most half of the run."""
    centering: bool = True
    """The running mean of the teacher's logits is taken off them. Without, one output wins for all
    images (section 5.3)."""
    center_momentum: float = 0.9
    """Share of itself that this mean keeps at each step."""
    frozen_prototype_epochs: float = 1.0
    """Epochs in which the last layer does not learn; at most half of the run."""

    def __post_init__(self) -> None:
        check = Checks("method.dino", self)
        check.finite()
        check.at_least(2, "prototypes")
        check.at_least(0.01, "student_temperature", "teacher_temperature", "warmup_temperature")
        check.between(0, 1, "center_momentum")
        check.not_negative("warmup_epochs", "frozen_prototype_epochs")


@dataclass(frozen=True)
class DenseConfig:
    """Of the method `dense` (DenseCL, 2011.09157), which compares places of the last map too."""

    weight: float = 0.5
    """The loss is so much that of places, and the rest that of whole images (section 3.4)."""
    warmup_steps: int = 1000
    """Steps before the loss of places counts: until then which places belong together is chance."""
    cells: int = 7
    """A map with more places along each side is averaged in this many cells. 7 are those of a view
    of 224 pixels in the paper."""

    def __post_init__(self) -> None:
        check = Checks("method.dense", self)
        check.finite()
        check.between(0, 1, "weight")
        check.not_negative("warmup_steps")
        check.between(2, 32, "cells")


@dataclass(frozen=True)
class MethodConfig:
    """Which dictionary, which key encoder, which loss: all that tells the methods apart."""

    kind: str = "contrastive"
    """Which method. `contrastive` compares with a dictionary of keys, `dense` places of the
    encoder's last map as well. `byol`, `simsiam`, `barlow_twins`, `vicreg`, `lejepa`, `swav` and
    `dino` have no negatives, `nnclr` a queue of positives; their settings are under their name.
    `distillation` is chosen by `distillation.teacher`; `own` is one that was given in Python."""
    views: int = 2
    """Views of each image. Of `contrastive`, more than 2 go with the `batch` dictionary and its
    both_views only."""
    symmetric: bool = False
    """Each view is the query once and the key once (MoCo v3). A batch's both_views always is."""
    dictionary: DictionaryConfig = field(default_factory=DictionaryConfig)
    key_encoder: KeyEncoderConfig = field(default_factory=KeyEncoderConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    anchor: AnchorConfig = field(default_factory=AnchorConfig)
    dense: DenseConfig = field(default_factory=DenseConfig)
    simsiam: SimSiamConfig = field(default_factory=SimSiamConfig)
    barlow_twins: BarlowTwinsConfig = field(default_factory=BarlowTwinsConfig)
    vicreg: VICRegConfig = field(default_factory=VICRegConfig)
    lejepa: LeJEPAConfig = field(default_factory=LeJEPAConfig)
    nnclr: NNCLRConfig = field(default_factory=NNCLRConfig)
    swav: SwAVConfig = field(default_factory=SwAVConfig)
    dino: DINOConfig = field(default_factory=DINOConfig)

    def __post_init__(self) -> None:
        Checks("method", self).between(2, 16, "views")


@dataclass(frozen=True)
class DistillationConfig:
    """Learning from a teacher's predictions instead of by contrast (SimCLR v2, section 2)."""

    teacher: str | None = None
    """A run folder: its encoder, with a linear classifier, is the teacher. No distillation when
    not given."""
    labelled: str | None = None
    """Labelled images to fit the teacher's classifier on. Those of the run when not given."""
    labelled_share: float = 1.0
    """Share of the labelled images used, the same of each class."""
    temperature: float = 1.0
    """The teacher's and the student's logits are divided by this."""

    def __post_init__(self) -> None:
        check = Checks("distillation", self)
        check.finite()
        check.positive("temperature")
        check.must("labelled_share", lambda share: 0 < share <= 1, "be above 0 and at most 1")
