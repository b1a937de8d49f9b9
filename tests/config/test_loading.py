import itertools
from pathlib import Path

import pytest
import yaml

from rayreid.config import Experiment
from rayreid.config.loading import change, describe, dump, flatten, load_experiment, row_labels, rows
from rayreid.errors import UserError

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
FILES = sorted(path for path in EXPERIMENTS.glob("**/*.yaml") if path.name != "defaults.yaml")

SOURCES = """
pool: {dataset: folder, root: pool}
target: {dataset: market1501, root: target}
"""


@pytest.fixture
def write(tmp_path):
    """Write an experiment file; gives its path."""

    def write(text: str, name: str = "experiment.yaml", sources: bool = True) -> Path:
        path = tmp_path / name
        path.write_text(text + (SOURCES if sources else ""))
        return path

    return write


def refused(path, *overrides) -> str:
    with pytest.raises(UserError) as caught:
        load_experiment(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def combinations(experiment: Experiment) -> list[Experiment]:
    """A grid's trials, as `rayreid.sweeps.trials` makes them, without importing Ray; of a range both its bounds."""
    parameters = {
        key: values if isinstance(values, list) else [*(values.uniform or values.loguniform)]
        for key, values in experiment.sweep.parameters.items()
    }
    return [
        change(experiment.alone, dict(zip(parameters, values, strict=True)))
        for values in itertools.product(*parameters.values())
    ]


# Reading


def test_what_is_not_said_has_its_default(write):
    experiment = load_experiment(write("pretrain: {epochs: 3}\nseed: 4"))
    assert (experiment.pretrain.epochs, experiment.seed) == (3, 4)
    assert experiment.pretrain.batch_size == 512
    assert experiment.target.root == "target"


def test_a_file_extends_another_key_by_key(write):
    write("pretrain: {epochs: 3, clip: 1.5}\nseed: 4", "base.yaml")
    experiment = load_experiment(write("extends: base.yaml\npretrain: {epochs: 5}", sources=False))
    assert (experiment.pretrain.epochs, experiment.pretrain.clip, experiment.seed) == (5, 1.5, 4)
    assert experiment.pool.root == "pool"


def test_extends_is_looked_up_beside_the_file_and_over_several_files(write, tmp_path):
    (tmp_path / "inner").mkdir()
    write("seed: 1\nname: first", "base.yaml")
    write("extends: ../base.yaml\nname: second", "inner/middle.yaml", sources=False)
    experiment = load_experiment(write("extends: inner/middle.yaml", sources=False))
    assert (experiment.seed, experiment.name) == (1, "second")


def test_lists_are_replaced_not_joined(write):
    write("compare: [{seed: 1}, {seed: 2}]\nbackbone: {img_size: [128, 64]}", "base.yaml")
    experiment = load_experiment(write("extends: base.yaml\ncompare: [{seed: 3}]", sources=False))
    assert experiment.compare == [{"seed": 3}]
    assert experiment.backbone.img_size == (128, 64)


PARTS = "select: {strategy: combine, parts: [{strategy: cfs}, {strategy: quality, rules: {min_height: 64}}]}"


def test_an_entry_of_a_list_is_changed_by_its_index(write):
    overrides = ["select.parts.0.weight=3", "select.parts.1.rules.min_height=96"]
    experiment = load_experiment(write(PARTS), overrides)
    first, second = experiment.select.parts
    assert (first.strategy, first.weight, second.strategy, second.rules) == ("cfs", 3, "quality", {"min_height": 96})
    again = change(load_experiment(write(PARTS)), {"select.parts.0.weight": 3, "select.parts.1.rules.min_height": 96})
    assert again == experiment
    assert load_experiment(write("backbone: {img_size: [128, 64]}"), ["backbone.img_size.0=96"]).backbone.img_size == (
        96,
        64,
    )


@pytest.mark.parametrize("key", ["rules.min_height", "min_height"])
@pytest.mark.parametrize("text", ["rules: {min_height: 64}", "min_height: 64"])
def test_a_rule_is_changed_wherever_it_stands(write, text, key):
    path = write(f"select: {{strategy: combine, parts: [{{strategy: cfs}}, {{strategy: quality, {text}}}], {text}}}")
    for experiment in (
        load_experiment(path, [f"select.parts.1.{key}=96", f"select.{key}=80"]),
        change(load_experiment(path), {f"select.parts.1.{key}": 96, f"select.{key}": 80}),
    ):
        assert experiment.select.parts[1].rules == {"min_height": 96} and experiment.select.rules == {"min_height": 80}


def test_an_entry_that_a_list_does_not_have_is_refused(write):
    path = write(PARTS)
    message = f"{path}: select.parts.2: there is no such entry; the list has 2, from 0"
    assert refused(path, "select.parts.2.weight=3") == message
    for index in ("-1", "01"):
        message = "select.parts: an index changes an entry of a list that the file gives; give the whole list"
        assert message in refused(path, f"select.parts.{index}.weight=3")
    with pytest.raises(UserError, match=r"^compare\[0\]: select\.parts\.4: there is no such entry"):
        rows(load_experiment(path, ["compare=[{select.parts.4.weight: 2}]"]))
    assert "select.parts: input should be a valid tuple" in refused(path, "select={parts: {strategy: cfs}}")
    misspelt = refused(path, "select.parts.0.weights=3")
    assert "unknown key 'select.parts.0.weights'; did you mean 'weight'" in misspelt
    path = write("backbone: {img_size: [128, 64]}")
    assert ": proxy.backbone.img_size.5: there is no such entry" in refused(path, "proxy.backbone.img_size.5=96")


def test_overrides_are_yaml_and_the_last_word(write):
    path = write("pretrain: {epochs: 3}")
    experiment = load_experiment(
        path, ["pretrain.epochs=7", "pretrain.lr=1e-3", "backbone.img_size=[64, 32]", "pool.root=null", "name=a"]
    )
    assert (experiment.pretrain.epochs, experiment.pretrain.lr) == (7, 1e-3)
    assert experiment.backbone.img_size == (64, 32)
    assert experiment.pool.root is None
    assert experiment.name == "a"


def test_pretrain_none_is_a_word(write):
    experiment = load_experiment(write("pretrain: none"))
    assert experiment.pretrain.method == "none"
    assert change(load_experiment(write("")), {"pretrain": "none"}).pretrain.method == "none"


# The proxies


def test_adapt_is_a_word_that_keeps_the_section_s_other_keys(write):
    path = write(
        "adapt: uda\nsource: {dataset: synthetic}\ncompare: [{}, {adapt: usl}, {adapt.epochs: 0}]", "short.yaml"
    )
    experiment = load_experiment(path, ["adapt.epochs=3"])
    assert (experiment.adapt.method, experiment.adapt.epochs) == ("uda", 3)
    assert [(row.adapt.method, row.adapt.epochs) for row in rows(experiment).values()] == [
        ("uda", 3),
        ("usl", 3),
        ("uda", 0),
    ]
    long = load_experiment(write("extends: short.yaml\nadapt: {iterations: 7}", sources=False), ["adapt=usl"])
    assert (long.adapt.method, long.adapt.iterations) == ("usl", 7)


def test_proxies_take_what_the_file_says_elsewhere(write):
    text = "seed: 5\nbackbone: {stem: ics, depth: 2}\npretrain: {epochs: 9, clip: 1.0}\nproxy: {pretrain: {epochs: 4}}"
    proxy = load_experiment(write(text)).proxy
    assert (proxy.seed, proxy.backbone.stem, proxy.backbone.depth) == (5, "ics", 2)
    assert (proxy.pretrain.epochs, proxy.pretrain.clip) == (4, 1.0)


@pytest.mark.parametrize("order", [1, -1])
def test_another_dataset_does_not_inherit_the_first_one_s_options(write, order):
    overrides = ["target.dataset=market1501", "target.root=there"][::order]
    text = "name: t\npool: {dataset: synthetic}\ntarget: {dataset: synthetic, options: {cameras: 2}}"
    target = load_experiment(write(text, sources=False), overrides).target
    assert (target.dataset, target.root, target.options) == ("market1501", "there", {})


def test_proxies_follow_overrides_of_the_file(write):
    experiment = load_experiment(write(""), ["pretrain.epochs=2", "proxy.finetune.epochs=3"])
    assert (experiment.proxy.pretrain.epochs, experiment.proxy.finetune.epochs) == (2, 3)


def test_proxies_are_left_alone_by_rows_and_changes(write):
    experiment = load_experiment(
        write("compare: [{backbone.stem: ics, seed: 7, pretrain.epochs: 1, finetune.epochs: 1}, {pretrain: none}]")
    )
    for row in rows(experiment).values():
        assert row.proxy == experiment.proxy
    assert change(experiment, {"seed": 9}).proxy == experiment.proxy
    assert change(experiment, {"proxy.seed": 9}).proxy.seed == 9


# Rows


def test_rows_have_labels_and_change_one_thing_each(write):
    experiment = load_experiment(
        write("name: mine\ncompare: [{label: bare, pretrain: none}, {select.fraction: 0.25, seed: 3}, {}]")
    )
    table = rows(experiment)
    assert list(table) == ["bare", "select.fraction=0.25, seed=3", "as in the file"]
    assert [row.pretrain.method for row in table.values()] == ["none", "dino", "dino"]
    assert [row.select.fraction for row in table.values()] == [0.5, 0.25, 0.5]
    assert all(row.compare == [] and row.name == "mine" for row in table.values())


def test_without_compare_there_is_one_row_of_the_experiment_s_name(write):
    experiment = load_experiment(write("name: mine"))
    assert rows(experiment) == {"mine": experiment}


def test_a_label_cannot_stand_twice(write):
    experiment = load_experiment(write("compare: [{label: a}, {label: a, seed: 1}]"))
    with pytest.raises(UserError, match=r"compare\[1\].*'a'"):
        rows(experiment)


def test_a_row_s_unknown_key_is_refused_with_its_number(write):
    experiment = load_experiment(write("compare: [{}, {select.fractoin: 0.3}]"))
    with pytest.raises(UserError, match=r"compare\[1\].*select\.fractoin.*'fraction'"):
        rows(experiment)


def test_a_length_in_epochs_replaces_one_in_steps(write):
    text = """
pretrain: {steps: 630}
proxy: {pretrain: {epochs: 4}}
compare: [{}, {pretrain.epochs: 3}, {pretrain: {steps: 5, epochs: 3}}]
"""
    experiment = load_experiment(write(text))
    assert [row.pretrain.steps for row in rows(experiment).values()] == [630, None, 5]
    assert (experiment.proxy.pretrain.steps, experiment.proxy.pretrain.epochs) == (None, 4)
    assert load_experiment(write("pretrain: {steps: 630}")).proxy.pretrain.steps == 630
    assert load_experiment(write("pretrain: {steps: 630}"), ["pretrain.epochs=20"]).pretrain.steps is None
    assert load_experiment(write(dump(experiment), sources=False)) == experiment


# Seeds


def test_rows_run_once_per_seed_and_all_rows_of_a_seed_come_first(write):
    experiment = load_experiment(write("seeds: [4, 1]\ncompare: [{label: bare, pretrain: none}, {label: half}]"))
    table = rows(experiment)
    assert list(table) == ["bare · seed 4", "half · seed 4", "bare · seed 1", "half · seed 1"]
    assert [row.seed for row in table.values()] == [4, 4, 1, 1]
    assert list(row_labels(experiment)) == list(table)
    assert list(row_labels(experiment).values()) == ["bare", "half", "bare", "half"]
    assert all(row.proxy == experiment.proxy and row.proxy.seed == 0 for row in table.values())
    assert all(not (row.seeds or row.compare) for row in table.values())


def test_a_file_without_rows_runs_once_per_seed(write):
    experiment = load_experiment(write("name: mine\nseed: 5"), ["seeds=[0, 5]"])
    assert list(rows(experiment)) == ["mine · seed 0", "mine · seed 5"]
    assert {row.proxy.seed for row in rows(experiment).values()} == {5}
    assert rows(experiment)["mine · seed 5"] == load_experiment(write("name: mine\nseed: 5"))


def test_without_seeds_labels_are_those_of_the_rows(write):
    experiment = load_experiment(write("compare: [{label: a}, {seed: 1}]"))
    assert row_labels(experiment) == {"a": "a", "seed=1": "seed=1"}


def test_seeds_stand_in_the_dump_only_where_there_are_any(write):
    assert "seeds" not in yaml.safe_load(dump(load_experiment(write(""))))
    experiment = load_experiment(write("seeds: [2, 0]"))
    assert yaml.safe_load(dump(experiment))["seeds"] == [2, 0]
    assert Experiment.model_validate(experiment.model_dump()) == experiment


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeds: [0, 1, 0]", "seeds: 0 is given twice"),
        ("seeds: [0, -1]", "seeds.1"),
        ("seeds: [0]\nsweep: {parameters: {finetune.lr: [0.1]}}", "seeds: a sweep names its seeds among its values"),
        ("sweep: {parameters: {seeds: [0, 1]}}", "give the values under the key seed "),
    ],
)
def test_seeds_that_mean_nothing_are_refused(write, text, message):
    assert message in refused(write(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("compare: [{}, {label: a, seeds: [1]}]", r"^compare\[1\]: seeds belong to the whole file"),
        ("seeds: [0, 1]\ncompare: [{seed: 3}]", r"^compare\[0\]: seed=3, but seeds sets it in every row"),
    ],
)
def test_seeds_are_not_a_row_s_own(write, text, message):
    with pytest.raises(UserError, match=message):
        rows(load_experiment(write(text)))


