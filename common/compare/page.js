"use strict";
// Texts from data are set as text nodes and attributes, never as HTML.

const data = JSON.parse(document.getElementById("data").textContent);

function element(name, properties = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

// Photos ------------------------------------------------------------------------------------------------------------

for (const image of document.querySelectorAll("img[data-photo]")) {
  if (data.photos[image.dataset.photo]) image.src = data.photos[image.dataset.photo];
  else image.remove();
}

function photoList(photos) { // arrays of a position in data.rows and of texts
  return element("ul", { className: "photos" }, ...photos.map(([i, ...texts]) => {
    const [id, label] = data.rows[i];
    const item = element("li");
    if (data.photos[i]) {
      item.append(element("img", { src: data.photos[i], alt: `Photo labelled ${data.classes[label]}` }));
    }
    item.append(element("b", {}, data.classes[label]), ...texts.map((text) => element("span", {}, text)));
    item.append(element("span", { className: "id" }, id));
    return item;
  }));
}

function shownOf(shown, total) {
  if (total === 0) return "None.";
  return shown < total ? `${shown} of ${total} rows are on this page.` : "";
}

function openGallery(host, title, photos, total, opener) {
  const heading = element("h3", { tabIndex: -1 }, title);
  const close = element("button", { type: "button" }, "Close");
  const hide = () => {
    host.hidden = true;
    opener.focus();
  };
  close.addEventListener("click", hide);
  host.onkeydown = (event) => {
    if (event.key === "Escape") hide();
  };
  const head = element("div", { className: "gallery-head" }, heading, close);
  host.replaceChildren(head, element("p", {}, shownOf(photos.length, total)), photoList(photos));
  host.hidden = false;
  heading.focus();
}

const seedsThatPredict = (experiment, i, name) => experiment.predictions.filter((seed) => seed[i] === name).length;
const rightSeeds = (experiment, i) => seedsThatPredict(experiment, i, data.rows[i][1]);

function answer(experiment, i) { // such as "1 of 3 right (sofa 2)"; of a single seed, "right" or "sofa"
  const seeds = experiment.predictions.length, right = rightSeeds(experiment, i);
  const wrong = [...new Set(experiment.predictions.map((seed) => seed[i]))].filter((name) => name !== data.rows[i][1])
    .map((name) => [data.classes[name], seedsThatPredict(experiment, i, name)])
    .sort((a, b) => b[1] - a[1]);
  if (seeds === 1) return right ? "right" : wrong[0][0];
  const others = wrong.map((pair) => pair.join(" ")).join(", ");
  return `${right} of ${seeds} right` + (others && ` (${others})`);
}

// Table of experiments ------------------------------------------------------------------------------------------------

function sortBy(header) {
  const ascending = header.getAttribute("aria-sort") === "descending";
  for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const value = (row) => row.cells[header.cellIndex].dataset.value;
  const body = header.closest("table").tBodies[0];
  const rows = [...body.rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === "" || y === "") return (x === "") - (y === ""); // without a value: last, in both orders
    const order = header.cellIndex === 0 ? x.localeCompare(y) : x - y;
    return ascending ? order : -order;
  });
  body.append(...rows);
}

for (const button of document.querySelectorAll("#scores thead button")) {
  button.addEventListener("click", () => sortBy(button.closest("th")));
}

// Confusion matrix ----------------------------------------------------------------------------------------------------

const chosen = document.getElementById("experiment");
const matrix = document.getElementById("matrix");
const cellPhotos = document.getElementById("cell-photos");

function showCell(button, [label, predicted, , , rows]) {
  const experiment = data.experiments[chosen.value];
  const all = experiment.predictions.length;
  const photos = data.rows.map((row, i) => [i, row[1] === label ? seedsThatPredict(experiment, i, predicted) : 0])
    .filter(([, seeds]) => seeds > 0)
    .sort((a, b) => b[1] - a[1])
    .map(([i, seeds]) => all === 1 ? [i] : [i, `predicted by ${seeds} of ${all} seeds`]);
  const title = `${experiment.name}: ${data.classes[label]} predicted as ${data.classes[predicted]}`;
  openGallery(cellPhotos, title, photos, rows, button);
}

