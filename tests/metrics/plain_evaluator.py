"""The common WSOL evaluator, one threshold and one map at a time, by OpenCV: the oracle of MaxBoxAcc, V2 and PxAP."""

from collections.abc import Sequence

import cv2
import numpy as np

SIDE = 224
THRESHOLDS = np.arange(0, 1, 0.001)


def score_map(cam: np.ndarray) -> np.ndarray:
    """float32 [h, w] -> float32 [224, 224], 0 to 1."""
    resized = cv2.resize(cam, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    if np.isnan(resized).any() or resized.min() == resized.max():
        return np.zeros_like(resized)
    resized = resized - resized.min()
    return resized / resized.max()


def boxes_at(scores: np.ndarray, threshold: float) -> tuple[list[list[int]], int]:
    """The boxes of all contours, and which of them has the largest contour."""
    image = (scores * 255).astype(np.uint8)
    _, black_white = cv2.threshold(image, int(threshold * image.max()), 255, cv2.THRESH_BINARY)
    contours = cv2.findContours(black_white, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
    if len(contours) == 0:
        return [[0, 0, 0, 0]], 0
    boxes = []
    for contour in contours:
        x, y, w, h = cv2.boundingRect(contour)
        boxes.append([x, y, min(x + w, SIDE - 1), min(y + h, SIDE - 1)])
    areas = [cv2.contourArea(contour) for contour in contours]
    return boxes, areas.index(max(areas))


def overlap(one: Sequence[int], other: Sequence[int]) -> float:
    width = max(0, min(one[2], other[2]) - max(one[0], other[0]) + 1)
    height = max(0, min(one[3], other[3]) - max(one[1], other[1]) + 1)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (one, other)]
    union = sum(areas) - width * height
    return width * height / union if union > 0 else 0.0


def scaled(box: Sequence[float], height: int, width: int) -> list[int]:
    return [int(side * SIDE / whole) for side, whole in zip(map(float, box), (width, height) * 2, strict=True)]


def box_accuracies(maps: Sequence[np.ndarray], truths: Sequence[Sequence[Sequence[int]]]) -> dict[str, float]:
    """MaxBoxAcc and MaxBoxAccV2 of score maps and true boxes at 224 x 224."""
    largest = np.zeros(len(THRESHOLDS))
    every = np.zeros((3, len(THRESHOLDS)))
    for scores, truth in zip(maps, truths, strict=True):
        for number, threshold in enumerate(THRESHOLDS):
            boxes, at = boxes_at(scores, threshold)
            best = [max(overlap(box, other) for other in truth) for box in boxes]
            largest[number] += best[at] >= 0.5
            every[:, number] += [max(best) >= wanted for wanted in (0.3, 0.5, 0.7)]
    return {"MaxBoxAcc": largest.max() / len(maps), "MaxBoxAccV2": (every.max(1) / len(maps)).mean()}


def pixel_average_precision(maps: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> float:
    """PxAP of score maps and masks of 1, 0 and 255."""
    edges = np.append(THRESHOLDS, [1.0, 2.0, 3.0])
    true, false = np.zeros(len(edges) - 1), np.zeros(len(edges) - 1)
    for scores, mask in zip(maps, masks, strict=True):
        true += np.histogram(scores[mask == 1], edges)[0]
        false += np.histogram(scores[mask == 0], edges)[0]
    tp, fp = true[::-1].cumsum(), false[::-1].cumsum()
    precision, recall = tp / np.maximum(tp + fp, 1), tp / true.sum()
    steps = precision[1:] * np.diff(recall)
    return float(steps[(tp + fp != 0)[1:]].sum())
