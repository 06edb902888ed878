"""Head and encoder: which head, what it discards, how large an encoder (SimCLR, section 4)."""

from functools import partial
from typing import Final

from matplotlib.figure import Figure

from diptych.studies.cell_results import StudyResults
from diptych.studies.drawing import KNN_LABEL, grouped_bars, lines
from diptych.studies.study import Budget, Cell, Claim, Study, better, fixed, rises, rises_more

HEADS: Final = {"linear": 1, "mlp": 2}
"""Layers of each kind."""
HEAD_WIDTHS: Final = (16, 64, 256)
_MLPS: Final = [f"mlp-{width}" for width in HEAD_WIDTHS]
_LINEARS: Final = [f"linear-{width}" for width in HEAD_WIDTHS]

HEAD: Final = Study(
    name="head",
    question="What should stand between the features and the loss?",
    source="SimCLR (2002.05709), section 4.2 and figure 8",
    found=(
        "An MLP head beats a linear one by about 3 points, and none by more than 10 (linear top-1 "
        "of the features before the head, ImageNet).",
        "The width of its output hardly matters.",
    ),
    grid=fixed(
        Cell("none", {"head": "none", "width": 64}, {"head.layers": 0}),
        *(
            Cell(
                f"{kind}-{width}",
                {"head": kind, "width": width},
                {"head.layers": layers, "head.output_features": width},
            )
            for kind, layers in HEADS.items()
            for width in HEAD_WIDTHS
        ),
    ),
    claims=fixed(
        better("mlp-64", "none", "An MLP head beats none", "more than 10 points",
               paper_points=10),
        better("linear-64", "none", "A linear head beats none",
               "some 7 points, by the other two figures", paper_points=7),
        better(_MLPS, _LINEARS, "An MLP head beats a linear one, over all widths",
               "about 3 points", paper_points=3),
        rises(_MLPS, HEAD_WIDTHS, "The MLP's output width hardly matters",
              "hardly any difference", per="the width", tolerance=0.5),
    ),
    draw=partial(
        lines,
        series={
            "MLP": list(zip(HEAD_WIDTHS, _MLPS, strict=True)),
            "linear": list(zip(HEAD_WIDTHS, _LINEARS, strict=True)),
            "none (the features, 64 wide)": [(64, "none")],
        },
        x_label="width of the projection",
        untrained="mlp-64",
    ),
    reference="mlp-64",
    shown=("knn", "linear", "pretext", "effective_rank"),
    measures=("linear",),
    differences=("Widths 16 to 256 instead of 32 to 2048; the features are 64 wide, not 2048.",),
    notes=(
        "Known of the linear head, which beats the MLP here: on 10,000 images of CIFAR-10 in six "
        "epochs it does so by a linear classifier too, the paper's measure (by 1.2 points, "
        "interval 0.9 to 1.4), and its pretext accuracy is 5.5 points higher. In ten times as "
        "many epochs, 60, its lead is gone: by heads of 64 it is 1.5 points in six epochs and 0.2 "
        "in 60 (three seeds, 51.4 against 51.2, interval of the difference -0.9 to 1.4; linear "
        "53.6 against 53.4). So one layer is learned sooner than two; that an MLP is 3 points "
        "better is ruled out in 60 epochs, too.",
    ),
)  # fmt: skip

TRANSFORMATIONS: Final = {
    "color": ("colour or gray", 99.3, 97.4),
    "rotation": ("rotation", 67.6, 25.6),
    "noise": ("original or corrupted", 99.5, 59.6),
    "sobel": ("original or Sobel", 96.6, 56.3),
}
"""By the first part of a measure's name: in words, and what the paper found of h and g(h)."""
_LAYERS: Final = {"h": "h", "g": "g(h)"}

INVARIANCE: Final = Study(
    name="invariance",
    question="What do the features keep that the head discards?",
    source="SimCLR (2002.05709), section 4.2 and table 3",
    found=(
        "A linear classifier tells the applied transformation from h and from g(h): colour or gray "
        "99.3 / 97.4, rotation 67.6 / 25.6, original or corrupted 99.5 / 59.6, original or Sobel "
        "96.6 / 56.3 (%, ImageNet).",
    ),
    grid=fixed(Cell("simclr", {"views": "crop, flip, colour, gray"})),
    claims=fixed(
        *(
            Claim(
                f"h knows more than g(h): {words}",
                f"{h} against {g}",
                {("simclr", f"{task}_h"): 1.0, ("simclr", f"{task}_g"): -1.0},
                paper_points=round(h - g, 1),
            )
            for task, (words, h, g) in TRANSFORMATIONS.items()
        )
    ),
    draw=partial(
        grouped_bars,
        groups={
            words: {layer: ("simclr", f"{task}_{short}") for short, layer in _LAYERS.items()}
            for task, (words, _, _) in TRANSFORMATIONS.items()
        },
        y_label="transformation predicted (%)",
    ),
    # h and g(h) are equally wide, as in the paper.
    base={"head.hidden_features": 64, "head.output_features": 64},
    reference="simclr",
    budget=Budget(epochs=20),
    measures=("transformations",),
    shown=("knn", "pretext", *(f"{task}_{short}" for task in TRANSFORMATIONS for short in _LAYERS)),
    differences=("h and g(h) have 64 dimensions instead of 2,048. Twenty epochs by default.",),
    notes=(
        "Known: on 10,000 images of CIFAR-10 in twenty epochs edges are told from h and from g(h) "
        "alike in over 99%, which leaves no room for a difference; gray is told from h in 65 to "
        "84% by seed, so that it took twelve seeds to tell a difference from none.",
    ),
    caption="Bars are one standard error over seeds.",
)

