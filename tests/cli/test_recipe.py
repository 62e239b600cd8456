"""run: a chain of verbs that is killed and goes on."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import FAST, Command, Ended, finished, map_files, save_list, wait_for

from advcam_fast.errors import UsageError
from advcam_fast.pipelines.recipe import Step, read_recipe

STEPS = """
[[step]]
verb = "label"
{}
out = "{{out}}/run"
[[step]]
verb = "refine"
name = "masks"
run = "{{out}}/run"
"""


@pytest.fixture
def recipe(network: Path, tmp_path: Path) -> Path:
    save_list(tmp_path / "photos", [(f"{i}.png", "cat") for i in range(60)])
    options = {"data": "csv:{recipe}/photos/labels.csv", "model": "squeezenet1_1", "weights": str(network)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in options.items()]
    file = tmp_path / "recipe.toml"
    file.write_text(STEPS.format("\n".join([*lines, 'preset = "cam"', f"set = {json.dumps(FAST[1::2])}"])))
    return file


def test_a_chain_that_is_stopped_goes_on_and_leaves_out_what_is_done(
    run: Callable[..., Ended], recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "chain"
    command = Command("run", recipe, "--out", out, folder=tmp_path / "printed")
    wait_for(out / "run", 3)
    command.send(signal.SIGKILL)
    command.end()
    ended = run("run", recipe, "--out", out, "--json")
    while ended.code == 2 and "another process is writing here" in ended.err:  # the step's own process, not killed yet
        ended = run("run", recipe, "--out", out, "--json")
    assert ended.code == 0, ended.err
    label, masks = ended.json()
    assert (label["step"], label["summary"]["ok"], label["images"]) == ("label", 60, "60 of 60")
    assert (masks["step"], masks["summary"]["ok"]) == ("masks", 60)
    assert len(map_files(out / "run")) == 60 and len(list((out / "run" / "masks").glob("*.png"))) == 60
    before = finished(out / "run")

    again = run("run", recipe, "--out", out)
    assert again.code == 0 and "step 1" not in again.err
    assert all(word in again.err for word in ("label", "masks", "seconds", "figures", "60 of 60"))

    (tmp_path / "photos" / "0.png").unlink()
    recipe.write_text(recipe.read_text().replace('name = "masks"', 'preset = "crf"\nout = "{out}/crf"'))
    changed = run("run", recipe, "--out", out)
    assert changed.code == 3, "of the step that found an image missing"
    assert "step 1" not in changed.err and "step 2 of 2: refine" in changed.err
    assert finished(out / "run") == before


def test_a_step_that_ends_badly_ends_the_chain(run: Callable[..., Ended], recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(recipe.read_text().replace('"cam"', '"camm"'))
    ended = run("run", recipe, "--out", tmp_path / "chain")
    assert ended.code == 2
    assert "did you mean cam?" in ended.err
    assert "step 1, label, ended with code 2" in ended.err and "step 2 of" not in ended.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("step = []\npaths = 3", "wanted are [[step]] tables"),
        ("[[step]]\nverb = 'label'\ndata = 'voc:{data}'", "step 1: data has {data}, there are {out}, {recipe}"),
        ("a = 1", "wanted are [[step]] tables"),
        ("", "wanted are [[step]] tables"),
        ("[step]\nverb = 'label'", "wanted are [[step]] tables"),
        ("[[step]]\nverb = 'lable'", "step 1: verb 'lable', wanted is one of label, refine"),
        ("[[step]]\nverb = 'label'\nset = {steps = 1}", "step 1: set = {'steps': 1}, wanted is a text"),
        ("[[step]", "recipe.toml: "),
    ],
)
def test_what_is_no_recipe(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(UsageError) as refused:
        read_recipe(tmp_path / "recipe.toml", tmp_path, ["label", "refine"])
    assert said in str(refused.value)


def test_options_of_every_kind(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(
        '[[step]]\nverb = "label"\nfull = true\nretry_failed = false\ntop_k = 2\nset = ["a=1", "b=2"]\nout = "{out}/x"'
    )
    wanted = ("label", "--full", "--top-k", "2", "--set", "a=1", "--set", "b=2", "--out", f"{tmp_path}/o/x")
    assert read_recipe(file, tmp_path / "o", ["label"]) == [Step("label", wanted)]


PATHS = """
[paths]
data = "the folder of photos"
[[step]]
name = "maps"
verb = "label"
data = "folder:{data}"
top_k = 2
full = true
set = ["a=1"]
out = "{out}/run"
"""


def test_paths_and_changes_of_a_step(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(PATHS)
    settings = [f"data={tmp_path}", "maps.top-k=5", "maps.set=b=2", "maps.full=false", "maps.device=cuda:1"]
    wanted = ("label", "--data", f"folder:{tmp_path}", "--top-k", "5", "--set", "a=1", "--set", "b=2")
    wanted += ("--out", f"{tmp_path}/o/run", "--device", "cuda:1")
    assert read_recipe(file, tmp_path / "o", ["label"], settings) == [Step("maps", wanted)]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ((), "recipe.toml needs data: the folder of photos; add --set data=PATH"),
        (("data=nowhere",), "--set data=nowhere: nothing is there; wanted is the folder of photos"),
        (("data=.", "images=."), "--set images=...: "),
        (("data=.", "mapz.top_k=3"), "has no step 'mapz', there are maps"),
        (("data",), "--set 'data': wanted is NAME=PATH or STEP.OPTION=VALUE"),
        (("data=.", "maps.top_kk=3"), "step 1, maps: No such option: --top-kk"),
        (("data=.", "maps.top_k=many"), "step 1, maps: Invalid value for '--top-k'"),
        (("data=.",), "step 1, maps: Missing option '--model'"),
    ],
)
def test_what_is_wrong_is_said_before_the_first_step(
    run: Callable[..., Ended], tmp_path: Path, settings: tuple[str, ...], said: str
) -> None:
    (tmp_path / "recipe.toml").write_text(PATHS)
    given = [part for setting in settings for part in ("--set", setting)]
    ended = run("run", tmp_path / "recipe.toml", "--out", tmp_path / "out", *given)
    assert ended.code == 2 and said in ended.error
    assert not (tmp_path / "out").exists()


def test_the_commands_of_a_recipe(run: Callable[..., Ended], tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(PATHS)
    given = ("--set", "data=.", "--set", "maps.model=squeezenet1_1", "--check")
    ended = run("run", tmp_path / "recipe.toml", "--out", "a b", *given)
    said = "advcam-fast label --data folder:. --top-k 2 --full --set a=1 --out 'a b/run' --model squeezenet1_1\n"
    assert (ended.code, ended.out) == (0, said)
