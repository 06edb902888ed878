"""The figure of where time went: a bar for each process, each part named once."""

import re

from diptych.report.figures import time_bars


def test_bars_have_every_part_once_and_the_widths_of_their_shares() -> None:
    own = {"views": 30.0, "forward": 50.0, "data_wait": 20.0}
    svg = time_bars({"process 0": own, "slowest (3)": {**own, "communication": 100.0}})
    texts = re.findall(r"<!-- (.+?) -->", svg)
    for text in ("process 0", "slowest (3)", "views", "forward", "data wait", "communication"):
        assert texts.count(text) == 1, text
    assert "backward" not in texts
    assert [text for text in texts if text.endswith("%")].count("50%") == 2  # of 100 and of 200
    assert "milliseconds a step" in texts
