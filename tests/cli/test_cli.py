"""The command line from end to end, and what it says when it is used wrongly."""

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import diptych
from diptych.cli import pretrain as pretrain_verb
from diptych.cli.help import is_positional, settings_of
from diptych.cli.main import VERBS, main
from diptych.config.data import ImagesConfig
from diptych.config.files import load_run_config, to_toml
from diptych.config.model import EncoderConfig
from diptych.config.run import ProbeConfig, RunConfig, TrainingConfig
from diptych.report.page import write_report
from foreign_networks import small_stem
from report.test_charts import FOUND as FOUND_BOXES

Stripes = Callable[..., tuple[NDArray[np.uint8], NDArray[np.int64]]]
TINY = [
    *("--encoder.width", "4", "--encoder.stage-blocks", "1", "1", "--batch-size", "16"),
    *("--views.side-pixels", "16", "--probe.images", "32", "--threads", "1"),
]
ONE_EPOCH = ["--epochs", "1", "--no-report", *TINY]


def ran(*arguments: object) -> int:
    return main([str(a) for a in arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of class folders with a hostile file, evaluated and reported."""
    from conftest import striped

    root = tmp_path_factory.mktemp("finished")
    rng = np.random.default_rng(3)
    for label in range(3):
        folder = root / "images" / f"class {label}"
        folder.mkdir(parents=True)
        for number in range(20):
            Image.fromarray(striped(label, rng)).save(folder / f"{number}.png")
    (root / "images" / "class 0" / "<script>alert(1)<").with_suffix(".png").write_bytes(b"junk")
    out = root / "run"
    assert ran("pretrain", str(root / "images"), "--out", str(out), "--epochs", "3", *TINY) == 0
    return out


def test_a_run_folder_holds_what_is_promised(finished: Path) -> None:
    for name in ("config.toml", "metrics.jsonl", "encoder.safetensors", "evaluation.json"):
        assert (finished / name).is_file(), name
    assert (finished / "report.html").is_file()
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    for key in (
        "step",
        "epoch",
        "seconds",
        "loss",
        "chance_loss",
        "pretext_accuracy",
        "views_per_second",
    ):
        assert all(key in line for line in lines), key
    assert lines[-1]["step"] == 3 * (60 // 16)
    assert {"knn", "alignment", "uniformity", "effective_rank"} <= lines[-1].keys()
    found = json.loads((finished / "evaluation.json").read_text())
    for probe in ("knn", "linear"):
        assert set(found[probe]) == {"trained", "untrained", "pixels"}
        assert all(0.0 <= value <= 1.0 for value in found[probe].values())
    skipped = (finished / "skipped.csv").read_text()
    assert "script" in skipped
    assert "not an image of a known format" in skipped
    assert list((finished / "tensorboard").iterdir())


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.outside: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        for name, value in attrs:
            local = value is None or value.startswith(("data:", "#"))
            if name in ("src", "href", "xlink:href") and not local:
                self.outside.append(str(value))


def test_the_report_is_one_file_that_trusts_no_name(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    links = _Links()
    links.feed(page)
    assert links.outside == []
    assert links.scripts == 0
    assert "&lt;script&gt;" in page
    for words in ("Nearest neighbours", "Map of the features", "What the encoder saw", "Training"):
        assert words in page
    assert page.index('class="verdict"') < page.index("<svg")


@pytest.mark.parametrize("evaluation", [None, {"geometry": {}, "details": {}}])
def test_the_report_of_a_run_without_images_says_so(
    evaluation: dict[str, Any] | None, finished: Path, tmp_path: Path
) -> None:
    """Measured not at all, or only by what needs no labels."""
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    config = (copy / "config.toml").read_text()
    (copy / "config.toml").write_text(re.sub(r'path = ".*"', 'path = "/nowhere"', config))
    (copy / "evaluation.json").unlink()
    if evaluation is not None:
        (copy / "evaluation.json").write_text(json.dumps(evaluation))
    (copy / "detection.json").write_text(json.dumps(FOUND_BOXES))
    page = write_report(copy, threads=1).read_text()
    assert "&#39;/nowhere&#39; does not exist" in page
    assert "Without labels" in page
    assert "+3.0 points over untrained ResNets" in page


def test_evaluate_takes_other_images(
    finished: Path, class_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "evaluation.json").read_bytes()
    folder = str(class_folder)
    assert (
        ran("evaluate", str(finished), "--train", folder, "--test", folder, "--threads", "1") == 0
    )
    printed = capsys.readouterr().out
    assert "trained encoder" in printed
    assert "untrained encoder" in printed
    assert "raw pixels" in printed
    found = json.loads((finished / "evaluation.json").read_text())
    assert found["protocol"]["test_images"] == 48
    assert found["linear"]["pixels"] > 0.9  # the same images: the classes can be told apart
    (finished / "evaluation.json").write_bytes(before)


def test_the_encoder_is_used_from_python(finished: Path, stripes: Stripes) -> None:
    encoder = diptych.load_encoder(finished)
    images, _ = stripes(10)
    features = diptych.extract_features(encoder, images, threads=1)
    assert features.shape == (10, 16 * 8)  # of each of 4 x 4 cells of an image
    loaded = diptych.load_encoder(finished / "encoder.safetensors")
    assert torch.equal(features, diptych.extract_features(loaded, images, threads=1))
    alone = torch.cat([diptych.extract_features(encoder, images[i : i + 1]) for i in range(10)])
    torch.testing.assert_close(features, alone)
    assert not encoder.training
    assert not any(p.requires_grad for p in encoder.parameters())


def test_the_resolved_config_alone_repeats_the_run(finished: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    config = str(finished / "config.toml")
    assert ran("pretrain", "--config", config, "--out", str(again), "--no-report", "--quiet") == 0
    assert (again / "encoder.safetensors").read_bytes() == (
        finished / "encoder.safetensors"
    ).read_bytes()
    assert (again / "config.toml").read_bytes() == (finished / "config.toml").read_bytes()


def test_the_same_command_goes_on_with_a_run(
    class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "recipe.toml", tmp_path / "run"
    assert ran("recipes", "moco_v2", "--scale", "tiny") == 0
    file.write_text(capsys.readouterr().out)
    assert 'device = "auto"' in file.read_text()
    same = ["pretrain", "--config", str(file), "--out", str(out), "--quiet", *ONE_EPOCH]
    assert ran(*same, str(class_folder)) == 0
    config = (out / "config.toml").read_bytes()
    # Neither `auto` nor the file's empty path says anything that the run does not know.
    assert ran(*same, str(class_folder), "--resume") == ran(*same, "--resume") == 0
    given_nothing = ["--training.device", "auto", "--training.threads", "None"]
    assert ran("pretrain", "--out", str(out), "--no-report", "--resume", *given_nothing) == 0
    assert (out / "config.toml").read_bytes() == config


def test_what_follows_training_runs_on_what_the_run_has(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = list[tuple[object, object]]()

    def measured(run: Path, **how: object) -> Path:
        told.append((how.get("device"), how.get("threads")))
        return run / "report.html"

    monkeypatch.setattr("diptych.evaluation.protocols.evaluate", measured)
    monkeypatch.setattr("diptych.report.charts.print_tables", lambda *_: None)
    monkeypatch.setattr("diptych.diagnostics.candidates.words_for_kept", lambda *_: [])
    monkeypatch.setattr("diptych.report.page.write_report", measured)
    assert ran("pretrain", "--out", str(finished), "--resume", "--quiet") == 0
    training = load_run_config(finished / "config.toml").training
    assert told == 2 * [(training.device, 1)]


def test_flags_override_the_file_and_the_file_the_recipe(
    class_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        'recipe = "moco_v2"\n[training]\nepochs = 9\n[method.loss]\ntemperature = 0.3\n'
    )
    out = tmp_path / "run"
    flags = ["--config", str(file), "--epochs=1", "--out", str(out), "--no-report", "--quiet"]
    assert ran("pretrain", str(class_folder), *flags, *TINY) == 0
    config = load_run_config(out / "config.toml")
    assert config.training.epochs == 1
    assert config.method.loss.temperature == 0.3
    assert config.method.dictionary.kind == "queue"
    assert config.recipe == "moco_v2"
    assert config.images.path == str(class_folder)


def test_views_draws_a_sheet(
    class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "deep" / "sheet.png"
    assert ran("views", str(class_folder), "--out", str(sheet), "--rows", "3") == 0
    with Image.open(sheet) as image:
        assert image.format == "PNG"
        assert image.width > 9 * 96
        assert image.height > (3 + 4) * 96  # three images, four operations
        assert len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) > 500
    printed = capsys.readouterr().out
    assert "colour jitter, 80%" in printed
    assert "There are only 48 images." in printed
    assert f"48 images in {class_folder}, median side" in printed


def test_views_writes_a_page_that_trusts_no_name(
    class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = sorted(class_folder.rglob("*.png"))[0]
    first.rename(first.with_name("!<script>alert(1)<.png"))
    page = tmp_path / "views.html"
    given = ["--out", str(page), "--rows", "2", "--columns", "3", "--views.small-views", "1"]
    given += ["--views.policy", "moco_v3", "--images.color", "gray"]
    assert ran("views", str(class_folder), *given) == 0
    text = page.read_text()
    links = _Links()
    links.feed(text)
    assert (links.outside, links.scripts) == ([], 0)
    assert "&lt;script&gt;" in text
    # Two images with three views and a small one; alone: two crops, color, blur 6 each, three of 2.
    assert text.count("<img") == text.count(' alt="') == 2 * (1 + 3 + 1) + 4 * 6 + 3 * 2
    printed = capsys.readouterr().out
    for words in ("nothing to drop in one channel", "There are only 48 images."):
        assert words in printed
        assert words in text
    assert "first views:" in printed
    assert '<p class="branch">First views</p>' in text
    assert "policy = &#34;crop + color(saturation=0.2) + gray + blur(1) + flip&#34;" in text


@pytest.mark.slow
def test_views_measures_what_operations_cost_of_the_labels(
    class_folder: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "views.html"
    given = ["--out", str(page), "--rows", "1", "--columns", "2", "--threads", "1"]
    # Without a folder behind it, in the middle and at the end.
    assert ran("views", str(class_folder), "--labelled", *given) == 0
    printed = capsys.readouterr().out
    assert "What the labels say, under each operation alone" in printed
    assert "quarter_turns" in printed
    assert "held-out images are told right by" in printed
    assert "None of those that it measures on is looked at" in printed
    text = page.read_text()
    assert "fitted on such views" in text
    labelled = ["--labelled", str(class_folder)]
    assert ran("views", str(class_folder), *given, *labelled, "--weights", str(finished)) == 0
    weights = tmp_path / "theirs.pth"
    torch.save(small_stem().content, weights)
    foreign = ["--weights", str(weights), "--views.policy", "flip", "--views.side-pixels", "32"]
    capsys.readouterr()
    assert ran("views", str(class_folder), *given, *labelled, *foreign) == 0
    assert "the layout of a backbone beside heads" in capsys.readouterr().out


def test_views_of_a_run_from_weights_are_those_of_such_a_run(
    class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "theirs.pth"
    torch.save(small_stem().content, weights)
    given = ["--out", str(tmp_path / "views.png"), "--rows", "1", "--columns", "2"]
    assert ran("views", str(class_folder), *given, "--weights", str(weights)) == 0
    printed = capsys.readouterr().out
    assert f"Views of recipe simclr at scale tiny, from {weights}, of 64 pixels:" in printed
    assert "40%" in printed


@pytest.mark.slow
def test_a_run_is_told_what_its_views_cost(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "evaluation.json").read_bytes()
    assert ran("evaluate", str(finished), "--protocol", "views", "--threads", "1") == 0
    found = json.loads((finished / "evaluation.json").read_text())["views"]
    assert set(found["clean"]) == {"trained", "untrained", "pixels"}
    assert {"crop", "flip"} <= {one["name"] for one in found["operations"]}
    assert found["split"]["test_images"] > 0
    (finished / "evaluation.json").write_bytes(before)
    capsys.readouterr()


def test_unlabelled_images_are_reported_without_accuracies(
    tmp_path: Path, stripes: Stripes, capsys: pytest.CaptureFixture[str]
) -> None:
    images, _ = stripes(40)
    np.save(tmp_path / "images.npy", images)
    out = tmp_path / "run"
    assert (
        ran("pretrain", str(tmp_path / "images.npy"), "--out", str(out), "--epochs", "1", *TINY)
        == 0
    )
    printed = " ".join(capsys.readouterr().out.split())
    assert "evaluation needs labels" in printed
    assert "Without labels, how useful the features are is not known" in printed
    assert not (out / "evaluation.json").exists()
    assert "Without labels" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["pretrian", "x"], 2, "Did you mean `diptych pretrain`"),
        (["pretrain", "x", "--epoch", "3"], 2, "--epochs"),
        (["pretrain", "x", "--optimizer.lr", "3"], 2, "--optimizer.learning-rate"),
        (["pretrain", "x", "--epochs", "many"], 2, "many"),
        (["pretrain"], 2, "no images: give a path"),
        (["pretrain", "nowhere"], 2, "does not exist"),
        (["pretrain", "photographs", "--recipe", "simcrl"], 2, "no recipe 'simcrl'"),
        (["pretrain", "photographs", "--resume"], 2, "--resume needs --out"),
        (["pretrain", "photographs", "--batch-size", "100000"], 2, "or less"),
        (["pretrain", "photographs", "--views.policy", "color(hue=3)"], 2, "hue must lie"),
        (["evaluate", "nowhere"], 2, "does not exist"),
        (["report", "nowhere"], 2, "holds no run"),
        (["views", "nowhere", "--out", "sheet.jpg"], 2, "ends in .png"),
        (["views", "nowhere", "--rows", "0"], 2, "--rows and --columns must be 1 or more"),
        (["demo", "--out", "src"], 2, "is not replaced"),
        (["pretrain", "a", "--images.path", "b"], 2, "two paths of images: a and --images.path b"),
        (["pretrain", "photographs", "--method.dictionary.queue.size", "0"], 2, "; got 0."),
    ],
)
def test_wrong_use_gets_one_helpful_error(
    arguments: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "src").mkdir()
    monkeypatch.chdir(tmp_path)
    try:
        found = main(arguments)
    except SystemExit as stop:
        found = int(stop.code or 0)
    captured = capsys.readouterr()
    assert words in " ".join((captured.err + captured.out).replace("│", " ").split())
    assert "Traceback" not in captured.err
    assert found == code
    assert (tmp_path / "src").is_dir()


def run_on(images: str, folder: Path) -> Path:
    """What the demo looks at before it replaces a run, and files that must not be lost."""
    (folder / "checkpoints").mkdir(parents=True)
    demo = RunConfig(
        images=ImagesConfig(path=images),
        encoder=EncoderConfig(width=16),
        training=TrainingConfig(epochs=pretrain_verb.DEMO_EPOCHS),
        probe=ProbeConfig(health_every_epochs=4),
    )
    (folder / "config.toml").write_text(to_toml(demo))
    (folder / "checkpoints" / "weights").write_bytes(b"days of work")
    return folder


def bytes_under(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The run folders that the demo would fill."""
    folders: list[Path] = []
    monkeypatch.setattr(pretrain_verb, "_run_to_report", lambda _, out, **rest: folders.append(out))
    return folders


def test_the_demo_replaces_an_earlier_demo(tmp_path: Path, begun: list[Path]) -> None:
    out = run_on("photographs", tmp_path / "demo")
    assert ran("demo", "--out", str(out)) == 0
    assert begun == [out]
    assert not out.exists()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ('[images]\npath = "photos"\n', "it holds a run on 'photos'"),
        ('[images]\npath = "/data/photographs"\n', "it holds a run on '/data/photographs'"),
        ('[tool]\nname = "another program"\n', "there is no setting tool"),
        ("path = photographs", "is not TOML"),
        (None, "cannot read the config file"),
    ],
)
def test_the_demo_replaces_nothing_else(
    config: str | None,
    words: str,
    tmp_path: Path,
    begun: list[Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = run_on("photos", tmp_path / "photos")
    (out / "config.toml").unlink()
    if config is not None:
        (out / "config.toml").write_text(config)
    before = bytes_under(out)
    assert ran("demo", "--out", str(out)) == 2
    said = capsys.readouterr().err
    assert f"{out} is not replaced: wanted an earlier demo" in said
    assert words in said
    assert "Choose another --out" in said
    assert bytes_under(out) == before
    assert begun == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("epochs = 16", "epochs = 200"), "a run with training.epochs = 200"),
        (("width = 16", "width = 64"), "a run with encoder.width = 64"),
        ("vectors.gallery/labels.sqlite", "it holds vectors.gallery too"),
        ("notes.md", "it holds notes.md too, which the demo did not write"),
    ],
    ids=str,
)
def test_the_demo_replaces_no_other_run_and_nothing_beside_its_files(
    change: str | tuple[str, str],
    words: str,
    tmp_path: Path,
    begun: list[Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = run_on("photographs", tmp_path / "demo")
    if isinstance(change, str):
        (out / change).parent.mkdir(exist_ok=True)
        (out / change).write_text("hours of work")
    else:
        config = (out / "config.toml").read_text()
        assert config.count(change[0]) == 1
        (out / "config.toml").write_text(config.replace(*change))
    before = bytes_under(out)
    assert ran("demo", "--out", str(out)) == 2
    assert words in capsys.readouterr().err
    assert bytes_under(out) == before
    assert begun == []


def test_an_earlier_demo_inside_does_not_give_its_parent_away(
    tmp_path: Path, begun: list[Path]
) -> None:
    run_on("photographs", tmp_path / "runs" / "demo")
    before = bytes_under(tmp_path)
    assert ran("demo", "--out", str(tmp_path / "runs")) == 2
    assert bytes_under(tmp_path) == before
    assert begun == []


@pytest.mark.parametrize("name", ["", "config.toml", "nowhere"])
def test_the_demo_follows_no_link(
    name: str, tmp_path: Path, begun: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """A link to an earlier demo, a linked config.toml, and a link to nothing."""
    real = run_on("photographs", tmp_path / "real")
    out = tmp_path / "out"
    if name == "config.toml":
        out.mkdir()
        (out / name).symlink_to(real / name)
    else:
        out.symlink_to(real / name)
    before = bytes_under(real)
    assert ran("demo", "--out", str(out)) == 2
    assert "is a link" in capsys.readouterr().err
    assert out.is_symlink() or (out / name).is_symlink()
    assert bytes_under(real) == before
    assert begun == []


def test_a_wrong_key_in_the_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.toml").write_text("[training]\nepoch = 3\n")
    assert ran("pretrain", "photographs", "--config", str(tmp_path / "run.toml")) == 2
    assert "no setting training.epoch. Did you mean training.epochs?" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [None, *VERBS])
def test_help_has_examples(verb: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    if verb is None:
        assert main(["--help"]) == 0
    else:
        with pytest.raises(SystemExit) as stop:
            main([verb, "--help"])
        assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert re.search(r"(?i)examples:", printed)
    assert f"diptych {verb or 'demo'}" in printed
    assert len(printed.splitlines()) <= 45
    assert max(map(len, printed.splitlines())) <= 100


def test_a_home_folder_may_stand_behind_an_equals_sign(
    class_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert main(["views", str(class_folder), "--out=~/views.html"]) == 0
    assert (tmp_path / "home" / "views.html").is_file()


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_flags_of_the_verb_and_help_all_every_one(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"diptych.cli.{VERBS[verb][0]}")
    named = f"{verb.title().replace('-', '')}Flags"
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    short = capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([verb, "--help-all"])
    long = capsys.readouterr().out
    if verb == "launch":  # torchrun says what it takes
        assert long == short
        return
    assert f"`diptych {verb} --help-all` shows every flag" in short
    settings = list(settings_of(getattr(module, named)))
    flags = {one.name.replace("_", "-") for one in settings if not is_positional(one)}
    for flag in flags:
        assert re.search(rf"--{re.escape(flag)}\b", long), flag
    shown = re.findall(r"^  --(?:\[no-\])?([\w.\[\]-]+)", short, flags=re.M)
    assert shown
    # `--encoder NAME` is the short form of the one in all examples.
    assert {flag.replace("[no-]", "") for flag in shown} <= {*flags, "encoder"}


def test_help_and_version_load_nothing_heavy() -> None:
    code = (
        "import sys; from diptych.cli.main import main; main(['--help']); main(['--version'])\n"
        "from diptych.cli.main import VERBS\n"
        "for verb in VERBS:\n"
        "    try: main([verb, '--help'])\n"
        "    except SystemExit: pass\n"
        "heavy = {'torch', 'numba', 'numpy', 'PIL', 'pyarrow', 'scipy', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"
    assert f"diptych {diptych.__version__}" in found.stdout
    assert all(f"diptych {verb} " in found.stdout for verb in VERBS)


def test_every_public_name_is_there() -> None:
    for name in diptych.__all__:
        assert getattr(diptych, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        diptych.nothing  # noqa: B018


def test_recipes_are_listed_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ran("recipes") == 0
    listed = capsys.readouterr().out
    for name in diptych.RECIPES:
        assert f"\n{name}" in f"\n{listed}"
    assert ran("recipes", "moco_v3", "--scale", "small") == 0
    file = tmp_path / "recipe.toml"
    file.write_text(capsys.readouterr().out)
    assert load_run_config(file) == diptych.recipe_config("moco_v3", "small")
    assert ran("recipes", "moco") == 2
    assert "no recipe 'moco'; wanted one of memory_bank" in capsys.readouterr().err


def test_a_runs_leak_is_checked(
    finished: Path, class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ran("check-leak", str(finished), "--threads", "1") == 0
    assert "Nothing can leak: all keys that a query meets share" in capsys.readouterr().out
    out = tmp_path / "run"
    flags = ["--recipe", "moco_v1", "--norm.images-per-group", "4", "--out", str(out)]
    assert ran("pretrain", str(class_folder), *flags, *ONE_EPOCH) == 0
    capsys.readouterr()
    assert ran("check-leak", str(out), "--threads", "1") == 0
    said = capsys.readouterr().out
    assert "with keys encoded in 12 groups of 4 images as in training" in said
    found = json.loads((out / "leak.json").read_text())
    assert f"pretext accuracy is {found['accuracy']:.1%}" in said
    assert found["leak_accuracy"] == found["accuracy"] - found["regrouped_accuracy"]


def test_the_heads_first_layer_can_be_kept(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "evaluation.json").read_bytes()
    assert ran("evaluate", str(finished), "--head-layers", "1", "--threads", "1") == 0
    capsys.readouterr()
    assert json.loads((finished / "evaluation.json").read_text())["protocol"]["head_layers"] == 1
    (finished / "evaluation.json").write_bytes(before)
    deeper = diptych.load_encoder(finished, head_layers=1)
    images = torch.randn(2, 3, 16, 16)
    config = load_run_config(finished / "config.toml")
    assert config.head.hidden_features is None
    assert deeper(images).shape == diptych.load_encoder(finished)(images).shape  # as wide as h
    assert (deeper(images) >= 0).all()  # behind the activation
    assert ran("evaluate", str(finished), "--head-layers", "2", "--threads", "1") == 2
    assert "hidden" in capsys.readouterr().err


def test_the_second_view_comes_from_another_image_of_the_group(
    class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    flags = ["--group-by", "folder", "--out", str(out), "--epochs", "2", *TINY]
    assert ran("pretrain", str(class_folder), *flags, "--no-report") == 0
    capsys.readouterr()
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    # Three classes are three groups: about a third of the batch's 32 views are no negatives.
    assert all(15 <= line["candidates"] <= 27 for line in lines)
    assert ran("pretrain", str(class_folder), "--group-by", "patient", *TINY) == 2
    assert "images.group_by must be 'folder'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_says_what_its_queries_meet(
    class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*flags: str, epochs: int = 1) -> str:
        out = str(tmp_path / flags[1].replace("/", ""))
        given = [*flags, *TINY, "--no-report", "--epochs", epochs]
        assert ran("pretrain", str(class_folder), "--out", out, *given) == 0
        return " ".join(capsys.readouterr().out.split())

    assert "meets 30 negatives, all of its own batch." in said("--recipe", "simclr")
    assert "meets 15 negatives, all of its own batch." in said("--recipe", "end_to_end")
    # No more than there are images, of which the recipe has 2,048.
    assert "up to 48 negatives from the queue" in said("--recipe", "moco_v1")
    flags = ("--recipe", "memory_bank", "--method.dictionary.bank.precision", "fp16")
    bank = said(*flags, epochs=2)
    assert "47 negatives drawn from a bank of 48 keys in 0.0 MB (fp16). The first epoch" in bank
    out = str(tmp_path / "one")
    assert ran("pretrain", str(class_folder), "--out", out, *flags, *ONE_EPOCH) == 2
    assert "set training.epochs to 2 or more" in " ".join(capsys.readouterr().err.split())
    chunked = said("--seed", "1", "--training.chunk-size", "8")
    assert "meets 30 negatives, all of its own batch, encoded 8 images at a time; norm" in chunked
    assert "'sync' then normalises each 8 by themselves" in chunked
    exact = said("--seed", "2", "--training.chunk-size", "8", "--norm.kind", "layer")
    assert "all of its own batch, encoded 8 images at a time." in exact


def test_the_supervised_loss_needs_labels(
    tmp_path: Path, stripes: Stripes, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = stripes(40)
    np.save(tmp_path / "images.npy", images)
    np.savez(tmp_path / "images.npz", images=images, labels=labels)
    flags = ["--method.loss.kind", "supervised", *ONE_EPOCH]
    out = ["--out", str(tmp_path / "run")]
    assert ran("pretrain", str(tmp_path / "images.npz"), *out, *flags) == 0
    out = ["--out", str(tmp_path / "other")]
    assert ran("pretrain", str(tmp_path / "images.npy"), *out, *flags) == 2
    assert "needs labels" in capsys.readouterr().err
    labels[7] = -1
    np.savez(tmp_path / "partly.npz", images=images, labels=labels)
    out = ["--out", str(tmp_path / "third")]
    assert ran("pretrain", str(tmp_path / "partly.npz"), *out, *flags) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "needs a label of every image; 1 of 40 have none, as 7" in said


VIT = ("--encoder", "vit_tiny_patch16_224", "--encoder.freeze-patches", "--head.layers", "3")


@pytest.mark.parametrize(
    ("flags", "side", "name", "stem"),
    [
        (("--encoder", "mobilenet_v3_small"), 32, "mobilenet_v3_small", "imagenet"),
        *(
            pytest.param(*one, marks=pytest.mark.slow)
            for one in (
                (("--encoder", "timm:resnet10t"), 32, "timm:resnet10t", "imagenet"),
                ((*VIT, "--recipe", "moco_v3"), 32, "vit_tiny_patch16_224", "imagenet"),
                (
                    ("--encoder=resnet18", "--scale", "small", "--head.layers", "0"),
                    *(16, "resnet18", "small"),
                ),
            )
        ),
    ],
)
def test_an_encoder_is_asked_for_by_name(
    flags: tuple[str, ...], side: int, name: str, stem: str, class_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    given = [*flags, "--out", str(out), "--quiet", *ONE_EPOCH[:3], "--batch-size", "16"]
    given += ["--views.side-pixels", str(side), "--probe.images", "16", "--threads", "1"]
    assert ran("pretrain", str(class_folder), *given) == 0
    assert diptych.load_encoder(out)(torch.zeros(1, 3, 32, 32)).ndim == 2
    config = load_run_config(out / "config.toml").encoder
    assert (config.name, config.stem) == (name, stem)


def test_flags_are_checked_on_top_of_their_recipe(class_folder: Path, tmp_path: Path) -> None:
    """A flag that fits no default may fit the recipe."""
    out = tmp_path / "run"
    flags = ["--recipe", "end_to_end", "--method.key-encoder.kind", "momentum", "--out", str(out)]
    assert ran("pretrain", str(class_folder), *flags, "--quiet", *ONE_EPOCH) == 0
    config = load_run_config(out / "config.toml")
    assert config.method.key_encoder.kind == "momentum"
    assert not config.method.dictionary.batch.both_views


def test_settings_that_fail_leave_the_folder_free(
    class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    given = ["pretrain", str(class_folder), "--out", str(out), "--quiet"]
    for wrong in (["--encoder", "resnet19"], ["--group-by", "folder:3"]):
        assert ran(*given, "--epochs", "1", *wrong) == 2
    assert "resnet18" in capsys.readouterr().err
    assert ran(*given, *ONE_EPOCH) == 0


def test_the_stem_follows_the_side_of_the_views() -> None:
    from diptych.resolve import overrides_of, resolve

    def stem_of(**settings: dict[str, object]) -> str:
        layers = overrides_of(
            {"images": {"path": "photographs"}, "scale": "tiny", **settings}, None
        )
        return resolve(layers, image_count=500, median_side_pixels=32, channels=3)[0].encoder.stem

    assert stem_of(encoder={"name": "resnet18"}) == "small"
    assert stem_of(encoder={"name": "resnet18"}, views={"side_pixels": 224}) == "imagenet"
    assert stem_of(encoder={"name": "resnet26"}) == "imagenet"
    assert stem_of(encoder={"name": "resnet18", "stem": "imagenet"}) == "imagenet"
    assert stem_of() == "small"
