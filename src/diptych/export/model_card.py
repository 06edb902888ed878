"""The model card of an export: what the encoder is, how it is fed, how good it was found to be."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from diptych.errors import RunFolderError
from diptych.export.layouts import Written
from diptych.export.source import ExportSource
from diptych.models.weights import TrainedOn, load_trained_on

_PROTOCOLS: Final = {"knn": "20 nearest neighbours", "linear": "linear classifier"}
_WITHOUT_LABELS: Final = ", trained without labels"
_ENCODERS: Final = {
    "trained": "this encoder",
    "start": "the weights it began with",
    "untrained": "the same network, untrained",
    "pixels": "raw pixels",
}


def model_card(source: ExportSource, written: Written, form: str, difference: float | None) -> str:
    """Markdown with the front matter that the Hugging Face hub reads."""
    sections = [
        _front_matter(source, written),
        f"# {source.config.encoder.name}{_how_trained(source)}",
        _summary(written.source),
        "## Use\n\n```python\n" + written.usage.rstrip() + "\n```\n\n" + _feeding(written),
        "## Training\n\n" + _training(source),
        "## Figures\n\n" + "\n".join(_figures(source)),
        "## Limits\n\n" + "\n".join(f"- {one}" for one in _limits(source, written)),
        "## Check\n\n" + _check(form, difference),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(source: ExportSource, written: Written) -> str:
    tags = ["image-feature-extraction", "diptych"]
    tags += ["self-supervised"] * (_how_trained(source) == _WITHOUT_LABELS)
    kind = "" if source.folder is None else source.config.method_name
    tags += ["contrastive-learning"] * (kind in ("contrastive", "dense"))
    lines = [
        "---",
        *_licence(source.licence),
        f"library_name: {written.library}",
        "pipeline_tag: image-feature-extraction",
        "tags:",
        *(f"- {tag}" for tag in tags),
        "---",
    ]
    return "\n".join(lines)


def _how_trained(source: ExportSource) -> str:
    """Whether labels were used, where that is known of all that the encoder learned from."""
    seen = _seen(source)
    if seen is None or source.config.encoder.weights:
        return ""
    return ", trained with labels" if seen.labels_used else _WITHOUT_LABELS


def _seen(source: ExportSource) -> TrainedOn | None:
    try:
        return None if source.folder is None else load_trained_on(source.folder.trained_on)
    except RunFolderError:
        return None


def _licence(text: str) -> list[str]:
    """An identifier as it is; other words, which may be anyone's, as a quoted name."""
    if re.fullmatch(r"[\w.+-]+", text, re.ASCII):
        return [f"license: {text}"]
    return ["license: other", f"license_name: {json.dumps(text)}"] if text else ["license: unknown"]


def _summary(source: ExportSource) -> str:
    count = sum(one.numel() for one in source.network.parameters())
    return (
        f"From images of {source.side} x {source.side} pixels and {source.channels} channels to "
        f"{source.features} features; {count / 1e6:.1f} million parameters."
    )


def _feeding(written: Written) -> str:
    source = written.source
    mean, std = (", ".join(f"{one:.4g}" for one in values) for values in (source.mean, source.std))
    inside = "inside the program" if written.takes_pixels else "before the network"
    return (
        f"Images: the largest centred square, resized to {source.side} x {source.side} with a "
        f"filter against aliasing, {source.config.images.color}, in 0 .. 1. Normalised {inside}: "
        f"less the mean ({mean}), divided by ({std})."
    )


def _training(source: ExportSource) -> str:
    """How the run learned, from the settings that the encoder's file repeats."""
    if source.folder is None:
        return (
            "Exported from an encoder file: what is known of its training stands with its source."
        )
    config = source.config
    lines = [
        f"- Method: {config.method_name}, recipe `{config.recipe or 'none'}`, by diptych.",
        f"- Views: `{config.views.policy}`.",
    ]
    if (last := _last_line(source.folder.metrics)) is not None:
        batch = config.training.batch_size
        lines.append(f"- Length: {last['step']:,} steps of {batch:,} images.")
    if config.encoder.weights:
        lines.append("- It began with weights from elsewhere, whose licence goes on to hold.")
    if (seen := _seen(source)) is not None:
        labels = "with their labels" if seen.labels_used else "without labels"
        lines.append(f"- Data: {len(seen.checksums):,} images, {labels}. Say here what they show.")
    return "\n".join(lines)


def _figures(source: ExportSource) -> Iterator[str]:
    """Accuracies of the run's evaluation, with their intervals, as tables."""
    found = {} if source.folder is None else _read_object(source.folder.evaluation)
    measured = [name for name in _PROTOCOLS if _inner(found, name)]
    if not measured:
        yield "None were measured. `diptych evaluate RUN --train LABELLED` measures them."
    for name in measured:
        detail = _inner(found, "details", name)
        intervals = _inner(detail, "metrics", "accuracy", "intervals")
        yield f"Accuracy by {_PROTOCOLS[name]}, with 95% intervals over test images:\n"
        yield "| features | accuracy | interval |\n|---|---|---|"
        for encoder, value in _inner(found, name).items():
            if isinstance(value, float):
                words = _ENCODERS.get(encoder, encoder)
                yield f"| {words} | {value:.1%} | {_range(_inner(intervals, encoder))} |"
        if words := _of_split(_inner(detail, "split")):
            yield f"\n{words}\n"


def _of_split(split: Mapping[str, Any]) -> str:
    """On which images, by their numbers: its own words have names and places of images."""
    fitted, tested = split.get("train_images"), split.get("tested")
    both = split.get("test_images_in_train") or 0  # None where that is not known
    if not isinstance(fitted, int) or not isinstance(tested, str) or not isinstance(both, int):
        return ""
    again = f", {both:,} of them also among those fitted on" if both else ""
    return f"Fitted on {fitted:,} images and measured on {tested}{again}."


def _inner(found: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """What lies under some keys, each in the one before; an empty table where it is none."""
    for key in keys:
        inside = found.get(key)
        found = inside if isinstance(inside, Mapping) else {}
    return found


def _range(interval: Mapping[str, Any]) -> str:
    numbers = [
        f"{one:.1%}" for name in ("low", "high") if isinstance(one := interval.get(name), float)
    ]
    return " to ".join(numbers) if len(numbers) == 2 else ""


def _limits(source: ExportSource, written: Written) -> Iterator[str]:
    yield "Features are for images like those it was trained on; measure it on your own labels."
    yield (
        f"It sees squares of {source.side} x {source.side} pixels; what is smaller in the image "
        "than a pixel of these is lost."
    )
    yield ("The intervals are over test images, for one run; another seed moves the figures too.")
    if not source.licence:
        yield "No licence is stated. Who publishes it must state one."
    yield from written.left_out


def _check(form: str, difference: float | None) -> str:
    if difference is None:
        return f"Not read back: the library that reads {form} was not installed."
    return f"Read back and compared on five images: features differ by {difference:.1e} at most."


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object of a run folder; an empty one where there is none that can be read."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _last_line(path: Path) -> dict[str, Any] | None:
    try:
        lines = path.read_bytes().splitlines()
        found = json.loads(lines[-1])
        return found if isinstance(found["step"], int) else None
    except (OSError, ValueError, IndexError, KeyError, TypeError):
        return None
