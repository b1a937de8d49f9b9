import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayreid.errors import UserError
from rayreid.selection.filelist import match_entries, read_list

ENTRIES = ["LUP/b.jpg", "LUP/ä b.jpg", "LUP/a.jpg"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_reads_a_pickled_list(tmp_path, protocol):
    path = tmp_path / "list.pkl"
    path.write_bytes(pickle.dumps(ENTRIES, protocol))
    assert read_list(path) == ENTRIES


def test_reads_lines(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("\n".join([*ENTRIES, "", "  "]), encoding="utf-8")
    assert read_list(path) == ENTRIES


@pytest.mark.parametrize("heading", [[], ["rank,path,score"], ["Rank,Key,Score"]])
def test_reads_a_csv_with_and_without_heading(tmp_path, heading):
    path = tmp_path / "list.csv"
    body = [f"{i},{entry},0.5" for i, entry in enumerate(ENTRIES)] if heading else [f"{e},0.5" for e in ENTRIES]
    path.write_text("\n".join(heading + body), encoding="utf-8")
    assert read_list(path) == ENTRIES


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("semicolon.csv", "rank;path;score\n1;{}\n2;{}\n3;{}\n"),
        ("headless.csv", "{};0.9\n{};0.8\n{};0.7\n"),
        ("tabs.tsv", "Path\tscore\n{}\t1\n{}\t2\n{}\t3\n"),
        ("spaces.CSV", "rank, path\n1, {}\n2, {}\n3, {}\n"),
        ("quoted.csv", '"rank","path"\n1,"{}"\n2,"{}"\n3,"{}"\n'),
        ("windows.TXT", "{}\r\n{}\r\n\r\n{}\r\n"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_reads_the_dialects_of_other_programs(tmp_path, name, text, encoding):
    (tmp_path / name).write_bytes(text.format(*ENTRIES).encode(encoding))
    assert read_list(tmp_path / name) == ENTRIES


def test_a_bar_in_a_name_separates_nothing(tmp_path):
    (tmp_path / "list.csv").write_text("a|b\nc|d\n")
    assert read_list(tmp_path / "list.csv") == ["a|b", "c|d"]


def test_reads_parquet(tmp_path):
    path = tmp_path / "list.parquet"
    pq.write_table(pa.table({"score": [1, 2, 3], "Path": pa.array(ENTRIES).dictionary_encode()}), path)
    assert read_list(path) == ENTRIES
    pq.write_table(pa.table({"path": ["a.jpg", None]}), path)
    with pytest.raises(UserError, match=r"row 2 .*names no file"):
        read_list(path)
    pq.write_table(pa.table({"score": [1]}), path)
    with pytest.raises(UserError, match=r"no column key, path.*only score"):
        read_list(path)


@pytest.mark.parametrize("missing", ["", "nan", "NA", "None", "<NA>"])
def test_a_missing_cell_names_no_file(tmp_path, missing):
    (tmp_path / "list.csv").write_text(f"rank,path\n1,a.jpg\n2,{missing}\n")
    with pytest.raises(UserError, match="row 3 names no file"):
        read_list(tmp_path / "list.csv")


def test_a_csv_row_without_a_file_is_named(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("rank,path\n1,a.jpg\n2\n")
    with pytest.raises(UserError, match="row 3 names no file"):
        read_list(path)


@pytest.mark.parametrize("text", ['rank,path\n1,a.jpg\n2,"b.jpg\n3,c.jpg\n', 'rank,path\n1,a.jpg\n2,"b.jpg'])
def test_a_quote_that_is_not_closed_costs_no_rows(tmp_path, text):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(UserError, match="row 3 has a quote that is not closed"):
        read_list(tmp_path / "list.csv")


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path, protocol):
    path, proof = tmp_path / "list.pkl", tmp_path / "executed"
    data = pickle.dumps(["a.jpg", Malicious(proof)], protocol)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"list\.pkl: refused.*open"):
        read_list(path)
    assert not proof.exists()
    pickle.loads(data)  # it would have been
    assert proof.exists()


@pytest.mark.parametrize("value", [{"a.jpg": 1}, ("a.jpg",), ["a.jpg", 1], ["a.jpg", ["b.jpg"]], "a.jpg"])
def test_other_pickles_are_refused(tmp_path, value):
    path = tmp_path / "list.pkl"
    path.write_bytes(pickle.dumps(value))
    with pytest.raises(UserError, match="something else than a list of strings"):
        read_list(path)


def test_a_truncated_pickle_is_refused(tmp_path):
    path = tmp_path / "list.pkl"
    path.write_bytes(pickle.dumps(ENTRIES)[:-4])
    with pytest.raises(UserError, match=r"list\.pkl: refused"):
        read_list(path)


def test_missing_unknown_and_empty_files(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_list(tmp_path / "none.txt")
    with pytest.raises(UserError, match=r"ends in \.txt, \.csv, \.tsv, \.parquet, \.pkl, not '\.json'"):
        read_list(tmp_path / "list.json")
    for name, data in (("a.txt", b""), ("a.csv", b"\n"), ("a.pkl", pickle.dumps([]))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match="is empty"):
            read_list(tmp_path / name)
    (tmp_path / "latin.txt").write_bytes("ä.jpg".encode("latin-1"))
    with pytest.raises(UserError, match="cannot be read"):
        read_list(tmp_path / "latin.txt")


def test_matches_equal_longer_and_shorter_paths():
    keys = ["a/1.jpg", "a/2.jpg", "b/1.jpg", "3.jpg"]
    match = match_entries(["/home/x/b/1.jpg", "2.jpg", r"D:\lup\3.jpg", "./a//1.jpg"], keys)
    assert match.rows.tolist() == [2, 1, 3, 0]
    assert (match.entries, match.matched, match.ambiguous) == (4, 4, 0)


def test_components_match_whole():
    # "11.jpg" ends in "1.jpg", and "aa/1.jpg" in "a/1.jpg": no match
    match = match_entries(["11.jpg", "aa/1.jpg", "a/1.jpg", "x/a/2.jpg"], ["a/1.jpg", "a/2.jpg"])
    assert match.rows.tolist() == [0, 1]
    assert match.matched == 2


def test_the_longest_match_wins():
    assert match_entries(["x/a/1.jpg"], ["1.jpg", "a/1.jpg"]).rows.tolist() == [1]
    assert match_entries(["x/a/1.jpg"], ["1.jpg", "a/1.jpg", "y/x/a/1.jpg"]).rows.tolist() == [2]


def test_ambiguous_entries_are_counted_and_left_out():
    match = match_entries(["1.jpg", "2.jpg"], ["a/1.jpg", "b/1.jpg", "b/2.jpg"])
    assert match.rows.tolist() == [2]
    assert (match.matched, match.ambiguous) == (1, 1)


def test_a_repeated_entry_keeps_its_first_place():
    match = match_entries(["b", "a", "x/b"], ["a", "b"])
    assert match.rows.tolist() == [1, 0]
    assert match.matched == 3


def test_fewer_than_half_is_refused():
    with pytest.raises(UserError, match=r"only 1 of the file list's 3 entries.*'a\.jpg'.*'a\.jpg'"):
        match_entries(["a.jpg", "x.jpg", "y.jpg"], ["a.jpg", "b.jpg"])
    assert match_entries(["a.jpg", "x.jpg"], ["a.jpg", "b.jpg"]).matched == 1
    with pytest.raises(UserError, match="would match several"):
        match_entries(["1.jpg"], ["a/1.jpg", "b/1.jpg"])


def test_a_key_without_the_image_suffix_is_found_and_counted():
    keys = ["00_00_0000_00000001", "00_00_0000_00000002", "00_01_0000_00000001"]
    match = match_entries([f"images/{key}.jpg" for key in reversed(keys)] + [keys[0]], keys)
    assert match.rows.tolist() == [2, 1, 0]
    assert (match.matched, match.respelt) == (4, 3)
    match = match_entries(["a.JPG", "b"], ["x/a.jpg", "x/b.png"])
    assert (match.rows.tolist(), match.respelt) == ([0, 1], 2)


def test_a_key_without_suffix_that_names_several_images_is_ambiguous():
    match = match_entries(["a", "c.png", "b.png"], ["a.jpg", "a.png", "b.png", "c.jpg"])
    assert (match.rows.tolist(), match.ambiguous, match.respelt) == ([3, 2], 1, 1)
