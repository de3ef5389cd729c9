"""What every command has in common: speed, help, exit statuses, errors."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sortyard.cli import main as entry

VERBS = (
    *("demo", "doctor", "recipes", "new", "config", "data", "pretrain", "finetune", "resume", "eval", "predict"),
    *("export", "push", "report", "bench", "upcycle", "adapt", "study", "plan"),
)

CPU_OF_HELP = """
import resource, subprocess, sys
subprocess.run([sys.executable, "-m", "sortyard", "--help"], check=True, stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime)
"""
HEAVY = """
import sys
from sortyard.cli.main import main
status = main(sys.argv[1:])
heavy = [name for name in ("torch", "transformers", "datasets", "sklearn", "plotly") if name in sys.modules]
print("\\n" + repr((status, heavy)))
"""


def test_help_takes_less_than_half_a_second_of_cpu(program: Callable) -> None:
    seconds = min(float(program(code=CPU_OF_HELP).out) for _ in range(3))
    assert seconds < 0.5


@pytest.mark.parametrize(
    "words", [["--help"], ["pretrain", "--help"], ["recipes"], ["config", "check", "small"], ["new", "x.yaml"]], ids=str
)
def test_light_verbs_load_nothing_heavy(words: list[str], program: Callable) -> None:
    assert program(*words, code=HEAVY).out.splitlines()[-1] == "(0, [])"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str, sortyard: Callable) -> None:
    ended = sortyard(verb, "--help")
    assert ended.status == 0
    assert "--help" in ended.out


@pytest.mark.parametrize("words", [["pretran"], ["pretrain", "--sed", "3"], ["predict"]], ids=str)
def test_a_wrong_command_line_is_the_users_fault(words: list[str], sortyard: Callable) -> None:
    assert sortyard(*words).status == 2


def test_a_misspelt_verb_gets_a_suggestion(sortyard: Callable) -> None:
    assert "Did you mean 'pretrain'" in sortyard("pretran").err


def test_python_m_sortyard(program: Callable) -> None:
    ended = program("--version")
    assert (ended.status, ended.out.strip()) == (0, "0.1.0")


def test_an_error_of_the_input_is_one_message(sortyard: Callable) -> None:
    ended = sortyard("config", "check", "small", "model.num_expert=3", "--json")
    assert ended.status == 2
    assert ended.err == "error: override model.num_expert=3: unknown key; did you mean model.num_experts?\n"
    assert ended.json == {"error": ended.err[len("error: ") : -1], "exit_status": 2}


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (KeyError("x"), 1, "not your input's fault"),
        (ValueError("steps is 0"), 2, "error: steps is 0"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (SystemExit(143), 143, ""),
    ],
    ids=["bug", "value", "interrupt", "sigterm"],
)
def test_what_becomes_of_an_error(
    error: BaseException, status: int, words: str, sortyard: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("sortyard.recipe.shipped_recipes", fail)
    monkeypatch.setattr(entry.tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("SORTYARD_DEBUG", raising=False)
    ended = sortyard("recipes", "--json")
    assert ended.status == status
    assert ended.json["exit_status"] == status
    assert words in ended.err
    assert "Traceback" not in ended.err
    assert bool(list(tmp_path.glob("sortyard-*.log"))) == (status == 1)


def test_debug_shows_the_traceback(sortyard: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("sortyard.recipe.shipped_recipes", fail)
    assert "Traceback" in sortyard("recipes", "--debug").err
    monkeypatch.setenv("SORTYARD_DEBUG", "1")
    assert "Traceback" in sortyard("recipes").err


def test_json_of_the_torch_free_verbs_parses(sortyard: Callable) -> None:
    names = {recipe["name"] for recipe in sortyard("recipes", "--json").json["recipes"]}
    assert {"demo", "small", "base", "seed", "glue-sst2"} <= names
    assert sortyard("config", "schema", "--json").json["title"] == "sortyard recipe"
    assert json.loads(sortyard("config", "schema").out)["title"] == "sortyard recipe"
    assert sortyard("config", "check", "demo", "--json").json["valid"] is True
    assert sortyard("new", "mine.yaml", "--json").json["file"] == "mine.yaml"
