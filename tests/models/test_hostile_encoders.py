"""Files of encoders of which anything may be wrong: a network is loaded, or an error says why.

Whatever a file says of its network, no more memory is taken than the file is large.
"""

import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from diptych.config.files import nest, overlay, to_toml
from diptych.config.run import RunConfig
from diptych.errors import ConfigError, DiptychError, RunFolderError
from diptych.models.weights import (
    load_encoder,
    load_head,
    save_encoder,
    save_head,
    untrained_encoder,
    untrained_head,
)
from diptych.runs.folder import RunFolder

CONFIG = overlay(
    RunConfig(),
    nest(
        {
            "encoder.width": 4,
            "encoder.stage_blocks": (1,),
            "head.hidden_features": 6,
            "head.output_features": 5,
            "views.side_pixels": 16,
        }
    ),
    "the test",
)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    encoder = untrained_encoder(CONFIG)
    folder = RunFolder(tmp_path)
    save_encoder(folder.encoder, encoder, CONFIG)
    save_head(folder.head, untrained_head(CONFIG, encoder))
    return folder


def weights_of(run: RunFolder) -> dict[str, Tensor]:
    state = load_encoder(run).network.state_dict()
    return {name: one.contiguous() for name, one in state.items()}


def cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def longer(data: bytes, chance: random.Random) -> bytes:
    return data + chance.randbytes(chance.randrange(1, 50))


def flip_header(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    length = 8 + int.from_bytes(data[:8], "little")
    for _ in range(chance.choice((1, 1, 4))):
        changed[chance.randrange(length)] ^= 1 << chance.randrange(8)
    return bytes(changed)


def noise(data: bytes, chance: random.Random) -> bytes:
    return chance.randbytes(chance.randrange(200))


def lie(data: bytes, chance: random.Random) -> bytes:
    """The header says something else of a tensor or of the file."""
    length = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    name = chance.choice([one for one in header if one != "__metadata__"])
    wrong: list[Any] = [None, "x", -1, 2**63, [], {}, [2**62, 2**62], [-1, 4], "F128", "F8_E4M3"]
    kind = chance.choice(("dtype", "shape", "data_offsets", "gone", "metadata", "all"))
    if kind == "gone":
        del header[name]
    elif kind == "metadata":
        header["__metadata__"] = chance.choice([*wrong, {"config": 3}, {"config": "x = ["}])
    elif kind == "all":
        header = chance.choice(wrong)
    else:
        header[name][kind] = chance.choice(wrong)
    text = json.dumps(header).encode()
    return chance.choice((len(text), len(text), 2**62)).to_bytes(8, "little") + text + rest


def other_weights(data: bytes, chance: random.Random, weights: dict[str, Tensor]) -> bytes:
    name = chance.choice(sorted(weights))
    kind = chance.choice(("missing", "more", "shape", "type", "none"))
    if kind == "missing":
        del weights[name]
    elif kind == "more":
        weights["more"] = torch.zeros(3)
    elif kind == "shape":
        weights[name] = weights[name].reshape(-1).repeat(2)
    elif kind == "type":
        weights[name] = weights[name].to(torch.float16)
    else:
        weights.clear()
    return save(weights, metadata={"config": to_toml(CONFIG)})


SETTINGS: Final[list[dict[str, Any]]] = [
    {"encoder.width": 5},
    {"encoder.width": 2**40},
    {"encoder.width": 2**62},
    {"encoder.stage_blocks": (1, 1)},
    {"encoder.stage_blocks": (10**9,)},
    {"encoder.stage_blocks": (1,) * 40},
    {"encoder.name": "resnet18"},
    {"encoder.name": "resnet18", "encoder.width_multiplier": 16},
    {"encoder.name": "nonsense"},
    {"encoder.name": "timm:nonsense"},
    {"encoder.stem_stride": 1, "norm.kind": "layer"},
    {"images.color": "gray"},
    {"images.color": "raw"},
    {"images.color": "raw", "images.raw_channels": 64},
    {"norm.kind": "group", "norm.group.channel_groups": 10**9},
    {"views.side_pixels": 4096},
]


def other_config(data: bytes, chance: random.Random, weights: dict[str, Tensor]) -> bytes:
    text = to_toml(overlay(CONFIG, nest(chance.choice(SETTINGS)), "here"))
    if chance.random() < 0.3:
        text = text[: chance.randrange(len(text))]
    elif chance.random() < 0.3:
        text = chance.choice(["", "\0", "a = 1", "[" * 10_000, f"seed = {'9' * 5000}", "seed = -1"])
    return save(weights, metadata={"config": text})


BYTES: Final[list[Callable[..., bytes]]] = [cut, longer, flip_header, noise, lie]
FILES: Final[list[Callable[..., bytes]]] = [other_weights, other_config]


def try_many(run: RunFolder, seeds: range) -> dict[str, int]:
    good, weights = run.encoder.read_bytes(), weights_of(run)
    outcomes = dict[str, int]()
    for seed in seeds:
        chance = random.Random(seed)
        change = chance.choice([*BYTES, *FILES])
        more = (dict(weights),) if change in FILES else ()
        run.encoder.write_bytes(change(good, chance, *more))
        came = loaded(run, weights)
        outcomes[came] = outcomes.get(came, 0) + 1
    return outcomes


def loaded(run: RunFolder, weights: dict[str, Tensor]) -> str:
    """What came of loading: the right network, or an error of ours that names the file."""
    try:
        network = load_encoder(run).network
    except DiptychError as error:
        wanted = str(run.encoder) in str(error) or isinstance(error, ConfigError)
        return "refused" if wanted else f"refused without the file: {error}"
    held = network.state_dict()
    assert held.keys() == weights.keys()
    assert all(held[name].shape == one.shape for name, one in weights.items())
    return "loaded"


def test_a_few_hundred(run: RunFolder) -> None:
    outcomes = try_many(run, range(200))
    assert outcomes.keys() == {"loaded", "refused"}
    assert outcomes["refused"] > 100


@pytest.mark.slow
def test_thousands(run: RunFolder) -> None:
    assert try_many(run, range(200, 3400)).keys() == {"loaded", "refused"}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells")
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_config_that_lies_costs_no_memory(settings: dict[str, Any], run: RunFolder) -> None:
    """Weights of a small network beside settings of a huge one."""
    weights = weights_of(run)
    config = overlay(CONFIG, nest(settings), "here")
    run.encoder.write_bytes(save(weights, metadata={"config": to_toml(config)}))
    before = most_memory(anew=True)
    if settings == {"views.side_pixels": 4096}:
        assert loaded(run, weights) == "loaded"
    else:
        with pytest.raises((RunFolderError, ConfigError)):
            load_encoder(run)
    assert most_memory() - before < 300_000


def most_memory(*, anew: bool = False) -> int:
    """Kilobytes that this process held at most, so far or anew from here on."""
    if anew:  # what earlier tests took would hide what this one takes
        Path("/proc/self/clear_refs").write_text("5")
    return int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])  # type: ignore[index]


