"""Files of weights by name: each kind is read, nothing in one is run, and errors say what to do."""

import argparse
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision.models
from safetensors.torch import save_file
from torch import Tensor, nn

from diptych.config.run import RunConfig
from diptych.errors import ConfigError
from diptych.models import weight_files
from diptych.models.start import StartEncoder, import_encoder
from diptych.models.weight_files import absolute_source, read_weights
from diptych.models.weights import load_encoder
from foreign_networks import randomised, resnet18

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
    inner = {"model": {"trunk": STATE}, "epoch": 3}
    torch.save({"teacher": STATE, "base": inner, "args": argparse.Namespace(arch="vit")}, path)
    with pytest.raises(ConfigError, match=r"argparse\.Namespace") as refused:
        read_weights(str(path), None)
    lines = str(refused.value).partition(":\n")[2].splitlines()
    exec("\n".join(line.strip() for line in lines), {})
    found = read_weights(str(tmp_path / "dino.plain.pt"), None).content
    assert found.keys() == {"teacher", "base"}
    assert found["base"].keys() == {"model"}
    for state in (found["teacher"], found["base"]["model"]["trunk"]):
        assert torch.equal(state["conv.weight"], STATE["conv.weight"])


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


def test_a_folder_that_timm_wrote_gives_the_features_of_its_network(
    tmp_path: Path, written_by_timm: tuple[Path, nn.Module]
) -> None:
    folder, network = written_by_timm
    started, config = import_encoder(f"local-dir:{folder}")
    assert (config.encoder.name, config.views.side_pixels) == ("timm:test_resnet", 160)
    require_features_of(network, started, config, tmp_path)


@pytest.mark.slow
def test_weights_are_fetched_from_a_hub(
    tmp_path: Path, written_by_timm: tuple[Path, nn.Module]
) -> None:
    folder, network = written_by_timm
    file = tmp_path / "fetched.safetensors"
    command = [sys.executable, "-m", "diptych", "import", "hf-hub:someone/net", "--out", str(file)]
    with a_hub(folder) as address:
        homes = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home")}
        done = subprocess.run(
            command, env={**os.environ, **homes}, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        came, wanted = load_encoder(file)(images), network(images)
    torch.testing.assert_close(came, wanted, rtol=1e-5, atol=1e-5)


def test_torchvision_brings_what_lies_in_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a file of the right name is there it asks nobody; else it would download it."""
    network = resnet18(fc=nn.Linear(512, 1000))
    name = Path(torchvision.models.ResNet18_Weights.DEFAULT.url).name
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    torch.save(network.state_dict(), tmp_path / "hub/checkpoints" / name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    started, config = import_encoder("pretrained", encoder="resnet18")
    assert (config.encoder.name, config.views.side_pixels) == ("resnet18", 224)
    assert config.views.pixel_mean == (0.485, 0.456, 0.406)
    network.fc = nn.Identity()
    require_features_of(network, started, config, tmp_path)


def require_features_of(
    network: nn.Module, started: StartEncoder, config: RunConfig, folder: Path
) -> None:
    started.write(folder / "ours.safetensors", config)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        came, wanted = load_encoder(folder / "ours.safetensors")(images), network(images)
    torch.testing.assert_close(came, wanted, rtol=1e-5, atol=1e-5)


@pytest.fixture
def written_by_timm(tmp_path: Path) -> tuple[Path, nn.Module]:
    """timm's smallest network with random weights, saved by timm, and the network itself."""
    from timm.models._hub import save_for_hf

    network = randomised(timm.create_model("test_resnet"))
    save_for_hf(network, str(tmp_path / "timm"), safe_serialization=True)
    network.reset_classifier(0)  # type: ignore[operator]
    return tmp_path / "timm", network.eval()


@contextmanager
def a_hub(folder: Path) -> Iterator[str]:
    """A server that gives the files of a folder as a hub of models does."""

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            file = folder / Path(self.path).name
            found = "/resolve/" in self.path and file.is_file()
            content = file.read_bytes() if found else b"{}"
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", 40 * "0")
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
