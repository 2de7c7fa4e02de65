"""The package's public names are there, and importing the package loads no PyTorch."""

from __future__ import annotations

import subprocess
import sys

import pytest

import sae_engine
from tests.house.repository import ROOT


def test_public_names_are_those_of_their_modules():
    from sae_engine.files import RunFolder
    from sae_engine.presets import resolve_config
    from sae_engine.sae.autoencoders import TopKSAE
    from sae_engine.training.loop import train

    for public in (RunFolder, resolve_config, TopKSAE, train):
        assert getattr(sae_engine, public.__name__) is public
        assert public.__name__ in sae_engine.__all__
        assert public.__name__ in dir(sae_engine)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        sae_engine.trian  # noqa: B018


def test_importing_the_package_and_its_torch_free_names_loads_no_torch():
    code = (
        "import sys, sae_engine\n"
        "from sae_engine import RunFolder, resolve_config\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr
