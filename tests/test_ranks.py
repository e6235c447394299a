"""The device: the one that was asked for or an error, never a silent other one."""

from __future__ import annotations

import json

import pytest
import torch

from hornbook.errors import UserError
from hornbook.ranks import DEVICES, choose_device, identity, processor

PRESENT = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}


@pytest.mark.parametrize("name", sorted(PRESENT))
def test_a_device_is_given_or_refused(name: str) -> None:
    if PRESENT[name]:
        assert torch.zeros(2, device=choose_device(name)).device.type == name
    else:
        with pytest.raises(UserError) as caught:
            choose_device(name)
        says = str(caught.value)
        assert all(part in says for part in (f"device {name!r} is not there", "--device", "cpu", "Fix:   use --device auto"))


def test_auto_is_the_first_that_is_there() -> None:
    assert choose_device("auto").type == next(name for name in DEVICES[1:] if PRESENT[name])


@pytest.mark.parametrize(
    ("name", "near"), [("cuad", "'cuda'"), ("CPU", "cpu"), ("mp", "'mps'"), ("", "auto"), ("cuda:0", "'cuda'")]
)
def test_an_unknown_device_names_the_near_one(name: str, near: str) -> None:
    with pytest.raises(UserError, match="device must be one of auto, cuda, mps, cpu") as caught:
        choose_device(name)
    assert repr(name) in str(caught.value) and near in str(caught.value).partition("Fix:")[2]


def test_what_weights_depend_on_is_named_and_can_be_stored() -> None:
    found = json.loads(json.dumps(identity(torch.device("cpu"))))
    assert found["torch"] == torch.__version__ and found["threads"] == torch.get_num_threads() and found["device"] == "cpu"
    assert found["processor"] == processor() and found == identity(torch.device("cpu"))
