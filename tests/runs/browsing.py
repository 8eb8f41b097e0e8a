"""Pages of a real browser that fail the test if anything fails in them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

AXE: Final = Path(__file__).parents[1] / "browser" / "axe-core" / "axe.min.js"
_GRAVE: Final = """async (rules) => (await axe.run(document, {preload: false,
    ...(rules.length && {runOnly: {type: "rule", values: rules}})})).violations
    .filter((one) => ["serious", "critical"].includes(one.impact))
    .map((one) => `${one.id}: ${one.help}: ${one.nodes.slice(0, 3).map((node) => node.html)}`)"""


def _left(request) -> bool:
    """Whether the page was left before a picture that is loaded late had come."""
    return "ERR_ABORTED" in (request.failure or "")


def _is_wrong(message) -> bool:
    """Whether the console says more than that a question was refused, which the page says too."""
    refused = "status of 400" in message.text and "/api/" in message.location["url"]
    return message.type in {"error", "warning"} and not refused


def watched(browser, own: str = "file:", **options) -> Iterator[Any]:
    context = browser.new_context(**options)
    page, wrong = context.new_page(), []
    page.on("console", lambda m: wrong.append(m.text) if _is_wrong(m) else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda r: None if _left(r) else wrong.append(f"failed: {r.url}"))
    page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
    page.on(
        "request",
        lambda r: (
            None
            if r.url.startswith((own, "data:", f"blob:{own}"))
            else wrong.append(f"asks {r.url}")
        ),
    )
    yield page
    context.close()
    assert not wrong, wrong


def inaccessible(page, *rules: str) -> list[str]:
    """What axe-core finds on a page that is serious or critical, by some rules or by all."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    return page.evaluate(_GRAVE, list(rules))
