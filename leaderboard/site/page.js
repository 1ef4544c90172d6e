"use strict";
// The page without this is complete: tables, details and numbers. This sorts, filters, opens rows,
// draws figures and switches between light and dark.

const root = document.documentElement;
root.classList.add("js");

const storage = {
  read() { try { return localStorage.getItem("theme"); } catch { return null; } },
  write(value) { try { localStorage.setItem("theme", value); } catch { /* private window */ } },
};
const systemDark = matchMedia("(prefers-color-scheme: dark)");
const dark = () => (root.dataset.theme ?? (systemDark.matches ? "dark" : "light")) === "dark";
if (["light", "dark"].includes(storage.read())) root.dataset.theme = storage.read();

document.addEventListener("DOMContentLoaded", () => {
  const drawn = new Map();
  const themes = JSON.parse(document.getElementById("themes").textContent);

  // An interpreter evaluates Vega's expressions, so that the page needs no leave to run text as code.
  async function draw(element) {
    const before = drawn.get(element);
    const config = themes[dark() ? "dark" : "light"];
    const options = { mode: "vega-lite", renderer: "svg", actions: false, ast: true, config };
    const after = vegaEmbed(element, JSON.parse(element.dataset.figure), options);
    drawn.set(element, after);
    (await before)?.finalize();
    await after;
    element.querySelector("svg").setAttribute("aria-hidden", "true"); // the figure has a label
  }
  const visible = (element) => !element.closest("details:not([open])");
  function drawVisible(within) {
    if (!window.vegaEmbed) return;
    for (const element of within.querySelectorAll(".figure")) {
      if (!drawn.has(element) && visible(element)) draw(element);
    }
  }

  const button = document.getElementById("theme");
  function themed() {
    button.textContent = dark() ? "Light" : "Dark";
    for (const element of drawn.keys()) draw(element);
  }
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    storage.write(root.dataset.theme);
    themed();
  });
  systemDark.addEventListener("change", themed);
  themed();

  // Sorting: every header becomes a button; what has no value comes last either way.
  const value = (row, column) => row.cells[column]?.dataset.sort;
  function compare(a, b, sign) {
    if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
    const [x, y] = [Number(a), Number(b)];
    const numbers = a !== "" && b !== "" && !Number.isNaN(x) && !Number.isNaN(y);
    return sign * (numbers ? x - y : a.localeCompare(b, "en", { numeric: true }));
  }
  for (const table of document.querySelectorAll("table.sortable")) {
    const headers = [...table.tHead.rows[0].cells];
    const body = table.querySelector("tbody:not(.pinned)");
    headers.forEach((header, column) => {
      const sorter = document.createElement("button");
      sorter.type = "button";
      sorter.textContent = header.textContent;
      header.replaceChildren(sorter);
      sorter.addEventListener("click", () => {
        const first = column === 0 ? "ascending" : "descending";
        const other = column === 0 ? "descending" : "ascending";
        const order = header.getAttribute("aria-sort") === first ? other : first;
        headers.forEach((cell) => cell.removeAttribute("aria-sort"));
        header.setAttribute("aria-sort", order);
        const sign = order === "ascending" ? 1 : -1;
        const rows = [...body.rows];
        rows.sort((a, b) => compare(value(a, column), value(b, column), sign));
        body.append(...rows);
      });
    });
  }

  // Filtering: every word has to be somewhere in the row; controls stay.
  for (const toolbar of document.querySelectorAll(".toolbar")) {
    const table = document.getElementById(toolbar.dataset.filters);
    const rows = [...table.querySelectorAll("tbody:not(.pinned) tr")];
    const [field, label] = [toolbar.querySelector(".filter"), toolbar.querySelector(".label")];
    const update = () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      for (const row of rows) {
        const text = row.cells[0].textContent.toLowerCase();
        const kept = words.every((word) => text.includes(word))
          && (!label?.value || row.dataset.label === label.value);
        row.hidden = !kept;
        if (row.dataset.card) document.getElementById(row.dataset.card).hidden = !kept;
        count += kept;
      }
      toolbar.querySelector("output").textContent = `${count} of ${rows.length}`;
    };
    field.addEventListener("input", update);
    label?.addEventListener("change", update);
    update();
  }

  // Details: a row's link opens them; a click anywhere on the row follows the link.
  function reveal(id) {
    const card = document.getElementById(id);
    if (!card?.matches("details.card")) return;
    card.open = true;
    drawVisible(card);
    card.querySelector("summary").focus({ preventScroll: true });
    card.scrollIntoView({ block: "start" });
  }
  const target = () => decodeURIComponent(location.hash.slice(1));
  addEventListener("hashchange", () => reveal(target()));
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a.open");
    const row = event.target.closest("tr[data-card]");
    if (link && link.hash.slice(1) === target()) reveal(target());
    if (!link && row && !getSelection().toString()) row.querySelector("a.open").click();
  });
  for (const details of document.querySelectorAll("details.card")) {
    details.addEventListener("toggle", () => details.open && drawVisible(details));
  }

  for (const copy of document.querySelectorAll("button.copy")) {
    copy.addEventListener("click", async () => {
      const code = copy.parentElement.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
        copy.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(code);
        copy.textContent = "Selected";
      }
    });
  }

  drawVisible(document);
  reveal(target());
});
