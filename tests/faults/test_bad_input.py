"""Hostile input: every one has a message that names the culprit and an exit status, and leaves nothing half-made."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from sortyard.cli.main import main
from sortyard.data.reading import read_texts
from sortyard.data.skips import SkipLog
from sortyard.errors import InputError
from sortyard.runs.folder import RunFolder
from sortyard.runs.lock import run_lock
from sortyard.training.checkpoint import CheckpointStore

SOURCE = Path(__file__).resolve().parents[2] / "src"


def texts_of(path: Path) -> tuple[list[tuple[str, int]], SkipLog]:
    log = SkipLog()
    return [(row.text, row.row) for row in read_texts(path, on_skip=log.add)], log


def test_a_quoted_row_of_several_lines_is_numbered_by_its_first(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,label\n"one\ntwo",1\nthree,2\n"four\n\nfive",3\nsix\n')
    rows, log = texts_of(path)
    assert rows == [("one\ntwo", 2), ("three", 4), ("four\n\nfive", 5)]
    assert log.places == {"not 2 columns": [f"{path}:8"]}


def test_every_line_that_an_open_quote_swallows_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,label\nkept,1\n"never closed,2\nlost,3\nlost,4\n')
    rows, log = texts_of(path)
    assert rows == [("kept", 2)]
    assert log.counts == {"broken CSV: unexpected end of data": 3}


def test_two_columns_of_the_wanted_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,text\na,b\n")
    with pytest.raises(InputError, match=r"a\.csv: 2 columns are called 'text'"):
        texts_of(path)


def test_two_parquet_columns_of_the_wanted_name_are_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), path)
    with pytest.raises(InputError, match=r"a\.parquet: 2 columns are called 'text'"):
        texts_of(path)


@pytest.mark.parametrize("content", ['[\n{"text": "a"},\n{"text": "b"}\n]\n', '[{"text": "a"}, {"text": "b"}]'])
def test_a_json_array_is_refused_rather_than_read_by_halves(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"a\.json:1: the file is one JSON array"):
        texts_of(path)


def test_a_pipe_is_no_text_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(InputError, match=r"is neither a regular file nor a folder$"):
        texts_of(tmp_path / "a.txt")


def test_a_dangling_link_is_not_suggested_for_itself(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to("gone.txt")
    with pytest.raises(InputError, match=r"there is no such file or folder$"):
        texts_of(tmp_path / "a.txt")


def test_an_endless_device_is_no_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check", "/dev/zero"]) == 2
    assert "is no regular file" in capsys.readouterr().err


def test_an_override_may_be_longer_than_a_file_name() -> None:
    assert main(["config", "check", "small", f"pretrain.data.path={'a' * 3000}"]) == 0


def test_a_path_that_the_file_system_refuses_is_the_inputs_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check", "a" * 5000]) == 2
    error = capsys.readouterr().err
    assert error.endswith("...: File name too long\n")
    assert len(error) < 200


def test_a_misspelt_task_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "nowhere", "--task", "sst3"]) == 2
    assert "did you mean sst2?" in capsys.readouterr().err


def test_predictions_that_break_off_leave_no_file_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lines(*_: object, **__: object) -> Iterator[str]:
        yield "{}"
        raise InputError("input:2: is no JSON object")

    monkeypatch.setattr("sortyard.jobs.predicting.open_predictor", lambda *_, **__: None)
    monkeypatch.setattr("sortyard.jobs.predicting.prediction_lines", lines)
    monkeypatch.setattr("sortyard.jobs.predicting.model_digest", lambda _: "0123456789abcdef")
    (tmp_path / "in.txt").write_text("a\n")
    words = ["predict", "run", "--input", str(tmp_path / "in.txt"), "--output", str(tmp_path / "out.jsonl")]
    assert main(words) == 2
    left = {".aside-out.jsonl", ".aside-out.jsonl.model"}  # which --resume goes on with
    assert {path.name for path in tmp_path.iterdir()} == {"in.txt", *left}


def test_a_reader_that_goes_away_gets_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    program = [sys.executable, "-m", "sortyard", "config", "check", "nowhere.yaml", "--json"]
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    done = subprocess.run(program, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment, timeout=60)
    os.close(writer)
    assert done.returncode == 2
    assert done.stderr == "error: nowhere.yaml: there is no such file\n"


HOLDER = """
    import sys, time
    from pathlib import Path
    from sortyard.runs.lock import run_lock
    with run_lock(Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(60)
"""


def test_a_second_process_is_kept_out_until_the_first_is_gone(tmp_path: Path) -> None:
    program = [sys.executable, "-c", textwrap.dedent(HOLDER), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env=environment) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=rf"another process \(number {holder.pid}\)"), run_lock(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with run_lock(tmp_path), run_lock(tmp_path):  # a killed holder leaves nothing; the own process may enter again
        pass


def test_resuming_what_is_no_run_leaves_no_lock(tmp_path: Path) -> None:
    assert main(["resume", str(tmp_path)]) == 2
    assert list(tmp_path.iterdir()) == []


def damaged_run(path: Path) -> RunFolder:
    run = RunFolder.create(path, recipe="", resolved="", environment={})
    run.append_metric("train", 1, {})
    return run


def test_a_metrics_line_without_step_is_named(tmp_path: Path) -> None:
    run = damaged_run(tmp_path / "run")
    with run.metrics.open("a") as file:
        file.write("{}\n")
    assert len(run.read_metrics("train")) == 1
    with pytest.raises(InputError, match=r"metrics\.jsonl: a line has no step: \{\}"):
        run.cut_after(1)


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04junk"], ids=["empty", "junk", "torn"])
def test_damaged_routing_is_named(tmp_path: Path, content: bytes) -> None:
    run = damaged_run(tmp_path / "run")
    run.routing.write_bytes(content)
    with pytest.raises(InputError, match=r"routing\.npz: is damaged"):
        run.read_routing()


def test_a_stray_folder_among_the_checkpoints_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "step-copy").mkdir()
    (tmp_path / "step-00000009").write_text("no folder")
    assert CheckpointStore(tmp_path, keep=1, warn=print).steps() == []


def test_a_full_disk_leaves_no_half_made_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sortyard.runs.folder.replace_bytes", full)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
        damaged_run(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
