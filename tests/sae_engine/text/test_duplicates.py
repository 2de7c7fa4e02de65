"""Shared runs of words against sets of tuples."""

from hypothesis import given
from hypothesis import strategies as st

from sae_engine.text.duplicates import shared_fractions
from sae_engine.text.ngrams import RUN_LENGTH
from sae_engine.text.stdlib import MOST_SHARED, stdlib_documents

words = st.lists(st.sampled_from(["a", "b", "c"]), max_size=40).map(" ".join)


def runs(text: str) -> list[tuple[str, ...]]:
    found = text.split()
    return [tuple(found[n : n + RUN_LENGTH]) for n in range(len(found) - RUN_LENGTH + 1)]


@given(st.lists(words, max_size=4), st.lists(words, min_size=1, max_size=4))
def test_the_fraction_is_that_of_the_runs_in_a_set(documents: list[str], others: list[str]):
    known = {run for other in others for run in runs(other)}
    expected = [
        sum(run in known for run in runs(d)) / len(runs(d)) if runs(d) else 0.0 for d in documents
    ]
    assert shared_fractions(documents, others) == expected


def test_a_copy_is_found_however_its_lines_are_wrapped():
    text = " ".join(f"word{n}" for n in range(200))
    wrapped = text.replace(" word5", "\n    word5")
    half = text[: len(text) // 2] + " " + " ".join(f"other{n}" for n in range(100))
    reordered = " ".join(reversed(text.split()))
    found = shared_fractions([wrapped, half, reordered, "too short"], ["unrelated", text])
    assert found[0] == 1
    assert 0.4 < found[1] < 0.5
    assert found[2:] == [0, 0]


def test_held_out_library_text_hardly_repeats_training_text():
    train, heldout = stdlib_documents("train"), stdlib_documents("heldout")
    assert len(heldout) > 100
    assert max(shared_fractions(heldout, train)) <= MOST_SHARED

    def lines(documents: list[str]) -> list[str]:
        found = (line.strip() for d in documents for line in d.splitlines())
        return [line for line in found if len(line) >= 30]

    known = set(lines(train))
    repeated = [line in known for line in lines(heldout)]
    assert sum(repeated) / len(repeated) < 0.05  # 0.09 without the rule
