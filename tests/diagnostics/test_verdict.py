"""Words that follow from the figures, and change when the figures do."""

import math
from typing import Any

import pytest

from diptych.diagnostics.candidates import Choice, words_for_kept
from diptych.diagnostics.comparison import result_table
from diptych.diagnostics.symptoms import find_symptoms
from diptych.diagnostics.verdict import Verdict, judge, judge_encoder
from diptych.report.charts import chart_groups


def line(step: int, **values: float) -> dict[str, Any]:
    healthy = {
        "step": step,
        "epoch": step // 10,
        "loss": 3.0,
        "chance_loss": math.log(512),
        "pretext_accuracy": 0.4,
        "candidates": 512,
    }
    made = {**healthy, **values}
    return {"chance_pretext_accuracy": 1.0 / made["candidates"], **made}


def names(metrics: list[dict[str, Any]], dictionary_size: int | None = None) -> dict[str, bool]:
    return {s.name: s.alarming for s in find_symptoms(metrics, dictionary_size=dictionary_size)}


def test_a_healthy_run_has_no_symptoms() -> None:
    assert names([line(s, effective_rank=30.0, knn=0.3 + s / 100) for s in (1, 10, 20)]) == {}
    assert names([]) == {}


def test_a_filling_queue_is_normal() -> None:
    assert names([line(1, candidates=257)], dictionary_size=4096) == {"dictionary_filling": False}
    assert names([line(99, candidates=4097)], dictionary_size=4096) == {}


def test_collapse_chance_and_shortcut_are_alarming() -> None:
    assert names([line(30, effective_rank=1.3)]) == {"collapse": True}
    assert names([line(500, loss=math.log(512))]) == {"at_chance": True}
    assert names([line(499, loss=math.log(512))]) == {}  # too early to say
    easy = [line(s, pretext_accuracy=0.999, effective_rank=20.0, knn=0.3) for s in (10, 40)]
    assert names(easy) == {"shortcut": True}


def test_what_could_not_be_otherwise_is_not_alarming() -> None:
    three = line(9, effective_rank=1.99, rank_images=3.0)  # two directions are all that there are
    assert names([three]) == {}
    assert names([line(9, effective_rank=1.2, rank_images=6.0)]) == {"collapse": True}
    known_before = [line(s, pretext_accuracy=1.0, effective_rank=20.0, knn=1.0) for s in (10, 40)]
    assert names(known_before) == {}


def test_a_student_is_told_of_in_its_own_words() -> None:
    student = {"step": 900, "epoch": 9, "loss": 0.5, "chance_loss": math.log(3), "classes": 3.0}
    student |= {"teacher_agreement": 0.8, "chance_teacher_agreement": 1 / 3}
    found = judge([student], None)
    assert found.headline.startswith("Training looks healthy")
    assert "guessing among 3 classes gives 1.10; on 80% of the views student" in found.sentences[0]
    assert "queries" not in " ".join(found.sentences)
    assert names([student]) == {}


def test_a_method_that_is_not_known_is_judged_by_what_it_reports() -> None:
    other = {"step": 900, "epoch": 9, "loss": 0.5, "chance_loss": math.log(4)}
    other |= {"rotation_accuracy": 0.26, "chance_rotation_accuracy": 0.25}
    found = judge([other], None)
    assert "has not learned its task" in found.headline
    assert "26.0% of its views, where guessing does 25.0%" in found.sentences[0]
    assert any("gives 1.39; rotation accuracy is 26%." in sentence for sentence in found.sentences)
    assert names([other]) == {}
    plain = {"step": 900, "epoch": 9, "loss": 0.5}
    assert "nothing to judge by" in judge([plain], None).headline


def test_a_short_run_is_not_judged_twice() -> None:
    """It was "something is wrong" and "nothing can be said" at once."""
    found = judge([line(s, loss=math.log(512)) for s in (10, 20)], None)
    assert found.headline.startswith("Too short to tell.")


