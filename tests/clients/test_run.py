"""The verdict over other people's clients: what fails must be listed with a reason, and what is listed must fail."""
import re
from pathlib import Path

import pytest
import yaml

from clients.run import JUDGES, check_files, judged, outcomes_of

HERE = Path(__file__).parent
LISTED = {"deviations": [{"test": "module.test_audio[*]", "reason": "the model reads text"}]}


def verdict(outcomes, listed=LISTED, **options):
    return dict(judged("judge", outcomes, listed, **options))


def test_failures_that_are_listed_are_expected(capsys):
    counts = verdict({"module.test_text": "passed", "module.test_audio[wav]": "failed", "module.test_other": "skipped"})
    assert (counts["passed"], counts.get("failed"), counts["skipped"]) == (2, 0, 1)
    assert "1 as expected, 1 deviations that are listed, 1 skipped, 0 not as expected" in capsys.readouterr().out


def test_another_failure_is_told_by_name(capsys):
    counts = verdict({"module.test_text": "failed", "module.test_audio[wav]": "failed"})
    assert counts["failed"] == 1 and "judge: module.test_text: failed" in capsys.readouterr().out


def test_what_is_listed_and_passes_is_a_failure_with_the_reason_that_holds_no_more(capsys):
    assert verdict({"module.test_audio[wav]": "passed"})["failed"] == 1
    assert "passed, but is listed as a deviation: the model reads text" in capsys.readouterr().out


def test_what_is_listed_and_is_no_test_is_a_failure_unless_only_some_are_run(capsys):
    assert verdict({"module.test_text": "passed"})["failed"] == 1
    assert "module.test_audio[*]: is listed, but there is no such test" in capsys.readouterr().out
    assert verdict({"module.test_text": "passed"}, is_partial=True).get("failed") == 0


def test_tests_of_one_name_are_told_apart(tmp_path):
    report = tmp_path / "report.xml"
    report.write_text("<testsuites><testsuite>"
                      "<testcase classname='m' name='a'/><testcase classname='m' name='a'><failure/></testcase>"
                      "<testcase classname='m' name='b'><skipped/></testcase>"
                      "<testcase classname='m' name='c'><error/></testcase></testsuite></testsuites>")
    assert dict(outcomes_of(report)) == {"m.a": "passed", "m.a #2": "failed", "m.b": "skipped", "m.c": "failed"}


def test_a_suites_new_files_are_noticed(tmp_path):
    judge = JUDGES["llama.cpp"]._replace(tests=("unit/test_a.py",))
    (tmp_path / "unit").mkdir()
    for name in ("test_a.py", "test_b.py"):
        (tmp_path / "unit" / name).touch()
    check_files("suite", judge, tmp_path, {"left_out": [{"file": "unit/test_b.py", "reason": "..."}]})
    with pytest.raises(SystemExit, match="suite: deviations.yaml and the suite differ in unit/test_b.py"):
        check_files("suite", judge, tmp_path, {"left_out": [{"file": "unit/test_c.py", "reason": "..."}]})


def test_every_deviation_has_a_reason_and_a_judge():
    listed = yaml.safe_load((HERE / "deviations.yaml").read_text(encoding="utf-8"))
    assert set(listed) <= set(JUDGES)
    for judge in listed.values():
        for entry in [entry for entries in judge.values() for entry in entries]:
            assert len(entry["reason"]) > 5, entry


@pytest.mark.parametrize("name", sorted({judge.environment for judge in JUDGES.values()}))
def test_environments_are_pinned(name):
    lines = (HERE / f"requirements-{name}.txt").read_text(encoding="utf-8").splitlines()
    assert lines and all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
