"""A loss of your own: InfoNCE whose positive must win by a margin (CosFace, 1801.09414).

    python examples/own_loss.py photos/ runs/margin

A loss gets the logit of each query with its positive key and the log-sum-exp of its logits with all
negatives, so it never holds the whole matrix. docs/own-parts.md says more.
"""

import argparse
from typing import Any

from torch import Tensor
from torch.nn import functional

import diptych

MARGIN = 0.1  # of the cosine


def margin_info_nce(positive: Tensor, logsumexp: Tensor, settings: Any) -> Tensor:
    """Mean of -log( e^(s+ - m/T) / (e^(s+ - m/T) + sum e^s-) ).

    Args:
        positive: (queries,), logits of the positive keys.
        logsumexp: (queries,), of the logits of all negatives.
        settings: the section ``method.loss`` of the run.
    """
    return functional.softplus(logsumexp - positive + MARGIN / settings.temperature).mean()


def main() -> None:
    """Trains with it, and measures where there are labels."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", help="anything that `diptych pretrain` takes")
    parser.add_argument("out", help="the run folder")
    parser.add_argument("--epochs", type=int, default=10)
    given = parser.parse_args()
    how = {"epochs": given.epochs, "out": given.out}
    run = diptych.pretrain(given.images, loss=margin_info_nce, **how)
    try:
        found = diptych.evaluate(run, ["knn"])["knn"]
    except diptych.DiptychError as error:  # as of images without labels
        print(f"Trained, and not measured: {error}")
        return
    print({name: round(share, 3) for name, share in found.items()})


if __name__ == "__main__":
    main()
