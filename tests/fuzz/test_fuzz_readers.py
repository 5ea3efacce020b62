"""Every seed of the fuzzer, and every input that it has found, keeps the contract that `fuzz_readers` tells of."""
import pytest

from fuzz import fuzz_readers
from fuzz.fuzz_readers import SEEDS, TARGETS, WORDS, check, main, seeds_of

FOUND = [pytest.param(target, path, id=f"{target}-{path.name}") for target in TARGETS for path in seeds_of(target)]


@pytest.mark.parametrize("target, path", FOUND)
def test_what_was_found_is_answered_or_refused_in_one_line(target, path):
    check(target, path.read_bytes())


def test_every_target_has_seeds_and_words_and_no_seed_is_large():
    assert WORDS.keys() == TARGETS.keys() == {folder.name for folder in SEEDS.iterdir() if folder.is_dir()}
    assert all(seeds_of(target) for target in TARGETS)
    assert max(path.stat().st_size for path in SEEDS.rglob("*")) < 5000


@pytest.mark.parametrize("error", [KeyError("x"), RecursionError(), AttributeError("y"), ValueError("two\nlines"),
                                   OSError("\x1b[31mred")])
def test_what_breaks_the_contract_is_seen(monkeypatch, error):
    def target(folder, data):
        raise error

    monkeypatch.setitem(fuzz_readers.TARGETS, "index", target)
    with pytest.raises((type(error), AssertionError)):
        check("index", b"")


def test_inputs_are_replayed_one_by_one(tmp_path):
    (tmp_path / "x").write_bytes(b"{}")
    assert main(["index", "--replay", str(tmp_path / "x"), str(seeds_of("index")[0])]) == 0