def test_change_takes_dotted_and_nested_keys(write):
    experiment = load_experiment(write("pretrain: {clip: 1.0}"))
    dotted = change(experiment, {"pretrain.epochs": 2})
    assert dotted == change(experiment, {"pretrain": {"epochs": 2}})
    assert dotted.pretrain.clip == 1.0
    assert experiment.pretrain.epochs == 100


@pytest.mark.parametrize("order", [1, -1])
def test_a_row_may_name_another_dataset_and_its_root_in_any_order(write, order):
    changes = dict([("target.root", "there"), ("target.dataset", "msmt17")][::order])
    text = "target: {dataset: synthetic, options: {cameras: 2}}\npool: {dataset: synthetic}"
    target = change(load_experiment(write(text, sources=False)), changes).target
    assert (target.dataset, target.root, target.options) == ("msmt17", "there", {})


def test_a_row_may_name_another_method_and_leaves_the_old_one_s_own_keys_behind(write):
    text = "pretrain: {epochs: 7, batch_size: 64, lr: 0.1, out_dim: 64, teacher_temp: 0.07, local_crops: 2}\n"
    rest = "compare: [{pretrain.method: moby}, {pretrain: {method: mocov3, lr: 0.3}}, {pretrain.epochs: 8}]"
    moby, mocov3, dino = (row.pretrain for row in rows(load_experiment(write(text + rest))).values())
    assert (moby.epochs, moby.batch_size) == (mocov3.epochs, mocov3.batch_size) == (7, 64)
    assert moby.lr == moby.out_dim == moby.local_crops == "auto"
    assert (mocov3.lr, mocov3.out_dim, mocov3.teacher_temp) == (0.3, "auto", 0.04)
    assert (dino.lr, dino.out_dim, dino.teacher_temp, dino.local_crops) == (0.1, 64, 0.07, 2)
    again = load_experiment(
        write("extends: experiment.yaml\npretrain: {method: mocov3, clip: auto}", "child.yaml", False)
    )
    assert again.pretrain.lr == "auto" and again.pretrain.epochs == 7
    assert load_experiment(write(text), ["pretrain.method=moby", "pretrain.queue=128"]).pretrain.queue == 128


