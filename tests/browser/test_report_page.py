"""The report in a browser, from disk and from a server: click, slide, type; nothing injected, no error, no freeze."""

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from report_run import make_report, write_metrics
from sample_run import HOSTILE, IMAGES, item_id, make_run

from advcam_fast.report.gallery import Gallery
from advcam_fast.report.page import PageFacts, write_page
from advcam_fast.store import RunFolder

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

IDS = [item_id(file) for file, _, _ in IMAGES]
IOUS = {"a": 0.5, "b/c d": 0.9, "turned": 0.1, "empty": None, "odd": 0.3, IDS[5]: 0.7}


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sample = make_run(tmp_path_factory.mktemp("browser"))
    write_metrics(sample, IOUS)
    assert make_report(sample, sample.path / "report") == []
    return sample.path / "report"


class Watched:
    """A page and everything that went wrong in it."""

    def __init__(self, chromium, size: tuple[int, int] = (1280, 800), theme: str = "light") -> None:
        self.page = chromium.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=theme)
        self.wrong: list[str] = []
        self.page.on("console", lambda message: self.wrong.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("requestfailed", lambda request: self.wrong.append(request.url))
        self.page.on("dialog", lambda dialog: (self.wrong.append(dialog.message), dialog.dismiss()))

    def open(self, url: str):
        self.page.goto(url)
        self.page.wait_for_selector("canvas[data-drawn=advcam]")
        return self.page


@pytest.fixture
def watched(chromium) -> Iterator[Watched]:
    one = Watched(chromium)
    yield one
    one.page.wait_for_load_state("networkidle")
    one.page.close()
    assert one.wrong == []


@pytest.fixture
def page(watched: Watched, report: Path):
    return watched.open((report / "index.html").as_uri())


def names(page) -> list[str]:
    return page.locator(".card .name").all_text_contents()


def wait_cards(page, count: int) -> None:
    api.expect(page.locator(".card")).to_have_count(count)


def overlay(page, card: int = 0) -> list[int]:
    """The alpha values over a card's photo."""
    read = """(canvas) => {
      const {width, height} = canvas;
      return Array.from(canvas.getContext("2d").getImageData(0, 0, width, height).data).filter((_, i) => i % 4 === 3);
    }"""
    return page.locator(".card canvas").nth(card).evaluate(read)


def settle(page) -> None:
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def test_maps_are_drawn_and_the_slider_cuts_them(page) -> None:
    assert names(page) == IDS
    covered = []
    for threshold in ("0", "0.5", "0.9", "1"):
        page.locator("#threshold").fill(threshold)
        settle(page)
        covered.append(np.count_nonzero(overlay(page)))
    assert covered[0] > covered[1] > covered[2] > covered[3] == 0
    assert page.locator("#threshold-value").text_content() == "1.00"
    assert page.locator("#large-threshold").input_value() == "1"


def test_what_is_drawn_is_the_stored_map(page, report: Path) -> None:
    """At the threshold 0.5 the page covers what the map, enlarged as torch does, has above it."""
    page.locator("#threshold").fill("0.5")
    settle(page)
    canvas = page.locator(".card canvas").first
    width, height = (int(canvas.get_attribute(name)) for name in ("width", "height"))
    strided = RunFolder.read(report.parent).read_maps("a")["strided"]
    large = torch.nn.functional.interpolate(strided[None], scale_factor=4, mode="bilinear")[0, 0, :height, :width]
    shown = np.array(overlay(page)).reshape(height, width) > 0
    assert (width, height) == (40, 33)
    inside = (large > 0.53).numpy()
    outside = (large < 0.44).numpy()
    assert shown[inside].all() and inside.sum() / shown.sum() > 0.5
    edge = np.zeros_like(outside)
    edge[1:] |= shown[:-1]
    edge[:, 1:] |= shown[:, :-1]
    assert not (shown & outside & ~edge).any()


def test_layers(page) -> None:
    drawn = {}
    for layer in ("cam", "advcam", "mask"):
        page.locator(f"[data-layer={layer}]").click()
        page.wait_for_selector(f"canvas[data-drawn={layer}]")
        drawn[layer] = overlay(page)
    assert len({tuple(alphas) for alphas in drawn.values()}) == 3
    assert page.locator("#threshold").is_disabled()
    page.locator("[data-layer=none]").click()
    settle(page)
    assert not any(overlay(page))


def test_keys(page) -> None:
    def pressed() -> str:
        return page.locator("[data-layer][aria-pressed=true]").get_attribute("data-layer")

    assert pressed() == "advcam"
    page.keyboard.press("t")
    assert pressed() == "mask"
    page.keyboard.press("t")
    page.keyboard.press("t")
    assert pressed() == "cam"
    page.keyboard.press("-")
    assert page.locator("#threshold-value").text_content() == "0.25"
    page.keyboard.press("+")
    page.keyboard.press("+")
    assert page.locator("#threshold-value").text_content() == "0.35"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Open b/c d"
    page.keyboard.press("Enter")
    assert page.locator("#large-name").text_content() == "b/c d"
    page.keyboard.press("c")
    assert page.locator("#large-classes [aria-pressed=true]").count() == 1
    page.keyboard.press("ArrowRight")
    assert page.locator("#large-name").text_content() == "turned"
    page.wait_for_selector("#panels canvas[data-drawn=mask]")
    page.keyboard.press("Escape")
    api.expect(page.get_by_role("button", name="Open turned")).to_be_focused()
    assert not page.locator("#large").is_visible()
    page.keyboard.press("/")
    page.keyboard.type("tt")  # typed, not the toggle
    assert page.locator("#filter").input_value() == "tt" and pressed() == "cam"
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()


def test_filters_and_order(page) -> None:
    def found(count: int) -> list[str]:
        wait_cards(page, count)
        return names(page)

    page.locator("#filter").fill("C D")
    assert found(1) == ["b/c d"]
    page.locator("#clear").click()
    assert found(6) == IDS
    page.locator("#class").fill(HOSTILE[0])
    assert found(2) == ["a", IDS[5]]
    chips = page.locator(".card").nth(1).locator(".chip[aria-pressed=true] span").first
    assert chips.text_content() == HOSTILE[0]  # the class filtered by, though the image's second
    page.locator("#class").fill("")
    page.locator("#flag").select_option(label="no_labels")
    assert found(1) == ["empty"]
    page.locator("#flag").select_option("")
    page.locator("#measure").select_option("iou")
    page.locator("#least").fill("0.4")
    page.locator("#most").fill("0.8")
    assert found(2) == ["a", IDS[5]]
    page.locator("#clear").click()
    page.locator("#sort").select_option("iou-down")
    assert found(6) == ["b/c d", IDS[5], "a", "odd", "turned", "empty"]
    page.locator("#sort").select_option("iou-up")
    assert found(6) == ["turned", "odd", "a", IDS[5], "b/c d", "empty"]
    page.locator("#filter").fill("nothing at all")
    assert found(0) == []
    assert page.locator("#empty").is_visible()


def test_names_are_text_and_nothing_else(page) -> None:
    assert page.locator("script").count() == 3 and page.locator("img[src=x]").count() == 0
    shown = set(page.locator(".chip span:first-child").all_text_contents())
    assert shown == set(HOSTILE)
    assert set(page.locator("#classes [data-class]").all_text_contents()) == set(HOSTILE)
    assert "49" not in page.locator("#classes").text_content()
    page.locator("summary", has_text="Classes").click()
    page.locator("#classes [data-class]").filter(has_text="<script>").click()
    wait_cards(page, 1)
    assert names(page) == ["turned"]


def test_curves_and_configuration_are_there(page) -> None:
    assert page.locator("#curves figcaption").all_text_contents() == ["mIoU by threshold", "Timing"]
    assert "best 0.600 at 0.20" in page.locator("#curves").text_content()
    assert "climb preset" in page.locator("#run").text_content()
    assert "0.250" in page.locator("#classes").text_content()


@pytest.mark.parametrize(("size", "theme"), [((390, 844), "light"), ((390, 844), "dark"), ((1280, 800), "dark")])
def test_narrow_and_dark(chromium, report: Path, size: tuple[int, int], theme: str, tmp_path: Path) -> None:
    one = Watched(chromium, size, theme)
    page = one.open((report / "index.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0], "the page scrolls sideways"

    def dark() -> bool:
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, colour[4:-1].split(","))) < 150

    assert dark() == (theme == "dark")
    page.locator("#theme-button").click()
    assert dark() != (theme == "dark")
    page.get_by_role("button", name="Open a", exact=True).click()
    page.wait_for_selector("#panels canvas[data-drawn=advcam]")
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    picture = page.screenshot(path=tmp_path / "large.png")
    assert len(picture) > 5000
    page.close()
    assert one.wrong == []


def test_from_a_server_under_a_path(watched: Watched, report: Path) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            return

    handler = functools.partial(Quiet, directory=str(report.parent.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = watched.open(f"http://127.0.0.1:{server.server_port}/run/report/index.html")
        assert names(page) == IDS
        page.wait_for_load_state("networkidle")
        server.shutdown()


def test_ten_thousand_images_and_a_thousand_classes(watched: Watched, tmp_path: Path) -> None:
    gallery = Gallery(tmp_path)
    photo = torch.zeros(3, 8, 8, dtype=torch.uint8)
    heat = torch.linspace(0, 1, 4).reshape(1, 2, 2)
    for number in range(10_000):
        gallery.add(f"photo {number}", photo, [f"class {number % 1000}"], heat, heat)
    classes = [(name, str(count), "") for name, count in gallery.class_counts()]
    facts = PageFacts("many", [], [], [], classes, [], 0, False, False)
    write_page(tmp_path, gallery, facts)
    page = watched.open((tmp_path / "index.html").as_uri())
    assert page.locator("#count").text_content() == "1–24 of 10,000 images"
    assert page.locator(".card").count() == 24 and page.evaluate("document.images.length") == 24
    assert page.locator("[data-layer=mask]").is_disabled()
    page.keyboard.press("n")
    assert page.locator("#page").text_content() == "Page 2 of 417"
    page.locator("#filter").fill("photo 9876")
    wait_cards(page, 1)
    page.wait_for_selector("canvas[data-drawn=advcam]")
    page.locator("#filter").fill("")
    page.locator("#class").fill("class 999")
    wait_cards(page, 10)
    page.locator("#clear").click()
    page.locator("#sort").select_option("name")
    api.expect(page.locator(".card .name").first).to_have_text("photo 0")
    for _ in range(30):
        page.keyboard.press("n")
    assert page.locator("#page").text_content() == "Page 31 of 417"
