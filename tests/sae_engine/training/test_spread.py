"""A sweep whose steps are taken by processes equals its lone twins, and a lost process loses
nothing. `test_train_together` has more, with threads for processes.
"""

from __future__ import annotations

import json
import os
import signal
from multiprocessing import active_children

import pytest
import torch
from safetensors.torch import load_file

from sae_engine.activations.processes import Helper, LostHelperError
from sae_engine.files import RunFolder
from sae_engine.schema.records import EndRecord, MetricsRecord
from sae_engine.training import loop, spread
from sae_engine.training.loop import train, train_together
from sae_engine.training.member import Member
from tests.sae_engine.training.test_loop import collected, config_of, losses
from tests.sae_engine.training.test_train_together import HelperInThread

pytestmark = pytest.mark.usefixtures("small_blocks")


def test_a_sweep_loses_a_process_and_goes_on_with_another_number(
    model_folders, tmp_path, monkeypatch
):
    """Checkpoints too are those of runs that were trained alone and never interrupted."""
    configs = [
        config_of(
            model_folders["gemma2"],
            sae=sae,
            data={"max_norm_multiple": 1.2},  # so small that there are outliers
            train={"snapshot_every": None},
        )
        for sae in ({}, {"d_sae": 96}, {"k": 2})
    ]
    folders = [RunFolder(tmp_path / str(number)) for number in range(3)]
    curves: list[dict[int, float]] = [{}, {}, {}]
    ends: list[EndRecord] = []

    def trained(num_others: int, *, kill: bool) -> None:
        monkeypatch.setattr(loop, "reader_devices", lambda config, own: ["cpu"] * num_others)
        members = [
            Member(config, folder, resume=not kill)
            for config, folder in zip(configs, folders, strict=True)
        ]
        for number, record in train_together(members):
            if isinstance(record, MetricsRecord) and "loss" in record.values:
                curves[number][record.step] = record.values["loss"]
                if kill and record.step == 9:
                    for child in active_children():
                        os.kill(child.pid or 0, signal.SIGKILL)
            if isinstance(record, EndRecord):
                ends.append(record)

    with pytest.raises(LostHelperError, match=r"^The SAE trainer on cpu ended \(exit code -9\)"):
        trained(1, kill=True)
    assert active_children() == []
    monkeypatch.setattr(spread, "Helper", HelperInThread)
    trained(2, kill=False)
    assert ends == [EndRecord(reason="finished", step=24, tokens=24 * 64)] * 3

    for config, folder, curve in zip(configs, folders, curves, strict=True):
        alone = RunFolder(tmp_path / f"alone {folder.path.name}")
        records = collected(train(config, alone))
        assert curve == losses(records)
        assert max(r.values.get("outlier_tokens", 0) for r in records if r.kind == "metrics") > 9
        for mine, theirs in ((folder.sae, alone.sae), (folder.checkpoint, alone.checkpoint)):
            own, twins = load_file(mine), load_file(theirs)
            assert own.keys() == twins.keys()
            assert all(torch.equal(own[name], twins[name]) for name in own)


def test_a_process_that_fails_says_why_in_one_sentence():
    helper = Helper("SAE trainer", "cpu", json.loads)  # which does not take a pipe
    try:
        with pytest.raises(LostHelperError) as raised:
            helper.receive()
    finally:
        helper.close()
    assert str(raised.value).startswith("The SAE trainer on cpu failed: TypeError: the JSON object")
