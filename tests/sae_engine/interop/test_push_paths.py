"""A push replaces the files of an SAE pushed before, and nothing else."""

import pytest

from sae_engine.errors import UserError
from sae_engine.hub import HubName
from sae_engine.interop.push import CARD, SAE, _require_free


@pytest.mark.parametrize("path", ["", "l3", "gpt2-saelens/l3", "saelens", "a/saelens/b"])
def test_only_a_folder_with_an_sae_may_be_replaced(path: str):
    target = HubName.parse(f"hub:me/saes/{path}".rstrip("/"))
    paths = [f"{path}/{name}".lstrip("/") for name in (CARD, SAE, f"saelens/{SAE}")]
    _require_free(target, paths, [])
    _require_free(target, paths, paths)
    with pytest.raises(UserError, match="of something else already"):
        _require_free(target, paths, [paths[0], paths[2]])