def test_guessing_is_right_more_often_where_queries_have_several_keys() -> None:
    """Of two classes a supervised run finds half of its keys before it learns anything."""
    chance = {"pretext_accuracy": 0.5, "candidates": 127, "chance_pretext_accuracy": 0.49}
    found = judge([line(500 * n, **chance) for n in (1, 2, 3, 4)], None)
    assert "has not learned its task" in found.headline
    assert "finds the key of 50.0% of its views, where guessing does 49.0%" in found.sentences[0]
    one_class = line(900, pretext_accuracy=1.0, candidates=127, chance_pretext_accuracy=1.0)
    assert "nothing to judge by" in judge([one_class], None).headline


def evaluation(trained: float, untrained: float, pixels: float = 0.2, count: int = 1000) -> Any:
    knn = {"trained": trained, "untrained": untrained, "pixels": pixels}
    return {"knn": knn, "linear": knn, "protocol": {"test_images": count, "knn_neighbours": 7}}


@pytest.mark.parametrize(
    ("trained", "untrained", "count", "words"),
    [
        (0.76, 0.58, 1280, "clearly better"),
        (0.64, 0.58, 1280, "learned a little"),
        (0.59, 0.58, 1280, "No gain that can be told from chance"),
        (0.76, 0.58, 20, "No gain that can be told from chance"),
        (0.40, 0.58, 1280, "worse"),
    ],
)
def test_headlines_follow_the_gain_and_its_error(
    trained: float, untrained: float, count: int, words: str
) -> None:
    found = judge([line(9)], evaluation(trained, untrained, count=count))
    assert words in found.headline
    assert f"{100 * (trained - untrained):+.1f} points" in " ".join(found.sentences)
    assert ("What to do next" in " ".join(found.sentences)) == ("learned" not in found.headline)
    assert f"By its 7 nearest neighbours, {trained:.1%} of {count:,} test" in found.sentences[0]


def test_labels_that_were_told_prove_nothing() -> None:
    found = evaluation(0.99, 0.4)
    split = {"labels_used": True, "test_images_seen": 7, "tested": "9 images"}
    for told, words in ((True, "nothing is known"), (False, "clearly better")):
        found["details"] = {"knn": {"split": {**split, "labels_used": told}}}
        assert words in judge([line(9)], found).headline


def test_where_nothing_can_be_gained_nothing_is_advised() -> None:
    found = judge([line(9)], evaluation(1.0, 1.0, count=12))
    assert "Nothing can be told" in found.headline
    assert "train longer" not in found.headline


def test_a_better_baseline_is_named() -> None:
    found = judge([line(9)], evaluation(0.4, 0.3, pixels=0.5))
    assert found.headline.startswith("Raw pixels serve better than the trained encoder: 50.0%")
    assert "Do not use this run as it is." in found.headline
    assert any("--weights FILE" in s and "diptych views PATH" in s for s in found.sentences)


def test_without_labels_it_says_what_is_not_known() -> None:
    found = judge([line(s, effective_rank=20.0) for s in (500, 1000)], None)
    assert found.headline.startswith("Training looks healthy. Without labels")
    sick = judge([line(30, effective_rank=1.1)], None)
    assert "Something is wrong" in sick.headline
    assert "collapsed" in sick.sentences[0]


HEALTH = {"effective_rank": 20.0, "stability": 0.1, "pixel_stability": 0.1}


@pytest.mark.parametrize(
    ("last", "words", "reason"),
    [
        ({"stability": 0.3}, "Training looks healthy", ""),
        ({"stability": 0.1}, "of little use", "agree on 10% of its nearest neighbours"),
        ({"stability": 0.3, "pixel_stability": 0.3}, "of little use", "by raw pixels on 30%"),
        ({"stability": 0.3, "effective_rank": 6.0}, "of little use", "use 6.0 directions"),
        ({"stability": 0.3, "start_neighbours": 0.8}, "better than the start weights", "kept 80%"),
        ({"stability": 0.3, "start_neighbours": 0.2}, "Something is wrong", "only 20% are left"),
    ],
)
def test_a_learned_task_alone_is_not_healthy(
    last: dict[str, float], words: str, reason: str
) -> None:
    found = judge([line(1, **HEALTH), line(900, **{**HEALTH, **last})], None)
    assert words in found.headline
    assert reason in " ".join(found.sentences)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (1.0, 1.0, "Training looks healthy"),  # of eleven images all others are the ten nearest
        (0.9, 0.97, "Training looks healthy"),
        (0.9, 0.93, "of little use"),
        (0.5, 0.6, "of little use"),
    ],
)
def test_no_more_agreement_is_asked_for_than_there_can_be(
    before: float, after: float, words: str
) -> None:
    """Thirteen tenths of 0.9 are more than all neighbours."""
    first = {**HEALTH, "stability": before, "pixel_stability": before}
    found = judge([line(1, **first), line(900, **{**first, "stability": after})], None)
    assert words in found.headline