def test_a_method_of_the_proxy_s_own_leaves_the_other_s_keys_behind(write):
    experiment = load_experiment(
        write("pretrain: {method: moby, queue: 64, epochs: 3}\nproxy: {pretrain: {method: dino}}")
    )
    assert experiment.proxy.pretrain.queue == "auto" and experiment.proxy.pretrain.epochs == 3


def test_a_key_that_the_method_has_no_use_for_is_refused(write):
    message = refused(write("pretrain: {method: mocov3, queue: 5}"))
    assert "pretrain.queue: the method mocov3 has no use for it, only mocov2 and moby; leave it out" in message


def test_a_dump_of_another_method_reads_back(write, tmp_path):
    experiment = load_experiment(write("pretrain: {method: moby, queue: 64}"))
    again = load_experiment(write(dump(experiment), "dump.yaml", sources=False))
    assert again == experiment


def test_describe():
    assert describe({"select.fraction": 0.5, "backbone.stem": "ics"}) == "select.fraction=0.5, backbone.stem=ics"
    assert describe({}) == "as in the file"


# Writing


def test_a_dump_reads_back_as_the_same_experiment(write):
    experiment = load_experiment(
        write(
            "seed: 3\nbackbone: {img_size: [128, 64]}\nproxy: {pretrain: {epochs: 2}}\ncompare: [{label: ä, seed: 1}]"
        )
    )
    assert load_experiment(write(dump(experiment), "dumped.yaml", sources=False)) == experiment


