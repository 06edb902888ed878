"""How good an encoder is: each protocol on it, on what it began as, and on raw pixels."""

import difflib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from torch import nn

from diptych.errors import ConfigError
from diptych.evaluation.geometry import measure_geometry
from diptych.evaluation.knn_and_linear import measure_knn, measure_linear, measure_transfer
from diptych.evaluation.labelled import open_labelled
from diptych.evaluation.operations.of_run import measure_views
from diptych.evaluation.predictions import PREDICTIONS, write_predictions
from diptych.evaluation.sgd.finetune import measure_finetune
from diptych.evaluation.sgd.linear_sgd import measure_linear_sgd
from diptych.evaluation.subject import EvaluationOptions, Subject
from diptych.evaluation.transformations import measure_transformations
from diptych.images.open import open_images
from diptych.images.sources.handed_over import path_of
from diptych.models.weight_files import file_checksum
from diptych.models.weights import OF_OTHERS, load_encoder, load_trained_on
from diptych.runs.atomic import atomic_write
from diptych.runs.folder import RunFolder, require_writable
from diptych.runtime.console import ProgressReporter
from diptych.runtime.devices import BATCH_SIZE, Runtime

ProtocolFunction = Callable[[Subject], dict[str, Any]]
"""Measures a subject; what it returns becomes a part of ``evaluation.json``."""

PROTOCOLS: Final[Mapping[str, ProtocolFunction]] = {
    "knn": measure_knn,
    "linear": measure_linear,
    "linear_sgd": measure_linear_sgd,
    "finetune": measure_finetune,
    "transfer": measure_transfer,
    "geometry": measure_geometry,
    "transformations": measure_transformations,
    "views": measure_views,
}

USUAL: Final = ("knn", "linear")
"""Measured when nothing else is asked for."""

OF_ENCODER_FILES: Final = ("knn", "linear", "linear_sgd", "finetune", "transfer")
"""Those that need no more of a run than its encoder."""

_BESIDE_KNN: Final = "knn_leave_one_out"  # which knn adds for some images only

_ENCODER: Final = "encoder"  # of which file the results are, where it is no run's

_SHARED: Final = ("protocol", "details")  # tables that several protocols write to

_IN_PARTS: Final = {"finetune": ("finetune_shares", "shares"), "transfer": ("transfer", "tasks")}
"""Protocols whose parts are measured one by one: their option, and their table in the details."""


