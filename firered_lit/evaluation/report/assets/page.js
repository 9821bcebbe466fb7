
"use strict";
// Shows the items of the JSON block. Whatever stands in it becomes text, never markup.

const FIRST = 12;        // cards that are filled at once
const AHEAD = "1500px";  // how far below the window cards are filled

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

function element(tag, classes = "", text = "") {
  const made = document.createElement(tag);
  if (classes) made.className = classes;
  if (text !== "") made.textContent = text;
  return made;
}

// Numbers and states

const headline = (item) => data.suites[item.suite].headline;

function score(item, cell, mode) {
  const value = cell[mode].values[headline(item)];
  return value === undefined ? null : value;
}

function numbers(item, cell) {
  return ["official", "strict"].map((mode) => {
    const value = score(item, cell, mode);
    return `${mode} ${value === null ? "–" : value.toFixed(2)}`;
  }).join(" · ");
}

function lowest(item) {
  const known = item.models.map((cell) => score(item, cell, "strict")).filter((value) => value !== null);
  return known.length ? Math.min(...known) : Infinity;
}

const wordsOfJudge = (cell) => cell.answers.flat().filter((answer) => answer !== null);

const hasState = (state) => (item) =>
  item.models.some((cell) => cell.official.state === state || cell.strict.state === state);

const FAILURES = [
  ["all", () => true],
  ["scored by all", (item) => item.models.every((cell) => cell.strict.state === "scored")],
  ["any failure", (item) => item.models.some((cell) => cell.strict.state !== "scored")],
  ["missing", hasState("missing")],
  ["refused", hasState("refused")],
  ["unparsed", hasState("unparsed")],
  ["no picture", (item) => item.models.some((cell) => cell.problem)],
  ["official and strict differ", (item) =>
    item.models.some((cell) => score(item, cell, "official") !== score(item, cell, "strict"))],
];

const place = new Map(data.items.map((item, index) => [item, index]));
const inOrder = (first, second) => place.get(first) - place.get(second);

const ORDERS = [
  ["benchmark", inOrder],
  ["widest gap first", (first, second) => second.share - first.share || inOrder(first, second)],
  ["lowest score first", (first, second) => lowest(first) - lowest(second) || inOrder(first, second)],
  ["same id together", (first, second) =>
    first.id.localeCompare(second.id, "en", { numeric: true }) || inOrder(first, second)],
];

// Cards: each item has one from the start, which is filled when it comes near the window

const cards = new Map();

function fill(card) {
  if (card.filled) return;
  card.filled = true;
  const item = card.item;
  const facts = element("div", "facts");
  const named = [`${item.suite} ${item.id}`, item.category, item.language];
  if (data.models.length > 1) named.push(`gap ${item.gap.toFixed(2)}`);
  named.forEach((text) => facts.append(element("span", "", text)));
  const instruction = element("p", "instruction", item.instruction);
  instruction.dir = "auto";
  const pictures = element("div", "pictures");
  item.sources.forEach((cell, index) => {
    const name = item.sources.length > 1 ? `source ${index + 1}` : "source";
    pictures.append(figure(item, cell, name, index));
  });
  item.models.forEach((cell, index) => {
    pictures.append(modelFigure(item, cell, index));
  });
  card.append(facts, instruction, pictures);
}

function figure(item, cell, name, index) {
  const made = element("figure");
  made.append(pictureOf(item, cell, name, index));
  made.append(element("figcaption", "", name));
  return made;
}

function pictureOf(item, cell, name, index) {
  if (cell.problem) {
    const box = element("div", "problem", cell.problem);
    box.dir = "auto";
    return box;
  }
  const picture = element("img");
  picture.loading = "lazy";
  picture.decoding = "async";
  picture.width = cell.width;
  picture.height = cell.height;
  picture.alt = name;
  picture.src = `pictures/${encodeURIComponent(cell.name)}`;
  picture.addEventListener("click", () => enlarge(item, index));
  return picture;
}

function modelFigure(item, cell, rank) {
  const model = data.models[rank];
  const made = element("figure");
  made.append(pictureOf(item, cell, model.name, item.sources.length + rank));
  const caption = element("figcaption");
  caption.append(mark(model.color), element("b", "", model.name), element("br"), numbers(item, cell));
  const states = new Set([cell.official.state, cell.strict.state].filter((state) => state !== "scored"));
  states.forEach((state) => caption.append(element("div", "state", state)));
  made.append(caption);
  const answers = wordsOfJudge(cell);
  if (answers.length) {
    const words = element("details");
    words.append(element("summary", "", "judge's words"));
    answers.forEach((answer) => {
      const text = element("pre", "words", String(answer));
      text.dir = "auto";
      words.append(text);
    });
    made.append(words);
  }
  return made;
}

function mark(color) {
  const made = element("span", "mark");
  made.style.background = color;
  return made;
}

const near = new IntersectionObserver((entries) => {
  entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
    near.unobserve(entry.target);
    fill(entry.target);
  });
}, { rootMargin: `${AHEAD} 0px` });

function makeCards() {
  const all = document.createDocumentFragment();
  data.items.forEach((item) => {
    const card = element("article");
    card.tabIndex = -1;
    card.item = item;
    cards.set(item, card);
    all.append(card);
    near.observe(card);
  });
  byId("items").append(all);
}

