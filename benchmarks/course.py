"""The course of a run: how good its encoder was after so many minutes, measured on all test images.

    diptych pretrain FOLDER --checkpoint.every-seconds 600 --checkpoint.keep 100 --out RUN
    python benchmarks/course.py RUN --drawing course.svg

Every checkpoint that the run kept is measured, and the encoder that it ended with, whitened where
the run found that better. All images that it learned from are fitted on, and all held-out ones
measured on: so the run needs class folders and a test part. Neighbours vote as in the protocol of
diptych (20 of them, T = 0.07) and as in lightly's benchmark of CIFAR-10 (200, T = 0.1). Minutes are
those of the command until the checkpoint was written; evaluation and report come after the last.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from measuring import machine
from peers.knn import Protocol
from rich.console import Console
from rich.table import Table
from torch import nn

from diptych.checkpoints.save_and_load import list_checkpoints, load_checkpoint
from diptych.config.files import load_run_config
from diptych.errors import DiptychError
from diptych.models.encoders import build_encoder
from diptych.models.weights import load_encoder
from diptych.runs.folder import RunFolder
from diptych.runtime.devices import use_threads

ENCODER = "method/network.encoder."
"""Before the names of the encoder's tensors in a checkpoint."""


class Point(NamedTuple):
    """An encoder of the run, with accuracies in per cent.

    Attributes:
        minutes: of the command.
        epochs: passes over the images.
        knn: by 20 neighbours.
        knn_200: by 200.
        linear: by a linear classifier.
    """

    minutes: float
    epochs: float
    knn: float
    knn_200: float
    linear: float


def course_of(folder: RunFolder) -> list[Point]:
    """All that the run kept, in order of time; the encoder that it ended with comes last."""
    config = load_run_config(folder.config)
    last = load_encoder(folder)  # first: a run that has not ended is refused before the work
    protocol = Protocol(config.images, config.views)
    found, spent, epochs = list[Point](), 0.0, 0.0
    for place in reversed(list_checkpoints(folder.checkpoints)):
        tensors, state = load_checkpoint(place)
        side = config.views.side_pixels
        channels = config.images.channels
        network = build_encoder(config.encoder, channels=channels, side_pixels=side, seed=0)
        weights = {
            name.removeprefix(ENCODER): tensor
            for name, tensor in tensors.items()
            if name.startswith(ENCODER)
        }
        network.load_state_dict(weights)
        spent = state.get("minutes", {}).get("spent_seconds", state["seconds"]) / 60
        epochs = state["step"] / max(1, protocol.images // config.training.batch_size)
        found.append(Point(spent, epochs, *_accuracies(protocol, network)))
        print(found[-1], file=sys.stderr, flush=True)
    found.append(Point(spent, epochs, *_accuracies(protocol, last)))
    return found


def _accuracies(protocol: Protocol, network: nn.Module) -> tuple[float, float, float]:
    """By 20 neighbours, by 200, and by a linear classifier."""
    encoded = protocol.encode(network)
    of_200 = protocol.knn(encoded, k=200, temperature=0.1)
    return protocol.knn(encoded), of_200, protocol.linear(encoded)


def draw(points: Sequence[Point], file: Path) -> None:
    """Accuracies over minutes; lines join the checkpoints, and marks stand for the last encoder."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    *checkpoints, last = points
    figure, place = pyplot.subplots(figsize=(7, 4))
    minutes = [one.minutes for one in checkpoints]
    for name, values in (("linear classifier", "linear"), ("20 nearest neighbours", "knn")):
        heights = [getattr(one, values) for one in checkpoints]
        (line,) = place.plot(minutes, heights, marker=".", label=name)
        place.plot(last.minutes, getattr(last, values), marker="*", color=line.get_color())
    place.set_xlabel("minutes")
    place.set_ylabel("accuracy on the test images (%)")
    place.grid(alpha=0.3)
    place.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the points here")
    parser.add_argument("--drawing", type=Path, metavar="FILE", help="also draw them, as SVG")
    arguments = parser.parse_args()
    use_threads(None)
    try:
        points = course_of(RunFolder(arguments.run))
    except (DiptychError, RuntimeError) as error:
        raise SystemExit(str(error)) from None
    table = Table(title=f"Accuracy over the run {arguments.run}, in %", title_justify="left")
    for column in ("minutes", "epochs", "20-NN", "200-NN", "linear"):
        table.add_column(column, justify="right")
    for number, point in enumerate(points, 1):
        kept = "kept, " * (number == len(points))
        table.add_row(f"{kept}{point.minutes:.1f}", *(f"{value:.1f}" for value in point[1:]))
    Console(width=100 if not sys.stdout.isatty() else None).print(table)
    if arguments.json is not None:
        document = {"points": [one._asdict() for one in points], **machine()}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    if arguments.drawing is not None:
        draw(points, arguments.drawing)


if __name__ == "__main__":
    main()
