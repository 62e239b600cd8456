"""In the place of the released AdvCAM script: the arguments of its command line, the same files, less time.

    python -m advcam_fast.compat.released --voc12_root VOC2012 --train_list voc12/train_aug.txt \\
        --cam_weights_name sess/res50_cam.pth --cam_out_dir result/cam_adv_mask

Every image of the list gets CAM_OUT_DIR/ID.npy, a dictionary of keys, cam and high_res; files that are there are
left, so that the same command goes on. Tags are those of VOC12_ROOT/Annotations, of which the script's cls_labels.npy
was made: a pickle is not read. What the script only shares with others of its repository (crop sizes, epochs, ...) is
taken and, as there, without effect.

Exit codes: 0 done, 2 bad usage, 3 some images failed, 1 could not go on, 130 stopped.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from advcam_fast.climb import ClimbConfig, MapMaker
from advcam_fast.data import Dataset, Item
from advcam_fast.data.annotations import read_objects
from advcam_fast.data.text_files import read_lines
from advcam_fast.data.voc import VOC_CLASSES
from advcam_fast.errors import StoppedError, UsageError
from advcam_fast.export.released import released_file
from advcam_fast.models import load_model
from advcam_fast.pipelines.label import Labeller, LabelRule, device_of
from advcam_fast.store import StoreError
from advcam_fast.store.files import write_whole

_SHARED = {
    "num_workers": int,
    "val_list": str,
    "infer_list": str,
    "chainer_eval_set": str,
    "cam_crop_size": int,
    "cam_batch_size": int,
    "cam_num_epoches": int,
    "cam_learning_rate": float,
    "cam_weight_decay": float,
    "cam_eval_thres": float,
}
_ONE_OF = {"cam_network": ("net.resnet50_cam",), "target_layer": ("stage4",)}
_NAME = re.compile(r"(\d{4})_?(\d{6})")  # the script reads 2007_000032 as one number


def parser() -> argparse.ArgumentParser:
    """The script's arguments with its defaults, and --device."""
    made = argparse.ArgumentParser(prog="python -m advcam_fast.compat.released", description=__doc__.splitlines()[0])
    made.add_argument("--voc12_root", type=Path, default="Dataset/VOC2012_SEG_AUG/", help="has JPEGImages, Annotations")
    made.add_argument("--train_list", type=Path, default="voc12/train.txt", help="the images: a name a line")
    made.add_argument("--cam_weights_name", default="sess/res50_cam.pth", help="a file, with or without its .pth")
    made.add_argument("--cam_out_dir", type=Path, default="result/cam_adv_mask", help="gets ID.npy")
    made.add_argument(
        "--cam_scales", type=_scales, default=(1.0, 0.5, 1.5, 2.0), help="four; the second has fewer steps"
    )
    made.add_argument("--adv_iter", type=int, default=27, help="CAMs at a scale")
    made.add_argument("--AD_coeff", type=float, default=7, help="lambda")
    made.add_argument("--AD_stepsize", type=float, default=0.08, help="xi")
    made.add_argument("--score_th", type=float, default=0.5, help="tau")
    made.add_argument("--device", default="auto", help="not the script's: auto, cpu, cuda or cuda:N")
    for name, choices in _ONE_OF.items():
        made.add_argument(f"--{name}", choices=choices, default=choices[0])
    for name, kind in _SHARED.items():
        made.add_argument(f"--{name}", type=kind, help="without effect, as in the script")
    return made


def _scales(text: str) -> tuple[float, ...]:
    scales = tuple(float(part) for part in text.strip("() ").split(","))
    if len(scales) != 4:
        raise ValueError(text)
    return scales


def config_of(arguments: argparse.Namespace) -> ClimbConfig:
    """The script's numbers; the second scale has half of more than ten steps, and at most five of ten and fewer."""
    steps, scales = arguments.adv_iter, arguments.cam_scales
    return replace(
        ClimbConfig.preset("voc-cvpr2021"),
        steps=steps,
        steps_at_scale={scales[1]: steps // 2 if steps > 10 else min(steps, 5)},
        scales=scales,
        suppression=arguments.AD_coeff,
        step_size=arguments.AD_stepsize,
        mask_threshold=arguments.score_th,
    )


def write_maps(arguments: argparse.Namespace) -> list[str]:
    """Writes the files that are not there yet; a line for every image that has none at the end, with the reason."""
    out, root = arguments.cam_out_dir, arguments.voc12_root
    config = config_of(arguments)
    items = [_item(root, name) for name in _names(arguments.train_list) if not (out / f"{name}.npy").exists()]
    weights = Path(f"{arguments.cam_weights_name}.pth")  # the script adds it to every name
    weights = weights if weights.is_file() else Path(arguments.cam_weights_name)
    net = load_model("resnet50_stride16", weights, device=device_of(arguments.device))
    if net.num_classes != len(VOC_CLASSES):
        raise UsageError(f"{weights}: a head of {net.num_classes} classes, wanted is VOC's {len(VOC_CLASSES)}")
    indices = {name: index for index, name in enumerate(VOC_CLASSES)}
    labeller, failed = Labeller(MapMaker(net, config), LabelRule(), indices), []
    for item, found in labeller.results(Dataset(items, VOC_CLASSES, str(root), root), items):
        if isinstance(found, str):
            failed.append(f"{item.id}: {found}")
            continue
        content = released_file(found.classes.cpu(), found.strided.cpu(), found.full.cpu())
        write_whole(out / f"{item.id}.npy", content, out / f".{item.id}.tmp")
        print(f"{item.id}.npy", flush=True)
    return failed


def _names(file: Path) -> list[str]:
    lines = [line for line in read_lines(file) if line]
    for line in lines:
        if not _NAME.fullmatch(line):
            raise UsageError(f"{file}: {line!r}, wanted is a name such as 2007_000032 a line")
    return list(dict.fromkeys(_NAME.sub(r"\1_\2", line) for line in lines))


def _item(root: Path, name: str) -> Item:
    """Objects of other names than VOC's are passed over, as in the script."""
    image = root / "JPEGImages" / f"{name}.jpg"
    try:
        present = {label for label, _ in read_objects(root / "Annotations" / f"{name}.xml")}
    except ValueError as error:
        return Item(name, image, None, problem=f"annotation Annotations/{name}.xml: {error}")
    return Item(name, image, tuple(label for label in VOC_CLASSES if label in present))


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        failed = write_maps(parser().parse_args(arguments))
    except (UsageError, StoppedError, StoreError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return 3 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
