from pathlib import Path

import pytest

from sortyard.errors import InputError
from sortyard.recipe import (
    Recipe,
    commented_recipe,
    json_schema,
    load_recipe,
    resolved_yaml,
    save_resolved,
    shipped_recipes,
)

NAMES = [recipe.name for recipe in shipped_recipes()]


def write(folder: Path, text: str, *, name: str = "my.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def complaint(path: Path | str, *overrides: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        load_recipe(path, overrides=overrides)
    return str(caught.value).replace(f"{Path(path).parent}/", "").split("\n")


def test_every_mistake_is_reported_at_once_in_the_order_of_the_lines(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """extends: small
nmae: x
model:
  hidden_siz: 12
  hidden_dropout_prob: 1.5
  hash: grey
pretrain:
  loop:
    steps: true
    lr: 3e-4
    lrr: 3
  data: 3
finetune:
  task: {name: sst3}
  optimizer: {beta1: no, eps: -1}
""",
    )
    assert complaint(path) == [
        "my.yaml:2: nmae: unknown key; did you mean name?",
        "my.yaml:4: model.hidden_siz: unknown key; did you mean model.hidden_size?",
        "my.yaml:5: model.hidden_dropout_prob: 1.5 is out of range (0 <= x < 1)",
        "my.yaml:6: model.hash: 'grey' is not one of gray, cross_polytope, e2lsh, kmeans, random, sign_sum; "
        "did you mean gray?",
        "my.yaml:9: pretrain.loop.steps: true is not an integer or null",
        "my.yaml:10: pretrain.loop.lr: unknown key; did you mean pretrain.optimizer.lr?",
        "my.yaml:11: pretrain.loop.lrr: unknown key; did you mean pretrain.optimizer.lr?",
        "my.yaml:12: pretrain.data: 3 is no section; write its keys indented below pretrain.data:",
        "my.yaml:14: finetune.task.name: 'sst3' is not one of cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli, "
        "custom; did you mean sst2?",
        "my.yaml:15: finetune.optimizer.beta1: 'no' is not a number (0 <= x < 1)",
        "my.yaml:15: finetune.optimizer.eps: -1 is out of range (0 < x <= 0.01)",
    ]


def test_a_check_across_keys_points_at_a_key_that_is_written_down(tmp_path: Path) -> None:
    path = write(tmp_path, "extends: small\nmodel:\n  hidden_size: 256\n  num_experts: 9\n")
    (found,) = complaint(path)
    assert found.startswith("my.yaml:4: model: num_experts=9 cannot be dealt evenly")


def test_a_check_across_sections_points_at_the_first_key_it_names() -> None:
    words = ["model.max_position_embeddings=64", "pretrain.data.sequence_length=128"]
    (found,) = complaint("small", *words)
    assert found.startswith("override pretrain.data.sequence_length=128: pretrain.data.sequence_length 128 is more")


def test_a_missing_key_is_named_with_its_section(tmp_path: Path) -> None:
    path = write(tmp_path, "pretrain:\n  data: {text_column: t}\n  loop: {steps: 3}\n")
    (found,) = complaint(path)
    assert found.startswith("my.yaml:2: pretrain.data.path: must be given")


def test_a_missing_key_is_named_also_where_an_override_made_its_section(tmp_path: Path) -> None:
    path = write(tmp_path, "seed: 1\n")
    found = complaint(path, "pretrain.data.path=x.txt")
    assert [line.partition(" (")[0] for line in found] == [
        "override pretrain.data.path=x.txt: pretrain.loop: must be given"
    ]


def test_overrides_win_and_are_named_in_errors() -> None:
    words = ["model.num_experts=16", "model.num_experts=32", "pretrain.optimizer.lr=3e-4"]
    recipe = load_recipe("small", overrides=words).recipe
    assert recipe.pretrain is not None
    assert (recipe.model.num_experts, recipe.pretrain.optimizer.lr) == (32, 3e-4)
    assert complaint("small", "model.num_expert=3", "pretrain.loop.steps=1.5", "seed=-1") == [
        "override model.num_expert=3: unknown key; did you mean model.num_experts?",
        "override pretrain.loop.steps=1.5: 1.5 is not an integer or null (1 <= x <= 1000000000)",
        "override seed=-1: -1 is out of range (0 <= x <= 2147483647)",
    ]


@pytest.mark.parametrize("word", ["model", "=3", "model..x=1", "model.num_experts", "a b=1"])
def test_a_word_that_is_no_override(word: str) -> None:
    (found,) = complaint("small", word)
    assert "must look like section.key=value" in found


def test_steps_replace_epochs_and_the_other_way_round(tmp_path: Path) -> None:
    recipe = load_recipe("small", overrides=["finetune.loop.steps=7"]).recipe
    assert recipe.finetune is not None
    assert (recipe.finetune.loop.steps, recipe.finetune.loop.epochs) == (7, None)
    path = write(tmp_path, "extends: small\npretrain: {loop: {epochs: 2}}\n")
    pretrain = load_recipe(path).recipe.pretrain
    assert pretrain is not None
    assert (pretrain.loop.steps, pretrain.loop.epochs) == (None, 2)


def test_an_extending_file_holds_only_what_it_changes(tmp_path: Path) -> None:
    write(tmp_path, "extends: small\nmodel: {num_experts: 16}\nseed: 5\n", name="base.yaml")
    path = write(tmp_path, "extends: base.yaml\nmodel: {context: none}\n", name="gate off.yaml")
    recipe = load_recipe(path).recipe
    assert (recipe.model.num_experts, recipe.model.context, recipe.seed) == (16, "none", 5)
    assert recipe.name == "gate-off"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: my.yaml\n", "goes round in a circle"),
        ("extends: nothing.yaml\n", "there is no such file"),
        ("extends: smal\n", "did you mean small?"),
        ("extends: 3\n", "neither a file nor the name"),
    ],
)
def test_a_base_that_cannot_be_used(text: str, message: str, tmp_path: Path) -> None:
    (found,) = complaint(write(tmp_path, text))
    assert message in found


