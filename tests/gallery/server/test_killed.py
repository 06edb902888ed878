"""A server that is killed in the midst of labelling, again and again, with one file of labels."""

import http.client
import json
import random
import threading
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from served_gallery import COUNT, POST, gallery_again, served, small_gallery

KILLS, CLASSES = 20, 5
# Forked from a process that has imported what is slow to import.
FORKED = get_context("forkserver")
FORKED.set_forkserver_preload(["pytest", "served_gallery"])


def serve(folder: Path, says: Connection) -> None:
    with served(gallery_again(folder)) as page:
        says.send(page.port)
        threading.Event().wait()


def rows_of(change: int) -> np.ndarray:
    return np.random.default_rng(change).choice(COUNT, 9, replace=False)


def codes_after(changes: int) -> list[str | None]:
    names: list[str | None] = [None] * COUNT
    for change in range(changes):
        for row in rows_of(change):
            names[row] = f"class {change % CLASSES}"
    return names


def label_until_killed(port: int, version: int, confirmed: list[int]) -> None:
    """Gives labels one after another; notes the version of each answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        while True:
            mask = np.zeros(COUNT, bool)
            mask[rows_of(version)] = True
            body = np.packbits(mask, bitorder="little").tobytes()
            path = f"/api/labels?class=class%20{version % CLASSES}&version={version}"
            connection.request("POST", path, body, POST)
            answer = connection.getresponse()
            found = answer.read()
            assert answer.status == 200, found
            version = json.loads(found)["version"]
            confirmed.append(version)
    except (OSError, http.client.HTTPException):
        pass  # killed
    finally:
        connection.close()


@pytest.mark.slow
def test_what_was_answered_is_there_after_twenty_kills(tmp_path: Path) -> None:
    small_gallery(tmp_path).close()
    pause, version = random.Random(0), 0
    for _ in range(KILLS):
        hears, says = FORKED.Pipe(duplex=False)
        server = FORKED.Process(target=serve, args=(tmp_path, says), daemon=True)
        server.start()
        assert hears.poll(60)
        confirmed = [version]
        client = threading.Thread(
            target=label_until_killed, args=(hears.recv(), version, confirmed)
        )
        client.start()
        time.sleep(pause.uniform(0.05, 0.4))
        server.kill()
        server.join()
        client.join()
        assert len(confirmed) > 1  # killed while it was labelling
        again = gallery_again(tmp_path)
        version, codes = again.labels.codes()
        names = [None if code < 0 else again.labels.classes()[code] for code in codes]
        again.close()
        # The last change may have been kept and not yet answered.
        assert version in (confirmed[-1], confirmed[-1] + 1)
        assert names == codes_after(version)
