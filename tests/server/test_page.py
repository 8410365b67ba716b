"""The page, in a real browser: Chromium without a window."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from .running import Running

pytest.importorskip("playwright", reason="playwright is not installed")

from playwright.sync_api import Browser, ConsoleMessage, Page, Route, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
FOLDER = Path(__file__).parents[2] / "edgellm" / "server" / "page"
MOST_BYTES = 300_000
FOREIGN = 'target="_blank" rel="noopener noreferrer nofollow"'  # of a link
QUIETLY = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIETLY)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, small: Running) -> Iterator[Page]:
    """A fresh page of a server with a tiny random model; it may ask nobody else, and its scripts may not fail."""
    context = browser.new_context(viewport={"width": 1100, "height": 750}, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(30_000)
    faults: list[str] = []
    elsewhere: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "console", lambda message: message.type == "error" and not is_status(message) and faults.append(message.text)
    )
    page.on(
        "request",
        lambda request: request.url.startswith((small.url, "blob:", "data:")) or elsewhere.append(request.url),
    )
    opened(page, small)
    yield page
    context.close()
    assert not faults
    assert not elsewhere


def is_status(message: ConsoleMessage) -> bool:
    """Chromium tells of every answer that is an error, whatever the page makes of it."""
    return message.text.startswith("Failed to load resource")


def opened(page: Page, server: Running) -> None:
    page.goto(server.url)
    page.wait_for_selector("body[data-ready]")


def ask(page: Page, text: str) -> None:
    """Type a message, and wait until its answer is whole."""
    page.fill("#message", text)
    page.keyboard.press("Enter")
    finish(page)


def finish(page: Page) -> None:
    expect(page.locator("#send")).to_be_visible()
    expect(page.locator("article.writing")).to_have_count(0)


def few_tokens(page: Page, n: int = 12) -> None:
    """Short answers that do not end by chance."""
    page.click("#open-settings")
    page.fill("#set-temperature", "0")
    page.fill("#set-max_tokens", str(n))
    page.click("#settings-done")


def texts(page: Page, role: str) -> list[str]:
    return page.locator(f"article.{role} .text").all_inner_texts()


def test_a_question_and_its_answer(page: Page) -> None:
    few_tokens(page)
    ask(page, "hello")
    assert texts(page, "user") == ["hello"]
    assert page.locator("article.assistant").count() == 1
    expect(page.locator("article.assistant .tools")).to_contain_text("tokens a second")
    expect(page.locator("article.assistant .wrong")).to_contain_text("cut")  # there was more to come
    assert page.locator("#context").evaluate("meter => meter.value") > 0
    expect(page.locator("#conversations li[aria-current]")).to_contain_text("hello")


def test_again_and_edit_make_branches(page: Page) -> None:
    few_tokens(page)
    ask(page, "one")
    first = texts(page, "assistant")
    page.get_by_role("button", name="Make this answer again").click()
    finish(page)
    expect(page.locator("article.assistant .tools")).to_contain_text("2 of 2")
    page.get_by_role("button", name="The version before").click()
    assert texts(page, "assistant") == first
    page.get_by_role("button", name="Edit this message").click()
    page.get_by_role("textbox", name="Your message").fill("two")
    page.keyboard.press("Enter")
    finish(page)
    assert texts(page, "user") == ["two"]
    page.get_by_role("button", name="The version before").first.click()
    assert texts(page, "user") == ["one"]
    assert texts(page, "assistant") == first


def test_arrow_up_edits_the_last_message_and_escape_leaves_it(page: Page) -> None:
    few_tokens(page)
    ask(page, "one")
    page.focus("#message")
    page.keyboard.press("ArrowUp")
    expect(page.get_by_role("textbox", name="Your message")).to_be_focused()
    page.keyboard.press("Escape")
    assert texts(page, "user") == ["one"]


def test_stop_keeps_what_is_there(browser: Browser, smol: Running) -> None:
    page = browser.new_page()
    opened(page, smol)
    few_tokens(page, 200)  # an answer that is drawn may be as short as "No."
    page.fill("#message", "Count to a thousand.")
    page.keyboard.press("Enter")
    expect(page.locator("article.assistant .text")).to_have_text(re.compile("...."))
    page.keyboard.press("Escape")
    finish(page)
    assert len(texts(page, "assistant")[0]) > 3
    assert page.locator("article .wrong").count() == 0
    page.close()


def test_conversations_outlive_the_page(page: Page, small: Running) -> None:
    few_tokens(page)
    ask(page, "remember me")
    answers = texts(page, "assistant")
    opened(page, small)
    assert page.locator("article").count() == 0  # a new one, and the old ones in the list
    page.get_by_role("button", name="remember me", exact=True).click()
    assert texts(page, "assistant") == answers
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete remember me").click()
    expect(page.locator("#conversations li")).to_have_count(0)


def test_what_the_model_is_asked(page: Page) -> None:
    """System prompt, settings, files, and the branch that is shown."""
    bodies: list[dict] = []

    def look(route: Route) -> None:
        bodies.append(json.loads(route.request.post_data or ""))
        route.continue_()

    page.route("**/v1/chat/completions", look)
    page.click("#open-settings")
    page.fill("#system", "Be brief.")
    page.fill("#set-max_tokens", "3")
    page.fill("#set-temperature", "0")
    page.click("#settings-done")
    file = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"with ``` fences"}
    page.set_input_files("#attach-file", [file])
    expect(page.locator("#files")).to_contain_text("notes.txt")
    ask(page, "What is in it?")
    body = bodies[-1]
    assert (body["max_tokens"], body["temperature"], body["stream"]) == (3, 0, True)
    said = "File notes.txt:\n````\nwith ``` fences\n````\n\nWhat is in it?"
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": said}]


def test_files_that_are_no_text_are_refused(page: Page) -> None:
    page.set_input_files("#attach-file", [{"name": "x.bin", "mimeType": "", "buffer": b"\xff\x00"}])
    expect(page.locator("#notice")).to_contain_text("x.bin is no text")
    expect(page.locator("#files li")).to_have_count(0)


def test_export_and_import(page: Page, tmp_path: Path) -> None:
    few_tokens(page)
    ask(page, "keep this")
    with page.expect_download() as download:
        page.click("#export-all")
    path = tmp_path / "all.json"
    download.value.save_as(path)
    (found,) = json.loads(path.read_text())
    assert [node["role"] for node in found["nodes"].values()] == ["user", "assistant"]
    page.set_input_files("#import-file", path)
    expect(page.locator("#conversations li")).to_have_count(2)
    assert texts(page, "user") == ["keep this"]
    (tmp_path / "bad.json").write_text('{"nodes": {}, "roots": ["x"]}')
    page.set_input_files("#import-file", tmp_path / "bad.json")
    expect(page.locator("#notice")).to_contain_text("bad.json: this is no exported conversation")


def test_errors_are_said_and_the_page_goes_on(page: Page) -> None:
    def refuse(route: Route) -> None:
        route.fulfill(
            status=429, body=json.dumps({"error": {"message": "too many wait"}}), content_type="application/json"
        )

    page.route("**/v1/chat/completions", refuse)
    with_faults = page.locator("article.assistant .wrong")
    ask(page, "hello")
    expect(with_faults).to_have_text("too many wait")
    page.unroute("**/v1/chat/completions")
    few_tokens(page)
    page.get_by_role("button", name="Make this answer again").click()
    finish(page)
    expect(page.locator("article.assistant .tools")).to_contain_text("2 of 2")


def rendered(page: Page, text: str) -> str:
    return page.evaluate(
        """async (text) => {
            const { show } = await import("/page/markdown.js");
            const element = document.createElement("div");
            for (let end = 1; end <= text.length; end++) show(element, text.slice(0, end)); // as it streams
            const whole = document.createElement("div");
            show(whole, text);
            if (element.innerHTML !== whole.innerHTML) throw new Error("streamed: " + element.innerHTML);
            return whole.innerHTML;
        }""",
        text,
    )


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("a *b* **c** `d` ~~e~~", "<p>a <em>b</em> <strong>c</strong> <code>d</code> <del>e</del></p>"),
        ("some_snake_case and 2*3*4", "<p>some_snake_case and 2<em>3</em>4</p>"),
        ("# One\ntext", "<h3>One</h3><p>text</p>"),
        ("- a\n- b\n  - c", "<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul>"),
        ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
        ("> a\n> b", "<blockquote><p>a\nb</p></blockquote>"),
        ("a\n\n---\n\nb", "<p>a</p><hr><p>b</p>"),
        ("|a|b|\n|-|-|\n|1|2|", "<table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td>2</td></tr></tbody></table>"),  # noqa: E501
        ("<img src=x onerror=alert(1)>", "<p>&lt;img src=x onerror=alert(1)&gt;</p>"),
        ("[x](javascript:alert(1))", "<p><span>x</span>)</p>"),
        ("[x](https://a.b/c)", f'<p><a href="https://a.b/c" {FOREIGN}>x</a></p>'),
        ("![x](https://a.b/c.png)", f'<p><a href="https://a.b/c.png" {FOREIGN}>x</a></p>'),
        (r"\*a\*", "<p>*a*</p>"),
    ],
)  # fmt: skip
def test_markdown(page: Page, text: str, html: str) -> None:
    assert rendered(page, text) == html


def test_code_is_text_whatever_it_holds(page: Page) -> None:
    html = rendered(page, "```html\n<script>alert(1)</script>\n\n- no list\n```\nbehind")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\n\n- no list</code>" in html
    assert html.endswith("<p>behind</p>")


@pytest.mark.parametrize("text", ["*" * 3000, "[" * 3000, "`a" * 1500, "> " * 500 + "x", "- " * 500 + "x", "|" * 3000])
def test_hostile_markdown_is_shown_in_no_time(page: Page, text: str) -> None:
    seconds = page.evaluate(
        """async (text) => {
            const { show } = await import("/page/markdown.js");
            const started = performance.now();
            show(document.createElement("div"), text);
            return (performance.now() - started) / 1000;
        }""",
        text,
    )
    assert seconds < 5


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1100])
def test_everybody_can_use_it(page: Page, theme: str, width: int) -> None:
    """axe-core finds nothing, with a conversation, in both themes, on a phone too; and nothing is cut off there."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page.set_viewport_size({"width": width, "height": 700})
    page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
    few_tokens(page)
    ask(page, "hello")
    page.evaluate("document.querySelector('article.assistant .text').append('x')")
    found = axe.run(page)
    assert found.violations_count == 0, found.generate_report()
    page.click("#open-settings")
    found = axe.run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_key_is_asked_for(browser: Browser, tiny_chat: Path) -> None:
    from edgellm.server.keys import Keys

    from .running import running

    with running({"tiny": tiny_chat}, Keys.of(("a-long-secret",), None)) as server:
        page = browser.new_page()
        opened(page, server)
        page.fill("#key", "a-long-secret")
        page.get_by_role("button", name="Use it").click()
        expect(page.locator("#model option")).to_have_count(1)
        page.close()


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < MOST_BYTES