def evaluate(
    run: str | Path,
    protocols: Sequence[str] = USUAL,
    *,
    train: str | Path | Any | None = None,
    test: str | Path | Any | None = None,
    device: str = "auto",
    threads: int | None = None,
    batch_size: int = BATCH_SIZE,
    progress: ProgressReporter | None = None,
    encoder: nn.Module | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Measures an encoder, before the head, by the protocols asked for.

    Args:
        run: a run folder whose training has ended, or an encoder file, as ``diptych import`` writes
            it, by itself: then ``train`` is needed, the protocols are those of
            ``OF_ENCODER_FILES``, and results go to a folder beside it, see ``results_folder``.
        protocols: names in ``PROTOCOLS``.
        train: labelled images to fit the probes on; by default the run's own.
        test: labelled images to measure them on; by default those held out with ``train``, or a
            fifth of its images.
        device: where networks run, as in ``Runtime``.
        threads: CPU threads; all cores when not given.
        batch_size: images that a frozen network sees at once; changes features by rounding only.
        progress: told how far it is.
        encoder: of a run whose encoder was given in Python, a module of the same structure.
        **options: fields of ``EvaluationOptions``, as ``head_layers`` or ``neighbours``.

    The answers of the linear classifier on the trained encoder go to ``predictions.csv``.

    Returns:
        What is now in ``evaluation.json``: results of these protocols and those of earlier calls
        that they do not replace. Accuracies are fractions; under ``knn`` and ``linear`` one each
        for ``trained``, ``untrained`` and ``pixels``, under ``protocol`` how the latest of these
        were measured, under ``details`` intervals, settings and the split of each protocol: which
        images it was measured on. docs/evaluation.md says more.

    Raises:
        ImagesError: there are no labels.
        ConfigError: an option or a protocol is not known, or there is no such device.
        OSError: the run folder cannot be written.
    """
    chosen, given = _chosen(protocols), EvaluationOptions(**options)
    if "transfer" in protocols and not given.transfer:
        raise ConfigError("the protocol transfer needs folders: give --transfer PATH PATH ..")
    runtime = Runtime(device, threads, batch_size, progress or ProgressReporter())
    folder, source = results_folder(run), Path(run)
    if source.is_file() and source != folder.encoder:
        _require_for_file(source, protocols, train, given)
    else:
        source = folder.path
    trained = load_encoder(source, head_layers=given.head_layers, encoder=encoder)
    trained = trained.to(runtime.torch_device)
    # Before anything is measured: hours of work must not end at a folder that is read-only.
    require_writable(folder.path)
    folder.path.mkdir(exist_ok=True)
    images, seen = trained.config.images, load_trained_on(folder.trained_on)
    with runtime:
        told, executor = runtime.counting("Reading the images"), runtime.executor
        subject = Subject(
            folder=folder,
            encoder=trained,
            config=trained.config,
            runtime=runtime,
            open_images=partial(open_images, images, executor, told),
            open_labelled=partial(
                open_labelled,
                images,
                executor,
                train=train,
                test=test,
                seen=seen,
                on_progress=told,
            ),
            seen=seen,
            options=given,
            own_encoder=encoder,
        )
        given_parts = {"train": train, "test": test}
        paths = {name: None if one is None else path_of(one) for name, one in given_parts.items()}
        found: dict[str, Any] = {}
        known: dict[str, Any] = {}
        if source != folder.path:  # another encoder may have been in the file
            known = {_ENCODER: {"sha256": file_checksum(source)}}
        # Each kept at once: a later one may be interrupted, or fail, after hours.
        for name in chosen:
            for part in _parts_of(name, subject):
                found = _kept_beside_others(folder, PROTOCOLS[name](part) | known, paths)
    return found


def _parts_of(name: str, subject: Subject) -> Iterator[Subject]:
    """The subject of a protocol, or of each of its parts."""
    if name not in _IN_PARTS:
        yield subject
        return
    option, _ = _IN_PARTS[name]
    for value in getattr(subject.options, option):
        alone: dict[str, Any] = {option: (value,)}
        options = replace(subject.options, **alone)
        # The labelled images are opened once for all parts.
        yield replace(subject, options=options, open_labelled=lambda: subject.labelled)


def _kept_beside_others(
    folder: RunFolder, found: dict[str, Any], labelled: Mapping[str, str | None]
) -> dict[str, Any]:
    """Adds what a protocol found to the results of a folder; all of them."""
    predictions = found.pop(PREDICTIONS, None)
    if predictions is not None:
        found["details"]["linear"]["labelled"] = labelled
        write_predictions(folder.predictions, predictions)
    # Read only now, so that what another command wrote meanwhile is kept.
    earlier = read_evaluation(folder) or {}
    if earlier.get(_ENCODER) != found.get(_ENCODER):
        earlier = {}
    found = merged(earlier, found)
    atomic_write(folder.evaluation, (json.dumps(found, indent=1) + "\n").encode())
    return found


def results_folder(run: str | Path) -> RunFolder:
    """Where the evaluation of a run or of an encoder file is: ``x-evaluation/`` of x.safetensors.

    Raises:
        RunFolderError: it is a URL.
    """
    folder = RunFolder(Path(run))
    if not folder.path.is_file():
        return folder
    around = RunFolder(folder.path.parent)
    if around.encoder == folder.path and around.config.is_file():  # the file of a run
        return around
    return RunFolder(folder.path.with_name(f"{folder.path.stem}-evaluation"))


def _require_for_file(
    file: Path, protocols: Sequence[str], train: object, options: EvaluationOptions
) -> None:
    """Refuses what an encoder file by itself cannot be measured by.

    Raises:
        ConfigError: says what is wanted.
    """
    with open(file, "rb") as opened:  # safetensors: the length of the header, then JSON
        if opened.read(9)[8:] != b"{":
            raise ConfigError(f"{file} is not an encoder file of diptych. {OF_OTHERS}")
    others = [name for name in protocols if name not in OF_ENCODER_FILES]
    if others:
        raise ConfigError(
            f"{file} is an encoder by itself, and {', '.join(others)} needs the head or the views "
            f"of a run. It can be measured by {', '.join(OF_ENCODER_FILES)}."
        )
    if options.supervised:
        raise ConfigError(
            f"--supervised trains with the views and steps of a run, which {file} by itself does "
            "not have. Leave it away."
        )
    if train is None and set(protocols) != {"transfer"}:  # whose tasks bring their own images
        raise ConfigError(
            f"{file} is an encoder by itself, without images. Give labelled ones, a folder for "
            "each class: --train PATH, and --test PATH where others are held out."
        )


def read_evaluation(folder: RunFolder) -> dict[str, Any] | None:
    """What ``evaluation.json`` of a run holds; None where nothing was evaluated yet."""
    if not folder.evaluation.exists():
        return None
    found: dict[str, Any] = json.loads(folder.evaluation.read_bytes())
    return found


def merged(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """Both results; of the same protocol the later one.

    Each has its own settings and split under ``details``; what kNN and the linear classifier have
    in common under ``protocol`` is of the latest call, and of earlier ones on the same images.
    Shares of fine-tuning and tasks of transfer stay beside others that were measured alike.

    >>> merged({"knn": {"trained": 0.3}, "details": {"knn": 1}}, {"details": {"finetune": 2}})
    {'knn': {'trained': 0.3}, 'details': {'knn': 1, 'finetune': 2}}
    """
    kept = dict(earlier)
    for name, (_, parts) in _IN_PARTS.items():
        later = _beside_parts(earlier, later, name, parts)
    if "knn" in later and _BESIDE_KNN not in later:  # that of earlier is of an earlier knn
        kept = _without(kept, _BESIDE_KNN)
    if "protocol" in later and _on_other_images(kept.get("protocol", {}), later["protocol"]):
        del kept["protocol"]
    joined: dict[str, Any] = {
        name: {**kept[name], **later[name]} for name in _SHARED if name in kept and name in later
    }
    # `joined` last: of the shared tables `later` alone has only a part.
    return {**kept, **later, **joined}


def _beside_parts(
    earlier: Mapping[str, Any], later: Mapping[str, Any], name: str, parts: str
) -> Mapping[str, Any]:
    """Later results with those parts of a protocol that only the earlier ones have.

    Where its settings, which say on which images it was measured, are not the same, there are none.
    """
    before, now = (one.get("details", {}).get(name) for one in (earlier, later))
    if not before or not now or before.get("settings") != now["settings"]:
        return later
    joined = now | {parts: {**before[parts], **now[parts]}}
    details = {**later["details"], name: joined}
    return {**later, name: {**earlier[name], **later[name]}, "details": details}


def _without(found: Mapping[str, Any], gone: str) -> dict[str, Any]:
    """Results without one of them, and without what stands of it under ``details``."""
    return {
        name: {key: one for key, one in part.items() if key != gone} if name == "details" else part
        for name, part in found.items()
        if name != gone
    }


def _on_other_images(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> bool:
    same = ("images", "train_images", "test_images", "classes", "head_layers", "crops")
    # A name that an older file lacks is no difference.
    return any(earlier[name] != later.get(name) for name in same if name in earlier)


def _chosen(names: Sequence[str]) -> list[str]:
    for name in names:
        if name not in PROTOCOLS:
            near = difflib.get_close_matches(name, PROTOCOLS, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Known are {', '.join(PROTOCOLS)}."
            raise ConfigError(f"there is no protocol {name!r}. {hint}")
    return list(dict.fromkeys(names))
