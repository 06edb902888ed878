"""Images whose name is no path on this disk: a URL, or the name of a data set."""

from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

from diptych.configs import ImagesConfig
from diptych.errors import ImagesError
from diptych.images import torchvision_sets
from diptych.images.collection import ImageSet
from diptych.images.listing import Progress, open_listing
from diptych.images.remote.connection import is_url
from diptych.images.remote.fetch import fetch, is_remote_file
from diptych.images.remote.folder import open_remote_folder
from diptych.images.shards.tar import list_tar
from diptych.images.tables import hugging_face
from diptych.images.tables.parquet import is_parquet_pattern, list_parquet, open_parquet

Parts = tuple[ImageSet, ImageSet | None]
"""Images to learn from, and held-out ones where there are some."""


def from_any_folder(name: str) -> str | None:
    """A name of these kinds, so that it means the same from any folder; None for a path.

    >>> from_any_folder("s3://bucket/images"), from_any_folder("images")
    ('s3://bucket/images', None)
    """
    if name.startswith(torchvision_sets.PREFIX):
        kind, root = torchvision_sets.split_name(name)
        place = f":{root.expanduser().absolute()}" if root is not None else ""
        return f"{torchvision_sets.PREFIX}{kind}{place}"
    return name if name.startswith(hugging_face.PREFIX) or is_url(name) else None


def open_elsewhere(
    config: ImagesConfig,
    executor: Executor,
    on_progress: Progress,
    open_file: Callable[[Path], Parts],
) -> Parts | None:
    """What ``config.path`` names; None where it is none of these names.

    Args:
        config: the name, limits and colour mode.
        executor: its threads decode.
        on_progress: told how many images are checked.
        open_file: opens a file on this disk, once one has been fetched.
    """
    name = config.path
    if name.startswith(hugging_face.PREFIX):
        return hugging_face.open_handed_over(name, config, executor, on_progress)
    if name.startswith(torchvision_sets.PREFIX):
        return torchvision_sets.open_torchvision(name, config, executor, on_progress)
    if is_url(name) and is_remote_file(name):
        return _open_fetched(config, executor, on_progress, open_file)
    if is_url(name):
        return open_remote_folder(name, config, executor, on_progress)
    if is_parquet_pattern(name):
        return open_parquet(name, config, executor, on_progress)
    return None


def _open_fetched(
    config: ImagesConfig,
    executor: Executor,
    on_progress: Progress,
    open_file: Callable[[Path], Parts],
) -> Parts:
    copies = fetch(config.path, config)
    kinds = {copy.suffix for copy in copies}
    if kinds == {".tar"}:
        return open_listing(list_tar(copies, config.path), config, executor, on_progress), None
    if len(copies) == 1:
        return open_file(copies[0])
    if kinds == {".parquet"}:
        listing = list_parquet([str(copy) for copy in copies], config)
        return open_listing(listing, config, executor, on_progress), None
    raise ImagesError(
        f"{config.path} stands for {len(copies)} files. Only .tar and .parquet files may be "
        "several; give the URL of one."
    )
