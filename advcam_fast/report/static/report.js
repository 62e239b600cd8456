"use strict";
// The gallery: filters, pages, keys. Names are only ever set as text.

const PAGE = 24;
const LAYERS = ["cam", "advcam", "mask", "none"];
const NAMES = { cam: "CAM", advcam: "AdvCAM", mask: "Refined" };
const [ID, WIDTH, HEIGHT, CLASSES, SCORES, FLAGS, IOU] = [0, 1, 2, 3, 4, 5, 6];
const { rows, classes, flags, masks } = advcamIndex;
const $ = (id) => document.getElementById(id);
const state = { layer: "advcam", threshold: 0.3, page: 0, found: [], large: -1 };
const chosen = new Map(); // image -> which of its classes is shown
let cards = [];

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// ---- which images

const numbers = (list) => Array.from(list, (_, n) => n);
const wantedClass = () => classes.indexOf($("class").value);
const score = (row) => (row[SCORES].length ? Math.max(...row[SCORES]) : null);
const measure = (row, name) => (name === "iou" ? row[IOU] : score(row));

function fits(row, wanted) {
  if (wanted.text && !row[ID].toLowerCase().includes(wanted.text)) return false;
  if (wanted.classText && !row[CLASSES].some((number) => wanted.classes.has(number))) return false;
  if (wanted.flag !== "" && !row[FLAGS].includes(Number(wanted.flag))) return false;
  if (wanted.least === null && wanted.most === null) return true;
  const value = measure(row, wanted.measure);
  return value !== null && value >= (wanted.least ?? 0) && value <= (wanted.most ?? 1);
}

function ordered(found, order) {
  const [name, direction] = order.split("-");
  if (name === "run") return found;
  if (name === "name") return found.sort((a, b) => (rows[a][ID] < rows[b][ID] ? -1 : 1));
  const sign = direction === "down" ? -1 : 1;
  const key = (number) => measure(rows[number], name) ?? sign * Infinity; // those without come last
  return found.sort((a, b) => sign * (key(a) - key(b)) || a - b);
}

function search() {
  const number = (id) => ($(id).value === "" ? null : Number($(id).value));
  const classText = $("class").value;
  const exact = wantedClass();
  const like = classText.toLowerCase();
  const wanted = {
    text: $("filter").value.trim().toLowerCase(),
    classText,
    classes: new Set(exact >= 0 ? [exact] : numbers(classes).filter((n) => classes[n].toLowerCase().includes(like))),
    flag: $("flag").value,
    measure: $("measure").value,
    least: number("least"),
    most: number("most"),
  };
  const all = numbers(rows).filter((n) => fits(rows[n], wanted));
  state.found = ordered(all, $("sort").value);
  $("clear").hidden = !(wanted.text || classText || wanted.flag || wanted.least !== null || wanted.most !== null);
  show(0);
}

// ---- a page of cards

function show(page, focus = -1) {
  const pages = Math.max(1, Math.ceil(state.found.length / PAGE));
  state.page = Math.min(Math.max(page, 0), pages - 1);
  const shown = state.found.slice(state.page * PAGE, (state.page + 1) * PAGE);
  cards = shown.map(makeCard);
  $("grid").replaceChildren(...cards.map((card) => card.node));
  const format = (n) => n.toLocaleString("en");
  const first = state.page * PAGE;
  $("count").textContent = shown.length
    ? `${format(first + 1)}–${format(first + shown.length)} of ${format(state.found.length)} images`
    : "";
  $("empty").hidden = shown.length > 0;
  $("page").textContent = `Page ${format(state.page + 1)} of ${format(pages)}`;
  $("previous").disabled = state.page === 0;
  $("next").disabled = state.page === pages - 1;
  cards.forEach(fill);
  if (focus >= 0) cards.at(Math.min(focus, cards.length - 1))?.open.focus();
}

function makeCard(number) {
  const row = rows[number];
  const photo = element("img", { src: Paint.thumbnail(number), alt: "", loading: "lazy", decoding: "async" });
  const canvas = element("canvas");
  const open = element("button", { type: "button", className: "picture", title: "Open" }, photo, canvas);
  open.setAttribute("aria-label", `Open ${row[ID]}`);
  open.onclick = () => openLarge(state.found.indexOf(number));
  const notes = element("span", { className: "notes" });
  if (row[IOU] !== null) notes.append(element("span", { className: "iou", textContent: `IoU ${row[IOU].toFixed(2)}` }));
  for (const flag of row[FLAGS]) notes.append(element("span", { className: "flag", textContent: flags[flag] }));
  const name = element("span", { className: "name", textContent: row[ID], title: row[ID] });
  const chips = element("div", { className: "chips" });
  const node = element("article", { className: "card" }, open, element("div", { className: "caption" }, name, notes), chips);
  const card = { number, node, photo, canvas, chips, open, maps: null };
  fillChips(card.chips, number, () => paint(card));
  return card;
}

