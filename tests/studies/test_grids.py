"""The grids are what the papers vary; every command is one that the command line takes."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diptych.cli.flags import explicit_settings, parse
from diptych.cli.pretrain import PretrainFlags, pretrain
from diptych.config.consistency import require_consistent
from diptych.config.files import nest
from diptych.config.recipes import recipe_config
from diptych.optimization.optimizers import peak_learning_rate
from diptych.report.figures import svg
from diptych.resolve import overlay_all, overrides_of
from diptych.studies.cell_results import StudyResults
from diptych.studies.drawing import png
from diptych.studies.network_studies import TRANSFORMATIONS
from diptych.studies.study import Budget, Study, difference_in_points, for_budget
from diptych.studies.study_page import describe, to_markdown
from diptych.studies.study_run import STUDIES, find_study, study_run
from studies.made_up import result

ALL = pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES.keys())


def places(name: str, axis: str) -> set[object]:
    study = find_study(name)
    return {cell.place[axis] for cell in study.grid(study.budget.epochs)}


def settings(name: str, setting: str) -> set[object]:
    study = find_study(name)
    cells = study.grid(study.budget.epochs)
    return {c.settings[setting] for c in cells if setting in c.settings}


def test_there_are_those_that_the_papers_raise() -> None:
    wanted = "mechanisms momentum shuffle composition strength head invariance loss temperature"
    assert set(STUDIES) == {*wanted.split(), "batch", "size", "negatives"}


def test_the_grids_vary_what_the_papers_vary() -> None:
    assert places("mechanisms", "mechanism") == {"end-to-end", "bank", "queue"}
    assert settings("mechanisms", "method.dictionary.queue.size") == {
        2**power for power in range(1, 12, 2)
    }
    assert settings("momentum", "method.key_encoder.momentum") == {0, 0.9, 0.99, 0.999, 0.9999}
    assert {"split", "shuffle", "layer", "group"} < settings("shuffle", "norm.kind")
    assert settings("strength", "views.strength") == {1 / 8, 1 / 4, 1 / 2, 1}
    assert settings("head", "head.layers") == {0, 1, 2}
    assert len(places("loss", "loss")) == 5
    assert {0.05, 0.1, 0.5, 1, 10, 100} <= places("temperature", "temperature")
    assert places("temperature", "l2 norm") == {"yes", "no"}
    assert places("batch", "epochs") == {3, 6, 12}
    assert places("batch", "learning rate") == {"linear", "none"}
    assert len(places("size", "blocks")) > 1
    assert len(settings("negatives", "recipe")) == 10
    assert settings("negatives", "method.vicreg.variance_weight") == {0.0}


def test_the_composition_has_each_operation_alone_and_in_ordered_pairs() -> None:
    cells = find_study("composition").grid(4)
    pairs = [(cell.place["first"], cell.place["second"]) for cell in cells]
    names = {first for first, _ in pairs}
    assert len(names) == 7
    for first in names:
        for second in names:
            ordered = first == second or second != "crop"  # a crop comes first
            assert ((first, second) in pairs) == ordered
    assert {cell.settings["views.second"] for cell in cells} == {"center"}
    assert all(str(cell.settings["views.policy"]).startswith(("crop", "center")) for cell in cells)


def test_an_unscaled_rate_is_that_of_the_batch_it_is_taken_from() -> None:
    study = find_study("batch")
    plan = study_run(study, data="images", seeds=1)
    rates: dict[str, dict[int, float]] = {"linear": {}, "none": {}}
    for task in plan.cell_runs():
        config = overlay_all(
            recipe_config("simclr", "tiny"), overrides_of(nest(dict(task.settings)), None)
        )
        size = config.training.batch_size
        rates[config.optimizer.scaling][size] = peak_learning_rate(config.optimizer, size)
    assert set(rates["none"].values()) == {rates["linear"][128]}
    assert rates["linear"][512] == 4 * rates["linear"][128]


@ALL
def test_cells_have_names_of_their_own_that_are_folders(study: Study) -> None:
    for epochs in (1, 2, 4, study.budget.epochs):
        names = [cell.name for cell in study.grid(epochs)]
        assert len(set(names)) == len(names)
        assert all(Path(name).name == name and name.islower() for name in names)
        # Otherwise no untrained encoder would be measured.
        assert for_budget(study.reference, Budget(epochs=epochs)) in names


@ALL
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_command_is_one_that_the_command_line_takes(study: Study, every: bool) -> None:
    """Of all cells, or of one for each set of flags; parsing takes a tenth of a second."""
    runs = study_run(study, data="my images", seeds=2, threads=1).cell_runs()
    several = {tuple(run.settings): run for run in runs}.values()
    for task in runs if every else several:
        program, verb, *arguments = shlex.split(task.command)
        assert (program, verb) == ("diptych", "pretrain")
        flags = parse(PretrainFlags, pretrain, arguments)
        given = explicit_settings(flags, arguments)
        assert given == nest(dict(task.settings))
        assert flags.resume
        assert not flags.report
        assert flags.out == task.folder
        base = recipe_config(str(task.settings["recipe"]), str(task.settings["scale"]))
        require_consistent(overlay_all(base, overrides_of(given, None)))


def made_up(study: Study, *, seeds: int = 3) -> StudyResults:
    """StudyResults of every cell, with every measure that a study may show."""
    rng = np.random.default_rng(0)
    names = {"knn", "pretext", "effective_rank", "linear", "leak", "supervised", *study.shown}
    names.add("untrained")
    names |= {f"{task}_{layer}" for task in TRANSFORMATIONS for layer in "hg"}
    found = []
    for cell in study.grid(study.budget.epochs):
        for seed in range(seeds):
            one = result(cell.name, seed, **{name: rng.uniform(0.2, 0.6) for name in sorted(names)})
            found.append(type(one)(**{**vars(one), "place": cell.place, "study": study.name}))
    return StudyResults(found)


@ALL
def test_every_claim_is_about_cells_and_measures_that_there_are(study: Study) -> None:
    found = made_up(study)
    page = describe(study_run(study, data="images"), found)
    assert page.judgements
    assert all(one.outcome != "unmeasured" for one in page.judgements)
    for one in page.judgements:
        assert one.claim.finding[0].isupper() or one.claim.finding.startswith("h knows")
    text = to_markdown(page)
    assert study.question in text
    assert all(f"`{cell.name}`" in text for cell in study.grid(study.budget.epochs))


CLASSIFIERS = {
    "knn": "kNN",
    "untrained": "kNN",
    "supervised": "kNN",
    "linear": "linear",
    "supervised_linear": "linear",
}
"""By measure, where it is an accuracy at telling classes."""


@ALL
def test_no_claim_compares_two_kinds_of_classifiers(study: Study) -> None:
    for claim in study.claims(made_up(study)):
        measures = {measure for _, measure in claim.weights}
        assert len({CLASSIFIERS.get(one, one.rpartition("_")[0] or one) for one in measures}) == 1


@ALL
def test_the_papers_points_are_the_difference_of_its_figures(study: Study) -> None:
    """Where both stand in the words: `63.9 against 51.6`, `64.4 at 0.1 against 59.7 at 0.05`."""
    for claim in study.claims(made_up(study)):
        figures = re.fullmatch(r"([\d.]+)( at [\d.]+)? against ([\d.]+)( at [\d.]+)?", claim.paper)
        if figures is not None:
            assert claim.paper_points == pytest.approx(float(figures[1]) - float(figures[3]))


def test_the_figure_of_sizes_is_by_one_classifier() -> None:
    study = find_study("size")
    both = made_up(study)
    names = ("knn", "supervised")
    by_knn = StudyResults(
        replace(one, measures={name: one.measures[name] for name in names}) for one in both.all
    )
    for found, label, measures in (
        (both, "linear classifier", ("linear", "supervised_linear")),
        (by_knn, "kNN", names),
    ):
        (axes,) = study.draw(found).axes
        assert label in axes.get_ylabel()
        drawn = [list(line[0].get_ydata()) for line in axes.containers]
        cells = [f"blocks-1-width-{width}" for width in (8, 16, 32)]
        for measure, heights in zip(measures, drawn, strict=False):
            means = [100 * np.mean(found.values(cell, measure)) for cell in cells]
            assert heights == pytest.approx(means)


def test_the_caption_is_of_the_figure_that_is_drawn() -> None:
    study = find_study("batch")
    found = made_up(study)
    without = StudyResults(
        replace(one, measures={k: v for k, v in one.measures.items() if k != "untrained"})
        for one in found.all
    )
    plan = study_run(study, data="images")
    assert describe(plan, found).caption.endswith("Dotted: the untrained encoder.")
    page = describe(plan, without)
    assert page.caption.endswith("The untrained encoder is not measured.")
    assert "3 of 45 runs lack what the same command adds: untrained." in page.headline


@pytest.mark.parametrize("epochs", [1, 4, 6])
def test_one_cell_of_a_study_gets_its_untrained_encoder_measured(
    tmp_path: Path, epochs: int
) -> None:
    plan = study_run(find_study("batch"), data="images", out=tmp_path, epochs=epochs, seeds=2)

    found = {run.cell.name for run in plan.cell_runs() if run.reference}

    assert found == {f"batch-128-epochs-{max(2, epochs)}"}


def test_claims_about_lengths_are_those_asked_for_while_some_are_missing() -> None:
    study = find_study("batch")
    short = [result(f"batch-{size}-epochs-2", 0, knn=0.4) for size in (64, 128, 256, 512)]

    claims = study.claims(StudyResults(short, epochs=4))

    assert "in 2 epochs than in 8" in claims[1].finding
    assert {cell for cell, _ in claims[2].weights} == {
        "batch-512-epochs-4",
        "batch-512-epochs-4-unscaled",
    }


def test_what_a_small_batch_costs_one_method_more_is_a_whole_difference() -> None:
    study = find_study("negatives")
    means = {"simclr": 0.50, "simclr-batch-64": 0.44, "byol": 0.40, "byol-batch-64": 0.39}
    found = StudyResults([result(cell, 0, knn=mean) for cell, mean in means.items()])

    claim = study.claims(found)[-1]
    points = difference_in_points(found, claim.weights)

    assert "costs BYOL more" in claim.finding
    assert points is not None
    assert points.value == pytest.approx(100 * ((0.40 - 0.39) - (0.50 - 0.44)))


def test_how_the_papers_gap_between_batches_closes_is_a_difference_of_slopes() -> None:
    study = find_study("batch")
    short, long = (57.5, 60.7, 62.8, 64.0, 64.6, 64.8), (64.7, 66.2, 67.2, 68.1, 68.2, 67.8)

    closing = study.claims(StudyResults([], epochs=4))[1]

    slopes = [
        np.polyfit(np.log2([256, 512, 1024, 2048, 4096, 8192]), y, 1)[0] for y in (short, long)
    ]
    assert closing.paper_points == pytest.approx(slopes[0] - slopes[1], abs=0.05)
    assert f"by {slopes[0]:.1f} points per doubling in 100 epochs" in closing.paper


def sentences(name: str, budget: Budget) -> str:
    study = find_study(name)
    return " ".join(for_budget(one, budget) for one in (*study.differences, *study.notes))


def test_sentences_are_of_the_budget_that_was_asked_for() -> None:
    asked = Budget(images=2_000, epochs=50)

    momentum = sentences("momentum", asked)
    assert f"This run has {50 * (2_000 // 128)}," in momentum
    assert f"keeps {0.9999 ** (50 * 15):.0%} of its random start" in momentum
    assert "cannot show" not in sentences("momentum", Budget(images=200_000, epochs=50))
    mechanisms = sentences("mechanisms", asked)
    assert "K from 2 to 2,048 of 2,000 images" in mechanisms
    assert "a batch of 512 takes 3 steps in an epoch, one of 32 takes 62" in mechanisms
    assert "it learns in 49 of 50" in mechanisms
    assert "With 2,000 images a batch of 512 takes 3 steps" in sentences("batch", asked)
    assert "With 2,000 images a batch of 512 takes 3 steps" in sentences("negatives", asked)


@ALL
def test_without_a_number_of_images_no_steps_are_told(study: Study) -> None:
    text = sentences(study.name, Budget(images=None, epochs=7))
    assert "None" not in text
    assert "takes 19 steps" not in text


@pytest.mark.slow
@ALL
@pytest.mark.parametrize("seeds", [0, 1, 3])
def test_figures_are_drawn_whatever_is_there(study: Study, seeds: int) -> None:
    figure = study.draw(made_up(study, seeds=seeds))
    assert svg(figure).startswith("<svg")
    if seeds == 3:  # the same figure once more, in pixels
        assert png(figure).startswith(b"\x89PNG")