function drawMatrix() {
  const experiment = data.experiments[chosen.value];
  const seeds = experiment.predictions.length;
  const cells = new Map(experiment.cells.map((cell) => [`${cell[0]} ${cell[1]}`, cell]));
  const head = element("tr", {}, element("th", { scope: "col" }, "true class"));
  for (const predicted of data.matrix) {
    head.append(element("th", { scope: "col" }, element("span", {}, data.classes[predicted])));
  }
  const table = element("table", {}, element("thead", {}, head), element("tbody"));
  for (const label of data.matrix) {
    const row = element("tr", {}, element("th", { scope: "row" }, data.classes[label]));
    for (const predicted of data.matrix) {
      const place = element("td"), cell = cells.get(`${label} ${predicted}`);
      if (cell) {
        const button = element("button", { type: "button", tabIndex: -1 }, cell[2]);
        const kind = label === predicted ? "right" : "wrong";
        const names = `${data.classes[label]} predicted as ${data.classes[predicted]}`;
        button.setAttribute("aria-label", `${cell[2]} rows: ${names}`);
        button.title = names;
        button.className = kind;
        button.style.setProperty("--share", cell[3] / 100);
        button.addEventListener("click", () => showCell(button, cell));
        place.append(button);
      }
      row.append(place);
    }
    table.tBodies[0].append(row);
  }
  table.addEventListener("keydown", moveInMatrix);
  table.addEventListener("focusin", (event) => makeCurrent(table, event.target));
  matrix.replaceChildren(table);
  makeCurrent(table, table.querySelector("button"));
  cellPhotos.hidden = true;
  document.getElementById("matrix-text").textContent =
    `${experiment.name}: true classes (rows) and predicted classes (columns)` +
    (seeds > 1 ? `; counts are means over ${seeds} seeds` : "") +
    ". Colours are shares of the true class.";
}

function makeCurrent(table, button) { // the one cell that Tab leads to
  for (const other of table.querySelectorAll("button[tabindex='0']")) other.tabIndex = -1;
  if (button) button.tabIndex = 0;
}

function moveInMatrix(event) {
  const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (!step) return;
  event.preventDefault();
  let row = event.target.closest("tr").rowIndex, column = event.target.closest("td").cellIndex, cell;
  do {
    row += step[0];
    column += step[1];
    cell = event.currentTarget.rows[row]?.cells[column];
  } while (cell && !cell.querySelector("button"));
  cell?.querySelector("button").focus();
}

chosen.addEventListener("change", drawMatrix);
drawMatrix();

// Questions -----------------------------------------------------------------------------------------------------------

for (const details of document.querySelectorAll("details.change")) {
  details.addEventListener("toggle", () => {
    const question = data.questions[details.dataset.question];
    const experiments = question.experiments.map((number) => data.experiments[number]);
    const texts = (i) => experiments.map((experiment, k) => `${question.names[k]}: ${answer(experiment, i)}`);
    for (const host of details.querySelectorAll(".photos-of")) {
      const rows = question[host.dataset.kind];
      const note = element("p", {}, shownOf(rows.length, Number(host.dataset.count)));
      host.replaceChildren(note, photoList(rows.map((i) => [i, ...texts(i)])));
    }
  }, { once: true });
}

// Classes -------------------------------------------------------------------------------------------------------------

for (const button of document.querySelectorAll("button.class-photos")) {
  button.addEventListener("click", () => {
    const experiment = data.experiments[document.getElementById("classes").dataset.experiment];
    const label = Number(button.dataset.class);
    const photos = data.rows.map((row, i) => [i, row[1] === label ? rightSeeds(experiment, i) : -1])
      .filter(([, seeds]) => seeds >= 0)
      .sort((a, b) => a[1] - b[1])
      .map(([i]) => [i, `predicted: ${answer(experiment, i)}`]);
    const title = `${experiment.name}: photos of ${data.classes[label]}, least often right first`;
    openGallery(document.getElementById("class-photos"), title, photos, Number(button.dataset.count), button);
  });
}
