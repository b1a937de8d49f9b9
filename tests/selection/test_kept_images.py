import numpy as np
import pytest

from rayreid.errors import UserError
from rayreid.selection.kept_images import as_csv, as_lines, in_order, kept_table


def test_the_best_comes_first_and_ties_go_to_the_smaller_key():
    priority = np.array([0.5, np.nan, 0.9, 0.5, 0.1])
    assert in_order(list("abcde"), priority, 3).tolist() == [2, 0, 3]
    assert in_order(list("abcde"), priority, 5).tolist() == [2, 0, 3, 4]


@pytest.mark.parametrize("key", [" a.jpg", "a.jpg ", "a\nb.jpg", "a\u2028b.jpg", "a\x85b.jpg"])
def test_a_key_that_no_line_can_hold_is_refused(key):
    table = kept_table(np.array([key, "b"], dtype=object), np.zeros(2), np.array([0, 1]))
    for write in (as_csv, as_lines):
        with pytest.raises(UserError, match="would not survive as a line of text: export as parquet or webdataset"):
            write(table)


def test_a_key_is_written_as_it_is():
    table = kept_table(np.array(['=1+"a",b.jpg'], dtype=object), np.array([0.1 + 0.2]), np.array([0]))
    assert as_csv(table) == 'key,priority,rank\n"=1+""a"",b.jpg",0.30000000000000004,1\n'
    assert as_lines(table) == '=1+"a",b.jpg\n'
