"""The interactive page in a headless browser: what it says, every way to use it, and whom it serves."""

from __future__ import annotations

import math
import re
from html import escape
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pages import Open, State, random_state, settle, state_of, wait_until
from roialign.explain.page import make_page

# What it teaches


def test_the_sentence_states_the_shift(open_page: Open) -> None:
    """Hand-worked: edges 82, 139, 137, 201 over cells of 32 round to 3, 4, 4, 6: cells 3 to 4 and 4 to 6 are read."""
    page = open_page()
    sentence = page.locator("#answer").inner_text().replace("\N{NO-BREAK SPACE}", " ")
    assert "reads 64 × 96 px instead, 1.8 times the area" in sentence
    assert "misses 14 px at the left of the box" in sentence
    assert "11 px at the top, 23 px at the right and 23 px at the bottom" in sentence
    assert "reads exactly your box" in sentence
    shifts = page.locator("#rounding .shift").all_inner_texts()
    assert shifts == ["+14 px", "−11 px", "+23 px", "+23 px"]
    assert page.locator("#pool-stage text").all_text_contents() == ["14 px", "11 px", "23 px", "23 px"]
    page.locator("#aligned").uncheck()
    settle(page)
    assert "16 px further right and 16 px further down: half a cell" in page.locator("#answer").inner_text()


@pytest.mark.parametrize(
    ("language", "words"), [("en", "x 82 to 137, y 139 to 201"), ("zh", "x 从 82 到 137，y 从 139 到 201")]
)
def test_a_screen_reader_hears_the_box_by_axis(open_page: Open, language: str, words: str) -> None:
    """Of the box (x1, y1, x2, y2) = (82, 139, 137, 201)."""
    page = open_page({"language": language})
    for part in ("#align-stage svg", "#align-stage .move", "#pool-stage svg"):
        assert words in page.locator(part).get_attribute("aria-label")
    corners = [page.locator(f"#align-stage [data-part='{k}']").get_attribute("aria-label") for k in range(4)]
    stated = [tuple(map(int, re.search(r"x (\d+)\D+y (\d+)", label).groups())) for label in corners]
    assert stated == [(82, 139), (137, 139), (82, 201), (137, 201)]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_answer_leaves_no_room_empty(open_page: Open, language: str) -> None:
    """At any width, its paragraph is as tall as its text; while the box is dragged it may only grow."""
    page = open_page({"language": language})
    for width in (320, 390, 600, 650, 700, 720, 1000, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        settle(page)
        empty = page.evaluate(
            """(() => {
                const [paragraph, text] = [document.getElementById("answer"), document.createRange()];
                text.selectNodeContents(paragraph);
                const line = parseFloat(getComputedStyle(paragraph).lineHeight);
                return (paragraph.clientHeight - text.getBoundingClientRect().height) / line;
            })()"""
        )
        assert empty < 0.5, (width, empty)


def test_a_nudge_moves_roi_align_and_not_roi_pool(open_page: Open) -> None:
    page = open_page()
    before = [page.locator(f"#{kind}-output").inner_text() for kind in ("align", "pool")]
    page.locator("#x1").fill("85")
    page.locator("#x2").fill("140")
    settle(page)
    after = [page.locator(f"#{kind}-output").inner_text() for kind in ("align", "pool")]
    assert after[0] != before[0]
    assert after[1] == before[1]


# Using it


def drag(page: Any, selector: str, dx: float, dy: float) -> None:
    page.locator(selector).scroll_into_view_if_needed()
    box = page.locator(selector).bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + dx / 2, y + dy / 2)
    page.mouse.move(x + dx, y + dy)
    page.mouse.up()
    settle(page)


@pytest.mark.parametrize("stage", ["align", "pool"])
def test_dragging_moves_and_resizes_the_box(open_page: Open, stage: str) -> None:
    page = open_page()
    unit = page.evaluate("document.querySelector('#align-stage').clientWidth / (7 + 1.4) / 32")
    drag(page, f"#{stage}-stage .move", -20 * unit, -30 * unit)
    assert state_of(page)["box"] == [62, 109, 117, 171]
    drag(page, f"#{stage}-stage [data-part='3']", 40 * unit, 16 * unit)
    assert state_of(page)["box"] == [62, 109, 157, 187]
    drag(page, f"#{stage}-stage [data-part='0']", 400 * unit, 10 * unit)  # a corner does not pass its opposite
    assert state_of(page)["box"] == [157, 119, 157, 187]


