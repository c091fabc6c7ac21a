// What the panes are made of: elements, numbers as people read them, sparklines, a list of any length, dialogs.
//
// Rules: text is set as text, never as markup. A list keeps only the rows in sight in the document, and uses them again.

const SVG = "http://www.w3.org/2000/svg";
const OVERSCAN_ROWS = 4;
const HEIGHT_LIMIT_PX = 8_000_000; // of a scrolled element; browsers end near 16 million
let lastId = 0;

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function mark(node, name, value) {
  if (value == null || value === false || value === "") node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

function button(text, label, act) {
  const made = el("button", { type: "button", "aria-label": label, title: label }, text);
  if (act) made.addEventListener("click", act);
  return made;
}

const newId = (stem) => `kos-${stem}-${++lastId}-${Math.random().toString(36).slice(2, 8)}`;

// ---- numbers as people read them

const COUNT = new Intl.NumberFormat("en-US");
const count = (number) => COUNT.format(number);
const counted = (number, what) => `${count(number)} ${what}${number === 1 ? "" : "s"}`;
const percent = (share) => (share == null ? "–" : `${Math.round(share * 100)} %`);

function bytes(size) {
  if (size == null) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (size >= 1000 && unit < units.length - 1) [size, unit] = [size / 1024, unit + 1];
  return `${size < 10 && unit ? size.toFixed(1) : Math.round(size)} ${units[unit]}`;
}

function duration(seconds) {
  if (seconds == null) return "";
  if (seconds < 0.0995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.round((seconds % 3600) / 60)} min`;
}

const clock = (unixSeconds) => new Date(unixSeconds * 1000).toLocaleTimeString("en-GB");

// ---- pictures

// A small line over an area; the last value is at the right. `draw(values, top)` takes nulls as gaps.
function sparkline(points = 60) {
  const line = document.createElementNS(SVG, "path");
  const area = document.createElementNS(SVG, "path");
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${points - 1} 20`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("class", "kos-spark");
  svg.setAttribute("aria-hidden", "true");
  area.setAttribute("class", "kos-area");
  line.setAttribute("class", "kos-line");
  svg.append(area, line);
  svg.draw = (values, top = 1) => {
    const shown = values.slice(-points);
    const left = points - shown.length;
    let lines = "";
    let areas = "";
    let begun = -1;
    const end = (x) => {
      if (begun >= 0) areas += `L${x} 20L${begun} 20Z`;
      begun = -1;
    };
    shown.forEach((value, place) => {
      const x = left + place;
      if (value == null) return end(x - 1);
      const y = (19 - 18 * Math.min(1, value / (top || 1))).toFixed(1);
      const step = `${begun < 0 ? "M" : "L"}${x} ${y}`;
      if (begun < 0) begun = x;
      lines += step;
      areas += step;
    });
    end(points - 1);
    line.setAttribute("d", lines);
    area.setAttribute("d", areas);
  };
  return svg;
}

// A share of 1 as a bar of parts: [[share, class], ...].
function bar(label) {
  const made = el("div", { class: "kos-bar", role: "img", "aria-label": label });
  made.draw = (parts, text) => {
    while (made.children.length < parts.length) made.append(el("i"));
    [...made.children].forEach((part, place) => {
      const [share, kind] = parts[place] ?? [0, ""];
      const width = `${(100 * Math.max(0, Math.min(1, share))).toFixed(2)}%`;
      if (part.style.width !== width) part.style.width = width;
      if (part.className !== kind) part.className = kind;
    });
    mark(made, "aria-label", text);
  };
  return made;
}

// ---- a list of any length

// A heading of columns over a list, as wide as its rows; rows of two lines name their figures themselves.
function head(kind, ...titles) {
  return el("div", { class: `kos-head ${kind}`, "aria-hidden": "true" }, ...titles.map((title) => el("span", {}, title)));
}

// `create()` makes a row, `fill(row, index)` shows an item in it, `open(index)` is what Enter or a click on a row does.
class VirtualList {
  constructor({ label, head, create, fill, open, height }) {
    Object.assign(this, { create, fill, open });
    this.length = 0;
    this.active = -1;
    this.rows = new Map(); // index -> row
    this.spare = [];
    this.rowHeight = height;
    this.spacer = el("div", { class: "kos-spacer", role: "rowgroup" });
    this.box = el("div", { class: "kos-list", role: "grid", tabindex: "0", "aria-label": label }, this.spacer);
    this.node = el("div", {}, ...(head ? [head] : []), this.box);
    this.box.addEventListener("scroll", () => this.later(), { passive: true });
    this.box.addEventListener("keydown", (event) => this.key(event));
    this.box.addEventListener("click", (event) => {
      const row = event.target.closest(".kos-row");
      if (!row || event.target.closest("button")) return;
      this.activate(row.index, false);
      this.open?.(row.index);
    });
  }

  setHeight(height) {
    if (height === this.rowHeight) return;
    this.rowHeight = height;
    this.clear();
    this.draw();
  }

  setLength(length) {
    this.length = length;
    mark(this.box, "aria-rowcount", length);
    this.active = Math.min(this.active, length - 1);
    this.draw();
  }

  clear() {
    for (const row of this.rows.values()) row.remove();
    this.rows.clear();
    this.spare = [];
  }

  later() {
    this.asked ??= requestAnimationFrame(() => {
      this.asked = undefined;
      this.draw();
    });
  }

  get shown() {
    return Math.max(1, Math.ceil((this.box.clientHeight || 300) / this.rowHeight));
  }

  // The first row in sight. Beyond what a browser can scroll, the scroll bar stands for more rows than it has pixels.
  get first() {
    const real = this.length * this.rowHeight;
    const height = Math.min(real, HEIGHT_LIMIT_PX);
    const room = height - this.box.clientHeight;
    if (real <= HEIGHT_LIMIT_PX || room <= 0) return Math.floor(this.box.scrollTop / this.rowHeight);
    return Math.floor((this.box.scrollTop / room) * (this.length - this.shown));
  }

  draw() {
    const real = this.length * this.rowHeight;
    const height = Math.min(real, HEIGHT_LIMIT_PX);
    if (this.spacer.style.height !== `${height}px`) {
      this.spacer.style.height = `${height}px`;
      this.box.style.setProperty("--content", `${height}px`); // no higher than what is in it
    }
    const first = this.first;
    const from = Math.max(0, first - OVERSCAN_ROWS);
    const to = Math.min(this.length, first + this.shown + OVERSCAN_ROWS);
    for (const [index, row] of this.rows) {
      if (index < from || index >= to) {
        this.rows.delete(index);
        this.spare.push(row);
      }
    }
    const shift = real <= HEIGHT_LIMIT_PX ? 0 : this.box.scrollTop - first * this.rowHeight;
    for (let index = from; index < to; index++) {
      let row = this.rows.get(index);
      if (!row) {
        row = this.spare.pop() ?? this.make();
        this.rows.set(index, row);
        if (!row.isConnected) this.spacer.append(row);
      }
      row.index = index;
      row.style.transform = `translateY(${index * this.rowHeight + shift}px)`;
      mark(row, "aria-rowindex", index + 1);
      mark(row, "data-active", index === this.active ? "true" : null);
      this.fill(row, index);
    }
    for (const row of this.spare) row.remove();
    this.spare.length = Math.min(this.spare.length, 30);
    this.range = [from, to];
    mark(this.box, "aria-activedescendant", this.rows.get(this.active)?.id);
  }

  make() {
    const row = this.create();
    row.classList.add("kos-row");
    row.setAttribute("role", "row");
    row.id = newId("row");
    row.style.height = `${this.rowHeight}px`;
    return row;
  }

  activate(index, follow = true) {
    if (!this.length) return;
    this.active = Math.max(0, Math.min(this.length - 1, index));
    if (follow) {
      const top = this.active * this.rowHeight;
      if (this.length * this.rowHeight > HEIGHT_LIMIT_PX) {
        const room = HEIGHT_LIMIT_PX - this.box.clientHeight;
        if (this.active < this.first || this.active >= this.first + this.shown - 1)
          this.box.scrollTop = (this.active / Math.max(1, this.length - this.shown)) * room;
      } else if (top < this.box.scrollTop) this.box.scrollTop = top;
      else if (top + this.rowHeight > this.box.scrollTop + this.box.clientHeight)
        this.box.scrollTop = top + this.rowHeight - this.box.clientHeight;
    }
    this.draw();
  }

  key(event) {
    if (event.target !== this.box) return;
    const page = Math.max(1, this.shown - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    const step = steps[event.key];
    if (step !== undefined) this.activate(this.active < 0 && step < Infinity ? 0 : this.active + step);
    else if (event.key === "Enter" && this.active >= 0) this.open?.(this.active);
    else return;
    event.preventDefault();
  }
}

// ---- dialogs

// A dialog over the page; it ends with Escape, its button, or a click beside it. `buttons`: [text, kind, act].
function dialog(root, title, body, buttons = []) {
  const heading = el("h3", { id: newId("dialog") }, title);
  const made = el("dialog", { class: "kos-dialog", "aria-labelledby": heading.id });
  const away = buttons.length ? "Back" : "Close";
  const close = button(away, away, () => made.close());
  const actions = buttons.map(([text, kind, act]) => {
    const each = button(text, text, () => {
      made.close();
      act();
    });
    each.classList.add(kind);
    return each;
  });
  made.append(el("div", { class: "kos-dialog-in" }, heading, body, el("footer", {}, close, ...actions)));
  made.addEventListener("click", (event) => event.target === made && made.close());
  made.addEventListener("close", () => made.remove());
  root.append(made);
  made.showModal();
  close.focus();
  return made;
}

export default { SVG, el, say, mark, button, newId, count, counted, percent, bytes, duration, clock, sparkline, bar, head, VirtualList, dialog };
