"""A classifier as it is trained gives the logits that its file gives when it is loaded again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tolerances import close

from advcam_fast.errors import UsageError
from advcam_fast.models import load_model, new_classifier

NAMES = ("cat", "dog", "owl")


@pytest.mark.parametrize("name", ["efficientnet_lite0", "squeezenet1_1", "resnet50_stride16", "vgg16", "resnet18"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_its_file_is_what_load_model_reads(tmp_path: Path, name: str, activation: str) -> None:
    if name in ("vgg16", "resnet50_stride16") and activation == "softmax":
        pytest.skip("one large network is enough")
    torch.manual_seed(0)
    net = new_classifier(name, "none", NAMES).eval()
    assert not net.kept_head and net.head.weight.shape[:2] == (3, net.head.weight.shape[1])
    file = tmp_path / "net.safetensors"
    save_file(net.network.state_dict(), file, net.metadata(NAMES, activation))
    model = load_model(name, file)
    assert (model.class_names, model.activation) == (NAMES, activation)
    images = torch.randint(256, (2, 3, 64, 70), dtype=torch.uint8)
    with torch.no_grad():
        logits = net(model.normalise(images))
    close(logits.softmax(1) if activation == "softmax" else logits.sigmoid(), model.predict(images))
    again = new_classifier(name, file, NAMES)
    assert again.kept_head
    assert all(torch.equal(value, again.network.state_dict()[key]) for key, value in net.network.state_dict().items())


def test_the_head_is_kept_for_the_same_classes_only(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = new_classifier("squeezenet1_1", "none", NAMES)
    file, nameless = tmp_path / "net.safetensors", tmp_path / "nameless.safetensors"
    save_file(net.network.state_dict(), file, net.metadata(NAMES, "sigmoid"))
    save_file(net.network.state_dict(), nameless)
    body, head = "features.0.weight", "classifier.1.weight"
    for source, names in ((file, NAMES[::-1]), (file, NAMES[:2]), (nameless, NAMES)):
        other = new_classifier("squeezenet1_1", source, names)
        found = other.network.state_dict()
        assert not other.kept_head and len(found[head]) == len(names)
        assert torch.equal(found[body], net.network.state_dict()[body])
        assert not torch.equal(found[head], net.network.state_dict()[head][: len(names)])


def test_stages_that_can_be_frozen() -> None:
    net = new_classifier("resnet18", "none", NAMES)
    assert net.first_stages(0) == [] and net.first_stages(5) == [net.features]
    keys = {key for stage in net.first_stages(3) for key in map(id, stage.parameters())}
    frozen = {key.split(".")[0] for key, value in net.network.named_parameters() if id(value) in keys}
    assert frozen == {"conv1", "bn1", "layer1", "layer2"}
    with pytest.raises(UsageError, match="squeezenet1_1: its five stages are not known"):
        new_classifier("squeezenet1_1", "none", NAMES).first_stages(3)


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="resnet18: no class names came"):
        new_classifier("resnet18", "none")
    with pytest.raises(UsageError, match="unknown model 'resnet19'; did you mean"):
        new_classifier("resnet19", "none", NAMES)
    net = new_classifier("squeezenet1_1", "none", NAMES)
    file = tmp_path / "net.safetensors"
    said = {"class_names": json.dumps(NAMES), "activation": "argmax"}
    save_file(net.network.state_dict(), file, said)
    with pytest.raises(UsageError, match=r"activation is 'argmax'; wanted 'softmax' or 'sigmoid'"):
        load_model("squeezenet1_1", file)
