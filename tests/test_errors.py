"""What goes wrong by the user's hand is one sentence and exit code 2; what does not, is not."""

import errno
import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from diptych import errors
from diptych.cli.evaluate import EvaluateFlags, evaluate
from diptych.cli.flags import parse
from diptych.cli.main import VERBS, main
from diptych.cli.rank import RankFlags, rank
from diptych.config.consistency import require_equal_parts
from diptych.config.files import to_toml
from diptych.config.model import EncoderConfig
from diptych.config.run import RunConfig
from diptych.errors import ConfigError, DiptychError, exit_code_of, sentence_of
from diptych.evaluation.protocols import evaluate as evaluate_run
from diptych.models.weights import load_encoder, save_encoder, untrained_encoder
from diptych.runs.atomic import atomic_write
from diptych.runs.folder import RunFolder, require_writable
from diptych.runtime.devices import choose_device
from diptych.views.batches import Order


def all_errors() -> list[type[DiptychError]]:
    return [
        one
        for one in vars(errors).values()
        if isinstance(one, type) and issubclass(one, DiptychError)
    ]


def test_every_error_has_its_exit_code() -> None:
    codes = {one.__name__: one.exit_code for one in all_errors()}
    stopped = {
        "TrainingError",
        "DistributedError",
        "LostProcess",
        "FirstStopped",
        "UnreachableFolder",
    }
    stopped.add("LostImage")
    for name, code in codes.items():
        assert code == (74 if name == "NotSaved" else 1 if name in stopped else 2), name
    assert exit_code_of(errors.Interrupted("", 15)) == 143
    assert exit_code_of(errors.FirstStopped("", 2)) == 2


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error")  # that names no file

    monkeypatch.setattr("diptych.cli.pretrain.recipes", broken)
    with pytest.raises(OSError, match="Input/output"):
        main(["recipes"])
    assert sentence_of(ZeroDivisionError()) is None


@pytest.fixture
def run(class_folder: Path) -> Path:
    """A run that has ended."""
    folder = RunFolder(class_folder.with_name("run"))
    folder.path.mkdir()
    config = RunConfig(encoder=EncoderConfig(width=4, stage_blocks=(1,)))
    save_encoder(folder.encoder, untrained_encoder(config), config)
    return folder.path


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Makes a folder one that nobody writes to, root neither."""

    def forbid(folder: Path) -> None:
        def guarded(call: Callable[..., object]) -> Callable[..., object]:
            def guard(path: object, *given: object, **named: object) -> object:
                flags = given[0] if given else named.get("mode", 0)
                writes = call is not os.open or (
                    isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
                )
                inside = Path(os.fsdecode(path)).is_relative_to(folder)  # type: ignore[arg-type]
                if writes and inside:
                    raise OSError(errno.EROFS, os.strerror(errno.EROFS), os.fspath(path))  # type: ignore[call-overload]
                return call(path, *given, **named)

            return guard

        original = open

        def opened(file: object, mode: str = "r", *given: object, **named: object) -> object:
            if "r" not in mode and not isinstance(file, int):
                guarded(lambda path: None)(file)
            return original(file, mode, *given, **named)  # type: ignore[call-overload]

        monkeypatch.setattr("builtins.open", opened)
        monkeypatch.setattr(os, "mkdir", guarded(os.mkdir))
        monkeypatch.setattr(os, "open", guarded(os.open))

    return forbid


@pytest.mark.parametrize(
    "command",
    [
        "embed {run} {images} -o {place}",
        "embed {run} {images} -o {place}/deep",
        "views {images} --out {place}/sheet.png",
        "views {images} --out {place}/page.html",
        "plan --images-count 100 --batch-size 10 --quiet --json {place}/plan.json",
        "study momentum --data {images} --write-commands {place}/commands.txt",
        "study momentum --data {images} --out {place}/study --only-report",
    ],
)
@pytest.mark.parametrize("why", ["read-only", "a file", "full"])
def test_an_output_that_cannot_be_written(
    command: str,
    why: str,
    run: Path,
    class_folder: Path,
    tmp_path: Path,
    read_only: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = tmp_path / "place"
    if why == "a file":
        place.touch()
    else:
        place.mkdir()
        read_only(place)
    if why == "full":
        monkeypatch.setattr(errno, "EROFS", errno.ENOSPC)
    given = command.format(run=run, images=class_folder, place=place)
    assert main(given.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"diptych: {place}")
    assert len(said.splitlines()) == 1
    assert "aside" not in said


@pytest.mark.parametrize(
    "command",
    [
        "pretrain {images} --out {place}/run",
        "pretrain {images} --out {place}",
        "evaluate {place}",
        "evaluate {place} --protocol finetune",
        "report {place}",
        "rank {place} --json {place}/ranks.json",
        "plan {images} --json {place}/plan.json",
        "detect {place} --data {images}",
        "views {images} --out {place}/sheet.png",
    ],
)
def test_no_work_is_done_whose_result_cannot_be_written(
    command: str,
    run: Path,
    class_folder: Path,
    read_only: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not even an image is opened."""
    shown = RunFolder(run)
    if command.startswith("pretrain"):
        shown.encoder.unlink()
    else:
        shown.config.write_text(to_toml(load_encoder(run).config))
    read_only(run)
    opened: list[object] = []
    monkeypatch.setattr("diptych.images.open.locate_images", opened.append)
    assert main(command.format(images=class_folder, place=run).split()) == 2
    said = capsys.readouterr().err
    assert "Read-only file system" in said
    assert len(said.splitlines()) == 1
    assert not opened


