"""Images whose name is no path on this disk: a URL, or the name of a data set."""

from collections.abc import Callable
from pathlib import Path

from diptych.configs import ImagesConfig
from diptych.errors import ImagesError
from diptych.images import torchvision_sets
from diptych.images.remote.connection import is_url
from diptych.images.remote.fetch import fetch, is_remote_file
from diptych.images.remote.folder import find_in_remote_folder
from diptych.images.shards.tar import find_in_tar
from diptych.images.splits import Found
from diptych.images.tables import hugging_face
from diptych.images.tables.parquet import find_in_parquet, is_parquet_pattern, list_parquet


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


def find_elsewhere(config: ImagesConfig, find_in_file: Callable[[Path], Found]) -> Found | None:
    """What ``config.path`` names; None where it is none of these names.

    Args:
        config: the name, and how it is read.
        find_in_file: for a file on this disk, once one has been fetched.
    """
    name = config.path
    if name.startswith(hugging_face.PREFIX):
        return hugging_face.find_handed_over(name, config)
    if name.startswith(torchvision_sets.PREFIX):
        return torchvision_sets.find_torchvision(name, config)
    if is_url(name) and is_remote_file(name):
        return _find_in_fetched(config, find_in_file)
    if is_url(name):
        return find_in_remote_folder(name)
    if is_parquet_pattern(name):
        return find_in_parquet(name, config)
    return None


def _find_in_fetched(config: ImagesConfig, find_in_file: Callable[[Path], Found]) -> Found:
    copies = fetch(config.path, config)
    kinds = {copy.suffix for copy in copies}
    if kinds == {".tar"}:
        return find_in_tar(copies, config.path)
    if len(copies) == 1:
        return find_in_file(copies[0])
    if kinds == {".parquet"}:
        return Found(list_parquet([str(copy) for copy in copies], config))
    raise ImagesError(
        f"{config.path} stands for {len(copies)} files. Only .tar and .parquet files may be "
        "several; give the URL of one."
    )
