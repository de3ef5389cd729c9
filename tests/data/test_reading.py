"""Reading: every format gives the same documents, and whatever is unsound is skipped with its place."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sortyard.data import hub
from sortyard.data.options import CorpusOptions
from sortyard.data.reading import read_corpus, read_texts
from sortyard.data.skips import SkipLog
from sortyard.errors import InputError

TEXTS = ["one two", 'three "four"', "five\u00e9 six"]


def read(source: Path | str, **options: object) -> tuple[list[str], SkipLog]:
    log = SkipLog()
    rows = [row.text for row in read_texts(source, on_skip=log.add, **options)]  # type: ignore[arg-type]
    return rows, log


def refused(source: Path | str, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        read(source, **options)
    return str(caught.value)


def write_format(folder: Path, suffix: str) -> Path:
    path = folder / f"corpus.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"id": [1, 2, 3], "text": TEXTS}), path)
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    elif suffix == "tsv":
        path.write_text("".join(f"{number}\t{text}\n" for number, text in [("id", "text"), *enumerate(TEXTS)]))
    elif suffix == "csv":
        path.write_text('id,text\n1,one two\n2,"three ""four"""\n3,five\u00e9 six\n')
    else:
        path.write_text("\n\n\n".join(TEXTS))
    return path


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "tsv", "csv", "parquet"])
def test_every_format_gives_the_same_documents(tmp_path: Path, suffix: str) -> None:
    rows, log = read(write_format(tmp_path, suffix))
    assert rows == TEXTS
    assert log.total == 0


def test_folder_and_glob_read_all_files_sorted(tmp_path: Path) -> None:
    for name, text in (("b.txt", "second"), ("sub/c.txt", "third"), ("a.txt", "first"), (".hidden.txt", "no")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert read(tmp_path)[0] == ["first", "second", "third"]
    assert read(f"{tmp_path}/*.txt")[0] == ["first", "second"]


def test_linked_folders_are_read_once_and_circles_end(tmp_path: Path) -> None:
    corpus, other = tmp_path / "corpus", tmp_path / "other"
    (other / "deep").mkdir(parents=True)
    (corpus / "sub").mkdir(parents=True)
    (corpus / "a.txt").write_text("first")
    (corpus / "sub" / "c.txt").write_text("third")
    (other / "deep" / "b.txt").write_text("second")
    (corpus / "linked").symlink_to(other)
    (corpus / "again").symlink_to(corpus / "sub")
    (other / "deep" / "back").symlink_to(corpus)
    rows, log = read(corpus)
    assert rows == ["first", "second", "third"]
    assert log.total == 0


def test_files_of_a_folder_that_are_not_read_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "b.txt.gz").write_bytes(b"packed")
    (tmp_path / "c.txt").symlink_to(tmp_path / "gone.txt")
    (tmp_path / ".hidden").write_text("no")
    rows, log = read(tmp_path)
    assert rows == ["first"]
    assert log.places == {
        "file of unknown extension": [f"{tmp_path / 'b.txt.gz'}:1"],
        "broken link or no regular file": [f"{tmp_path / 'c.txt'}:1"],
    }


