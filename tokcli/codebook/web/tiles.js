"use strict";
// Drawing: cut-outs of sprite sheets, and a scrolling grid that keeps only what is seen in the page.

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

const count = (number, word) => `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;

// Show part of a sheet in a node: the region x, y, w, h of it, in pixels of the sheet, fills `wide` x `high` CSS pixels.
function cut(node, file, sheet, x, y, w, h, wide, high) {
  const across = wide / w, down = high / h;
  node.style.width = `${wide}px`;
  node.style.height = `${high}px`;
  node.style.backgroundImage = `url("${file}")`;
  node.style.backgroundSize = `${sheet[0] * across}px ${sheet[1] * down}px`;
  node.style.backgroundPosition = `${-x * across}px ${-y * down}px`;
}

// The cell that stands for a code, with or without the pixels around it.
function drawCode(node, book, code, side, around = false) {
  const { high, wide, edge, columns, file, sheet } = book.tile;
  const inset = around ? 0 : edge;
  const x = (code % columns) * wide + inset, y = Math.floor(code / columns) * high + inset;
  node.classList.toggle("unused", book.counts[code] === 0);
  cut(node, file, sheet, x, y, wide - 2 * inset, high - 2 * inset, side, side);
}

// Where an image lies: its sheet's file and size, and its corner in it.
function spot(images, image) {
  const { side, across, each } = images;
  const number = Math.floor(image / each), within = image % each;
  return { file: images.sheets[number].file, sheet: images.sheets[number].size, side,
    x: (within % across) * side, y: Math.floor(within / across) * side };
}

// Part of an image: `cells` cells around one cell (odd), or the whole image for 0; the cell is outlined.
function drawPatch(node, book, token, cells, size) {
  const { file, sheet, side, x, y } = spot(book.images, Math.floor(token / book.cells));
  const [rows, columns] = book.grid, cell = token % book.cells;
  const row = Math.floor(cell / columns), column = cell % columns;
  const high = cells && cells < rows ? cells : rows, wide = cells && cells < columns ? cells : columns;
  const top = Math.min(Math.max(row - (high >> 1), 0), rows - high);
  const left = Math.min(Math.max(column - (wide >> 1), 0), columns - wide);
  cut(node, file, sheet, x + (left * side) / columns, y + (top * side) / rows, (wide * side) / columns, (high * side) / rows, size, size);
  node.replaceChildren();
  if (high * wide > 1) {
    const mark = make("i");
    Object.assign(mark.style, { left: `${((column - left) * size) / wide}px`, top: `${((row - top) * size) / high}px`,
      width: `${size / wide}px`, height: `${size / high}px` });
    node.append(mark);
  }
}

// A listbox of equal tiles: only those in view exist. Items are numbers; one is the tab stop, arrows move it.
class Tiles {
  constructor({ label, side, gap, kind, draw, name, enter, leave, pick, key }) {
    Object.assign(this, { least: side, side, gap, kind, draw, name, enter, pick, key });
    this.items = []; this.shown = new Map(); this.current = 0; this.selected = null; this.columns = 1;
    this.space = make("div", { class: "space" });
    this.root = make("div", { class: "scroll", role: "listbox", "aria-label": label }, this.space);
    this.root.addEventListener("scroll", () => this.refresh(), { passive: true });
    this.root.addEventListener("keydown", (event) => this.press(event));
    this.root.addEventListener("focusin", (event) => this.reach(event.target));
    this.root.addEventListener("click", (event) => { const at = this.placeOf(event.target); if (at !== null) { this.current = at; this.pick(this.items[at], event); } });
    this.root.addEventListener("pointermove", (event) => { const at = this.placeOf(event.target); if (event.pointerType !== "touch" && at !== null) this.enter(this.items[at], event); });
    this.root.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") leave(); });
    // the first layout is the first chance to bring what was picked before it into view
    new ResizeObserver(() => { this.refresh(true); if (!this.laid) { this.laid = true; this.scrollTo(this.current); this.refresh(); } }).observe(this.root);
  }

  placeOf(node) { const tile = node.closest("[role=option]"); return tile ? +tile.dataset.place : null; }

  reach(node) {
    const at = this.placeOf(node);
    if (at !== null) { this.current = at; this.enter(this.items[at], null); }
  }

  set(items) {
    this.items = items; this.current = 0; this.root.scrollTop = 0;
    this.refresh(true);
  }

  select(item) {
    this.selected = item;
    for (const [place, node] of this.shown) node.setAttribute("aria-selected", this.items[place] === item);
  }

  // Bring an item into view; nothing happens to one that the filter left out.
  show(item) {
    const place = this.items.indexOf(item);
    if (place < 0) return;
    this.current = place;
    this.scrollTo(place);
    this.refresh();
  }

  scrollTo(place) {
    const step = this.side + this.gap, top = Math.floor(place / this.columns) * step;
    if (top < this.root.scrollTop) this.root.scrollTop = top;
    else if (top + step > this.root.scrollTop + this.root.clientHeight) this.root.scrollTop = top + step - this.root.clientHeight;
  }

  refresh(anew = false) {
    const width = this.root.clientWidth - this.gap;
    if (width < 1) return;
    this.columns = Math.max(1, Math.floor(width / (this.least + this.gap)));
    this.side = Math.floor(width / this.columns) - this.gap; // tiles fill the line
    const step = this.side + this.gap;
    const rows = Math.ceil(this.items.length / this.columns);
    this.space.style.height = `${rows * step + this.gap}px`;
    const from = Math.max(0, Math.floor(this.root.scrollTop / step) - 2) * this.columns;
    const to = Math.min(this.items.length, (Math.ceil((this.root.scrollTop + this.root.clientHeight) / step) + 2) * this.columns);
    const focused = this.root.contains(document.activeElement) ? this.placeOf(document.activeElement) : null;
    for (const [place, node] of this.shown) {
      if (anew || ((place < from || place >= to) && node !== document.activeElement)) { node.remove(); this.shown.delete(place); }
    }
    for (let place = from; place < to; place++) if (!this.shown.has(place)) this.add(place, step);
    for (const [place, node] of this.shown) node.tabIndex = place === this.current ? 0 : -1;
    if (!this.shown.has(this.current) && this.shown.size) this.shown.values().next().value.tabIndex = 0;
    if (anew && focused !== null) this.shown.get(focused)?.focus({ preventScroll: true });
  }

  add(place, step) {
    const item = this.items[place];
    const node = make("div", { class: this.kind, role: "option", "data-place": place, "data-item": item,
      "aria-label": this.name(item), "aria-selected": String(item === this.selected) });
    node.style.left = `${this.gap + (place % this.columns) * step}px`;
    node.style.top = `${this.gap + Math.floor(place / this.columns) * step}px`;
    this.draw(node, item, this.side);
    this.shown.set(place, node);
    this.space.append(node);
  }

  press(event) {
    const at = this.placeOf(event.target);
    if (at === null || (this.key && this.key(event, this.items[at]))) return;
    const page = Math.max(1, Math.floor(this.root.clientHeight / (this.side + this.gap))) * this.columns;
    const moves = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: this.columns, ArrowUp: -this.columns, PageDown: page, PageUp: -page,
      Home: -this.items.length, End: this.items.length };
    if (event.key in moves) {
      this.focus(Math.min(Math.max(at + moves[event.key], 0), this.items.length - 1));
    } else if (event.key === "Enter" || event.key === " ") this.pick(this.items[at], null);
    else return;
    event.preventDefault();
  }

  focus(place) {
    this.current = place;
    this.scrollTo(place);
    this.refresh();
    this.shown.get(place)?.focus({ preventScroll: true });
  }
}
