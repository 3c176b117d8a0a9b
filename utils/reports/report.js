"use strict";
// The page is whole without this script. It adds: tables that sort and copy, and a browser of the attacked examples.

const data = (id) => JSON.parse(document.getElementById(id).textContent);
const make = (tag, properties = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children); // texts become text nodes: nothing of the data is ever markup
  return node;
};

// ---- tables --------------------------------------------------------------------------------------------------------

function sortable(table) {
  const body = table.tBodies[0], original = [...body.rows];
  const figure = (cell) => parseFloat(cell.textContent.replace(/[,<\s]/g, ""));
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    if (original.length < 2) return;
    const button = make("button", { type: "button", className: "sort" }, ...head.childNodes);
    button.title = "Sort by this column; a third click restores the order";
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const next = { ascending: "descending", descending: "none" }[head.ariaSort] || "ascending";
      for (const other of head.parentNode.cells) other.ariaSort = null;
      head.ariaSort = next === "none" ? null : next;
      const words = head.classList.contains("words");
      const sign = next === "descending" ? -1 : 1;
      const compare = (a, b) => {
        if (words) return sign * a.cells[column].textContent.localeCompare(b.cells[column].textContent);
        const [x, y] = [figure(a.cells[column]), figure(b.cells[column])];
        return isNaN(x) || isNaN(y) ? isNaN(x) - isNaN(y) : sign * (x - y); // what is not available comes last
      };
      table.classList.toggle("sorted", next !== "none");
      body.append(...(next === "none" ? original : [...original].sort(compare)));
    });
  });
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // a page opened as a file may have no clipboard
    const area = make("textarea", { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  const name = button.textContent;
  button.textContent = "copied";
  setTimeout(() => { button.textContent = name; }, 1200);
}

function tables() {
  const copies = data("copies");
  for (const table of document.querySelectorAll("table[data-name]")) {
    sortable(table);
    const scroll = table.parentNode;
    if (scroll.scrollWidth > scroll.clientWidth) { // only what scrolls is a stop of the tab key
      Object.assign(scroll, { tabIndex: 0, role: "region", ariaLabel: "table, scrolls" });
    }
    const bar = make("span", { className: "copy" }, "copy as ");
    Object.entries(copies[table.dataset.name]).forEach(([format, text]) => {
      const button = make("button", { type: "button" }, format);
      button.addEventListener("click", () => copy(text, button));
      bar.append(button);
    });
    document.getElementById(table.getAttribute("aria-labelledby")).append(" ", bar);
  }
}

// ---- examples ------------------------------------------------------------------------------------------------------

const PER_PAGE = 10; // only these are in the document
const OUTCOMES = {
  "all": () => true,
  "success": (row) => row[3] === 1,
  "no success": (row) => row[3] === 0,
  "skipped": (row) => row.length === 2,
};
const ORDERS = {
  "largest drop first": (a, b) => drop(b) - drop(a),
  "smallest drop first": (a, b) => drop(a) - drop(b),
  "as in the data": () => 0,
};
const drop = (row) => (row.length === 2 || !row[1] ? 0 : (row[1] - row[2]) / row[1]);

function card(model, row, text, note) {
  const [id, reference, document_] = text;
  if (row.length === 2) {
    return make("div", { className: "example" }, make("h3", {}, `${model}: ${id}, skipped: ${row[1].replaceAll("_", " ")}`));
  }
  const [, clean, attacked, success, before, after, changes, typable] = row;
  const title = `${model}: ${id}, ROUGE-L ${clean.toFixed(3)} to ${attacked.toFixed(3)}` +
    `${success ? ", success" : ""}${typable === 0 ? ", cannot be typed" : ""}`;
  const marked = make("p", { className: "note" }, make("b", {}, note ? "Text: " : "Attacked text: "));
  let end = 0;
  for (const [start, old, new_] of changes) {
    marked.append(document_.slice(end, start),
      make("mark", {}, make("del", {}, old), " \u2192 ", make("ins", {}, new_)));
    end = start + old.length;
  }
  marked.append(document_.slice(end));
  const side = (name, words) => make("div", {}, make("h4", {}, name), make("p", {}, words));
  return make("div", { className: "example" }, make("h3", {}, title),
    ...(note ? [make("p", { className: "note" }, make("b", {}, "Trigger: "), make("mark", {}, note))] : []),
    marked,
    make("p", { className: "note" }, make("b", {}, "Reference: "), reference),
    make("div", { className: "sides" }, side("Summary before", before), side("Summary after", after)));
}

function browser() {
  const holder = document.getElementById("browser");
  if (!holder) return;
  const { texts, attacks, notes } = data("example-data");
  const choose = (name, options) => {
    const select = make("select", {}, ...options.map((option) => make("option", {}, option)));
    filters.append(make("label", {}, `${name} `, select));
    return select;
  };
  const filters = make("div", { className: "filters" });
  const attack = choose("attack", Object.keys(attacks));
  const model = choose("model", ["all", ...new Set(Object.values(attacks).flatMap(Object.keys))]);
  const outcome = choose("outcome", Object.keys(OUTCOMES));
  const order = choose("order", Object.keys(ORDERS));
  const words = make("input", { type: "search", placeholder: "id, text or summary" });
  filters.append(make("label", {}, "with ", words));
  const status = make("p", { className: "note", ariaLive: "polite" });
  const list = make("div");
  const [back, on] = ["previous", "next"].map((name) => make("button", { type: "button" }, name));
  let page = 0, rows = [];

  const show = () => {
    const first = page * PER_PAGE, shown = rows.slice(first, first + PER_PAGE);
    const counted = rows.filter(({ row }) => row.length > 2);
    const hits = counted.filter(({ row }) => row[3]).length;
    status.textContent = rows.length ? `${first + 1} to ${first + shown.length} of ${rows.length.toLocaleString("en")}` +
      ` (${hits.toLocaleString("en")} successes, ${(rows.length - counted.length).toLocaleString("en")} skipped)` : "none";
    list.replaceChildren(...shown.map(({ name, row }) => card(name, row, texts[row[0]], (notes[attack.value] || {})[name])));
    back.disabled = page === 0;
    on.disabled = first + PER_PAGE >= rows.length;
  };
  const filter = () => {
    const wanted = words.value.toLowerCase();
    const has = (row) => !wanted || [...texts[row[0]], row[4], row[5]].some((text) => typeof text === "string" && text.toLowerCase().includes(wanted));
    rows = Object.entries(attacks[attack.value])
      .filter(([name]) => model.value === "all" || model.value === name)
      .flatMap(([name, own]) => own.filter((row) => OUTCOMES[outcome.value](row) && has(row)).map((row) => ({ name, row })))
      .sort((a, b) => ORDERS[order.value](a.row, b.row));
    page = 0;
    show();
  };
  for (const input of [attack, model, outcome, order]) input.addEventListener("change", filter);
  words.addEventListener("input", filter);
  back.addEventListener("click", () => { page -= 1; show(); });
  on.addEventListener("click", () => { page += 1; show(); });
  holder.replaceChildren(filters, status, list, make("p", {}, back, " ", on));
  filter();
}

// The directory of this page, where it was opened as a file, for the commands that need it.
if (location.protocol === "file:") {
  const directory = decodeURIComponent(location.pathname.replace(/\/[^/]*$/, ""));
  const quoted = /^[\w\/.+-]+$/.test(directory) ? directory : `'${directory.replaceAll("'", "'\\''")}'`;
  for (const code of document.querySelectorAll("code")) code.textContent = code.textContent.replace(/\bDIR$/, quoted);
}
tables();
browser();