def test_touch_moves_the_box_and_a_tap_chooses_a_bin(open_page: Open) -> None:
    page = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    move = page.locator("#align-stage .move")
    move.scroll_into_view_if_needed()
    box = move.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.touchscreen.tap(x + box["width"] / 8, y + box["height"] / 8)
    assert state_of(page)["bin"] == [1, 1]
    session = page.context.new_cdp_session(page)
    unit = page.evaluate("document.querySelector('#align-stage').clientWidth / (7 + 1.4) / 32")
    scrolled = page.evaluate("scrollY")
    for kind, dy in (("touchStart", 0), ("touchMove", 15), ("touchMove", 30)):
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y - dy * unit}]})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert state_of(page)["box"] == [82, 109, 137, 171]
    assert page.evaluate("scrollY") == scrolled


def test_keyboard_reaches_and_changes_everything(open_page: Open) -> None:
    page = open_page()
    reached = []
    while "share" not in reached:
        assert len(reached) < 60
        page.keyboard.press("Tab")
        label = page.evaluate(
            """(() => {
                const { ariaLabel, id, name } = document.activeElement;
                return ariaLabel || id || name;
            })()"""
        )
        reached.append(str(label))
        if label and str(label).startswith("The box"):
            page.keyboard.press("ArrowRight")
            page.keyboard.press("Shift+ArrowUp")
            assert state_of(page)["box"] == [83, 107, 138, 169]
        if label and str(label).startswith("Top left corner"):
            page.keyboard.press("ArrowDown")
            assert state_of(page)["box"] == [83, 108, 138, 169]
        if label and str(label).startswith("bin row 0, column 0"):
            page.keyboard.press("ArrowDown")
            page.keyboard.press("End")
            assert state_of(page)["bin"] == [1, 1]
            assert page.locator("#bin-title").inner_text().startswith("Bin (1, 1) of RoIAlign")
            assert len(page.locator("#samples tbody tr").all()) == 4
            page.keyboard.press("ArrowUp")
            page.keyboard.press("Home")
        if label == "rows":
            page.keyboard.press("ArrowRight")
            assert state_of(page)["output_size"] == [3, 2]
        if label == "aligned":
            page.keyboard.press("Space")
            assert state_of(page)["aligned"] is False
    for wanted in (
        "language",
        "theme",
        "slide",
        "view",
        "operator",
        "ratio",
        "scale",
        "mode",
        "x1",
        "y2",
        "copy",
        "share",
    ):
        assert wanted in reached
    assert sum(name.endswith("by a cell.") for name in reached) == 5  # the box and its corners, once


def test_pointing_at_a_bin_shows_its_samples_weights_and_sum(open_page: Open) -> None:
    page = open_page()
    page.locator("#align-output [data-bin='1,0']").hover()
    settle(page)
    assert page.locator("#bin-title").inner_text().startswith("Bin (1, 0) of RoIAlign")
    shown = float(page.locator("#bin-title").inner_text().split(": ")[1])
    values = [float(text) for text in page.locator("#samples tbody td:last-child").all_inner_texts()]
    assert len(values) == 4
    assert math.isclose(sum(values) / 4, shown, abs_tol=0.02)  # as they are written out
    for terms, value in zip(page.locator("#samples td:nth-child(3)").all_inner_texts(), values, strict=True):
        products = [a * b for a, b in (map(float, term.split("·")) for term in terms.split(" + "))]
        assert math.isclose(sum(products), value, abs_tol=0.3)
    page.locator("#samples tbody tr").nth(2).hover()
    settle(page)
    assert "Sample 3" in page.locator("#zoom-text").inner_text()
    page.locator("#align-stage").scroll_into_view_if_needed()
    box = page.locator("#align-stage .move").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] * 0.25)
    assert state_of(page)["bin"] == [0, 1]