// Filters and order

let shown = [];

function wordsOf(item) {
  const answers = item.models.flatMap(wordsOfJudge);
  return [item.id, item.category, item.instruction, ...answers].join("\n").toLowerCase();
}

// The first choice of a filter is "all"; a category of that name stands below it.
function passes(id, value) {
  return byId(id).selectedIndex === 0 || byId(id).value === value;
}

function update() {
  const failed = FAILURES[byId("failure").selectedIndex][1];
  const order = ORDERS[byId("order").selectedIndex][1];
  const sought = byId("search").value.trim().toLowerCase();
  shown = data.items.filter((item) =>
    ["suite", "category", "language"].every((id) => passes(id, item[id]))
    && failed(item)
    && (!sought || wordsOf(item).includes(sought)));
  shown.sort(order);
  const wanted = new Set(shown);
  data.items.forEach((item) => { cards.get(item).hidden = !wanted.has(item); });
  shown.slice(0, FIRST).forEach((item) => fill(cards.get(item)));
  byId("items").append(...shown.map((item) => cards.get(item)));
  byId("count").textContent = `${shown.length} of ${data.items.length} items`;
  current = -1;
}

function choices(id, names) {
  names.forEach((name) => {
    const option = element("option", "", name);
    option.value = name;
    byId(id).append(option);
  });
  byId(id).addEventListener("change", update);
}

const distinct = (name) => ["all", ...new Set(data.items.map((item) => item[name]))];

// The enlarged picture: all pictures of an item in the same place, one at a time

let open = { item: null, index: 0 };

function cellsOf(item) {
  const sources = item.sources.map((cell, index) => ({ cell, name: `source ${index + 1}` }));
  return [...sources, ...item.models.map((cell, rank) => ({ cell, name: data.models[rank].name }))];
}

function enlarge(item, index) {
  const cells = cellsOf(item);
  const chosen = cells[index];
  if (!chosen || chosen.cell.problem) return;
  open = { item, index };
  byId("large-picture").src = `pictures/${encodeURIComponent(chosen.cell.name)}`;
  byId("large-caption").textContent = `${chosen.name}: ${item.instruction}`;
  if (!byId("large").open) byId("large").showModal();
}

function turn(step) {
  const count = cellsOf(open.item).length;
  for (let tries = 1; tries <= count; tries += 1) {
    const index = (open.index + step * tries + count * tries) % count;
    if (!cellsOf(open.item)[index].cell.problem) {
      enlarge(open.item, index);
      return;
    }
  }
}

let lastRank = 0;  // the model whose picture was enlarged last, in this item or in another one

function blink() {
  const sources = open.item.sources.length;
  if (open.index < sources) {
    enlarge(open.item, sources + lastRank);
  } else {
    lastRank = open.index - sources;
    enlarge(open.item, 0);
  }
}

// Keys

let current = -1;

function go(step) {
  if (!shown.length) return;
  current = Math.min(Math.max(current + step, 0), shown.length - 1);
  const card = cards.get(shown[current]);
  fill(card);
  card.focus({ preventScroll: true });
  card.scrollIntoView({ block: "start" });
}

function toggleWords() {
  if (current < 0) return;
  const words = [...cards.get(shown[current]).querySelectorAll("details")];
  const opens = words.some((one) => !one.open);
  words.forEach((one) => { one.open = opens; });
}

function toggleGap() {
  byId("order").selectedIndex = byId("order").selectedIndex === 1 ? 0 : 1;
  update();
}

function enlargeCurrent() {
  if (current < 0) return;
  const item = shown[current];
  const index = cellsOf(item).findIndex((one, rank) => rank >= item.sources.length && !one.cell.problem);
  enlarge(item, index < 0 ? 0 : index);
}

const KEYS = {
  "j": () => go(1),
  "k": () => go(-1),
  "g": toggleGap,
  "w": toggleWords,
  "Enter": enlargeCurrent,
  "/": () => byId("search").focus(),
  "?": () => byId("keys").showModal(),
};
const KEYS_OF_LARGE = { "ArrowLeft": () => turn(-1), "ArrowRight": () => turn(1), " ": blink };

document.addEventListener("keydown", (event) => {
  const typing = ["INPUT", "SELECT", "SUMMARY", "BUTTON"].includes(event.target.tagName);
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (typing && event.key === "Escape") event.target.blur();
  const keys = byId("large").open ? KEYS_OF_LARGE : KEYS;
  const action = keys[event.key];
  if (!action || (typing && !byId("large").open) || byId("keys").open) return;
  event.preventDefault();
  action();
});

// Start

data.models.forEach((model) => {
  const entry = element("li");
  entry.append(mark(model.color), model.name);
  byId("legend").append(entry);
});
["suite", "category", "language"].forEach((id) => choices(id, distinct(id)));
choices("failure", FAILURES.map(([name]) => name));
choices("order", ORDERS.map(([name]) => name));
byId("search").addEventListener("input", update);
byId("show-keys").addEventListener("click", () => byId("keys").showModal());
byId("large").addEventListener("click", () => byId("large").close());
makeCards();
update();
document.documentElement.dataset.ready = "yes";