function fillChips(box, number, changed) {
  const row = rows[number];
  const mark = () => [...box.children].forEach((chip, n) => chip.setAttribute("aria-pressed", n === which(number)));
  box.replaceChildren(...row[CLASSES].map((own, n) => {
    const chip = element("button", { type: "button", className: "chip", title: `Score ${row[SCORES][n]}` });
    chip.append(element("span", { textContent: classes[own] }), element("span", { className: "quiet", textContent: row[SCORES][n].toFixed(2) }));
    chip.onclick = () => {
      chosen.set(number, n);
      mark();
      changed();
    };
    return chip;
  }));
  mark();
}

// The class of an image that is shown: the one picked, else the one filtered by, else the first.
function which(number) {
  const own = rows[number][CLASSES];
  return chosen.get(number) ?? Math.max(0, own.indexOf(wantedClass()));
}

async function fill(card) {
  try {
    card.maps = await Paint.load(card.number);
  } catch {
    card.node.classList.add("missing");
    return;
  }
  if (cards.includes(card)) paint(card);
}

function sized(canvas, row, most) {
  const shrink = Math.min(1, most / Math.max(row[WIDTH], row[HEIGHT]));
  canvas.width = Math.max(1, Math.round(row[WIDTH] * shrink));
  canvas.height = Math.max(1, Math.round(row[HEIGHT] * shrink));
}

function paint(card, layer = state.layer, most = 320) {
  if (!card.maps) return;
  const row = rows[card.number];
  if (!card.canvas.dataset.sized) {
    sized(card.canvas, row, most);
    card.canvas.dataset.sized = "yes";
  }
  const drawn = Paint.draw(card.canvas, card.maps, layer, which(card.number), state.threshold, row[WIDTH], row[HEIGHT]);
  card.photo.classList.toggle("grey", drawn);
  card.canvas.dataset.drawn = drawn ? layer : "";
}

let asked = 0;
function repaint() {
  cancelAnimationFrame(asked);
  asked = requestAnimationFrame(() => {
    if (state.large >= 0) panels.forEach((panel) => paint(panel, panel.layer, 640));
    else cards.forEach((card) => paint(card));
  });
}

// ---- one image, large

let panels = [];

function openLarge(position) {
  state.large = Math.min(Math.max(position, 0), state.found.length - 1);
  const number = state.found[state.large];
  const row = rows[number];
  $("large-name").textContent = row[ID];
  fillChips($("large-classes"), number, repaint);
  const layers = masks ? ["cam", "advcam", "mask"] : ["cam", "advcam"];
  panels = layers.map((layer) => {
    const photo = element("img", { src: Paint.thumbnail(number), alt: "" });
    const canvas = element("canvas");
    const picture = element("div", { className: "picture" }, photo, canvas);
    picture.style.aspectRatio = `${row[WIDTH]} / ${row[HEIGHT]}`;
    const node = element("figure", {}, picture, element("figcaption", { textContent: NAMES[layer] }));
    return { number, node, photo, canvas, layer, maps: null };
  });
  $("panels").replaceChildren(...panels.map((panel) => panel.node));
  const own = panels;
  Paint.load(number).then((maps) => {
    if (own !== panels) return;
    panels.forEach((panel) => (panel.maps = maps));
    repaint();
  }, () => $("panels").replaceChildren("Its maps could not be loaded."));
  $("large-previous").disabled = state.large === 0;
  $("large-next").disabled = state.large === state.found.length - 1;
  if (!$("large").open) $("large").showModal();
}

$("large").addEventListener("close", () => {
  const position = state.large;
  state.large = -1;
  panels = [];
  show(Math.floor(position / PAGE), position % PAGE);
});
$("large").addEventListener("click", (event) => event.target === $("large") && $("large").close());
$("large-close").onclick = () => $("large").close();
$("large-previous").onclick = () => openLarge(state.large - 1);
$("large-next").onclick = () => openLarge(state.large + 1);

// ---- controls