def test_controls_change_the_state_and_what_is_drawn(open_page: Open) -> None:
    page = open_page()
    page.locator("[name=operator][value=roi_pool]").check(force=True)
    settle(page)
    assert "of RoIPool" in page.locator("#bin-title").inner_text()
    assert "from roialign import roi_pool" in page.locator("#python").inner_text()
    page.locator("[name=operator][value=prroi_pool]").check(force=True)
    settle(page)
    assert page.locator("#ratio").is_disabled()
    assert page.locator("#align-stage .cross").count() == 0
    page.locator("[name=operator][value=roi_align]").check(force=True)
    page.locator("[name=mode][value=max]").check(force=True)
    page.locator("#ratio").fill("0")
    page.locator("#scale").fill("4")
    settle(page)
    state = state_of(page)
    assert (state["mode"], state["sampling_ratio"], state["spatial_scale"], state["size"]) == (
        "max",
        0,
        1 / 16,
        [14, 14],
    )
    page.locator("#scale-text").fill("1/32, 1/16")
    page.locator("#scale-text").press("Enter")
    assert state_of(page)["size"] == [7, 14]
    page.locator("#scale-text").fill("nonsense")
    page.locator("#scale-text").press("Enter")
    assert page.locator("#scale-text").get_attribute("aria-invalid") == "true"
    page.locator("#reset").click()
    assert state_of(page)["size"] == [7, 7]


def test_sliding_comes_back_to_where_it_began(open_page: Open) -> None:
    page = open_page(reduced_motion="reduce")
    page.locator("#slide").click()
    wait_until(page, "roialign.page.state.box[0] > 100")
    assert page.locator("#slide").inner_text() == "Stop"
    wait_until(page, "document.getElementById('slide').textContent === 'Slide the box'")
    assert state_of(page)["box"] == [82, 139, 137, 201]


def test_python_button_copies_the_exact_call(open_page: Open) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    for change in (
        {},
        {"operator": "prroi_pool", "box": [-3.25, 10, 100.5, 80], "output_size": [3, 4]},
        {"operator": "roi_pool", "source": "counting", "spatial_scale": [0.05, 0.03125]},
        {"operator": "roi_align", "mode": "max", "sampling_ratio": 0, "aligned": False},
    ):
        page.evaluate("(change) => roialign.page.update(change)", change)
        settle(page)
        page.locator("#copy").click()
        wait_until(page, "document.getElementById('copied').textContent !== ''")
        code = page.evaluate("navigator.clipboard.readText()")
        scope: dict[str, Any] = {}
        exec(re.sub(r"print\(.*\)$", "", code), scope)
        shown = torch.tensor(page.evaluate("roialign.page.results.chosen.bins"), dtype=torch.float64)
        torch.testing.assert_close(scope["pooled"][0, 0], shown, rtol=0, atol=1e-6)


def test_fragment_carries_the_state(open_page: Open) -> None:
    page = open_page()
    page.evaluate(
        """roialign.page.update({
            box: [10, 20, 90.5, 77], output_size: [3, 5], sampling_ratio: 4, spatial_scale: 1 / 16, aligned: false,
            operator: "roi_align", mode: "max", bin: [2, 4], source: "counting", view: "map",
        })"""
    )
    wait_until(page, "location.hash.includes('out=3,5')")
    first, fragment = page.evaluate("[roialign.page.state, location.hash]")
    again = open_page(None, fragment)
    second = state_of(again)
    for key in ("box", "output_size", "sampling_ratio", "aligned", "mode", "bin", "source", "view", "size", "values"):
        assert second[key] == first[key], key
    broken = open_page(None, "#box=1,2,x,4&out=0,2&ratio=1.5&scale=-1,2&op=rm&mode=&lang=fr&bin=9,9&aligned=2&what=1")
    assert state_of(broken)["box"] == [82, 139, 137, 201]
    assert state_of(broken)["bin"] == [1, 1]
    assert state_of(broken)["operator"] == "roi_align"


