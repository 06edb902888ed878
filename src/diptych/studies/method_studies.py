"""What the negatives are for: methods with and without them, and which part keeps images apart."""

from collections.abc import Mapping
from typing import Any, Final

from matplotlib.figure import Figure

from diptych.studies.cell_results import StudyResults
from diptych.studies.drawing import bars
from diptych.studies.study import Budget, Cell, Claim, Study, better, fixed, rises_more

METHODS: Final[Mapping[str, str]] = {
    "simclr": "SimCLR",
    "moco_v2": "MoCo v2",
    "nnclr": "NNCLR",
    "byol": "BYOL",
    "simsiam": "SimSiam",
    "barlow_twins": "Barlow Twins",
    "vicreg": "VICReg",
    "lejepa": "LeJEPA",
    "swav": "SwAV",
    "dino": "DINO",
}
"""Label by recipe."""

WITH: Final = ("simclr", "moco_v2", "nnclr")
WITHOUT: Final = tuple(recipe for recipe in METHODS if recipe not in WITH)

PARTS: Final[Mapping[str, tuple[str, str, Mapping[str, Any], str]]] = {
    "byol-no-predictor": (
        "byol",
        "predictor",
        {"head.predictor_layers": 0},
        "0.2 against 72.5 (BYOL, section 5)",
    ),
    "simsiam-no-stop-gradient": (
        "simsiam",
        "stop-gradient",
        {"method.simsiam.stop_gradient": False},
        "0.1 against 67.7 (SimSiam, figure 2)",
    ),
    "barlow_twins-no-redundancy": (
        "barlow_twins",
        "redundancy term",
        {"method.barlow_twins.redundancy_weight": 0.0},
        "57.3 against 71.4 (Barlow Twins, ablations of the loss)",
    ),
    "vicreg-no-variance": (
        "vicreg",
        "variance term",
        {"method.vicreg.variance_weight": 0.0},
        "collapse without it (VICReg)",
    ),
    "lejepa-no-sigreg": (
        "lejepa",
        "SIGReg",
        {"method.lejepa.regularization_weight": 0.0},
        "a constant is the best answer without it (LeJEPA)",
    ),
    "swav-no-equal-shares": (
        "swav",
        "equal shares",
        {"method.swav.sinkhorn_iterations": 0},
        "one prototype for all images without them (SwAV, section 3.1)",
    ),
    "dino-no-centring": (
        "dino",
        "centring",
        {"method.dino.centering": False},
        "collapse without it (DINO, section 5.3)",
    ),
}
"""By cell: its recipe, what is left out, the setting for it, and what the paper found."""

BATCHES: Final = (64, 512)
"""Beside the recipes' own batch of 128."""


def _batch(recipe: str, size: int) -> str:
    return f"{recipe}-batch-{size}"


def _beats_untrained(recipe: str) -> Claim:
    weights = {(recipe, "knn"): 1.0, ("simclr", "untrained"): -1.0}
    return Claim(f"{METHODS[recipe]} beats the untrained encoder", "all methods learn", weights)


def _draw(results: StudyResults) -> Figure:
    rows = [(label, recipe) for recipe, label in METHODS.items()]
    rows += [
        (f"{METHODS[recipe]} without {part}", cell) for cell, (recipe, part, _, _) in PARTS.items()
    ]
    measures = {"kNN accuracy": "knn", "linear accuracy": "linear"}
    return bars(results, rows, measures, untrained="simclr")


def _largest_batch(budget: Budget) -> str:
    steps, size = budget.steps(BATCHES[-1]), BATCHES[-1]
    unscaled = "rates of AdamW are not scaled with the batch."
    if steps is None:
        return f"A batch of {size} takes few steps in an epoch of a small set, and {unscaled}"
    return (
        f"With {budget.images:,} images a batch of {size} takes {steps} steps in an epoch, and "
        f"{unscaled}"
    )