function setLayer(layer) {
  state.layer = layer;
  for (const button of document.querySelectorAll("[data-layer]"))
    button.setAttribute("aria-pressed", button.dataset.layer === layer);
  $("threshold").disabled = layer === "mask" || layer === "none";
  repaint();
}

function setThreshold(value) {
  state.threshold = Math.min(1, Math.max(0, Math.round(value * 100) / 100));
  for (const id of ["threshold", "large-threshold"]) {
    $(id).value = state.threshold;
    $(`${id}-value`).textContent = state.threshold.toFixed(2);
  }
  repaint();
}

function remember(key, value) {
  try {
    localStorage.setItem(key, value);
  } catch {} // some browsers keep nothing for pages from disk
}

function setTheme(theme) {
  document.documentElement.style.colorScheme = theme;
  remember("advcam-theme", theme);
}

function otherTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = document.documentElement.style.colorScheme || (dark ? "dark" : "light");
  setTheme(now === "dark" ? "light" : "dark");
}

function nextLayer() {
  const possible = LAYERS.filter((layer) => masks || layer !== "mask");
  setLayer(possible[(possible.indexOf(state.layer) + 1) % possible.length]);
}

function clearFilters() {
  for (const id of ["filter", "class", "flag", "least", "most"]) $(id).value = "";
  chosen.clear();
  search();
}

// ---- keys

function columns() {
  return getComputedStyle($("grid")).gridTemplateColumns.split(" ").length;
}

function move(step) {
  const at = cards.findIndex((card) => card.open === document.activeElement);
  if (at < 0) return cards[0]?.open.focus();
  const to = at + step;
  if (to >= 0 && to < cards.length) cards[to].open.focus();
  else if (to < 0 && state.page > 0) show(state.page - 1, PAGE - 1);
  else if (to >= cards.length && !$("next").disabled) show(state.page + 1, 0);
}

function nextClass() {
  const at = cards.findIndex((card) => card.open === document.activeElement);
  const box = state.large >= 0 ? $("large-classes") : cards[at]?.chips;
  const chips = [...(box?.children ?? [])];
  chips[(chips.findIndex((chip) => chip.getAttribute("aria-pressed") === "true") + 1) % chips.length]?.click();
}

const KEYS = {
  t: nextLayer,
  d: otherTheme,
  c: nextClass,
  n: () => show(state.page + 1, 0),
  p: () => show(state.page - 1, 0),
  "?": () => $("help").showModal(),
  "-": () => setThreshold(state.threshold - 0.05),
  "+": () => setThreshold(state.threshold + 0.05),
  "=": () => setThreshold(state.threshold + 0.05),
  "/": () => $("filter").focus(),
  ArrowLeft: () => (state.large >= 0 ? openLarge(state.large - 1) : move(-1)),
  ArrowRight: () => (state.large >= 0 ? openLarge(state.large + 1) : move(1)),
  ArrowUp: () => state.large < 0 && move(-columns()),
  ArrowDown: () => state.large < 0 && move(columns()),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches("input, select, textarea");
  if (typing && event.key === "Escape") return event.target.blur();
  const slider = event.target.type === "range" && !event.key.startsWith("Arrow");
  if ((typing && !slider) || ($("help").open && event.key !== "d")) return;
  const act = KEYS[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});

// ---- start

let typed = 0;
for (const id of ["filter", "class", "least", "most"])
  $(id).addEventListener("input", () => {
    clearTimeout(typed);
    typed = setTimeout(search, 120);
  });
for (const id of ["flag", "measure", "sort"]) $(id).addEventListener("change", search);
for (const id of ["threshold", "large-threshold"])
  $(id).addEventListener("input", (event) => setThreshold(Number(event.target.value)));
for (const button of document.querySelectorAll("[data-layer]")) button.onclick = () => setLayer(button.dataset.layer);
for (const button of document.querySelectorAll("[data-class]"))
  button.onclick = () => {
    $("class").value = button.dataset.class;
    search();
    $("gallery").scrollIntoView();
  };
$("previous").onclick = () => show(state.page - 1);
$("next").onclick = () => show(state.page + 1);
$("clear").onclick = clearFilters;
$("theme-button").onclick = otherTheme;
$("help-button").onclick = () => $("help").showModal();
$("class-list").append(...[...classes].sort().map((name) => element("option", { value: name })));
$("flag").append(...flags.map((name, number) => element("option", { value: String(number), textContent: name })));
try {
  const theme = localStorage.getItem("advcam-theme");
  if (theme === "light" || theme === "dark") setTheme(theme);
} catch {} // see remember
setLayer("advcam");
search();