def test_flatten_dots_the_keys():
    tree = {"a": {"b": 1, "c": {"d": [1, 2]}}, "e": {}, "f": None}
    assert flatten(tree) == {"a.b": 1, "a.c.d": [1, 2], "e": {}, "f": None}


def test_flatten_numbers_the_entries_of_lists_of_sections():
    tree = {"parts": [{"a": 1, "b": {"c": 2}}, {"a": 3}], "none": [], "mixed": [{"a": 1}, 2]}
    assert flatten(tree) == {"parts.0.a": 1, "parts.0.b.c": 2, "parts.1.a": 3, "none": [], "mixed": [{"a": 1}, 2]}


# Bad input: one line that names file and key


def test_an_unknown_key_is_refused_with_the_nearest_valid(write):
    path = write("pretrain: {epoch: 3}")
    message = refused(path)
    assert str(path) in message and "'pretrain.epoch'" in message and "'epochs'" in message


def test_an_unknown_section_is_refused_with_the_nearest_valid(write):
    message = refused(write("fintune: {epochs: 3}"))
    assert "'fintune'" in message and "'finetune'" in message


def test_an_unknown_key_like_none_other_is_refused_with_all_that_are_known(write):
    message = refused(write("select: {zzzzzz: 3}"))
    assert "'select.zzzzzz'" in message
    assert all(name in message for name in ("strategy", "fraction", "count", "list"))


