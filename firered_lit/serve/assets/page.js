"use strict";

// Words of the page. Whatever comes from the server is set as text, never as HTML.
const CHINESE = {
  drop: "把照片拖到这里，或点击选择", instruction: "指令", seed: "随机种子", steps: "步数", guidance: "引导强度",
  models: "用哪些权重画", draw: "编辑", mask: "显示改动的地方", grids: "训练中的样图",
};
const find = (id) => document.getElementById(id);
const photos = [];      // the files, in their order
let about = null;

function make(tag, text, parent) {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  if (parent) parent.append(element);
  return element;
}

function say(text, wrong = false) {
  find("message").textContent = text;
  find("message").classList.toggle("wrong", wrong);
}

// Photos

function take(files) {
  photos.push(...[...files].filter((file) => file.type.startsWith("image/")));
  showPhotos();
}

function showPhotos() {
  find("photos").replaceChildren();
  photos.forEach((file, index) => {
    const figure = make("figure", "", find("photos"));
    const image = make("img", "", figure);
    image.src = URL.createObjectURL(file);
    image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
    image.alt = file.name;
    image.title = "×";
    image.addEventListener("click", (event) => {
      event.stopPropagation();
      photos.splice(index, 1);
      showPhotos();
    });
    if (photos.length > 1) make("figcaption", `Picture ${index + 1} · 图${index + 1}`, figure);
  });
}

// Edits

async function edit(model, column) {
  const form = new FormData();
  photos.forEach((file) => form.append("image", file));
  form.append("model", model);
  for (const name of ["prompt", "seed", "steps", "guidance"]) form.append(name, find(name).value);
  const response = await fetch("edit", { method: "POST", body: form, headers: { "X-Firered-Lit": "1" } });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  column.image.dataset.picture = answer.picture;
  column.image.dataset.changed = answer.changed || answer.picture;
  column.seconds.textContent = `${answer.seconds} s`;
  show(column.image);
}

function show(image) {
  image.src = find("mask").checked ? image.dataset.changed : image.dataset.picture;
}

async function drawAll() {
  const chosen = [...find("models").querySelectorAll("input:checked")].map((box) => box.value);
  if (!chosen.length) return say("Choose what to draw with · 请先选择权重", true);
  find("draw").disabled = true;
  find("results").replaceChildren();
  const columns = chosen.map((model) => {
    const figure = make("figure", "", find("results"));
    const image = make("img", "", figure);
    image.alt = model;
    const caption = make("figcaption", "", figure);
    make("span", model, caption);
    return { image, seconds: make("span", "…", caption) };
  });
  try {
    for (const [index, model] of chosen.entries()) {
      say(`${model} (${index + 1} / ${chosen.length})`);
      await edit(model, columns[index]);
    }
    say("");
  } catch (problem) {
    say(problem.message, true);
  } finally {
    find("draw").disabled = false;
  }
}

// Grids of the run

function showGrid(kind) {
  const names = about.grids[kind];
  const name = names[Number(find("step").value)];
  find("grid").src = `grids/${kind}/${name}`;
  find("step-name").textContent = `step ${Number(name.replace(/\D/g, ""))}`;
}

function showKind(kind) {
  find("step").max = about.grids[kind].length - 1;
  find("step").value = find("step").max;
  find("step").oninput = () => showGrid(kind);
  for (const button of find("kinds").children) button.setAttribute("aria-pressed", button.value === kind);
  showGrid(kind);
}

function showGrids() {
  const kinds = Object.keys(about.grids).filter((kind) => about.grids[kind].length);
  find("grids").hidden = !kinds.length;
  for (const kind of kinds) {
    const button = make("button", kind, find("kinds"));
    button.type = "button";
    button.value = kind;
    button.addEventListener("click", () => showKind(kind));
  }
  if (kinds.length) showKind(kinds[0]);
}

// Begin

async function begin() {
  if (navigator.language.startsWith("zh")) {
    for (const element of document.querySelectorAll("[data-text]")) element.textContent = CHINESE[element.dataset.text];
  }
  about = await (await fetch("about")).json();
  find("title").textContent = about.title;
  find("steps").value = about.steps;
  find("guidance").value = about.guidance;
  about.models.forEach((model, index) => {
    const label = make("label", "", find("models"));
    const box = make("input", "", label);
    box.type = "checkbox";
    box.value = model;
    box.checked = index === 0 || index === about.models.length - 1;
    label.append(` ${model}`);
  });
  showGrids();

  const drop = find("drop");
  drop.addEventListener("click", () => find("files").click());
  drop.addEventListener("keydown", (event) => { if (event.key === "Enter") find("files").click(); });
  drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => { event.preventDefault(); drop.classList.remove("over"); take(event.dataTransfer.files); });
  find("files").addEventListener("change", (event) => { take(event.target.files); event.target.value = ""; });
  find("mask").addEventListener("change", () => find("results").querySelectorAll("img[src]").forEach(show));
  find("ask").addEventListener("submit", (event) => { event.preventDefault(); drawAll(); });
}

begin();