def test_what_the_start_knew_is_no_alarm_where_labels_decide() -> None:
    metrics = [line(1, **HEALTH), line(900, **HEALTH, start_neighbours=0.2)]
    assert names(metrics) == {"start_lost": True}
    found = judge(metrics, evaluation(0.7, 0.5))
    assert "being lost" not in " ".join(found.sentences)
    # Nor while it trains, where the labelled images' neighbours got better.
    for after, expected in ((0.85, {}), (0.80, {"start_lost": True})):
        last = line(900, **HEALTH, start_neighbours=0.2, knn=after)
        assert names([line(1, **HEALTH, knn=0.80), last]) == expected


def test_copies_are_named_and_are_no_collapse() -> None:
    copies = line(9, effective_rank=1.0, rank_images=80.0, rank_contents=2.0)
    assert names([copies]) == {"copies": True}
    assert "only 2 differ" in judge([copies], None).sentences[0]
    assert names([line(9, effective_rank=20.0, rank_images=80.0, rank_contents=79.0)]) == {}


def course(steps: int, shares: list[float], candidates: int = 256) -> Verdict:
    """Of a run whose lines are evenly spread over its steps."""
    lines = [
        line(
            steps * (number + 1) // len(shares),
            pretext_accuracy=share,
            candidates=candidates,
            chance_loss=math.log(candidates),
            loss=0.8 * math.log(candidates),
        )
        for number, share in enumerate(shares)
    ]
    return judge(lines, None)


@pytest.mark.parametrize(
    ("steps", "shares", "candidates", "words"),
    [
        (60, [0.01, 0.03], 256, "Too short to tell"),  # it was called healthy
        (499, [0.5, 0.9], 256, "Too short to tell"),
        (5000, [0.004] * 8, 256, "has not learned its task"),
        (5000, [0.03] * 8, 256, "has not learned its task"),
        (5000, [0.0] * 8, 65_537, "has not learned its task"),
        (5000, [0.5, 0.4, 0.1, 0.06, 0.04, 0.03, 0.02, 0.01], 256, "has not learned its task"),
        (5000, [0.0, 0.0, 0.01, 0.02, 0.03, 0.04, 0.07, 0.09], 256, "Too short to tell"),
        (5000, [0.1, 0.3, 0.4, 0.4], 256, "Training looks healthy"),
        (5000, [0.1, 0.12, 0.15, 0.15], 65_537, "Training looks healthy"),
        (5000, [0.2, 0.3, 0.3, 0.3], 4, "has not learned its task"),  # guessing gives a quarter
        (5000, [0.6, 0.9, 0.9, 0.9], 4, "Training looks healthy"),
    ],
)
def test_steps_and_the_course_of_pretext_accuracy_decide_without_labels(
    steps: int, shares: list[float], candidates: int, words: str
) -> None:
    found = course(steps, shares, candidates)
    assert words in found.headline
    healthy = "healthy" in words
    assert any(f"After {steps:,} steps" in sentence for sentence in found.sentences) != healthy


def test_the_first_step_of_an_empty_queue_is_no_find() -> None:
    """All of one candidate are found, whatever the encoder does."""
    alone = line(1, pretext_accuracy=1.0, candidates=1, chance_loss=0.0, loss=0.0)
    found = judge([alone], None)
    assert "nothing to judge by" in found.headline
    assert "100%" not in " ".join(found.sentences)
    learned = [line(1000 * n, pretext_accuracy=0.01) for n in (1, 2, 3)]
    assert "has not learned" in judge([alone, *learned], None).headline