def test_an_unknown_key_in_the_optional_sweep_section(write):
    misspelt = "parametrs"  # codespell:ignore parametrs
    assert "did you mean 'parameters'" in refused(write(f"sweep: {{{misspelt}: {{seed: [1]}}}}"))


def test_an_unknown_key_on_the_command_line(write):
    assert "did you mean 'fraction'" in refused(write(""), "select.fractoin=0.5")
    assert "did you mean 'min_height'" in refused(write(""), "select.min_heigth=64")


def test_a_misspelt_section_comes_before_what_it_makes_missing(write):
    message = refused(write("pol: {dataset: folder}\ntarget: {dataset: folder}", sources=False))
    assert "'pol'" in message and "'pool'" in message and "1 more" in message


@pytest.mark.parametrize(
    ("text", "key", "found"),
    [
        ("pretrain: {epochs: many}", "pretrain.epochs:", "'many'"),
        ("pretrain: {lr: fast}", "pretrain.lr:", "'fast'"),
        ("resources: {workers: some}", "resources.workers:", "'some'"),
        ("backbone: {img_size: 64}", "backbone.img_size:", "64"),
        ("backbone: {img_size: [64, wide]}", "backbone.img_size.1:", "'wide'"),
        ("finetune: {global_mining: perhaps}", "finetune.global_mining:", "'perhaps'"),
        ("pretrain:", "pretrain:", "None"),
        ("pretrain: moco", "pretrain.method:", "'moco'"),
        ("proxy: {pretrain: {epochs: many}}", "proxy.pretrain.epochs:", "'many'"),
        ("name: two words", "name:", "'two words'"),
        ("sweep: {parameters: {select.fraction: 0.5}}", "sweep.parameters.select.fraction:", "0.5"),
        ("sweep: {parameters: {select.fraction: []}}", "sweep.parameters.select.fraction:", "[]"),
        ("backbone: {img_size: [0, 16]}", "backbone.img_size.0:", "0"),
        ("pretrain: {local_size: [64, -16]}", "pretrain.local_size.1:", "-16"),
        ("pretrain: {global_scale: [1.0, 0.4]}", "pretrain.global_scale: write the smaller", "[1.0, 0.4]"),
        ("pretrain: {epochs: 4, warmup_epochs: 5}", "pretrain.warmup_epochs: a warm-up cannot", "5"),
        ("finetune: {warmup_epochs: 121}", "finetune.warmup_epochs: a warm-up cannot", "121"),
        ("proxy: {pretrain: {epochs: 4, warmup_epochs: 5}}", "proxy.pretrain.warmup_epochs:", "5"),
        ("seed: -3", "seed:", "-3"),
    ],
)
def test_a_wrong_type_is_refused_where_the_file_has_it(write, text, key, found):
    path = write(text)
    assert refused(path).startswith(f"{path}: {key}")
    assert refused(path).endswith(f"(found {found})")


