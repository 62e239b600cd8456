"""demo: packaged photos through everything."""

from __future__ import annotations

from pathlib import Path

import advcam_fast as af
from advcam_fast.cli.app import Json, Out, app
from advcam_fast.cli.console import report
from advcam_fast.cli.label import label_with_progress
from advcam_fast.cli.refine import open_masks
from advcam_fast.climb import ClimbConfig, MapMaker
from advcam_fast.data import match_labels, open_dataset
from advcam_fast.pipelines import label as labelling
from advcam_fast.pipelines import refine as refining
from advcam_fast.pipelines.demo import draw_maps, write_photos
from advcam_fast.pipelines.report import report_run
from advcam_fast.refine import RefineConfig
from advcam_fast.store import MaskFolder, RunFolder


@app.command(epilog="Example: advcam-fast demo --out demo_run")
def demo(out: Out = Path("demo_run"), preset: str = "general", as_json: Json = False) -> None:
    """Label a few packaged photos with the packaged classifier; draw CAM, AdvCAM and the mask of each, and a report."""
    config = ClimbConfig.preset(preset)
    net = af.load_model("efficientnet_lite0", device=labelling.device_of("auto"))
    dataset = open_dataset(write_photos(out / "photos"))
    matched = labelling.tag_indices(dataset, net, match_labels)
    settings = {
        "data": "demo",
        "version": af.__version__,
        "weights": labelling.weights_digest(net.tensors()),
        "climb": {"preset": preset, **config.as_dict()},
    }
    with RunFolder.open(out / "run", settings) as run:
        labeller = labelling.Labeller(MapMaker(net, config), labelling.LabelRule(), matched)
        summary = label_with_progress(dataset, labeller, run, as_json)
        if not summary["interrupted"]:
            refined = RefineConfig.preset("color-walk-crf")
            with open_masks(run, out / "run" / "masks", refined) as (masks, classes):
                refining.refine_run(run, dataset, masks, classes, refined)
                summary["picture"] = str(draw_maps(run, masks, classes, out / "photos", out / "pictures"))
            page = report_run(run, MaskFolder.read(out / "run" / "masks"), dataset, out / "run" / "report")
            summary["page"] = str(page)
    report(summary, out / "run", as_json)