ENCODER_WIDTHS: Final = (8, 16, 32)
DEPTHS: Final = (1, 2)
"""Residual blocks in each of three stages."""


def _of_depth(depth: int) -> list[str]:
    return [f"blocks-{depth}-width-{width}" for width in ENCODER_WIDTHS]


_WIDER: Final = partial(
    rises,
    [cell for depth in DEPTHS for cell in _of_depth(depth)],
    ENCODER_WIDTHS * len(DEPTHS),
    per="the width",
)
"""Over both depths together."""
_UNLABELLED: Final = _WIDER("Wider is better without labels", "at every size", measure="linear")
_GAINS_MORE: Final = "learning without labels gains more from width than learning with them"
_GAP_SHRINKS: Final = "the gap to supervised learning shrinks with size"
_WIDE_PAPER: Final = (75.6 - 71.7) - (77.8 - 76.6)
"""ResNet-50 of twice the width over once, without labels and with them (SimCLR v2, table 1)."""
_DEEP_PAPER: Final = 77.0 - 75.6
"""ResNet-101 over ResNet-50, of twice the width; of once it is 1.9 points (SimCLR v2, table 1)."""


def _draw_sizes(results: StudyResults) -> Figure:
    """By linear classifiers as in the paper; by kNN as long as supervised runs have no other."""
    has_linear = "supervised_linear" in results.measures
    return lines(
        results,
        {
            f"{depth} block{'s' * (depth > 1)} a stage": list(
                zip(ENCODER_WIDTHS, _of_depth(depth), strict=True)
            )
            for depth in DEPTHS
        },
        x_label="channels of the first stage",
        y_label="accuracy of a linear classifier (%)" if has_linear else KNN_LABEL,
        measure="linear" if has_linear else "knn",
        also={"supervised": "supervised_linear" if has_linear else "supervised"},
    )


SIZE: Final = Study(
    name="size",
    question="Does learning without labels gain more from a larger encoder?",
    source="SimCLR (2002.05709), section 4.1 and figure 7; SimCLR v2 (2006.10029), table 1",
    found=(
        "Unsupervised learning gains more from depth and width than supervised learning does.",
        "Linear top-1 on ImageNet of ResNet-50, of twice its width, and of ResNet-101 of either: "
        "71.7, 75.6, 73.6, 77.0; supervised 76.6, 77.8, 78.0, 78.9 (SimCLR v2, table 1).",
    ),
    grid=fixed(
        *(
            Cell(
                f"blocks-{depth}-width-{width}",
                {"blocks": depth, "width": width},
                {"encoder.width": width, "encoder.stage_blocks": (depth,) * 3},
            )
            for depth in DEPTHS
            for width in ENCODER_WIDTHS
        )
    ),
    claims=fixed(
        _UNLABELLED,
        better(_of_depth(DEPTHS[-1]), _of_depth(DEPTHS[0]),
               "Deeper is better without labels, over all widths",
               f"at every size; by {_DEEP_PAPER:.1f} points and more from ResNet-50 to 101",
               measure="linear", paper_points=round(_DEEP_PAPER, 1)),
        rises_more(_UNLABELLED, _WIDER("", "", measure="supervised_linear"),
                   f"By linear classifiers, {_GAINS_MORE}",
                   f"{_GAP_SHRINKS}, by {_WIDE_PAPER:.1f} points from once to twice the width of "
                   "ResNet-50",
                   paper_points=round(_WIDE_PAPER, 1)),
        rises_more(_WIDER("", ""), _WIDER("", "", measure="supervised"),
                   f"By nearest neighbours, {_GAINS_MORE}", _GAP_SHRINKS),
    ),
    draw=_draw_sizes,
    reference="blocks-1-width-16",
    measures=("linear", "supervised", "supervised_linear"),
    shown=("knn", "supervised", "linear", "supervised_linear", "pretext"),
    differences=(
        "Small ResNets of 1 or 2 blocks in each of three stages, 8 to 32 channels in the first, "
        "instead of ResNet-18 to ResNet-152 with 1x to 4x the width. The supervised runs have the "
        "same network, images and epochs, and their frozen features are measured in the same ways.",
    ),
    notes=(
        "Known: on 5,000 images of CIFAR-10 in four epochs kNN accuracy rises by 1.8 points per "
        "doubling of the width without labels and by 2.6 with them; depth shows in neither (-0.3 "
        "and -0.0, intervals of 0.8 and 0.6 to either side). Conjecture: 156 steps end before "
        "either kind of learning has used up its images, so that width helps the supervised runs "
        "as much as it does early in training, and two blocks have yet to gain on one.",
    ),
    caption="On frozen features; dashed: supervised runs. Bars are one standard error over seeds.",
)  # fmt: skip
