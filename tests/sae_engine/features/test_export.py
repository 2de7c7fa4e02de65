"""Exported features agree with the index, in every format."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pyarrow.parquet as pq
import pytest

from sae_engine.errors import UserError
from sae_engine.features.export.html import export_html
from sae_engine.features.export.neuronpedia import export_jsonl, export_neuronpedia
from sae_engine.features.export.parquet import export_parquet
from sae_engine.features.export.source import ExportSource
from sae_engine.features.export.write import check_room, export_features
from sae_engine.presets import resolve_config
from sae_engine.schema.exports import EXPORT_FORMATS, ExportFormat
from sae_engine.schema.features import Context
from tests.sae_engine.features.export_case import BY_MODEL, BY_PERSON, D_SAE, label, source
from tests.sae_engine.features.index_reference import BOTH_TOKENIZERS, built, case_of_rows


def lines(path: Path) -> list[dict[str, Any]]:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in text.decode().splitlines()]


def contexts_of(made: ExportSource, index: int) -> list[tuple[Context, tuple[float, ...] | None]]:
    """All contexts in the index, and the bounds of the interval that each belongs to."""
    detail = made.index.feature(index)
    found: list[tuple[Context, tuple[float, ...] | None]] = [(c, None) for c in detail.contexts]
    for interval in detail.intervals:
        bounds = (interval.low, interval.high, interval.share)
        found += [(context, bounds) for context in interval.contexts]
    return found


def test_a_json_line_agrees_with_the_index(tmp_path: Path):
    made, _ = source(tmp_path, label(2, "second", BY_MODEL))
    export_jsonl(made, tmp_path)
    rows = {int(row["index"]): row for row in lines(tmp_path / "features.jsonl")}
    assert sorted(rows) == made.chosen
    for index, row in rows.items():
        detail = made.index.feature(index)
        assert (row["modelId"], row["layer"]) == ("tiny-gemma2", "3-a-run-abc123")
        assert row["hookName"] == "blocks.3.hook_resid_post"
        assert row["frac_nonzero"] == detail.density.fraction
        assert row["maxActApprox"] == detail.max_activation
        assert row["freq_hist_data_bar_heights"] == detail.histogram.counts
        assert len(row["freq_hist_data_bar_values"]) == len(detail.histogram.counts)
        assert detail.logits is not None
        assert row["pos_str"] == [logit.text for logit in detail.logits.positive]
        assert row["neg_values"] == [logit.value for logit in detail.logits.negative]
        assert row["topkCosSimIndices"] == [near.index for near in detail.neighbours or []]
        for given, (context, bounds) in zip(
            row["activations"], contexts_of(made, index), strict=True
        ):
            assert (given["tokens"], given["values"]) == (context.tokens, context.activations)
            assert given["qualifyingTokenIndex"] == context.peak
            assert given["values"][given["maxValueTokenIndex"]] == max(context.activations)
            wanted = bounds or (-1.0, detail.max_activation, -1.0)
            assert (given["binMin"], given["binMax"], given["binContains"]) == wanted
    (explanation,) = rows[2]["explanations"]
    assert explanation["description"] == "second"
    assert explanation["explanationModelName"] == "some-model"
    assert explanation["scores"][0]["value"] == 0.7


def test_the_neuronpedia_folder_has_the_rows_of_the_json_lines_in_batches(tmp_path: Path):
    made, _ = source(tmp_path, label(2, "second", BY_MODEL), label(3, "", BY_PERSON))
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    export_jsonl(made, tmp_path / "one")
    export_neuronpedia(made, tmp_path / "other")
    rows = lines(tmp_path / "one/features.jsonl")

    def batched(kind: str) -> list[dict[str, Any]]:
        files = sorted((tmp_path / "other" / kind).iterdir())
        return [row for file in files for row in lines(file)]

    parts = ("activations", "explanations")
    for kind in parts:
        assert batched(kind) == [part for row in rows for part in row[kind]]
    plain = [{name: v for name, v in row.items() if name not in parts} for row in rows]
    assert batched("features") == plain
    assert len({row["id"] for row in batched("activations")}) == len(batched("activations"))
    (described,) = lines(tmp_path / "other/source.jsonl")
    assert described["id"] == rows[0]["layer"]
    assert "never fired" in described["notes"]


def test_the_parquet_contexts_agree_with_the_index(tmp_path: Path):
    made, _ = source(tmp_path, label(2, "second", BY_MODEL))
    export_parquet(made, tmp_path)
    table = pd.read_parquet(tmp_path / "contexts.parquet")
    for index in made.chosen:
        rows = table[table.feature == index].to_dict("records")
        for row, (context, bounds) in zip(rows, contexts_of(made, index), strict=True):
            assert row["tokens"].tolist() == context.tokens
            assert row["activations"].tolist() == context.activations
            assert (row["peak"], row["copies"]) == (context.peak, context.copies)
            if bounds is None:
                assert pd.isna(row["interval_low"])
            else:
                assert (row["interval_low"], row["interval_high"], row["interval_share"]) == bounds
    features = pd.read_parquet(tmp_path / "features.parquet").set_index("feature")
    assert features.index.tolist() == made.chosen
    assert features.loc[2, ["label", "label_author", "label_recall"]].tolist() == [
        "second",
        "model",
        0.5,
    ]


def test_the_parquet_token_statistics_agree_with_brute_force(tmp_path: Path):
    made, case = source(tmp_path)
    export_parquet(made, tmp_path, pairs_per_group=50)
    path = tmp_path / "token_statistics.parquet"
    table = pd.read_parquet(path)
    found = {(row["feature"], row["token_id"]): row for row in table.to_dict("records")}
    wanted = {
        (latent, token): numbers
        for latent in range(D_SAE)
        for token, numbers in case.token_statistics(latent).items()
    }
    assert set(found) == set(wanted)
    assert len(wanted) > 100
    for pair, numbers in wanted.items():
        assert {name: found[pair][name] for name in numbers} == pytest.approx(numbers)
    groups = pq.ParquetFile(path).metadata
    assert max(groups.row_group(n).num_rows for n in range(groups.num_row_groups)) <= 50


def read_data(folder: Path, name: str) -> Any:
    """The value in a data file of the static pages."""
    text = (folder / "data" / f"{name}.js").read_text("utf-8")
    start = f'wb.put("{name}",'
    assert text.startswith(start)
    return json.loads(text.removeprefix(start).removesuffix(");\n"))


def unpacked(stored: list[Any], texts: list[str]) -> tuple[list[str], list[float], int]:
    numbers, active, peak = stored[:3]
    activations = [0.0] * len(numbers)
    for place, activation in zip(active[::2], active[1::2], strict=True):
        activations[place] = activation
    return [texts[number] for number in numbers], activations, peak


def test_the_static_pages_agree_with_the_index(tmp_path: Path):
    made, case = source(tmp_path, label(2, "second", BY_MODEL))
    export_html(made, tmp_path)
    listed = read_data(tmp_path, "list")
    assert listed["index"] == made.chosen
    assert listed["fired"] == [case.fired(latent) for latent in made.chosen]
    assert listed["label"][made.chosen.index(2)] == "second"
    assert listed["starred"] == [2]
    assert listed["name"] == [feature.name or "" for feature in made.features()]
    chunk = read_data(tmp_path, "features-0")
    for index in made.chosen:
        page = chunk["features"][str(index)]
        stored = [*page["contexts"], *(c for interval in page["intervals"] for c in interval[3])]
        for one, (context, _) in zip(stored, contexts_of(made, index), strict=True):
            tokens, activations, peak = unpacked(one, chunk["texts"])
            assert (tokens, peak) == (context.tokens, context.peak)
            assert activations == pytest.approx(context.activations, rel=1e-3)


def test_a_lookup_in_the_static_pages_agrees_with_the_index(tmp_path: Path):
    made, _ = source(tmp_path)
    export_html(made, tmp_path)
    tokens, groups = read_data(tmp_path, "tokens"), read_data(tmp_path, "lookup-0")
    assert len(tokens["texts"]) > 10
    for text, count, (members, features) in zip(
        tokens["texts"], tokens["counts"], groups, strict=True
    ):
        asked = made.index.lookup(text, match="fold", min_count=1, limit=30)
        assert count == asked.count
        occurring = [[token.text, token.count] for token in asked.tokens if token.count]
        assert members == occurring
        assert [f[:2] for f in features] == [[f.index, f.count] for f in asked.features]
        means = [f.mean_activation for f in asked.features]
        assert [f[2] for f in features] == pytest.approx(means, rel=1e-3)


def test_dead_features_are_exported_only_on_request(tmp_path: Path):
    without, case = source(tmp_path / "a")
    dead = [latent for latent in range(D_SAE) if not case.fired(latent)]
    assert dead
    assert without.chosen == [latent for latent in range(D_SAE) if case.fired(latent)]
    assert without.left_out.startswith(f"{len(dead)} of 30 features never fired")
    everything, _ = source(tmp_path / "b", include_dead=True)
    assert everything.left_out == ""
    export_jsonl(everything, tmp_path)
    assert [int(row["index"]) for row in lines(tmp_path / "features.jsonl")] == list(range(D_SAE))
    (tmp_path / "html").mkdir()
    export_html(everything, tmp_path / "html")
    assert read_data(tmp_path / "html", "list")["index"] == list(range(D_SAE))


def test_every_format_is_in_the_table() -> None:
    assert tuple(EXPORT_FORMATS) == get_args(ExportFormat)


@pytest.mark.parametrize("format", [f for f, info in EXPORT_FORMATS.items() if info.writer])
def test_every_format_is_exported_completely_into_a_new_folder_or_not_at_all(
    tmp_path: Path, format: ExportFormat
):
    made, _ = source(tmp_path)
    target = tmp_path / "out"
    export_features(made, format, target)
    before = sorted(target.rglob("*"))
    assert len(before) > 0
    with pytest.raises(UserError, match="already exists"):
        export_features(made, format, target)
    assert sorted(target.rglob("*")) == before
    broken = _Broken(made.index, made.run_id, made.run_name, made.config, made.labels)
    with pytest.raises(ZeroDivisionError):
        export_features(broken, format, tmp_path / "broken")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


class _Broken(ExportSource):
    """An index that cannot be read to its end."""

    def features(self):
        yield from list(super().features())[:3]
        raise ZeroDivisionError


def test_an_export_larger_than_the_free_disk_space_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"may take 1000000000\.0 GB, .* free some space"):
        check_room(tmp_path / "not" / "there", 10**18)


@pytest.mark.parametrize("make_tokenizer", BOTH_TOKENIZERS)
def test_each_token_of_only_spaces_is_a_group(tmp_path: Path, make_tokenizer: Any):
    tokenizer = make_tokenizer()
    texts = {t: i for t, i in tokenizer.get_vocab().items() if t in ("Ġ", "▁", "▁▁")}
    row = [*texts.values(), 70, 71, 70]
    case = case_of_rows([row], lambda n: {n % 2: 1.0 + n}, 2)
    index = built(tmp_path / "run", case, tokenizer=tokenizer)
    config = resolve_config("quick-test", {})
    export_html(ExportSource(index, "a", "a", config, {}), tmp_path)
    spaces = [text for text in read_data(tmp_path, "tokens")["texts"] if not text.strip(" ")]
    assert spaces == sorted(" " * len(text.replace("Ġ", "▁")) for text in texts)
    for text in spaces:
        assert index.lookup(text).count == 1
