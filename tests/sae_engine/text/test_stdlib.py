from sae_engine.text.stdlib import is_heldout, named_documents, stdlib_documents


def test_the_splits_are_disjoint_and_about_an_eighth_is_held_out():
    train, heldout = stdlib_documents("train"), stdlib_documents("heldout")
    assert not set(train) & set(heldout)
    assert 0.06 < sum(map(len, heldout)) / sum(map(len, train)) < 0.25


def test_the_order_is_fixed():
    first = named_documents()
    named_documents.cache_clear()
    again = named_documents()
    assert again is not first
    assert again == first


def test_changing_the_list_of_documents_changes_no_later_one():
    documents = stdlib_documents("heldout")
    num_documents = len(documents)
    documents.clear()
    assert len(stdlib_documents("heldout")) == num_documents


def test_tests_and_data_tables_are_left_out():
    text = "\n".join(stdlib_documents("train") + stdlib_documents("heldout"))
    assert text.count("SMALL LETTER") < 50
    assert "class TestCase" in text  # unittest itself is library code
    assert text.count("def test_") < 50  # the test suite alone has tens of thousands
    assert "Truth Value Testing" in text  # the language reference's topics


def test_the_split_depends_only_on_the_name():
    assert is_heldout("enum.py")
    assert not is_heldout("typing.py")
