"""Files of weights by name: each kind is read, nothing in one is run, and errors say what to do."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from diptych.config.run import RunConfig
from diptych.errors import ConfigError
from diptych.models import weight_files
from diptych.models.weight_files import absolute_source, read_weights
from foreign_networks import resnet18

STATE = {"conv.weight": torch.ones(2, 3)}


class Writes:
    """Unpickled, it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", ["weights.pt", "weights.pth.tar", "weights"])
def test_an_object_in_a_file_is_refused_and_not_run(
    name: str, legacy: bool, tmp_path: Path
) -> None:
    path, written = tmp_path / name, tmp_path / "written"
    content = {"state_dict": STATE, "args": Writes(written)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ConfigError) as refused:
        read_weights(str(path), None)
    assert not written.exists()
    assert "exec" in str(refused.value)
    assert "weights_only=False" in str(refused.value)


def test_the_conversion_that_is_advised_gives_a_file_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "dino.pth"
    torch.save({"teacher": STATE, "args": argparse.Namespace(arch="vit"), "epoch": 3}, path)
    with pytest.raises(ConfigError, match=r"argparse\.Namespace") as refused:
        read_weights(str(path), None)
    lines = str(refused.value).partition(":\n")[2].splitlines()
    exec("\n".join(line.strip() for line in lines), {})
    found = read_weights(str(tmp_path / "dino.plain.pt"), None).content
    assert found.keys() == {"teacher"}
    assert torch.equal(found["teacher"]["conv.weight"], STATE["conv.weight"])


@pytest.mark.parametrize("legacy", [False, True])
def test_files_of_torch_and_safetensors_are_read_whatever_their_suffix(
    legacy: bool, tmp_path: Path
) -> None:
    torch.save(STATE, tmp_path / "a.bin", _use_new_zipfile_serialization=not legacy)
    save_file(STATE, tmp_path / "b")
    for name in ("a.bin", "b"):
        found = read_weights(str(tmp_path / name), None)
        assert torch.equal(found.content["conv.weight"], STATE["conv.weight"])
        assert len(found.sha256) == 64
        assert found.texts == {"source": str(tmp_path / name), "sha256": found.sha256}


def test_a_view_that_is_larger_than_its_file_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match="views of each other"):
        read_weights(str(tmp_path / "w.pt"), None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not a file of weights that can be read"),
        (b"nothing of the kind", "is not a file of weights that can be read"),
        (b"PK\x03\x04" + bytes(100), "is not a file of weights that can be read"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "is not a file of weights that can be read"),
        ((2**62).to_bytes(8, "little") + b"{", "is not a safetensors file"),
        ((30).to_bytes(8, "little") + b'{"a":1}', "is not a safetensors file"),
    ],
)
def test_what_is_no_file_of_weights_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        read_weights(str(tmp_path / "w"), None)


def test_a_list_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "w.pt")
    with pytest.raises(ConfigError, match="holds a list; wanted a mapping"):
        read_weights(str(tmp_path / "w.pt"), None)
    with pytest.raises(ConfigError, match="No such file"):
        read_weights(str(tmp_path / "none.pt"), None)
    with pytest.raises(ConfigError, match="a run folder whose training has ended"):
        read_weights(str(tmp_path), None)


def timm_folder(folder: Path, **config: Any) -> Path:
    folder.mkdir()
    save_file(STATE, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_folder_of_timm_says_architecture_normalisation_side_and_licence(tmp_path: Path) -> None:
    about = {
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.2, 0.1],
        "input_size": [3, 192, 192],
        "license": "apache-2.0",
    }
    folder = timm_folder(tmp_path / "a", architecture="vit_x", pretrained_cfg=about)
    for name in (f"local-dir:{folder}", str(folder)):
        found = read_weights(name, None)
        assert found.settings == {
            "encoder": {"name": "timm:vit_x"},
            "views": {"pixel_mean": (0.5, 0.4, 0.3), "pixel_std": (0.2, 0.2, 0.1)},
        }
        assert (found.side_pixels, found.licence) == (192, "apache-2.0")
        assert found.texts["input_size"] == "192"
        assert found.texts["licence"] == "apache-2.0"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("[1]", "must hold a table"),
        ("{", "is not JSON"),
        ('{"pretrained_cfg": {"mean": [1, 2]}}', "three numbers"),
        ('{"pretrained_cfg": {"std": [1, 2, NaN]}}', "three numbers"),
        ('{"pretrained_cfg": {"std": "x"}}', "three numbers"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(config: str, said: str, tmp_path: Path) -> None:
    folder = timm_folder(tmp_path / "a")
    (folder / "config.json").write_text(config)
    with pytest.raises(ConfigError, match=said):
        read_weights(f"local-dir:{folder}", None)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.safetensors or pytorch_model\.bin"):
        read_weights(f"local-dir:{tmp_path}", None)


def test_what_is_fetched_goes_through_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def fetch(text: str, encoder: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        asked.append((text, encoder))
        return resnet18().state_dict(), {"pretrained_cfg": {"mean": 0.5, "license": "mit"}}

    monkeypatch.setattr(weight_files, "fetch", fetch)
    found = read_weights("pretrained:v1", "resnet18")
    assert found.settings == {"views": {"pixel_mean": (0.5, 0.5, 0.5)}}
    assert found.texts["source"] == "pretrained:v1 of resnet18"
    read_weights("hf-hub:timm/resnet18.a1_in1k", None)
    assert asked == [("pretrained:v1", "resnet18"), ("hf-hub:timm/resnet18.a1_in1k", "")]
    with pytest.raises(ConfigError, match="say which, as --encoder resnet18"):
        read_weights("pretrained", None)


def test_a_failure_to_fetch_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(text: str, encoder: str) -> Any:
        raise OSError("Name or service not known")

    monkeypatch.setattr(weight_files, "fetch", fetch)
    with pytest.raises(
        ConfigError, match=r"could not be fetched: Name or service .* --weights FILE"
    ):
        read_weights("hf-hub:someone/something", None)


def test_sources_mean_the_same_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_source("w.pt") == str(tmp_path / "w.pt")
    assert absolute_source("local-dir:w") == f"local-dir:{tmp_path / 'w'}"
    assert absolute_source("pretrained") == "pretrained"
    assert absolute_source("./pretrained") == str(tmp_path / "pretrained")
    assert RunConfig().encoder.weights is None
