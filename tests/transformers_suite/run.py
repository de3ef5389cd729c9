"""Runs transformers' own common model tests on sortyard's models; `make test-transformers`.

The tests come with the source distribution of the installed transformers version, which pip fetches; nothing of them
is part of this project. What the distribution leaves out is replaced by empty classes: the mixins for exporters and
generation, and a table of shared configuration arguments.

Ends with the number of tests that passed, failed and were skipped, and every reason for a skip with how often it came.
With --optional, as in continuous integration, it says so and ends well where the tests cannot be fetched; those that
run and fail are failures all the same.
"""

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SUITE = Path(__file__).with_name("sortyard_models.py")
STUBS = {
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
}
FETCH_SECONDS = 300


class NotFetchedError(Exception):
    """The source distribution is not to be had."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", type=Path, default=ROOT / ".transformers-suite", help="where the tests are kept")
    parser.add_argument("--source", type=Path, help="a source distribution that is there already")
    parser.add_argument("--optional", action="store_true", help="no failure where the tests cannot be fetched")
    parser.add_argument("words", nargs="*", help="words for pytest, such as -- -k batching")
    args = parser.parse_args()
    try:
        folder = prepare(args.tests / version("transformers"), source=args.source)
    except NotFetchedError as error:
        if not args.optional:
            sys.exit(f"{error}; give one with --source FILE")
        print(f"NOT RUN: transformers' own model tests ({error})")
        return
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-c", str(folder / "pytest.ini"), "-p", "no:cacheprovider"]
    command += [f"--junitxml={report}", *args.words, str(folder / "tests" / "sortyard" / "test_modeling_sortyard.py")]
    status = subprocess.run(command, cwd=folder, check=False).returncode
    print(summary(report))
    sys.exit(status)


def prepare(folder: Path, *, source: Path | None) -> Path:
    """Fetch the tests once, and put ours among them anew."""
    tests = folder / "tests"
    if not tests.is_dir():
        with tempfile.TemporaryDirectory() as aside:
            archive = source or fetch(Path(aside))
            with tarfile.open(archive) as tar:
                tar.extractall(aside, filter="data")
            (unpacked,) = Path(aside).glob("transformers-*/tests")
            folder.mkdir(parents=True, exist_ok=True)
            shutil.move(unpacked, tests)
    for name, text in STUBS.items():
        stub = tests / name
        if not stub.exists():
            stub.parent.mkdir(exist_ok=True)
            stub.write_text(text)
    ours = tests / "sortyard"
    ours.mkdir(exist_ok=True)
    shutil.copy(SUITE, ours / "test_modeling_sortyard.py")
    for package in (tests, ours, *(tests / Path(name).parent for name in STUBS)):
        (package / "__init__.py").touch()
    (folder / "pytest.ini").write_text(
        "[pytest]\nfilterwarnings =\n    ignore\n"
    )  # the project's own settings make every warning an error
    return folder


def fetch(folder: Path) -> Path:
    wanted = f"transformers=={version('transformers')}"
    words = [
        "download",
        "-q",
        "--retries",
        "1",
        "--no-deps",
        "--no-binary",
        "transformers",
        "--dest",
        str(folder),
        wanted,
    ]
    try:
        subprocess.run([sys.executable, "-m", "pip", *words], check=True, timeout=FETCH_SECONDS)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise NotFetchedError(f"the source distribution of {wanted} cannot be fetched") from error
    (archive,) = folder.glob("transformers-*.tar.gz")
    return archive


def summary(report: Path) -> str:
    cases = list(ET.parse(report).iter("testcase"))
    skipped = [case.find("skipped") for case in cases]
    reasons = Counter(skip.get("message", "") for skip in skipped if skip is not None)
    failed = [case.get("name") for case in cases if case.find("failure") is not None or case.find("error") is not None]
    passed = len(cases) - len(failed) - sum(reasons.values())
    lines = [f"passed {passed}, failed {len(failed)}, skipped {sum(reasons.values())}"]
    lines += [f"  failed: {name}" for name in failed]
    lines += [f"  {count:3d} skipped: {reason}" for reason, count in reasons.most_common()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