@pytest.mark.parametrize("fraction", [0, -0.5, 1.001, 50])
def test_a_fraction_outside_its_range_is_refused(write, fraction):
    assert "select.fraction" in refused(write(f"select: {{fraction: {fraction}}}"))
    with pytest.raises(UserError, match=r"select\.fraction"):
        change(load_experiment(write("")), {"select.fraction": fraction})


@pytest.mark.parametrize("fraction", [0.001, 1, 1.0])
def test_fractions_within_it_are_not(write, fraction):
    assert load_experiment(write(f"select: {{fraction: {fraction}}}")).select.fraction == fraction


def test_a_missing_section_is_named(write):
    assert "'target' is missing" in refused(write("pool: {dataset: folder}", sources=False))


def test_a_missing_file_is_named(tmp_path):
    assert str(tmp_path / "none.yaml") in refused(tmp_path / "none.yaml")


def test_a_missing_base_is_named(write, tmp_path):
    assert str(tmp_path / "base.yaml") in refused(write("extends: base.yaml"))


def test_a_file_that_extends_itself_is_refused(write):
    assert "extends itself" in refused(write("extends: experiment.yaml"))
    write("extends: b.yaml", "a.yaml")
    assert "extends itself" in refused(write("extends: a.yaml", "b.yaml"))


@pytest.mark.parametrize("text", ["pretrain: {epochs: 3", "a: b: c", "\t- x: [", "- 1\n- 2", "word", ""])
def test_what_is_no_mapping_or_no_yaml_is_refused(write, text):
    path = write(text, sources=False)
    assert refused(path).startswith(str(path))


def test_what_is_no_text_is_refused(tmp_path):
    path = tmp_path / "image.yaml"
    path.write_bytes(b"\xff\xd8\xff\xe0\x00")
    assert str(path) in refused(path)
    assert str(tmp_path) in refused(tmp_path)


@pytest.mark.parametrize("override", ["seed", "=3", "seed=[1"])
def test_a_misshapen_override_is_refused(write, override):
    assert repr(override) in refused(write(""), override)


# The files of the repository


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_experiment_of_the_repository_loads(path):
    experiment = load_experiment(path)
    table = rows(experiment)
    assert len(table) == max(1, len(experiment.compare)) * max(1, len(experiment.seeds))
    if experiment.sweep is not None:
        trials = combinations(experiment)
        assert len({dump(trial) for trial in trials}) == len(trials) > 1


def test_there_are_experiments():
    names = {str(path.relative_to(EXPERIMENTS).with_suffix("")) for path in FILES}
    assert {"demo", "market1501_resplit", "sweeps/subset_fraction", "sweeps/ics_variants"} <= names
    assert {f"paper/{name}" for name in ("supervised", "usl", "uda", "stems", "fraction_curve", "table_4")} <= names


def test_the_range_of_a_grid_is_refused_in_a_line_that_says_what_to_do(write):
    message = refused(write("sweep: {parameters: {finetune.lr: {uniform: [0.1, 1]}}}"))
    assert "finetune.lr" in message and "search: random" in message


def test_a_misspelt_range_is_refused_in_one_line(write):
    lr = "{unifrom: [0.1, 1]}"  # codespell:ignore unifrom
    message = refused(write(f"sweep: {{search: random, trials: 2, parameters: {{finetune.lr: {lr}}}}}"))
    assert "finetune.lr" in message and "uniform, loguniform, choice" in message


def test_the_visible_defaults_are_the_defaults():
    shown = yaml.safe_load((EXPERIMENTS / "defaults.yaml").read_text())
    source = {"dataset": "synthetic"}
    defaults = Experiment(pool=source, target=source).model_dump(mode="json")
    assert set(shown) == set(defaults) - {"name", "pool", "target", "source", "proxy", "compare", "sweep"}
    for section, values in shown.items():
        assert values == defaults[section], section


def test_characters_of_a_label_that_cannot_be_printed_are_shown(tiny):
    file = tiny(compare=[{"label": "a\x1b[2Jb\nc", "pretrain": "none"}, {"label": "θ ≥ ½", "select.fraction": 0.5}])
    assert list(rows(load_experiment(file))) == [r"a\x1b[2Jb\nc", "θ ≥ ½"]
