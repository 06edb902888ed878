"""The verb `gallery`: a local page of the images of a run or of vectors."""

import os
import sys
import webbrowser
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

from rich.console import Console
from tyro.conf import Positional, arg

from diptych.cli.flags import DeviceOptions, parse


@dataclass(frozen=True)
class GalleryFlags:
    """What `diptych gallery` takes."""

    source: Positional[Path]
    """A run folder whose training has ended, or vectors that `diptych embed` wrote, or a .parquet,
    .npy or .csv file of vectors."""
    against: Path | None = None
    """Another run or other vectors of the same images, to see what changed."""
    images: str | None = None
    """Where the images are: what was embedded, or what the run learned from, when not given."""
    table: Path | None = None
    """A CSV file with a column name, whose other columns can colour the map."""
    port: int = 8765
    """Where the page is served; 0 takes a free port."""
    host: str = "127.0.0.1"
    """Address to serve at. Others than this machine's own need a --token."""
    token: str | None = None
    """Letters and digits, 16 or more, without which nothing is answered."""
    browser: bool = True
    """Open the page in the browser."""
    runtime: Annotated[DeviceOptions, arg(name="")] = field(default_factory=DeviceOptions)


def gallery(arguments: Sequence[str]) -> None:
    """Show images on a map of their vectors, in a local page, and take labels for them.

    A run's images are embedded first. All that is made is kept beside the vectors, in a folder
    whose name ends in .gallery; nothing leaves this machine.

    Examples:
      diptych gallery runs/photos
      diptych gallery features/ --against other-features/
      diptych gallery features/ --host 0.0.0.0 --token 4f9c1be07a52d368
    """
    flags = parse(GalleryFlags, gallery, arguments)

    from diptych.gallery.open_source import open_source
    from diptych.gallery.server.serve import check_address, listen, make_server

    check_address(flags.host, flags.token)
    console = Console(markup=False, highlight=False, soft_wrap=True)
    with listen(flags.host, flags.port) as listening:  # before minutes of work
        port = listening.getsockname()[1]
        opened = open_source(
            flags.source,
            against=flags.against,
            images=flags.images,
            table=flags.table,
            console=console,
            **asdict(flags.runtime),
        )
        host = f"[{flags.host}]" if ":" in flags.host else flags.host
        address = f"http://{host}:{port}/" + (f"?token={flags.token}" if flags.token else "")

        def say() -> None:
            console.print(f"Gallery of {len(opened):,} images: {address} (Ctrl-C ends it)")
            if flags.browser:
                webbrowser.open(address)

        has_failed = True
        try:
            opened.start()
            server = make_server(opened, listening, token=flags.token, on_start=say)
            server.run([listening])
            has_failed = False
        except KeyboardInterrupt:
            has_failed = False
            raise
        finally:
            if not opened.close() and not has_failed:
                # A thread amid compiled code must not see the interpreter end: that aborts.
                sys.stdout.flush()
                os._exit(0)
