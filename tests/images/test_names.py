"""Compact names behave as the list that they were made from."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.images.collection import CompactNames

# Names of a file system: any text, and bytes that are no UTF-8, as surrogates.
NAMES = st.lists(
    st.binary(max_size=12).map(lambda data: data.decode(errors="surrogateescape")), max_size=20
)


@given(NAMES, st.data())
def test_they_behave_as_the_list(names: list[str], data: st.DataObject) -> None:
    compact = CompactNames.of(names)
    assert list(compact) == names
    assert len(compact) == len(names)
    assert compact == names
    assert (compact == [*names, "more"]) is False
    some = data.draw(st.slices(len(names)))
    assert list(compact[some]) == names[some]
    rows = data.draw(st.lists(st.integers(0, len(names) - 1))) if names else []
    chosen = compact.select(np.array(rows, dtype=np.int64))
    assert list(chosen) == [names[row] for row in rows]
    assert list(chosen[::-1]) == [names[row] for row in rows][::-1]
    if names:
        assert compact[-1] == names[-1]
        assert names[0] in compact


def test_what_is_outside_is_refused() -> None:
    with pytest.raises(IndexError):
        CompactNames.of(["a"])[1]


def test_they_are_not_copied_by_a_selection() -> None:
    compact = CompactNames.of(f"folder/{number}.png" for number in range(1000))
    assert CompactNames.of(compact) is compact
    assert compact.select(np.arange(10))._buffer is compact._buffer
    assert "1000 names" in repr(compact)
