"""The Space in a real browser: every tab by mouse and by keyboard, on a desktop and on a phone.

One server and one browser serve all tests; a test gets a page of its own, on which nothing may be logged as an error.
"""

import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from example_scripts import EXAMPLES
from PIL import Image
from playwright.sync_api import Locator, Page, expect, sync_playwright
from space_app import running

from rdtf_diffusers import read_animation
from rdtf_diffusers.stickers.check import check


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no browser on this machine: apt-get install chromium")

PICTURES = EXAMPLES / "space" / "examples"
HOSTILE = "<img src=x onerror=\"window.hacked='yes'\"><script>window.hacked='yes'</script>"
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}
ANIMATION = "Sticker: WebP, GIF or APNG"
TABS = ("Sticker", "Keyframes", "Continue", "Export")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with running(tmp_path_factory.mktemp("cache")) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # CI runs as root
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address, request):
    """The Space in a window of the size that the test's parameter says."""
    context = browser.new_context(viewport=getattr(request, "param", DESKTOP))
    context.set_default_timeout(30_000)
    expect.set_options(timeout=30_000)
    page, errors = context.new_page(), []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    open_page(page, address)
    yield page
    context.close()
    assert not errors


def open_page(page: Page, address: str) -> None:
    page.goto(address)
    expect(page.get_by_label("What happens").first).to_have_value(r"a fish swimming")


def open_tab(page: Page, name: str) -> Locator:
    page.get_by_role("tab", name=name).click()
    return shown_tab(page, name)


def shown_tab(page: Page, name: str = "Sticker") -> Locator:
    """A tab once it is shown."""
    expect(page.get_by_role("tab", name=name)).to_have_attribute("aria-selected", "true")
    return page.get_by_role("tabpanel").filter(visible=True)


def fetch(page: Page, image: Locator) -> bytes:
    """The file that an image on the page shows."""
    return page.request.get(image.get_attribute("src")).body()


def finished(page: Page, tab: Locator) -> np.ndarray:
    """The frames of a tab's finished sticker, which moves and is transparent, as a file and on the page."""
    expect(tab.get_by_text("drawn in")).to_be_visible()
    image = tab.get_by_alt_text("The finished sticker")
    frames = read_animation(fetch(page, image)).frames
    assert frames[..., 3].min() == 0 and frames[..., 3].max() > 200
    assert np.abs(frames[1].astype(int) - frames[0]).max() > 50
    look = image.screenshot()
    assert any(image.screenshot() != look for _ in range(20)), "the picture on the page stands still"
    squares = np.asarray(Image.open(io.BytesIO(look)).convert("L"))[2:30, 2:30]
    assert {221, 255} <= set(squares.ravel().tolist()), "no checkerboard behind transparent parts"
    return frames


def put_picture(place: Locator, file: Path) -> None:
    """Chooses a file for a picture field, whatever it holds."""
    remove = place.get_by_role("button", name="Remove Image")
    if remove.count():
        remove.click()
    place.get_by_test_id("file-upload").set_input_files(file)


def field(tab: Locator, label: str) -> Locator:
    """A picture field by its label."""
    return tab.locator(".block").filter(has=tab.page.get_by_test_id("block-label").get_by_text(label, exact=True))


def test_sticker_from_words_and_a_picture(page, address, tmp_path):
    tab = shown_tab(page)
    tab.get_by_label("What happens").fill("a star spinning")
    put_picture(field(tab, "Picture (optional)"), PICTURES / "star.png")
    expect(tab.get_by_role("button", name="Download")).to_be_disabled()
    tab.get_by_role("button", name="Make the sticker").click()
    frames = finished(page, tab)
    with page.expect_download() as download:
        tab.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename.startswith("a-star-spinning-")
    np.testing.assert_array_equal(read_animation(download.value.path()).frames, frames)

    seed = tab.get_by_text("drawn in").inner_text().split("seed ")[1].split()[0]
    with page.context.expect_page() as followed:
        tab.get_by_role("link", name="share link").click()
    linked = followed.value
    expect(linked.get_by_label("What happens").first).to_have_value("a star spinning")
    shown_tab(linked).get_by_role("button", name="Settings").click()
    expect(shown_tab(linked).get_by_label("Seed")).to_have_value(seed)
    shown_tab(linked).get_by_role("button", name="Make the sticker").click()
    np.testing.assert_array_equal(finished(linked, shown_tab(linked)), frames)

    tab.get_by_role("button", name="Settings").click()
    expect(tab.get_by_label("Seed")).to_have_value("-1")
    tab.get_by_role("button", name="Again").click()
    expect(tab.get_by_text(f"seed {seed}")).to_be_hidden()
    assert (finished(page, tab) != frames).any()


def test_texts_and_file_names_of_visitors_are_never_run(page, address, tmp_path):
    tab = shown_tab(page)
    tab.get_by_label("What happens").fill(HOSTILE)
    tab.get_by_role("button", name="Make the sticker").click()
    expect(tab.get_by_text("drawn in")).to_be_visible()
    tab.get_by_role("button", name="How it was made").click()
    expect(tab.get_by_text("onerror").first).to_be_visible()
    broken = tmp_path / "<img src=x onerror=window.hacked=1>.png"
    broken.write_bytes((PICTURES / "star.png").read_bytes()[:3000])
    put_picture(field(tab, "Picture (optional)"), broken)
    tab.get_by_role("button", name="Make the sticker").click()
    expect(page.get_by_text("The picture: the file is cut short")).to_be_visible()
    link = tab.get_by_role("link", name="share link").get_attribute("href")
    page.goto(address + link)
    expect(page.get_by_label("What happens").first).to_have_value(HOSTILE)
    assert page.evaluate("window.hacked") is None