def test_inside_another_page_it_works_without_an_address(browser: Any, tmp_path: Path) -> None:
    """As in a notebook, where the page is the text of a frame."""
    outer = tmp_path / "outer.html"
    outer.write_text(f'<iframe srcdoc="{escape(make_page({"language": "zh"}))}"></iframe>', "utf-8")
    page = browser.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(outer.as_uri())
    frame = page.frames[1]
    frame.wait_for_selector("body[data-ready]")
    frame.evaluate("roialign.page.update({ box: [1, 2, 3, 4], language: 'en' })")
    page.wait_for_timeout(400)  # by now it has tried to write its fragment
    frame.locator("#reset").click()
    settle(frame)
    assert frame.evaluate("[roialign.page.state.box, roialign.page.state.language]") == [[82, 139, 137, 201], "en"]
    page.close()
    assert not complaints


def test_chinese_says_everything_that_english_says(open_page: Open) -> None:
    page = open_page({"language": "zh"})
    assert page.locator("html").get_attribute("lang") == "zh-Hans"
    assert "多读了" in page.locator("#answer").inner_text()
    kinds = page.evaluate(
        """(() => { const kinds = (part) => Object.entries(part).map(([key, value]) =>
        [key, Array.isArray(value) ? value.length : typeof value === "object" ? kinds(value) : typeof value]);
        return ["en", "zh"].map((language) => kinds(roialign.texts[language])); })()"""
    )
    assert kinds[0] == kinds[1]
    page.locator("#language").click()
    settle(page)
    assert page.locator("html").get_attribute("lang") == "en"
    assert "never asked for" in page.locator("#answer").inner_text()


# Whom it serves


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    ("width", "fragment"),
    [(1280, ""), (1280, "#op=roi_pool&view=map&lang=zh"), (1280, "#op=prroi_pool&out=5,5"), (390, "#mode=max&ratio=0")],
)
def test_axe_finds_nothing(open_page: Open, scheme: str, width: int, fragment: str) -> None:
    page = open_page(None, fragment, color_scheme=scheme, viewport={"width": width, "height": 844})
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs: pip install 'roialign[all]'")
    results = axe.Axe().run(page, options={"resultTypes": ["violations"]})
    assert results.response["passes"], "axe did not run"
    assert not results.response["violations"], results.generate_report()


def test_theme_button_darkens_and_lightens(open_page: Open, tmp_path: Path) -> None:
    page = open_page()
    lightness = []
    for name in ("light", "dark"):
        page.screenshot(path=tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as picture:
            lightness.append(picture.convert("L").getpixel((3, 3)))
        page.locator("#theme").click()
        settle(page)
    assert lightness[0] > 230
    assert lightness[1] < 40


def test_every_state_draws_without_an_error(open_page: Open) -> None:
    """Any setting, through the page's own update; the fixture checks that the console stayed silent."""
    page = open_page()
    for number in range(40):
        state = random_state(number)
        for key in ("size", "values"):
            del state[key]
        page.evaluate("(state) => roialign.page.update({ ...state, source: 'counting', bin: [1, 0] })", state)
        settle(page)
        assert len(page.locator("#align-output [role=gridcell]").all()) == math.prod(state["output_size"])


# The file


def test_page_is_one_small_file_without_addresses() -> None:
    page = make_page()
    assert len(page.encode()) < 300_000
    assert not re.findall(r'(?:src|href)=|url\(|@import|https?://(?!www\.w3\.org/2000/svg")', page)
    assert "Content-Security-Policy" in page


def test_text_in_the_state_cannot_leave_its_script() -> None:
    page = make_page({"photo": "data:image/png;base64,</script><script>alert(1)</script>"})
    assert "</script><script>alert" not in page


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"boxes": []}, r"state: got unknown keys \['boxes'\]"),
        ({"operator": "roi_crop"}, "operator: got 'roi_crop'"),
        ({"language": "fr"}, "language: got 'fr'"),
        ({"box": [1, 2, 3]}, "box: got 3 numbers"),
        ({"values": [[1, 2]], "size": (2, 2)}, "values: got 1 rows; expected 2 rows of 2 numbers"),
        ({"photo": "photo.jpg"}, "photo: got 'photo.jpg'"),
        ({"mode": "sum"}, "mode: got 'sum'"),
    ],
)
def test_make_page_says_what_is_wrong(state: State, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_page(state)