def test_labels_that_were_used_for_fine_tuning_are_known() -> None:
    gain = {"value": 0.05, "low": 0.01, "high": 0.09}
    schedule = {"epochs": 180, "learning_rate": 0.2, "tried": 3}
    detail: Any = {"images": 40, "gains": {"untrained": gain}, "untrained_schedule": schedule}
    evaluated: Any = {
        "finetune": {"0.01": {"trained": 0.4, "untrained": 0.35}},
        "details": {"finetune": {"shares": {"0.01": detail}}},
    }
    found = judge([line(s) for s in (500, 1000)], evaluated)
    everything = " ".join([found.headline, *found.sentences])
    assert "ithout labels" not in everything
    assert "give labelled images" not in everything
    assert found.sentences[0].startswith("Fine-tuned on 40 labelled images it reaches 40.0%")
    assert "180 epochs at a rate of 0.2, the best of 3 schedules" in everything
    assert "--protocol knn linear" in found.sentences[-1]


def test_a_rising_end_asks_for_a_longer_run() -> None:
    rising = [line(s, knn=0.3 + s / 500, effective_rank=9.0) for s in range(10, 100, 10)]
    flat = [line(s, knn=0.4, effective_rank=9.0) for s in range(10, 100, 10)]
    assert any("still rising" in s for s in judge(rising, None).sentences)
    assert not any("still rising" in s for s in judge(flat, None).sentences)
    of_twelve = [one | {"knn_images": 12.0} for one in rising]  # 10 points are one image
    assert not any("still rising" in s for s in judge(of_twelve, None).sentences)


def measured(gain: tuple[float, float, float], **values: float) -> Any:
    """An evaluation with paired intervals: the gain over every rival is the same."""
    knn = {"trained": 0.6, "untrained": 0.6 - gain[0], "pixels": 0.3, **values}
    interval = dict(zip(("value", "low", "high"), gain, strict=True))
    gains = {name: interval for name in knn if name != "trained"}
    settings = {"test_images": 900, "knn_neighbours": 20}
    details = {"knn": {"settings": settings, "metrics": {"accuracy": {"gains": gains}}}}
    return {"knn": knn, "protocol": settings, "details": details}


def test_of_an_encoder_file_nothing_is_told_by_images_of_one_class() -> None:
    found = measured((0.0, 0.0, 0.0), trained=1.0, untrained=1.0, pixels=1.0)
    found["details"]["knn"]["settings"] |= {"measured_classes": 1, "largest_class": 1.0}
    verdict = judge_encoder(found)
    assert verdict.headline.startswith("Nothing can be told: all images that were measured on are")
    assert "100.0% of 900 test images get the right class" in verdict.sentences[0]
    found["details"]["knn"]["settings"] |= {"measured_classes": 2}
    assert "100.0% of 900 test images" in judge_encoder(found).headline


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        ((0.1, 0.08, 0.12), "clearly better"),
        ((0.02, 0.005, 0.035), "learned a little"),
        ((0.02, -0.005, 0.045), "No gain that can be told from chance"),
        ((-0.02, -0.035, -0.005), "worse"),
    ],
)
def test_the_paired_interval_decides(gain: tuple[float, float, float], words: str) -> None:
    found = judge([line(9)], measured(gain))
    assert words in found.headline
    assert f"95% interval {100 * gain[1]:+.1f} to {100 * gain[2]:+.1f}" in found.sentences[0]
    assert any("Another seed" in sentence for sentence in found.sentences)


def test_rivals_that_know_the_labels_set_the_goal() -> None:
    behind = judge([], measured((-0.2, -0.22, -0.18), supervised=0.8))
    assert any("can hold more than this run taught it" in s for s in behind.sentences)
    ahead = judge([], measured((0.1, 0.08, 0.12), supervised=0.5))
    assert any("learning without labels served better" in s for s in ahead.sentences)
    close = judge([], measured((-0.02, -0.04, 0.0), supervised=0.62))
    assert any("comes close to what labels teach" in s for s in close.sentences)
    named = judge([], measured((0.0, -0.01, 0.01), **{"runs/other": 0.6}))
    assert any("not to be told apart from runs/other" in s for s in named.sentences)