def test_cut_at_every_byte(run: RunFolder) -> None:
    for file, load in ((run.encoder, load_encoder), (run.head, load_head)):
        good = file.read_bytes()
        for length in range(0, len(good), max(1, len(good) // 60)):
            file.write_bytes(good[:length])
            with pytest.raises(RunFolderError, match=r"damaged: .*[Rr]estore it"):
                load(run)
        file.write_bytes(good)


@pytest.mark.parametrize("kind", ["missing", "more", "shape", "type"])
def test_another_head(kind: str, run: RunFolder) -> None:
    weights = dict(load_head(run).state_dict())
    name = sorted(weights)[0]
    if kind == "missing":
        del weights[name]
    elif kind == "more":
        weights["more"] = torch.zeros(2)
    elif kind == "shape":
        weights[name] = torch.zeros(99)
    else:
        weights[name] = weights[name].double()
    run.head.write_bytes(save(weights))
    with pytest.raises(RunFolderError, match=r"head\.safetensors does not fit"):
        load_head(run)


def test_what_is_no_file(run: RunFolder, tmp_path: Path) -> None:
    run.encoder.unlink()
    os.mkfifo(run.encoder)
    with pytest.raises(RunFolderError, match="does not exist"):
        load_encoder(run)
    run.encoder.unlink()
    run.encoder.symlink_to(run.encoder)
    with pytest.raises(RunFolderError, match="does not exist"):
        load_encoder(run)