NEGATIVES: Final = Study(
    name="negatives",
    question="What are the negatives for, and what does their work where there are none?",
    source="SimSiam (2011.10566), sections 4 and 6.1; BYOL (2006.07733), section 5",
    found=(
        "Methods without negatives learn about as much as those with them (linear top-1 on "
        "ImageNet after 100 epochs: SimCLR 66.5, MoCo v2 67.4, BYOL 66.5, SwAV 66.5, SimSiam 68.1; "
        "SimSiam, table 4).",
        "Each has a part without which all images become alike: a predictor, a stop-gradient, a "
        "variance term, equal shares, centring.",
        "A batch of 256 instead of 4,096 costs BYOL 0.7 points and SimCLR 3.6; one of 64 instead "
        "of 128 costs BYOL 9.9, by its batch norms, and SimCLR 4.4 (BYOL, table 16).",
    ),
    grid=fixed(
        *(Cell(recipe, {"method": label}, {"recipe": recipe}) for recipe, label in METHODS.items()),
        *(
            Cell(
                name,
                {"method": METHODS[recipe], "without": part},
                {"recipe": recipe, **settings},
            )
            for name, (recipe, part, settings, _) in PARTS.items()
        ),
        *(
            Cell(
                _batch(recipe, size),
                {"method": label, "batch": size},
                {"recipe": recipe, "training.batch_size": size},
            )
            for size in BATCHES
            for recipe, label in METHODS.items()
        ),
    ),
    claims=fixed(
        *(_beats_untrained(recipe) for recipe in METHODS),
        better(
            WITHOUT,
            WITH,
            "Methods without negatives are not behind those with them",
            "67.0 against 67.0 on average",
            paper_points=0.1,
        ),
        *(
            better(recipe, name, f"{METHODS[recipe]} needs its {part}", paper)
            for name, (recipe, part, _, paper) in PARTS.items()
        ),
        rises_more(
            better("byol", _batch("byol", 64), "", ""),
            better("simclr", _batch("simclr", 64), "", ""),
            "A batch of 64 instead of 128 costs BYOL more than SimCLR",
            "9.9 points against 4.4 (BYOL, table 16)",
            paper_points=5.5,
        ),
    ),
    draw=_draw,
    reference="simclr",
    budget=Budget(images=5000, epochs=20),
    measures=("linear", "collapse", "minutes"),
    shown=("knn", "linear", "pretext", "effective_rank", "alarm", "alarm_at", "minutes"),
    differences=(
        "Recipes at scale `tiny`: SGD for SimCLR and MoCo v2, AdamW for all others; small views in "
        "none.",
    ),
    notes=(
        "`alarm`: the share of runs of which the run itself said that they collapsed; `alarm at`: "
        "after what share of the run, where it said so. The limits of the alarm were set by the "
        "runs of 20 epochs on 5,000 images of CIFAR-10: those that learn keep 0.42 of the spread "
        "at the start and more. There SimSiam with a batch of 512, 180 steps, hardly learned on "
        "one seed of three (kNN 30.8), and said so late.",
        "`pretext acc` of a method without negatives is its retrieval accuracy: how often the "
        "other view of an image is the nearest of the batch.",
        "`minutes` are of one thread beside other cells; `benchmarks/recipes.py` gives time and "
        "memory of each recipe by itself: in one epoch 0.94 GB (SimCLR, MoCo v2) to 1.14 (LeJEPA), "
        "as methods without negatives have wider heads, a predictor or a second encoder.",
        _largest_batch,
        "Known of the smaller batch: on 5,000 images of CIFAR-10 in 20 epochs 64 instead of 128 "
        "costs neither SimCLR nor BYOL anything (their kNN accuracy is 0.2 and 1.3 points higher), "
        "as it takes twice the steps. Of those without negatives, which are behind: they have 780 "
        "steps here, the paper's half a million. Conjecture: the difference closes with more of "
        "them; with twice the steps they gain 0.8 points on average and those with negatives 0.2, "
        "which three seeds do not tell apart.",
    ),
)
