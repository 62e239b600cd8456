"""RefineConfig: presets, changes by text, and what is out of range."""

import dataclasses

import pytest

from advcam_fast import UsageError
from advcam_fast.refine import REFINE_PRESETS, RefineConfig


def test_presets_by_name():
    assert RefineConfig.preset("color-walk") is REFINE_PRESETS["color-walk"]
    with pytest.raises(UsageError, match=r"no preset 'colour-walk', there are .*; did you mean color-walk"):
        RefineConfig.preset("colour-walk")


def test_changes_by_text():
    texts = [
        "power=1.5", "walk=color", "radius=3", "sigma=9", "beta=2", "walk_steps=0", "restart=0.1",
        "background=0.3", "crf=soft", "crf_confidence=0.9", "crf_steps=5", "crf_gaussian=1,2", "crf_bilateral=4,5,6",
        "centroid_steps=7", "least_instance=0.5",
    ]  # fmt: skip
    changed = RefineConfig().with_settings(texts)
    numbers = (3, 9.0, 2.0, 0, 0.1, 0.3)
    assert changed == RefineConfig(1.5, "color", *numbers, "soft", 0.9, 5, (1.0, 2.0), (4.0, 5.0, 6.0), 7, 0.5)
    assert {text.split("=")[0] for text in texts} == {field.name for field in dataclasses.fields(RefineConfig)}
    assert set(changed.as_dict()) == {field.name for field in dataclasses.fields(RefineConfig)}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("power=0", "power: 0.0 came, wanted is a number > 0"),
        ("power=nan", "power: nan came"),
        ("walk=colour", "walk: colour came, wanted is color, boundary or none"),
        ("radius=65", "radius: 65 came, wanted is 1 to 64"),
        ("radius=2.5", "--set radius=2.5: that is no value for radius"),
        ("sigma=-1", "sigma: -1.0 came"),
        ("beta=0", "beta: 0.0 came, wanted is a number > 0"),
        ("centroid_steps=-1", "centroid_steps: -1 came, wanted is a whole number >= 0"),
        ("least_instance=1.5", "least_instance: 1.5 came, wanted is a number from 0 to 1"),
        ("walk_steps=-1", "walk_steps: -1 came, wanted is a whole number >= 0"),
        ("restart=1.1", "restart: 1.1 came"),
        ("background=2", "background: 2.0 came, wanted is a number from 0 to 1"),
        ("crf=yes", "crf: yes came, wanted is none, hard or soft"),
        ("crf_confidence=0", "crf_confidence: 0.0 came"),
        ("crf_steps=-3", "crf_steps: -3 came"),
        ("crf_gaussian=3", r"crf_gaussian: \(3.0,\) came, wanted is 2 numbers > 0"),
        ("crf_bilateral=1,2,0", r"crf_bilateral: \(1.0, 2.0, 0.0\) came, wanted is 3 numbers > 0"),
        ("crf_bilateral=a,b,c", "--set crf_bilateral=a,b,c: that is no value"),
        ("colour=1", "--set 'colour=1': wanted is KEY=VALUE with a key of power, walk"),
        ("power", "--set 'power': wanted is KEY=VALUE"),
    ],
)
def test_what_is_out_of_range_is_named(text, wanted):
    with pytest.raises(UsageError, match=wanted):
        RefineConfig().with_settings([text])