def test_an_error_in_the_base_names_the_base(tmp_path: Path) -> None:
    write(tmp_path, "extends: small\nseed: -3\n", name="base.yaml")
    (found,) = complaint(write(tmp_path, "extends: base.yaml\n"))
    assert found.startswith("base.yaml:2: seed: -3 is out of range")


def test_unknown_names() -> None:
    assert complaint("smal")[0].endswith("did you mean small?")
    assert complaint("no/such.yaml") == ["such.yaml: there is no such file"]


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_survives_saving(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name).recipe
    save_resolved(recipe, path=tmp_path / "resolved.yaml")
    assert load_recipe(tmp_path / "resolved.yaml").recipe == recipe


@pytest.mark.parametrize("name", NAMES)
def test_a_commented_recipe_is_the_same_recipe(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name).recipe
    text = commented_recipe(recipe, base=name)
    assert load_recipe(write(tmp_path, text)).recipe == recipe
    assert max(map(len, text.splitlines())) <= 120
    for key in ("hidden_size", "num_experts_per_tok", "whole_word", "warmup_ratio"):
        assert f"{key}:" in text


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_says_what_it_needs(name: str) -> None:
    (found,) = (recipe for recipe in shipped_recipes() if recipe.name == name)
    assert found.summary
    assert set(found.notes) == {"command", "hardware", "time", "score"}


def test_the_seed_recipe_is_the_seeds_table() -> None:
    recipe = load_recipe("seed").recipe
    assert recipe.pretrain is not None
    assert recipe.finetune is not None
    pretrain, finetune = recipe.pretrain, recipe.finetune
    assert (pretrain.loop.micro_batch_size, pretrain.loop.accumulation_steps) == (4096, 8)
    assert pretrain.optimizer.lr == 3e-4
    assert (finetune.loop.micro_batch_size * finetune.loop.accumulation_steps, finetune.optimizer.lr) == (1024, 1e-5)


def test_texts_that_look_like_numbers_stay_texts() -> None:
    recipe = load_recipe("small", overrides=["name='1e5'", "pretrain.data.text_column='no'"]).recipe
    assert "name: '1e5'" in resolved_yaml(recipe)
    assert "text_column: 'no'" in resolved_yaml(recipe)


def test_a_causal_recipe_needs_a_causal_context() -> None:
    (found,) = complaint("small", "pretrain.objective=causal_lm")
    assert "lets a causal model see later tokens" in found
    words = ["pretrain.objective=causal_lm", "model.context=running_mean"]
    assert load_recipe("small", overrides=words).recipe.pretrain is not None


def test_the_schema_describes_every_key() -> None:
    schema = json_schema()
    assert schema["properties"]["extends"]["type"] == "string"
    assert "name" not in schema["required"]
    for section in schema["$defs"].values():
        for key, entry in section["properties"].items():
            assert entry.get("description"), key
    assert Recipe.model_fields.keys() <= schema["properties"].keys()


@pytest.mark.parametrize(("written", "mode"), [("true", "full"), ("false", "none"), ("off", "none"), ("full", "full")])
def test_the_switch_of_earlier_recipes_is_still_read(written: str, mode: str, tmp_path: Path) -> None:
    path = write(tmp_path, f"extends: small\npretrain: {{loop: {{activation_checkpointing: {written}}}}}\n")
    recipe = load_recipe(path).recipe
    assert recipe.pretrain is not None
    assert recipe.pretrain.loop.activation_checkpointing == mode
    bad = write(tmp_path, "extends: small\npretrain: {loop: {activation_checkpointing: some}}\n", name="bad.yaml")
    assert complaint(bad) == [
        "bad.yaml:2: pretrain.loop.activation_checkpointing: 'some' is not one of none, full, selective"
    ]