@pytest.mark.parametrize("page", [DESKTOP, PHONE], ids=["desktop", "phone"], indirect=True)
def test_keyframes_are_put_on_a_timeline(page):
    tab = open_tab(page, "Keyframes")
    put_picture(field(tab, "8"), PICTURES / "star.png")
    tab.get_by_role("button", name="Make the sticker").click()
    frames = finished(page, tab)
    assert len(frames) == 8
    assert frames[7][32, 32, :3].tolist() != frames[0][32, 32, :3].tolist()  # the star, and the heart
    with page.expect_download() as download:
        tab.get_by_role("button", name="Download").click()
    np.testing.assert_array_equal(read_animation(download.value.path()).frames, frames)


def test_an_uploaded_sticker_goes_on(page):
    tab = open_tab(page, "Continue")
    put_picture(field(tab, ANIMATION), PICTURES / "heart.webp")
    tab.get_by_role("button", name="Make the sticker").click()
    assert len(finished(page, tab)) == 13


def test_a_finished_sticker_goes_on_and_is_fitted(page):
    tab = shown_tab(page)
    tab.get_by_label("What happens").press("Enter")
    first = finished(page, tab)
    tab.get_by_role("button", name="Continue it").click()
    tab = shown_tab(page, "Continue")
    tab.get_by_role("button", name="Make the sticker").click()
    longer = finished(page, tab)
    np.testing.assert_array_equal(longer[:8, ..., 3], first[..., 3])
    assert len(longer) == 13
    tab.get_by_role("button", name="Fit to platforms").click()
    sent = field(shown_tab(page, "Export"), ANIMATION).locator("img")
    np.testing.assert_array_equal(read_animation(fetch(page, sent)).frames, longer)


def test_export_shows_real_sizes_rules_and_files(page, tmp_path):
    tab = open_tab(page, "Export")
    put_picture(field(tab, ANIMATION), PICTURES / "heart.webp")
    for name in ("WhatsApp sticker", "Telegram video sticker", "Discord sticker"):
        tab.get_by_label(name).uncheck()
    for name in ("Telegram video emoji", "Slack emoji"):
        tab.get_by_label(name).check()
    tab.get_by_role("button", name="Fit the sticker").click()
    expect(tab.get_by_text("2 of 2 platforms served")).to_be_visible()
    for name, size in (("Telegram video emoji", 100), ("Slack emoji", 128)):
        for chat, colour in (("light", (239, 234, 226)), ("dark", (11, 20, 26))):
            image = tab.get_by_alt_text(f"{name} in a {chat} chat")
            image.scroll_into_view_if_needed()
            expect(image).to_have_js_property("complete", True)
            assert image.evaluate("e => [e.naturalWidth, e.naturalHeight]") == [size, size]
            box = image.bounding_box()
            assert (round(box["width"]), round(box["height"])) == (size, size)
            look = np.asarray(Image.open(io.BytesIO(image.screenshot())).convert("RGB"))
            np.testing.assert_allclose(look[2, 20], colour, atol=8)  # beside the round corner
    rows = tab.locator(".card").first.get_by_role("row")
    expect(rows.filter(has_text="bytes")).to_contain_text("up to 256,000")
    assert all("✓" in text for text in rows.all_inner_texts()[1:])
    with page.expect_download() as download:
        tab.get_by_role("button", name="Download all as ZIP").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        archive.extractall(tmp_path)
    assert check(tmp_path / "telegram-emoji.webm", "telegram-emoji") == check(tmp_path / "slack.gif", "slack") == []
    with page.expect_download() as download:
        tab.get_by_role("button", name="Download slack.gif").click()
    assert Path(download.value.path()).read_bytes() == (tmp_path / "slack.gif").read_bytes()


def test_keyboard_alone_makes_a_sticker(page):
    page.get_by_role("tab", name="Sticker").focus()
    tab = shown_tab(page)
    for _ in range(20):
        page.keyboard.press("Tab")
        if tab.get_by_label("What happens").evaluate("e => e === document.activeElement"):
            break
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("a ball")
    for _ in range(20):
        page.keyboard.press("Tab")
        if tab.get_by_role("button", name="Make the sticker").evaluate("e => e === document.activeElement"):
            break
    page.keyboard.press("Space")
    expect(tab.get_by_text("drawn in")).to_be_visible()
    assert "a-ball-" in tab.get_by_alt_text("The finished sticker").get_attribute("src")


UNNAMED = """tab => [...tab.querySelectorAll('button, input, textarea, [role=slider]')]
    .filter(e => e.checkVisibility())
    .filter(e => !(e.labels?.length || e.getAttribute('aria-label') || e.title || e.innerText?.trim()))
    .map(e => e.outerHTML)"""


@pytest.mark.parametrize("page", [DESKTOP, PHONE], ids=["desktop", "phone"], indirect=True)
def test_every_control_has_a_name_and_nothing_is_wider_than_the_window(page):
    for name in TABS:
        tab = open_tab(page, name)
        for accordion in tab.get_by_role("button", name="Settings").all():
            accordion.click()
        expect(tab.get_by_role("button").first).to_be_visible()
        assert tab.evaluate(UNNAMED) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
