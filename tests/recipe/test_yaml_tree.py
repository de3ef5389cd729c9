from pathlib import Path

import pytest

from sortyard.errors import InputError
from sortyard.recipe.yaml_tree import MAX_FILE_BYTES, parse_scalar, parse_tree, read_tree


def complaint(text: str | bytes, folder: Path) -> list[str]:
    path = folder / "my.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as caught:
        read_tree(path)
    return str(caught.value).replace(str(folder) + "/", "").split("\n")


def test_every_key_knows_its_line() -> None:
    tree = parse_tree("a: 1\n\nb:\n  c: [1, 2]\n", file="x.yaml")
    assert tree.value == {"a": 1, "b": {"c": [1, 2]}}
    assert tree.origin(("a",)) == "x.yaml:1"
    assert tree.origin(("b", "c")) == "x.yaml:4"
    assert tree.origin(("b", "missing", "deeper")) == "x.yaml:3"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1E5", 1e5),
        ("5.", 5.0),
        (".5", 0.5),
        ("-1_000", -1000),
        ("0.9", 0.9),
        ("010", 10),
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("true", True),
        ("null", None),
        ("", None),
        ("~", None),
        ("'3e-4'", "3e-4"),
        ("[0.9, 0.98]", [0.9, 0.98]),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    parsed = parse_scalar(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        pytest.param("", "my.yaml:1: is empty", id="empty"),
        pytest.param("# nothing\n", "my.yaml:1: is empty", id="only a comment"),
        pytest.param("- a\n- b\n", "my.yaml:1: must be a mapping", id="list"),
        pytest.param("\nhello\n", "my.yaml:2: must be a mapping", id="scalar"),
        pytest.param("a: 1\n\tb: 2\n", "my.yaml:2: a tab is not allowed", id="tab"),
        pytest.param("a: [1, 2\nb: 3\n", "my.yaml:2: ", id="open bracket"),
        pytest.param("a: 1\n---\nb: 2\n", "my.yaml:2: a recipe is one document", id="two documents"),
        pytest.param("a: .nan\n", "my.yaml:1: a: .nan is not a finite number", id="nan"),
        pytest.param("a: !!python/object:os.system x\n", "my.yaml:1: a: the YAML tag", id="python tag"),
        pytest.param("a: *b\n", "my.yaml:1: found undefined alias", id="undefined alias"),
        pytest.param("[a]: 1\n", "my.yaml:1: a key must be a plain word", id="key that is a list"),
        pytest.param(b"a: 1\nb: \xff\xfe\n", "my.yaml:2: is not UTF-8", id="not utf-8"),
        pytest.param(b"a: 1\nb: \x00\n", "my.yaml:2: the character", id="control character"),
        pytest.param("a: " + "[" * 5000, "my.yaml: is nested too deeply", id="deep"),
        pytest.param("a: " + "x" * MAX_FILE_BYTES, "my.yaml: ", id="huge"),
    ],
)
def test_an_unusable_file_is_named_with_its_line(text: str | bytes, line: str, tmp_path: Path) -> None:
    found = complaint(text, tmp_path)
    assert len(found) == 1
    assert found[0].startswith(line)


def test_all_duplicate_keys_are_reported_at_once(tmp_path: Path) -> None:
    found = complaint("a: 1\nb: {c: 1, c: 2}\na: 2\n", tmp_path)
    assert found == [
        "my.yaml:2: b.c: duplicate key; it is already set at my.yaml:2",
        "my.yaml:3: a: duplicate key; it is already set at my.yaml:1",
    ]


def test_nested_aliases_cannot_blow_up(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    assert "too large or too deep" in complaint("\n".join(lines), tmp_path)[0]


def test_an_alias_to_itself_ends(tmp_path: Path) -> None:
    assert "too large or too deep" in complaint("a: &a {b: *a}\n", tmp_path)[0]


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.yaml: cannot be read"):
        read_tree(tmp_path / "no.yaml")
    with pytest.raises(InputError, match="is a folder"):
        read_tree(tmp_path)
