import pytest

from rayreid.config.loading import load_experiment
from rayreid.config.yaml_text import parse_yaml
from rayreid.errors import UserError

SOURCES = "pool: {dataset: folder, root: pool}\ntarget: {dataset: market1501, root: target}\n"


def refused(text: str) -> str:
    with pytest.raises(UserError) as caught:
        parse_yaml(text, "a.yaml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "key", "first", "second"),
    [
        ("finetune: {epochs: 10}\n# why\nfinetune: {sampler: camera}", "finetune", 1, 3),
        ("a:\n  b: 1\n  c: 2\n  b: 3", "b", 2, 4),
        ("rows:\n- {a: 1}\n- {a: 1,\n   a: 2}", "a", 3, 4),
        ("a: 1\n'a': 2", "a", 1, 2),
        ("1: a\ntrue: b", "true", 1, 2),
        ("x: &x {a: 1}\ny: {<<: *x, b: 2, b: 3}", "b", 2, 2),
    ],
)
def test_a_key_given_twice_names_both_lines(text, key, first, second):
    assert refused(text) == (
        f"a.yaml: key {key!r} is given twice, in line {first} and in line {second}; keep one, or merge the two"
    )


def test_a_merged_mapping_may_be_overridden():
    base = "x: &x {a: 1, b: 2}\ny: &y {<<: *x, a: 3}\nz: {<<: *y, a: 4}"
    assert parse_yaml(base, "a.yaml")["z"] == {"a": 4, "b": 2}
    assert parse_yaml("x: &x {a: 1}\ny: &y {b: 1}\nz: {<<: [*x, *y]}", "a.yaml")["z"] == {"a": 1, "b": 1}


@pytest.mark.parametrize("text", ["a: &a [*a]", "b: 1\na: &a {b: [*a]}", "? &a [*a]\n: 1"])
def test_a_value_that_contains_itself_is_refused(text):
    assert "contains itself by an alias" in refused(text)


def test_a_value_may_be_repeated_by_aliases_however_often():
    lines = ["a0: &a0 [1]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 12))]
    assert parse_yaml("\n".join(lines), "a.yaml")["a11"][0][0][0][0][0][0][0][0][0][0][0] == [1]


def test_two_merges_are_refused_as_one_would_lose_a_value():
    told = refused("f:\n  <<: {epochs: 1, lr: 3}\n  <<: {epochs: 2}")
    assert told == "a.yaml: key '<<' is given twice, in line 2 and in line 3; write <<: [*one, *other]"


@pytest.mark.parametrize(
    "text",
    [
        "a: [1",
        "a: 1\n---\nb: 2",
        "a: !!python/name:os.system x",
        "[" * 3000,
        "? [a]\n: 1",
        "? !!seq a\n: 1",
        "? !!map a\n: 1",
        "a: \x05",
        "2026-02-30: 1",
    ],
)
def test_what_is_not_yaml_is_named_as_such(text):
    assert "not valid YAML" in refused(text)


def test_values_are_those_of_pyyaml():
    assert parse_yaml("a: {b: [1, x, 2.5, yes, null]}", "a.yaml") == {"a": {"b": [1, "x", 2.5, True, None]}}
    assert parse_yaml("", "a.yaml") is None
    assert parse_yaml("a: &a [1]\nb: *a", "a.yaml") == {"a": [1], "b": [1]}


def test_files_bases_and_overrides_are_read_in_this_way(tmp_path):
    (tmp_path / "base.yaml").write_text(f"{SOURCES}seed: 1\nseed: 2\n")
    (tmp_path / "own.yaml").write_text("extends: base.yaml\n")
    (tmp_path / "sound.yaml").write_text(SOURCES)
    with pytest.raises(UserError, match=r"base.yaml: key 'seed' is given twice, in line 3 and in line 4"):
        load_experiment(tmp_path / "own.yaml")
    with pytest.raises(UserError, match=r"override 'pretrain=.*key 'epochs' is given twice"):
        load_experiment(tmp_path / "sound.yaml", ["pretrain={epochs: 1, epochs: 2}"])