@pytest.mark.parametrize(
    "command",
    [
        "pretrain {images} --out {url}",
        "pretrain {images} --out here --begin-from {url}",
        "pretrain {images} --out here --distillation.teacher {url}",
        "pretrain {images} --out here --images.cache-folder {url}",
        "demo --out {url}",
        "evaluate {url}",
        "report {url}",
        "rank {url}",
        "rank {run} --json {url}/ranks.json",
        "check-leak {url}",
        "detect {url} --data {images}",
        "embed {url} {images} -o here",
        "embed {run} {images} -o {url}",
        "views {images} --out {url}.png",
        "plan {images} --json {url}.json",
        "study momentum --data {images} --out {url}",
        "study momentum --data {images} --out {url} --only-report",
        "study momentum --data {images} --write-commands {url}/all.txt",
    ],
)
def test_a_url_where_a_path_is_wanted_is_no_folder_here(
    command: str,
    run: Path,
    class_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    given = command.format(run=run, images=class_folder, url="s3://bucket/runs/a").split()
    assert main(given) == 2
    said = capsys.readouterr().err
    assert "s3://bucket/runs" in said
    assert "a path on this machine" in said
    assert not (tmp_path / "s3:").exists()


def test_a_sentence_obeys_no_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name may hold what a terminal would obey."""
    assert main(["report", str(tmp_path / "a\x1b[2Jb")]) == 2
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert r"a\x1b[2Jb holds no run" in said


@pytest.mark.parametrize("name", ["sheet.png", "page.html"])
def test_a_disk_that_fills_up_under_a_preview(
    name: str,
    class_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The system names no file then."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("diptych.runs.atomic.os.fsync", full)
    out = tmp_path / "new" / name
    given = ["--rows", "1", "--columns", "2", "--out", str(out)]
    assert main(["views", str(class_folder), *given]) == 2
    assert capsys.readouterr().err.startswith(f"diptych: {out}: No space left on device. Make")
    assert not list(out.parent.iterdir())


def test_an_evaluation_that_cannot_be_written(
    run: Path, class_folder: Path, read_only: Callable[[Path], None]
) -> None:
    read_only(run)
    with pytest.raises(OSError, match="Read-only") as caught:
        evaluate_run(run, ["knn"], train=class_folder, test=class_folder, threads=1)
    said = sentence_of(caught.value)
    assert said is not None
    assert said.startswith(f"{run}: Read-only file system. ")


def test_a_disk_that_fills_up_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system names none."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as caught:
        atomic_write(tmp_path / "a.json", b"{}")
    said = sentence_of(caught.value)
    assert said is not None
    assert said.startswith(f"{tmp_path / 'a.json'}: No space left on device. Make room")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_can_be_written_is_left_empty(tmp_path: Path) -> None:
    require_writable(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wanted", ["cuda", "mps"])
def test_a_device_that_is_not_there(
    wanted: str,
    class_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Found before an image is looked at."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=f"training.device = '{wanted}', but torch"):
        choose_device(wanted)
    assert choose_device("auto").type == "cpu"
    given = ["--out", str(class_folder / "run"), "--training.device", wanted]
    assert main(["pretrain", str(class_folder), *given]) == 2
    printed = capsys.readouterr()
    assert "--training.device auto" in printed.err
    assert "images in" not in printed.out


@pytest.mark.parametrize("images", [0, 1])
def test_too_few_images_for_any_batch(images: int) -> None:
    for batch in (2, 3, 64):
        with pytest.raises(ConfigError, match=f"2 images at least; got {images}"):
            Order(seed=0, image_count=images, batch_size=batch)


def test_the_batch_that_is_advised_works() -> None:
    for images in range(2, 9):
        with pytest.raises(ConfigError, match=f"Use --batch-size {images} or less"):
            Order(seed=0, image_count=images, batch_size=images + 1)
        Order(seed=0, image_count=images, batch_size=images)


def test_the_parts_that_are_advised_work() -> None:
    for processes in range(1, 9):
        for batch in range(1, 40):
            try:
                require_equal_parts(batch, processes)
            except ConfigError as error:
                advised = str(error).partition("; use ")[2].partition(", or another")[0]
                for size in map(int, advised.split(" or ")):
                    require_equal_parts(size, processes)
            else:
                assert batch % processes == 0
                assert batch >= 2 * processes


URL = "https://host.example/a/b.tar"


def test_urls_keep_their_slashes() -> None:
    paths = ["--train", URL, "--test", URL, "--transfer", URL, "x/", "--against", URL]
    found = parse(EvaluateFlags, evaluate, ["run", *paths])
    assert (found.train, found.test, found.transfer, found.against) == (
        URL,
        URL,
        (URL, "x/"),
        (URL,),
    )
    assert parse(RankFlags, rank, ["run", "--images", URL]).images == URL


def test_no_flag_that_takes_images_is_a_path() -> None:
    """A path of the file system would make one slash of two."""
    local = {"out", "config", "json", "run", "runs", "write_commands", "data"} | {"vectors", "test"}
    # Of `gallery` runs and vectors, which have their own folder beside them, and a table.
    of_this_machine = {("GalleryFlags", name) for name in ("source", "against", "table")}
    modules = [importlib.import_module(f"diptych.cli.{module}") for module, _ in VERBS.values()]
    kinds = {kind for one in modules for name, kind in vars(one).items() if name.endswith("Flags")}
    assert len(kinds) == len(VERBS) - 1  # torchrun reads those of launch
    for kind in kinds:
        for one in fields(kind):
            known = one.name in local or (kind.__name__, one.name) in of_this_machine
            assert "Path" not in str(one.type) or known, (kind, one.name)


def test_a_url_reaches_the_one_who_opens_it(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []

    def fetch(urls: Sequence[str], config: object) -> list[Path]:
        opened.extend(urls)
        raise errors.ImagesError("not today")

    monkeypatch.setattr("diptych.images.open.fetch", fetch)
    assert main(["evaluate", str(run), "--train", URL]) == 2
    assert main(["evaluate", str(run), "--protocol", "transfer", "--transfer", URL]) == 2
    assert opened == [URL, URL]


def test_a_sheet_of_one_image(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.zeros((1, 32, 32, 3), np.uint8))
    assert main(["views", str(tmp_path / "one.npy"), "--out", str(tmp_path / "a.png")]) == 0