def test_one_empty_line_is_a_paragraph_and_two_end_a_document(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n\n\na\n\nb\n\n\n\nc\n\n\n")
    rows = list(read_texts(path, on_skip=SkipLog().add))
    assert [(row.text, row.row) for row in rows] == [("a\n\nb", 4), ("c", 10)]


def test_byte_order_mark_and_windows_line_ends_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(b"\xef\xbb\xbftext\tx\r\nhello\t1\r\n")
    assert read(path)[0] == ["hello"]


def test_quoted_csv_fields_run_over_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,n\n"one\ntwo",1\n"' + "word " * 60_000 + '",2\n')
    rows, _ = read(path)
    assert rows[0] == "one\ntwo"
    assert len(rows[1]) == 300_000


def test_unsound_json_lines_are_skipped_with_reason_and_place(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [
        b'{"text": "fine"}', b'{"text": "bad \xff"}', b'{"text": "nul \\u0000"}', b'{"text": "nul \x00"}',
        b'{"text": "half \\ud800"}', b'{"text": 7}', b'{"text": null}', b'{"text": "  "}', b"", b"[1, 2]", b"{",
        b'{"other": "x"}', b"[" * 100_000, b'{"text": "' + b"a " * 9_000_000 + b'"}', b'{"text": "last"}',
    ]  # fmt: skip
    path.write_bytes(b"\n".join(lines) + b"\n")
    rows, log = read(path)
    assert rows == ["fine", "last"]
    assert log.counts == {
        "bad UTF-8": 1, "NUL byte": 2, "lone surrogate": 1, "text is not a string but int": 1, "empty text": 3,
        "empty row": 1, "not a JSON object": 3, "line longer than 16,000,000 bytes": 1,
    }  # fmt: skip
    assert log.places["lone surrogate"] == [f"{path}:5"]
    assert f"2 x NUL byte ({path}:3, {path}:4)" in log.describe()


def test_unsound_text_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\n\xff\xfe\nn\x00l\n" + b"x" * 3_000_000 + b"\nalso\n")
    rows, log = read(path)
    assert rows == ["fine\nalso"]
    assert log.counts == {"bad UTF-8": 1, "NUL byte": 1, "line longer than 1,000,000 bytes": 1}


def test_ragged_rows_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("text\tn\nfine\t1\nshort\nlong\t1\t2\n\n")
    rows, log = read(path)
    assert rows == ["fine"]
    assert log.counts == {"not 2 columns": 2, "empty row": 1}


def test_broken_quotes_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,n\nfine,1\n"bad"x,2\nalso,3\n"open,4\n')
    rows, log = read(path)
    assert rows == ["fine", "also"]
    assert sum(log.counts.values()) == 2


@pytest.mark.parametrize("end", ['"', 'the "" end"', 'end","n"', 'end","two\nlines"'])
def test_the_rest_of_a_field_over_the_limit_is_no_row(tmp_path: Path, end: str) -> None:
    path = tmp_path / "a.csv"
    lines = "word word\n" * 250_000
    path.write_text(f'text\nfine\n"{lines}{end}\nalso\n"open ""quotes""\nand more"\n')
    rows, log = read(path)
    assert rows == ["fine", "also", 'open "quotes"\nand more']
    assert log.counts == {"in a field of over 1,000,000 characters": 250_001 + end.count("\n")}


def test_a_field_just_within_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"text\n" + b"x" * 1_000_000)  # no end of line
    rows, _ = read(path)
    assert list(map(len, rows)) == [1_000_000]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"\xff", "bad UTF-8"),
        (b"\x00", "NUL byte"),
        (b"x" * 2_500_000, "line longer than 1,000,000 bytes"),
    ],
    ids=["utf-8", "nul", "long"],
)
def test_a_row_with_an_unsound_line_is_left_out_whole(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "a.csv"
    row = b'fine,1\n"' + line + b'\nopened,2\n",2\n"closed\n3,' + line + b'",3\n"a\n' + line + b'\nb",4\nlast,5\n'
    path.write_bytes(b"text,n\n" + row)
    rows, log = read(path)
    assert rows == ["fine", "last"]
    assert log.counts == {reason: 3}


def test_bad_utf8_in_parquet_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    broken = pa.array([b"fine", b"\xff\xfe", b"also"]).view(pa.string())
    pq.write_table(pa.table({"text": broken}), path)
    rows, log = read(path)
    assert rows == ["fine", "also"]
    assert log.places == {"bad UTF-8": [f"{path}:2"]}


def test_long_documents_are_cut_at_paragraphs_and_blobs_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    long = "\n\n".join(["word " * 100] * 6)
    path.write_text(json.dumps({"text": long}) + "\n" + json.dumps({"text": "x" * 5000}) + "\n")
    rows, log = read(path, max_document_characters=1200)
    assert [len(row) for row in rows] == [1002, 1002, 1002]
    assert "".join(rows).split() == long.split()
    assert log.counts == {"no white space in 600 characters": 1}


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"", "the file is empty"),
        ("a.jsonl", b"", "the file is empty"),
        ("a.parquet", b"", "the file is empty"),
        ("a.parquet", b"PAR1 nonsense", "no sound Parquet file"),
        ("a.txt", b"\n \n\n", "no text is left to read"),
        ("a.txt", "text".encode("utf-16"), "no text is left to read: skipped 1 x NUL byte"),
        ("a.jsonl", b"[]\n", "no line holds a JSON object"),
        ("a.jsonl", b'{"txt": "x"}', "no column 'text'; it has 'txt'; did you mean 'txt'? (set text_column)"),
        ("a.tsv", b"a\tb\n1\t2\n", "no column 'text'; it has 'a', 'b'"),
        ("a.jsonl", b'{}\n{"text": "x"}', "no column 'text'; it has none (set text_column)"),
        ("a.csv", b"\ntext\nx\n", ":1: this line is blank, but the first one names the columns"),
        ("a.tsv", b" \t\ntext\tn\nx\t1\n", ":1: this line is blank, but the first one names the columns"),
        ("a.tsv", b"text\n", "no text is left to read"),
        ("a.xyz", b"x", "unknown extension '.xyz'"),
    ],
)  # fmt: skip
def test_useless_files_are_refused_by_name(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    message = refused(path)
    assert expected in message
    assert str(path) in message


def test_missing_sources_are_refused(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("x")
    assert f"did you mean {tmp_path / 'corpus.txt'}?" in refused(tmp_path / "corpsu.txt")
    assert "no file matches" in refused(f"{tmp_path}/*.jsonl")
    (tmp_path / "none").mkdir()
    assert "holds no file with a known extension" in refused(tmp_path / "none")


@pytest.mark.parametrize("name", ["nobody/nothing-here", "nothing-here"])
def test_an_unreachable_hub_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    datasets = pytest.importorskip("datasets")

    def offline(*arguments: object, **options: object) -> None:
        raise ConnectionError("Couldn't reach the Hub\nlong explanation")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", offline)
    message = refused(name)
    assert message.startswith(f"{name}: there is no such file or folder here, and as a hub data set it cannot be read")
    assert "\n" not in message


def test_a_hub_without_an_address_is_given_up_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unknown(*arguments: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "getproxies", dict)
    monkeypatch.setattr(hub.socket, "getaddrinfo", unknown)
    assert "the hub's address cannot be looked up" in refused("owner/name")


def test_a_stream_that_breaks_off_is_not_a_missing_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")

    def stream(*arguments: object, **options: object) -> Iterator[dict[str, str]]:
        yield from [{"text": "a"}, {"text": "b"}]
        raise ConnectionError("reset by peer")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", stream)
    message = refused("owner/name")
    assert message.startswith("owner/name (train): the hub broke off after 2 rows; when the network is back")
    assert message.endswith("reset by peer")


def test_hub_rows_are_streamed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    calls = []

    def load(name: str, config: str | None, **options: object) -> list[dict[str, str]]:
        calls.append((name, config, options))
        return [{"text": "a"}, {"text": "b"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    options = CorpusOptions(path="owner/name", hub_config="small", max_documents=1)
    assert [row.text for row in read_corpus(options, on_skip=SkipLog().add)] == ["a"]
    assert calls == [("owner/name", "small", {"split": "train", "streaming": True})]


def test_a_broken_row_group_names_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"text number {number}" for number in range(5000)]}), path)
    data = bytearray(path.read_bytes())
    data[100:400] = bytes(300)
    path.write_bytes(bytes(data))
    assert str(path) in refused(path)
