"""A small run whose training has ended, and vectors by its encoder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from diptych.config.data import ViewsConfig
from diptych.config.downstream import EmbedSettings
from diptych.config.files import to_toml
from diptych.config.model import EncoderConfig, HeadConfig
from diptych.config.run import RunConfig
from diptych.embeddings.embed import embed_images
from diptych.embeddings.embed_progress import EmbedProgress, FinishedFile
from diptych.embeddings.shards import own_shards
from diptych.models.start import open_encoder
from diptych.models.weights import save_encoder, save_head, untrained_encoder, untrained_head
from diptych.runs.folder import RunFolder
from diptych.runtime.devices import Runtime
from diptych.runtime.world import World

CONFIG = RunConfig(
    encoder=EncoderConfig(width=4, stage_blocks=(1,)),
    head=HeadConfig(layers=2, hidden_features=6, output_features=5),
    views=ViewsConfig(side_pixels=16),
)


def write_run(folder: Path, seed: int = 0) -> Path:
    """A run whose training has ended; its weights are those it began with."""
    config, run = replace(CONFIG, seed=seed), RunFolder(folder)
    folder.mkdir()
    encoder = untrained_encoder(config)
    save_encoder(run.encoder, encoder, config)
    save_head(run.head, untrained_head(config, encoder))
    run.config.write_text(to_toml(config))
    return folder


class Said(EmbedProgress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.sentences = list[str]()

    def say(self, sentence: str) -> None:
        self.sentences.append(sentence)


def finish(
    run: Path | str, path: Any, out: Path, count: int = 1, **settings: Any
) -> tuple[list[FinishedFile], list[str]]:
    """All shards or the one file, as one process makes them, and what is said meanwhile."""
    how, said = EmbedSettings(**{"batch_size": 8, **settings}), Said()
    shards, opened = own_shards(None, count, World()), open_encoder(str(run))
    with Runtime(threads=1) as runtime:
        done = list(embed_images(str(run), opened, path, out, shards, how, runtime, said))
    return done, said.sentences


def make(run: Path, path: Any, out: Path, count: int, **settings: Any) -> list[Path]:
    """Their files."""
    return [done.path for done in finish(run, path, out, count, **settings)[0]]
