"use strict";
// The page: what is pointed at, what is lit and what is picked, told to all views.

const colourOf = (number, where = "") => getComputedStyle(document.documentElement).getPropertyValue((number ? "--b" : "--a") + where).trim();

class Page {
  constructor(data, root) {
    this.images = { ...data.images, labels: numbers(data.images.labels) };
    this.books = data.books.map((book) => new Book(book, this.images));
    this.lit = null; this.pointed = null; this.picked = null;
    this.panes = this.books.map((book, number) => new Pane(book, number, this));
    this.wall = new Wall(this);
    root.classList.toggle("two", this.books.length > 1);
    root.append(...this.panes.map((pane) => pane.root), this.wall.root,
      make("datalist", { id: "classes" }, ...this.images.classes.map((name) => make("option", { value: name }))));
    addEventListener("keydown", (event) => this.press(event));
    addEventListener("hashchange", () => this.follow());
    this.follow();
  }

  nameOf(image) {
    const label = this.images.labels[image], name = this.images.names[image];
    return label >= 0 ? `${name} (${this.images.classes[label]})` : name;
  }

  // The page's address names the codes picked: #17, or #17,203 with two tokenizers.
  follow() {
    const wanted = location.hash.slice(1).split(",").map((text) => (/^\d+$/.test(text) ? Number(text) : null));
    this.panes.forEach((pane, number) => {
      const code = wanted[number] ?? null;
      if (code !== null && code < pane.book.size && code !== pane.picked) pane.pick(code);
    });
    if (this.picked) return;
    this.panes.forEach((pane) => pane.pick(this.welcome(pane.book), false));
    const { book, picked } = this.panes[0];
    if (book.counts[picked]) this.point(Math.floor(book.tokensOf(picked)[0] / book.cells), 0, book.tokensOf(picked)[0] % book.cells, false);
  }

  // The code shown at first: one that occurs often, of one class as far as possible.
  welcome(book) {
    const common = Array.from(book.order).filter((code) => book.counts[code] >= 12);
    return (common.length ? common : Array.from(book.order)).reduce((best, code) => (book.purity[code] > book.purity[best] ? code : best));
  }

  light(codes) {
    this.lit = codes;
    this.pointed = null;
    this.schedule();
  }

  // A cell of an image: given by the number of one tokenizer's cell, for the others the cell that lies there.
  point(image, number, cell, all = true) {
    const [rows, columns] = this.books[number].grid;
    const across = ((cell % columns) + 0.5) / columns, down = (Math.floor(cell / columns) + 0.5) / rows;
    const cells = this.books.map((_, i) => (i === number ? cell : this.wall.cellUnder(across, down, i)));
    const before = this.pointed;
    if (before && before.image === image && before.all === all && String(before.cells) === String(cells)) return;
    this.pointed = { image, cells, all };
    this.lit = this.books.map((book, i) => (all || i === number ? book.at(image, cells[i]) : null));
    this.schedule();
  }

  unlight() {
    this.lit = this.picked ? this.books.map((_, i) => (i === this.picked.book ? this.picked.code : null)) : null;
    this.pointed = null;
    this.schedule();
  }

  schedule() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = null;
      this.wall.repaint();
      this.panes.forEach((pane, i) => {
        for (const [place, node] of pane.tiles.shown) node.classList.toggle("on", this.lit !== null && pane.tiles.items[place] === this.lit[i]);
      });
      if (this.pointed) { this.wall.tell(); this.wall.magnify(); }
    });
  }

  pickPointed() {
    const { image, cells } = this.pointed;
    this.panes.forEach((pane, i) => pane.pick(pane.book.at(image, cells[i])));
  }

  pickedIn(pane) {
    this.picked = { book: pane.number, code: pane.picked };
    this.wall.fill();
    const { pointed } = this; // at the code picked it stays; another's light would go on as if it were this one's
    if (!pointed || pane.book.at(pointed.image, pointed.cells[pane.number]) !== pane.picked) this.unlight();
    const address = `#${this.panes.map((each) => each.picked ?? "").join(",")}`;
    if (location.hash !== address) history.replaceState(null, "", address);
  }

  press(event) {
    if (event.key !== "/" || /INPUT|SELECT/.test(event.target.tagName)) return;
    event.preventDefault();
    this.panes[0].text.focus();
  }
}

const began = performance.now();
window.page = new Page(window.TOK, document.getElementById("main"));
requestAnimationFrame(() => { document.documentElement.dataset.ready = Math.round(performance.now()); document.documentElement.dataset.built = Math.round(performance.now() - began); });
