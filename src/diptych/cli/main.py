"""The command line: one verb per stage. Imports nothing heavy before a verb is known."""

import difflib
import importlib
import keyword
import os
import signal
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Final

from diptych import __version__
from diptych.errors import (
    EXIT_USER,
    ConfigError,
    FirstStopped,
    Interrupted,
    exit_code_of,
    sentence_of,
)
from diptych.escaping import readable_lines
from diptych.runtime.console import safe_output
from diptych.runtime.devices import shorten_spinning
from diptych.runtime.world import read_world, tell_launcher

VERBS: Final = {
    "demo": (
        "pretrain",
        "learn from built-in photographs in a minute or two; nothing is downloaded",
    ),
    "pretrain": ("pretrain", "learn from a folder of images, shards, tables or arrays"),
    "launch": (
        "embed",
        "pretrain or embed in many processes on one or more machines, with restarts",
    ),
    "evaluate": (
        "evaluate",
        "measure a run's encoder beside the untrained one and raw pixels: kNN, linear, "
        "fine-tuning, transfer",
    ),
    "rank": ("rank", "rank runs and checkpoints without labels"),
    "detect": (
        "detect",
        "train detectors on a run's ResNet and on an untrained one, and compare them",
    ),
    "embed": ("embed", "write the features of any images to Parquet files, in shards"),
    "gallery": (
        "gallery",
        "show images on a map of their vectors, in a local page, and take labels for them",
    ),
    "search": ("curate", "find the images of a set that are nearest to a picture"),
    "duplicates": ("curate", "list exact and near copies in a set, and which one to keep"),
    "overlap": ("curate", "list the images of a test set that are copies of training images"),
    "outliers": ("curate", "rank images by how far they are from all others"),
    "mislabelled": ("curate", "list labels that the nearest images contradict"),
    "classify": (
        "classify",
        "fit a classifier on labelled images, with calibrated probabilities, and use it on others",
    ),
    "subset": ("classify", "choose which images to label next"),
    "import": (
        "import_export",
        "make weights of another library an encoder file of diptych",
    ),
    "export": (
        "import_export",
        "write a trained encoder for timm, torchvision, ONNX and others, and compare it there",
    ),
    "report": ("evaluate", "write a run's report, one page that opens offline"),
    "plan": (
        "plan",
        "estimate a run before it starts: days, memory, network, disk, and the first limit",
    ),
    "views": ("views", "preview random views of some images on a sheet or a page, with advice"),
    "recipes": ("pretrain", "list the recipes, or print one's settings"),
    "study": ("study", "answer one question of the papers by a grid of runs: table, figure, page"),
    "check-leak": (
        "rank",
        "measure how many keys batch statistics alone give away (leak accuracy)",
    ),
}
"""Each verb: the module beside this one that has it as a function, and what it does."""

_USAGE: Final = """\
usage: diptych VERB [ARGUMENTS]

Learns visual representations from unlabelled images by contrastive learning, and measures them.

verbs:
{verbs}

examples:
  diptych demo
  diptych pretrain photos/ --recipe moco_v2 --epochs 50 --out runs/photos
  diptych evaluate runs/photos --train labelled/train --test labelled/test

`diptych VERB --help` describes one. `diptych --version` prints the version.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    0 when all went well, 2 for what the user must change (wrong usage, settings, paths), 1 when
    training stopped or for a fault of the program, 74 when a run could not be saved, 128 + n when
    signal n stopped a run, which can then be resumed. docs/exit-codes.md says more.
    """
    with safe_output():
        return _run(arguments)


def _run(arguments: Sequence[str] | None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        print(_usage(), end="")
        return 0
    if given[0] == "--version":
        print(f"diptych {__version__}")
        return 0
    verb = given.pop(0)
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f" Did you mean `diptych {near[0]}`?" if near else ""
        print(f"diptych: there is no verb {verb!r}.{hint}\n\n{_usage()}", end="", file=sys.stderr)
        return EXIT_USER
    # Before the verb's module, which may import torch: OpenMP reads the variable only once.
    shorten_spinning()
    try:
        verb_function(verb)(given)
    except KeyboardInterrupt:  # outside of training, where there is nothing to save
        print("diptych: interrupted.", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        sentence = sentence_of(error)
        # A fault of the program keeps its traceback.
        if sentence is None:
            raise
        _say(error, sentence)
        return exit_code_of(error)
    return 0


def verb_function(verb: str) -> Callable[[Sequence[str]], None]:
    """The verb's function; its module is imported only here, as it may import torch."""
    module = importlib.import_module(f"diptych.cli.{VERBS[verb][0]}")
    name = verb.replace("-", "_")
    return getattr(module, name + "_" * keyword.iskeyword(name))


def _usage() -> str:
    indent = " " * 14
    lines = [
        textwrap.fill(f"  {verb:12}{does}", 90, subsequent_indent=indent)
        for verb, (_, does) in VERBS.items()
    ]
    return _USAGE.format(verbs="\n".join(lines))


def _say(error: Exception, sentence: str) -> None:
    """Tells the user, or the launcher that then tells the user once for all processes."""
    code = exit_code_of(error)
    if code == EXIT_USER and tell_launcher(sentence):
        return
    if isinstance(error, FirstStopped):  # the first says why
        return
    # The signal came to all processes; one of them says so.
    if isinstance(error, Interrupted) and not _is_first():
        return
    # A single process may fail where the first does not: on its own machine, say.
    who = "diptych" if _is_first() else f"diptych, process {os.environ.get('RANK')}"
    print(f"{who}: {readable_lines(sentence)}", file=sys.stderr)


def _is_first() -> bool:
    """Whether this is the only process, or the first of those that torchrun started."""
    try:
        return read_world().is_first
    except ConfigError:  # an environment that is no launcher's
        return True
