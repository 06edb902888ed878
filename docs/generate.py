"""Pages and pictures of the site that are made from the code, before Sphinx reads it.

`python docs/generate.py FOLDER` writes a page of every command, one of every public name, the
pictures of docs/pictures/ and the notebooks of examples/ into the folder.
"""

import contextlib
import importlib.util
import inspect
import io
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final
from unittest import mock

import jupytext
import matplotlib

import diptych
from diptych.cli.help import Setting, is_positional, settings_of
from diptych.cli.main import VERBS, verb_function
from diptych.config.files import flatten
from diptych.config.run import RunConfig

HERE: Final = Path(__file__).parent
EXAMPLES: Final = HERE.parent / "examples"

GROUPS: Final = {
    "Train and measure": "pretrain evaluate write_report check_leak load_run_config",
    "Encoders and vectors": (
        "load_encoder extract_features extract_named_features embed Embedder read_embeddings "
        "read_vectors choose_subset export_encoder"
    ),
    "Classifiers": "fit_classifier load_classifier predict_images",
    "Losses": "info_nce nt_xent decoupled_nt_xent nt_logistic supervised_contrastive triplet",
    "Dictionaries": "InBatch KeyQueue ImageBank",
    "Networks": (
        "build_encoder count_features build_head use_norm MomentumEncoder Lars build_contrastive "
        "Contrastive build_method"
    ),
    "Views": "draw_views make_views",
    "For parts of your own": (
        "Method MethodKind StepOutput Batch Loss Source Listing LocatedImages"
    ),
    "Settings": "recipe_config RECIPES RunConfig MethodConfig ViewsConfig",
}
"""Public names under the heading that they have on the page; others stand at its end."""


def everything(folder: Path) -> None:
    """Writes all that is generated; files that are the same already are left alone."""
    _write(folder / "commands.md", commands_page())
    _write(folder / "python.md", python_page())
    for script in sorted((HERE / "pictures").glob("[!_]*.py")):
        _write(folder / f"{script.stem}.svg", picture(script))
    for script in sorted(EXAMPLES.glob("notebook_*.py")):
        notebook = jupytext.read(script)
        for form in ("ipynb", "md"):
            _write(folder / f"{script.stem}.{form}", jupytext.writes(notebook, fmt=form))


def commands_page() -> str:
    """Every command with its text, examples and flags."""
    lines = [
        "# Commands",
        "",
        "`diptych VERB --help` prints the same on a terminal. Flags that are settings of a run, as "
        "`--views.side-pixels`, are on the page of [settings](../settings.md).",
    ]
    for verb, (_, does) in VERBS.items():
        lines += ["", f"## diptych {verb}", "", f"{does[0].upper()}{does[1:]}.", ""]
        lines += _text(inspect.getdoc(verb_function(verb)) or "")
        if flags := flags_of(verb):
            lines += _table(flags)
    return "\n".join(lines) + "\n"


def python_page() -> str:
    """Every public name, by its docstring."""
    grouped = {title: names.split() for title, names in GROUPS.items()}
    known = {name for names in grouped.values() for name in names}
    rest = sorted(set(diptych.__all__) - known - {"__version__"})
    lines = ["# Python", "", "All public names: what `import diptych` gives. "]
    lines += ['Shapes stand in the signatures, `Float[Tensor, "batch dim"]`.']
    for title, names in {**grouped, "More": rest}.items():
        if names:
            lines += ["", f"## {title}", "", "```{eval-rst}"]
            lines += [line for name in names for line in _directive(name)]
            lines += ["```"]
    return "\n".join(lines) + "\n"


def picture(script: Path) -> str:
    """The figure of a script under docs/pictures/ as SVG, the same at every call."""
    sys.path.insert(0, str(script.parent))  # for _style.py
    try:
        figure = _imported(script).draw()
    finally:
        sys.path.remove(str(script.parent))
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": script.stem}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _imported(script: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"pictures_{script.stem}", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _CapturedError(Exception):
    """Ends a verb once it has said what its flags are."""


def flags_of(verb: str) -> list[Setting]:
    """The flags of a verb, without those that are settings of a run."""
    function, found = verb_function(verb), []

    def capture(kind: type, *_: Any, **__: Any) -> None:
        found.append(kind)
        raise _CapturedError

    # A verb makes its flags known only by the call that reads them.
    with (
        mock.patch.object(sys.modules[function.__module__], "parse", capture),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.suppress(_CapturedError, SystemExit),
    ):
        function(["--help"])
    settings = flatten(RunConfig())
    return [
        one
        for kind in found
        for one in settings_of(kind)
        if not ("." in one.name and one.name in settings)
    ]


def _text(docstring: str) -> Iterator[str]:
    """A docstring of a verb as Markdown: its examples are a block of code."""
    text, _, examples = docstring.partition("\nExamples:\n")
    yield from _marked(text).splitlines()
    if examples:
        yield from ["", "```console", *(f"$ {line.strip()}" for line in examples.splitlines())]
        yield from ["```", ""]


def _table(flags: Sequence[Setting]) -> Iterator[str]:
    yield from ["", "| flag | value | default | meaning |", "|---|---|---|---|"]
    for one in flags:
        name = one.name.replace("_", "-")
        written = name.upper() if is_positional(one) else f"--{name}"
        yield f"| `{written}` | {one.type} | {one.default_words} | {_cell(one.meaning)} |"


def _cell(text: str) -> str:
    return _marked(text).replace("|", "\\|")


def _marked(text: str) -> str:
    """Plain text of a docstring as Markdown: flags are code, pages of docs/ are links."""
    parts = re.split(r"(`+[^`]*`+)", text)
    return "".join(part if n % 2 else _plain(part) for n, part in enumerate(parts))


def _plain(text: str) -> str:
    text = re.sub(r"[*<\\[]", r"\\\g<0>", text)
    text = re.sub(r"(?<![\w-])--?[a-z][\w.-]*\w", r"`\g<0>`", text)
    return re.sub(r"docs/([\w-]+)\.md", r"[\1](../\1.md)", text)


def _directive(name: str) -> Iterator[str]:
    """How Sphinx is told to write a name's documentation."""
    held = getattr(diptych, name)
    kind = "class" if inspect.isclass(held) else "function" if callable(held) else "data"
    home = f"diptych.{diptych._HOMES[name]}" if kind == "data" else "diptych"
    yield f".. auto{kind}:: {home}.{name}"
    if kind == "class":
        yield from ["   :members:", "   :show-inheritance:"]
    if kind == "data":
        yield "   :no-value:"
    yield ""


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    everything(Path(sys.argv[1]))
