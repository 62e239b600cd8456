"""refine: the maps of a run in, masks out."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

import advcam_fast as af
from advcam_fast.cli.app import Data, Json, Retry, Run, Set, app
from advcam_fast.cli.console import report, with_progress
from advcam_fast.data import open_dataset
from advcam_fast.errors import UsageError
from advcam_fast.models import AffinityNet, load_affinity_net
from advcam_fast.pipelines import label as labelling
from advcam_fast.pipelines import refine as refining
from advcam_fast.refine import REFINE_PRESETS, RefineConfig
from advcam_fast.store import InstanceFolder, MaskFolder, RunFolder


@app.command(epilog="Example: advcam-fast refine --run run --preset color-walk")
def refine(
    run: Run,
    preset: Annotated[
        str | None, typer.Option(help=f"{', '.join(REFINE_PRESETS)}. Default: color-walk, irn with a net.")
    ] = None,
    walk: Annotated[
        str | None, typer.Option(help="color: by the image's own colours. FILE: by an affinity net's boundary. none.")
    ] = None,
    crf: Annotated[bool | None, typer.Option("--crf/--no-crf", help="With a dense CRF at the end, or without.")] = None,
    instances: Annotated[bool, typer.Option("--instances", help="Single objects too; needs --walk FILE.")] = False,
    set_: Set = None,
    data: Data = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="The folder of masks; by default RUN/masks.")] = None,
    retry_failed: Retry = False,
    as_json: Json = False,
) -> None:
    """Turn the maps of a run into palette masks, and instances. Stopped at any moment, the same command goes on."""
    file = None if walk in (None, "color", "none") else Path(str(walk))
    if file is not None and not file.is_file():
        raise UsageError(f"--walk {walk}: wanted is color, none or a file, the weights of an affinity net")
    preset = preset or ("color-walk" if file is None else "irn")
    chosen = [f"walk={walk if file is None else 'boundary'}"] if walk else []
    config = RefineConfig.preset(preset).with_settings([*chosen, *(set_ or [])])
    if crf is not None and crf != (config.crf != "none"):
        config = replace(config, crf="soft" if crf else "none")  # soft measured better than the method's hard labels
    if file is None and (instances or config.walk == "boundary"):
        what = "--instances" if instances else "a walk by the boundary"
        raise UsageError(f"{what} needs an affinity net: add --walk FILE, weights of train-affinity or of released IRN")
    source, run_on = RunFolder.read(run), labelling.device_of(device)
    dataset, where = open_dataset(refining.images_of(source, data)), out or run / "masks"
    net = None if file is None else load_affinity_net(file, run_on)
    facts = {"preset": preset, "data": dataset.spec, "device": str(run_on)}
    options: dict[str, Any] = {"retry_failed": retry_failed, "info": facts, "net": net}
    beside = refining.instances_beside(where)
    with ExitStack() as opened:
        masks, classes = opened.enter_context(open_masks(source, where, config, **options))
        objects = opened.enter_context(_open_instances(source, beside, config, **options)) if instances else None

        def work(advance: Any) -> None:
            refining.refine_run(
                source, dataset, masks, classes, config, advance, net=net, instances=objects, device=run_on
            )

        behind = min([masks, *([] if objects is None else [objects])], key=lambda folder: len(folder.done_ids()))
        summary = with_progress("refining", behind, sum(source.counts().values()), work, as_json)
        if objects is not None and not summary["interrupted"]:
            summary["coco"] = str(beside.with_suffix(".json"))
            names = {item.id: item.path.name for item in dataset.items}
            summary["instances"] = objects.write_coco(beside.with_suffix(".json"), classes, names)
    report(summary, where, as_json, "masks")


@contextmanager
def open_masks(
    run: RunFolder, where: Path, config: RefineConfig, *, net: AffinityNet | None = None, **options: Any
) -> Iterator[tuple[MaskFolder, list[str]]]:
    """The folder of a run's masks, and the classes that their values stand for, which it names in a file."""
    classes = refining.run_classes(run)
    with MaskFolder.open(where, **_started(run, config, classes, net, **options)) as masks:
        (where / refining.CLASSES_FILE).write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
        yield masks, classes


def _open_instances(
    run: RunFolder, where: Path, config: RefineConfig, *, net: AffinityNet | None, **options: Any
) -> InstanceFolder:
    return InstanceFolder.open(where, **_started(run, config, refining.run_classes(run), net, **options))


def _started(
    run: RunFolder,
    config: RefineConfig,
    classes: Sequence[str],
    net: AffinityNet | None,
    retry_failed: bool = False,
    info: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What a folder is opened with: masks of other maps, settings or nets are other masks."""
    settings = {"refine": config.as_dict(), "classes": list(classes), "maps": refining.run_digest(run)}
    if net is not None:
        settings["net"] = labelling.weights_digest(net.state_dict())
    return {
        "settings": settings,
        "retry_failed": retry_failed,
        "info": {"advcam_fast": af.__version__, "argv": sys.argv[1:], **(info or {})},
    }