@pytest.mark.parametrize("gain", [(-0.10, -0.22, 0.02), (-0.04, -0.07, -0.01)])
def test_what_is_not_known_to_be_close_is_not_called_close(
    gain: tuple[float, float, float],
) -> None:
    """A run that labels may lead by 22 points was said to come close to them."""
    said = " ".join(judge([], measured(gain, supervised=0.6 - gain[0])).sentences)
    assert "comes close" not in said
    assert "cannot be told: measure on more test images" in said


def test_a_wide_interval_asks_for_more_test_images() -> None:
    wide = judge([], measured((0.1, 0.02, 0.18)))
    assert any("--test PATH" in sentence for sentence in wide.sentences)
    narrow = judge([], measured((0.1, 0.09, 0.11)))
    assert not any("--test PATH" in sentence for sentence in narrow.sentences)


def test_few_labels_and_other_tasks_are_summed_up() -> None:
    found = measured((0.1, 0.08, 0.12))
    gain = {"value": 0.05, "low": 0.01, "high": 0.09}
    found["finetune"] = {"1": {"trained": 0.9, "untrained": 0.9}, "0.01": {"trained": 0.4}}
    found["finetune"]["0.01"]["untrained"] = 0.35
    over = "seeds and test images"
    shares: Any = {"0.01": {"images": 40, "gains": {"untrained": gain}, "over": over}}
    found["details"]["finetune"] = {"shares": shares}
    task = {"metrics": {"accuracy": {"gains": {"untrained": gain}}}}
    found["details"]["transfer"] = {"tasks": {"birds": task, "cars": task}}
    words = " ".join(judge([], found).sentences)
    assert "Fine-tuned on 40 labelled images it reaches 40.0%, and 35.0% without" in words
    assert "begin from this encoder" in words
    assert "95% interval +1.0 to +9.0 over seeds and test images)" in words
    assert "Of 2 other tasks it is clearly better than the untrained encoder on 2" in words
    shares["0.01"]["gains"]["untrained"] = {"value": 0.05, "low": -0.01, "high": 0.11}
    words = " ".join(judge([], found).sentences)
    assert "no difference one can rely on" in words
    assert "begin from this encoder" not in words
    shares["0.01"]["gains"]["untrained"] = {"value": 0.05, "low": None, "high": None}
    assert "one seed only" in " ".join(judge([], found).sentences)


def test_an_interval_over_seeds_alone_is_no_advice() -> None:
    """Of 40 test images each of three seeds may gain the same one."""
    found = measured((0.1, 0.08, 0.12))
    gain = {"value": 0.025, "low": 0.025, "high": 0.025}
    found["finetune"] = {"0.01": {"trained": 0.525, "untrained": 0.5}}
    detail = {"images": 40, "gains": {"untrained": gain}}  # as earlier versions wrote it
    found["details"]["finetune"] = {"shares": {"0.01": detail}}
    words = " ".join(judge([], found).sentences)
    assert "over seeds). How far other test images would move it was not measured" in words
    assert "begin from this encoder" not in words


def choice_of(chosen: str) -> Choice:
    return Choice(chosen, f"Kept is {chosen}.", "", (), "")


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ("start", "kept: start weights"),
        ("start, whitened", "kept: start weights, whitened"),
        ("average 0.5, whitened", "trained encoder"),
        (None, "trained encoder"),
    ],
)
def test_tables_call_trained_only_what_training_made(chosen: str | None, words: str) -> None:
    found = evaluation(0.76, 0.58, count=1280)
    choice = None if chosen is None else choice_of(chosen)
    kept = words_for_kept(choice, found)
    assert kept == words
    assert words_for_kept(choice, {"protocol": {"head_layers": 1}}) == "trained encoder"
    with_head = {"details": {"finetune": {"settings": {"head_layers": 1}}}}
    assert words_for_kept(choice, with_head) == "trained encoder"
    table = result_table(found, kept)
    assert table is not None
    assert [name for name, _ in table.rows] == [words, "untrained encoder", "raw pixels"]
    (group,) = chart_groups(found, kept)
    assert {bar.words for chart in group.charts for bar in chart.bars} == {
        *(words, "untrained encoder", "raw pixels")
    }


