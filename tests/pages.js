// What is wrong with a page as it stands: run in it by tests/pages.py, once for each width and theme.
(() => {
  const found = [];
  const say = (what, element, more = "") => {
    const id = element.id ? "#" + element.id : "";
    const kind = element.getAttribute("class");
    const name = element.tagName.toLowerCase() + id + (kind ? "." + kind.trim().split(/\s+/).join(".") : "");
    const text = (element.textContent || "").trim().replace(/\s+/g, " ").slice(0, 50);
    found.push(`${what}: <${name}> ${more} ${JSON.stringify(text)}`);
  };
  const seen = (element) => element.checkVisibility({ visibilityProperty: true, opacityProperty: true });
  const style = (element) => getComputedStyle(element);
  const scrolls = (element) => ["auto", "scroll"].includes(style(element).overflowX);
  const above = function* (element) {
    for (let e = element.parentElement; e; e = e.parentElement) yield e;
  };
  const inside = (element, test) => [...above(element)].some(test);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const content = all("article *").filter(seen);

  // Nothing is wider than the page, and nothing sticks out of its box but where the box scrolls.
  const page = document.scrollingElement;
  const width = page.clientWidth; // not innerWidth, which on a phone grows with what is too wide
  if (page.scrollWidth > width) say("the page is wider than the window", page, page.scrollWidth);
  for (const element of content) {
    const box = element.getBoundingClientRect();
    const hidden = style(element).position === "absolute" && box.width <= 1;
    if (hidden || inside(element, scrolls)) continue;
    if (box.right > width + 1 || box.left < -1) say("outside the window", element, Math.round(box.right));
    // The mark that a heading hangs in the margin, seen under the mouse, is 8 wide.
    const cut = element.scrollWidth > element.clientWidth + 8 && element.clientWidth > 0;
    const boxed = !(element instanceof SVGElement) && !style(element).display.startsWith("inline");
    if (cut && boxed && !scrolls(element) && !element.closest("math"))
      say("wider than its box", element, `${element.scrollWidth} > ${element.clientWidth}`);
  }

  // Formulas have a size; pictures have one, a name, and text that can be read.
  for (const formula of all("article math").filter(seen)) {
    const box = formula.getBoundingClientRect();
    if (!(box.width > 1 && box.height > 1)) say("a formula has no size", formula);
  }
  if (all("article merror").length) say("a formula is not understood", document.querySelector("merror"));
  if (/\$[^$\s][^$\n]*\$/.test(all("article p").map((p) => p.textContent).join("\n")))
    say("a formula was left as text", document.querySelector("article"));
  for (const image of all("img").filter(seen)) {
    if (!image.alt.trim()) say("an image has no alt text", image, image.src);
    if (!image.naturalWidth) say("an image did not load", image, image.src);
  }
  const named = (element) => {
    const labels = (element.getAttribute("aria-labelledby") || "").split(/\s+/).filter(Boolean);
    const said = labels.map((id) => document.getElementById(id)?.textContent || "").join("");
    return Boolean((said || element.getAttribute("aria-label") || "").trim());
  };
  const silent = (element) => element.getAttribute("aria-hidden") === "true";
  for (const drawing of all("svg").filter(seen)) {
    if (silent(drawing) || inside(drawing, (e) => silent(e) || (e.getAttribute("role") === "img" && named(e)))) continue;
    const spoken = drawing.getAttribute("role") === "img" && named(drawing);
    if (!spoken && !inside(drawing, (e) => e.matches("button, a, label"))) say("a drawing has no name", drawing);
  }
  for (const text of all("article svg text").filter(seen)) {
    const size = parseFloat(style(text).fontSize) * Math.abs(text.getScreenCTM().a || text.getScreenCTM().b);
    if (size < 9.5) { say("text in a drawing is small", text, `${size.toFixed(1)} px`); break; }
  }
  for (const figure of all("figure").filter(seen))
    if (scrolls(figure) && figure.scrollWidth > figure.clientWidth && figure.tabIndex < 0)
      say("a figure cannot be scrolled by keys", figure);

  // Text stands out from what is behind it (WCAG 2.1, 1.4.3: 4.5 to 1).
  const rgba = (text) => {
    const [r, g, b, a = 1] = (text.match(/[\d.]+(?:e-?\d+)?/g) || [0, 0, 0, 0]).map(Number);
    return { r, g, b, a };
  };
  const over = (top, below) => ({
    r: top.r * top.a + below.r * (1 - top.a), g: top.g * top.a + below.g * (1 - top.a),
    b: top.b * top.a + below.b * (1 - top.a), a: 1,
  });
  const behind = (element) => {
    const layers = [];
    for (const e of [element, ...above(element)]) layers.push(rgba(style(e).backgroundColor));
    return layers.reduceRight((below, top) => over(top, below), { r: 255, g: 255, b: 255, a: 1 });
  };
  const light = ({ r, g, b }) => {
    const [x, y, z] = [r, g, b].map((v) => ((v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const faint = new Set();
  for (const element of content) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || element.closest("title, desc")) continue;
    const drawn = element instanceof SVGElement;
    let back = behind(drawn ? element.closest("svg").parentElement : element);
    const cell = drawn && element.previousElementSibling;
    if (cell && cell.tagName === "rect" && style(cell).fill !== "none") {
      const fill = rgba(style(cell).fill);
      back = over({ ...fill, a: fill.a * parseFloat(style(cell).fillOpacity) }, back);
    }
    const front = over(rgba(drawn ? style(element).fill : style(element).color), back);
    const [low, high] = [light(front), light(back)].sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    const kind = element.tagName + element.getAttribute("class");
    if (ratio < 4.5 && !faint.has(kind)) {
      faint.add(kind);
      say("text is faint", element, `${ratio.toFixed(2)} to 1`);
    }
  }

  const ids = all("[id]").map((e) => e.id);
  for (const id of new Set(ids.filter((id, i) => ids.indexOf(id) !== i))) found.push(`the id ${id} occurs twice`);
  return found;
})()
