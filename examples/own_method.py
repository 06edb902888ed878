"""A method of your own: Barlow Twins (Zbontar et al., 2103.03230), which has no negatives.

    python examples/own_method.py photos/ runs/barlow

A method says what a batch of views gives: a loss, and metrics by name. Saving, resuming, several
processes, evaluation and the report work as for the methods of the library.
"""

import argparse
from concurrent.futures import Executor

import torch
from torch import Tensor

import diptych

OFF_DIAGONAL = 0.005  # weight of the redundancy (section 3)


class BarlowTwins(diptych.Method):
    """The cross-correlation of two views' projections is drawn to the identity."""

    def forward(self, batch: diptych.Batch) -> diptych.StepOutput:
        """The loss of a batch; changes nothing."""
        first, second = (standardized(self.network(view)) for view in batch.views)
        correlation = first.T @ second / len(first)  # (dim, dim)
        on = torch.diagonal(correlation)
        off = correlation.square().sum() - on.square().sum()
        loss = (1 - on).square().sum() + OFF_DIAGONAL * off
        with torch.no_grad():
            metrics = {"correlation": on.mean(), "redundancy": off.sqrt()}
        return diptych.StepOutput(loss, metrics)


def standardized(projections: Tensor) -> Tensor:
    """(batch, dim), each dimension with mean 0 and deviation 1 over the batch."""
    centred = projections - projections.mean(dim=0)
    return centred / centred.square().mean(dim=0).add(1e-5).sqrt()


def build(config: diptych.RunConfig, images: object, executor: Executor) -> BarlowTwins:
    """Encoder and head that the run's settings ask for."""
    size = {"channels": config.images.channels, "side_pixels": config.views.side_pixels}
    encoder = diptych.build_encoder(config.encoder, **size, seed=config.seed)
    features = diptych.count_features(encoder, **size)
    return BarlowTwins(
        encoder, diptych.build_head(config.head, features=features, seed=config.seed)
    )


def main() -> None:
    """Trains with it, and measures where there are labels."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", help="anything that `diptych pretrain` takes")
    parser.add_argument("out", help="the run folder")
    parser.add_argument("--epochs", type=int, default=10)
    given = parser.parse_args()
    settings = {"head.output_features": 256, "head.batch_norm": True}
    run = diptych.pretrain(
        given.images, method=build, epochs=given.epochs, out=given.out, **settings
    )
    try:
        found = diptych.evaluate(run, ["knn"])["knn"]
    except diptych.DiptychError as error:  # as of images without labels
        print(f"Trained, and not measured: {error}")
        return
    print({name: round(share, 3) for name, share in found.items()})


if __name__ == "__main__":
    main()
