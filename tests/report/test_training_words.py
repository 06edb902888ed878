"""What a report says of the curves of a run's loss and training task."""

from diptych.report.page import training_words

KEY = "The pretext accuracy is the share of queries whose own key has the largest logit of all."


def test_a_queue_that_fills_raises_the_level_of_chance() -> None:
    filling = [
        {"step": step, "loss": 3.0, "chance_loss": chance, "pretext_accuracy": 0.5}
        for step, chance in ((1, 3.5), (100, 6.2))
    ]
    assert training_words(filling) == (
        "A loss below the dashed line is better than guessing. Loss and chance level rise together "
        f"while the dictionary fills; that is normal. {KEY}"
    )
    assert training_words(filling[:1]) == (
        f"A loss below the dashed line is better than guessing. {KEY}"
    )


def test_a_method_without_negatives_has_no_level_of_chance() -> None:
    lines = [{"step": 1, "loss": 0.4, "retrieval_accuracy": 0.1, "chance_retrieval_accuracy": 0.01}]
    assert training_words(lines) == (
        "This loss has no chance level: only its course says something. The retrieval accuracy is "
        "the share of images whose other view is nearest; the loss does not ask for it."
    )
    assert training_words([{"step": 1, "loss": 0.4}]) == (
        "This loss has no chance level: only its course says something."
    )