def test_the_start_that_was_kept_is_not_said_to_have_learned() -> None:
    found = evaluation(0.76, 0.58, count=1280)
    found["knn"] |= {"start": 0.64}
    verdict = judge([line(500)], found, choice_of("start, with an intermediate layer, whitened"))
    assert verdict.headline.startswith(
        "Kept are the start weights, unchanged, with their features post-processed: by kNN"
    )
    assert "better than the start weights, the untrained encoder and raw pixels" in verdict.headline
    assert "Training added nothing that can be told" in verdict.headline
    assert verdict.sentences[0].startswith("Kept is start, with an intermediate layer")
    assert judge([line(500)], found, choice_of("last")).headline.startswith("The encoder learned")
    assert judge([line(500)], found).headline.startswith("The encoder learned")


def test_the_start_that_was_kept_as_it_is_is_not_asked_to_beat_itself() -> None:
    found = evaluation(0.76, 0.58, count=1280)
    found["knn"] |= {"start": 0.76}
    verdict = judge([line(500)], found, choice_of("start"))
    assert verdict.headline.startswith("Kept are the start weights as they are: by kNN and by the")
    assert "training made them no better" in verdict.headline
    worse = evaluation(0.76, 0.58, pixels=0.9, count=1280)
    worse["knn"] |= {"start": 0.76}
    assert judge([line(500)], worse, choice_of("start")).headline.startswith("Raw pixels serve")
    alike = evaluation(0.76, 0.58, pixels=0.755, count=1280)
    alike["knn"] |= {"start": 0.76}
    headline = judge([line(500)], alike, choice_of("start")).headline
    assert headline == (
        "Kept are the start weights as they are; they cannot be told apart from raw pixels: "
        "measure on more test images."
    )


def test_what_was_made_of_the_start_is_no_reason_to_train_more_gently() -> None:
    found = evaluation(0.76, 0.58, count=1280)
    found["knn"] |= {"start": 0.755}
    made = judge([line(500)], found, choice_of("start, whitened"))
    assert "cannot be told apart from the start weights" in made.headline
    said = " ".join(made.sentences)
    assert "use this encoder or the start weights as they are" in said
    assert "more gently" not in said
    trained = " ".join(judge([line(500)], found, choice_of("last, whitened")).sentences)
    assert "train more gently" in trained
    found["knn"] |= {"start": 0.9}  # which was better before anything was made of it
    lost = " ".join(judge([line(500)], found, choice_of("start, whitened")).sentences)
    assert "take the start weights as they are" in lost


def test_a_gain_by_one_probe_of_what_was_made_of_the_start_is_said() -> None:
    found = evaluation(0.80, 0.58, count=1280)
    found["linear"] = {**found["linear"], "start": 0.80}
    found["knn"] = {**found["knn"], "start": 0.70}
    headline = judge([line(500)], found, choice_of("start, whitened")).headline
    assert "post-processed: by kNN they are better than the start weights" in headline
    assert headline.endswith(
        "by the linear classifier they cannot be told apart from the start weights."
    )


def test_training_is_not_blamed_for_what_was_made_of_the_start() -> None:
    chosen = choice_of("start, whitened")
    worse = evaluation(0.70, 0.58, count=1280)
    worse["knn"] |= {"start": 0.80}
    headline = judge([line(500)], worse, chosen).headline
    assert "without that they serve better here: 80.0% against 70.0% by kNN" in headline
    assert "raining" not in headline
    alike = evaluation(0.76, 0.58, count=1280)
    alike["knn"] |= {"start": 0.765}
    headline = judge([line(500)], alike, chosen).headline
    assert "cannot be told apart from the start weights: measure on more" in headline
