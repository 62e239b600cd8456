import dataclasses

import pytest

from advcam_fast import ClimbConfig, UsageError
from advcam_fast.climb import PRESETS


def test_the_papers_preset_is_the_papers():
    config = ClimbConfig.preset("voc-cvpr2021")
    assert (config.steps, config.step_size, config.suppression, config.mask_threshold) == (27, 0.08, 7.0, 0.5)
    assert config.scales == (0.5, 1.0, 1.5, 2.0)
    assert [config.steps_for(scale) for scale in config.scales] == [13, 27, 27, 27]
    assert (config.flip, config.score, config.other_classes) == (True, "relu_mean", "all")
    assert dataclasses.replace(config, steps=3).steps == 3
    assert dataclasses.replace(config, scales=(1.0, 2.0)).steps_for(2.0) == 27


def test_wrong_types_are_named():
    with pytest.raises(UsageError, match="wanted is whole numbers"):
        ClimbConfig(steps=2.5)
    with pytest.raises(UsageError, match=r"base_side: 2\.5 came"):
        ClimbConfig(base_side=2.5)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_written_down(name):
    config = ClimbConfig.preset(name)
    values = config.as_dict()
    values["scales"] = tuple(values["scales"])
    values["steps_at_scale"] = {float(scale): steps for scale, steps in values["steps_at_scale"].items()}
    assert ClimbConfig(**values) == config


def test_settings_from_text():
    config = ClimbConfig().with_settings(
        ["steps=10", "step_size=.1", "scales=1,1.5", "flip=false", "score=mean", "other_classes=none", "dtype=bf16"]
    )
    assert (config.steps, config.step_size, config.scales, config.flip) == (10, 0.1, (1.0, 1.5), False)
    assert (config.score, config.other_classes, config.dtype, config.steps_for(1.0)) == ("mean", "none", "bf16", 10)
    assert ClimbConfig().with_settings(["steps_at_scale=0.5:3,2:4"]).steps_at_scale == {0.5: 3, 2.0: 4}


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("steps", "wanted is KEY=VALUE"),
        ("speed=3", "with a key of steps, step_size"),
        ("steps=0", r"steps: \[0, 13\] came, wanted is whole numbers >= 1"),
        ("steps=2.5", "no value for steps"),
        ("steps=many", "no value for steps"),
        ("step_size=-1", "step_size: -1.0 came"),
        ("step_size=NaN", "step_size: nan came"),
        ("step_size=inf", "step_size: inf came"),
        ("momentum=1.5", "momentum: 1.5 came, wanted is a number from 0 to 1"),
        ("momentum=-0.1", "momentum: -0.1 came"),
        ("suppression=lots", "no value for suppression"),
        ("scales=", "no value for scales"),
        ("scales=1,1", "each scale once"),
        ("scales=1,-2", "scales > 0"),
        ("steps_at_scale=3:4", r"steps_at_scale: 3 came, wanted is one of the scales \(0\.5, 1\.0"),
        ("steps_at_scale=1:0", "whole numbers >= 1"),
        ("mask_threshold=1.5", "0 to 1"),
        ("base_side=-4", "base_side: -4 came"),
        ("flip=1", "no value for flip"),
        ("score=loud", "relu_mean or mean"),
        ("other_classes=some", "all, present or none"),
        ("dtype=fp8", "fp32 or fp64 or bf16"),
    ],
)
def test_bad_settings_are_named(setting, text):
    with pytest.raises(UsageError, match=text):
        ClimbConfig().with_settings([setting])


def test_unknown_preset_names_the_presets():
    with pytest.raises(
        UsageError, match=r"no preset 'voc-cvpr2020', there are voc-cvpr2021.*did you mean voc-cvpr2021"
    ):
        ClimbConfig.preset("voc-cvpr2020")
