"use strict";
// All images: pointing at one shows its codes, and the same code lights up in every other.

const LENS = 128;

class Wall {
  constructor(page) {
    this.page = page;
    this.loaded = new Map(); // sheets as pictures that a canvas can draw
    this.inside = false;
    const side = page.images.count > 150 ? 72 : 96;
    this.tiles = new Tiles({
      label: "images", side, gap: 5, kind: "photo",
      draw: (node, image, wide) => {
        const { file, sheet, x, y, side: own } = spot(page.images, image);
        cut(node, file, sheet, x, y, own, own, wide, wide);
        node.append(make("canvas", { width: 2 * wide, height: 2 * wide }));
        this.paint(node, image);
      },
      name: (image) => page.nameOf(image),
      enter: (image, event) => page.point(image, 0, event ? this.cellAt(event, 0) : this.cellOf(image)),
      leave: () => page.unlight(),
      pick: (image, event) => {
        if (event && event.detail) { page.point(image, 0, this.cellAt(event, 0)); page.pickPointed(); } else this.step(image, true);
      },
      key: (event, image) => this.walk(event, image),
    });
    this.only = make("input", { type: "checkbox", onchange: () => this.fill() });
    this.onlyText = make("span");
    this.onlyLabel = make("label", { hidden: true }, this.only, this.onlyText);
    this.say = make("div", { class: "say", role: "status" });
    this.lens = make("div", { class: "lens" });
    this.root = make("section", { class: "wall" }, make("h2", {}, count(page.images.count, "image")),
      make("p", {}, "Point at a cell of an image: its code lights up in all others. Beside it, the image laid out anew from the " +
        "cells that stand for its codes."),
      this.say, this.lens, make("div", { class: "controls" }, this.onlyLabel), this.tiles.root);
    this.fill();
  }

  // Which images are shown: all, or those that hold the code picked last.
  fill() {
    const { picked } = this.page;
    const holds = picked ? this.page.books[picked.book].imagesOf(picked.code) : [];
    this.onlyLabel.hidden = !picked;
    if (picked) this.onlyText.textContent = `only the ${count(holds.length, "image")} with code ${picked.code}`;
    const wanted = picked && this.only.checked ? `${picked.book} ${picked.code}` : "all";
    if (wanted === this.filled) return; // the images in view, and the one with the focus, stay
    this.filled = wanted;
    this.tiles.set(wanted !== "all" ? holds : Array.from({ length: this.page.images.count }, (_, i) => i));
  }

  cellAt(event, number) {
    const box = event.target.getBoundingClientRect();
    return this.cellUnder((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height, number);
  }

  cellUnder(across, down, number) {
    const [rows, columns] = this.page.books[number].grid;
    const within = (share, cells) => Math.min(Math.max(Math.floor(share * cells), 0), cells - 1);
    return within(down, rows) * columns + within(across, columns);
  }

  cellOf(image) {
    const pointed = this.page.pointed;
    return pointed && pointed.image === image ? pointed.cells[0] : this.cellUnder(0.5, 0.5, 0);
  }

  // Keys within an image move from cell to cell.
  walk(event, image) {
    if (!this.inside) return false;
    const [rows, columns] = this.page.books[0].grid, cell = this.cellOf(image);
    const row = Math.floor(cell / columns), column = cell % columns;
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    if (event.key in moves) {
      const to = [row + moves[event.key][0], column + moves[event.key][1]];
      this.page.point(image, 0, Math.min(Math.max(to[0], 0), rows - 1) * columns + Math.min(Math.max(to[1], 0), columns - 1));
    } else if (event.key === "Enter" || event.key === " ") this.page.pickPointed();
    else if (event.key === "Escape") this.step(image, false);
    else { this.step(image, false); return false; }
    event.preventDefault();
    return true;
  }

  step(image, inside) {
    this.inside = inside;
    for (const [place, node] of this.tiles.shown) node.classList.toggle("inside", inside && this.tiles.items[place] === image);
    if (inside) this.page.point(image, 0, this.cellOf(image));
  }

  repaint() {
    for (const [place, node] of this.tiles.shown) this.paint(node, this.tiles.items[place]);
  }

  // Darken an image but for the cells that hold a lit code.
  paint(node, image) {
    const canvas = node.firstChild, brush = canvas.getContext("2d"), { lit, pointed, books } = this.page;
    brush.clearRect(0, 0, canvas.width, canvas.height);
    if (!lit) return;
    brush.fillStyle = "rgba(10, 10, 14, .66)";
    brush.fillRect(0, 0, canvas.width, canvas.height);
    const boxes = [];
    books.forEach((book, number) => {
      if (lit[number] === null) return;
      for (const cell of book.cellsOf(image, lit[number])) boxes.push([this.box(book, cell, canvas.width), colourOf(number)]);
    });
    for (const [box] of boxes) brush.clearRect(...box);
    brush.lineWidth = 2;
    for (const [[x, y, w, h], colour] of boxes) { brush.strokeStyle = colour; brush.strokeRect(x - 1, y - 1, w + 2, h + 2); }
    node.dataset.lit = boxes.length;
    if (pointed && pointed.image === image) {
      brush.lineWidth = 4;
      brush.strokeStyle = "#fff";
      brush.strokeRect(...this.box(books[0], pointed.cells[0], canvas.width));
    }
  }

  box(book, cell, side) {
    const [rows, columns] = book.grid;
    return [((cell % columns) * side) / columns, (Math.floor(cell / columns) * side) / rows, side / columns, side / rows];
  }

  picture(file) {
    if (!this.loaded.has(file)) {
      const image = new Image();
      image.src = file;
      this.loaded.set(file, image.decode().then(() => image));
    }
    return this.loaded.get(file);
  }

  // The image pointed at with its grid, and for each tokenizer the same laid out of the cells that stand for its codes.
  async magnify() {
    const { pointed, books } = this.page;
    const kept = this.drawing = `${pointed.image} ${pointed.cells}`;
    const { file, side, x, y } = spot(this.page.images, pointed.image);
    const [sheet, ...tiles] = await Promise.all([this.picture(file), ...books.map((book) => this.picture(book.tile.file))]);
    if (this.drawing !== kept) return; // the pointer moved on meanwhile
    const canvases = [this.canvas((brush) => brush.drawImage(sheet, x, y, side, side, 0, 0, LENS, LENS), 0)];
    books.forEach((book, number) => canvases.push(this.canvas((brush) => this.lay(brush, book, tiles[number], pointed.image), number)));
    const names = ["the image", ...books.map((book, i) => (books.length > 1 ? `codes of ${"AB"[i]}` : "its codes"))];
    this.lens.replaceChildren(...canvases.map((canvas, i) => make("figure", {}, canvas, make("figcaption", {}, names[i]))));
  }

  canvas(draw, number) {
    const { pointed, books } = this.page;
    const choose = (event, pick) => {
      const box = canvas.getBoundingClientRect();
      this.page.point(pointed.image, number, this.cellUnder((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height, number));
      if (pick) this.page.pickPointed();
    };
    const canvas = make("canvas", { width: 2 * LENS, height: 2 * LENS, onpointermove: (event) => choose(event, false), onclick: (event) => choose(event, true) });
    const brush = canvas.getContext("2d");
    brush.imageSmoothingEnabled = false;
    brush.scale(2, 2);
    draw(brush);
    for (const [width, colour] of [[5, "#fff"], [2.5, colourOf(number, "-on-image")]]) {
      brush.lineWidth = width;
      brush.strokeStyle = colour;
      brush.strokeRect(...this.box(books[number], pointed.cells[number], LENS));
    }
    return canvas;
  }

  lay(brush, book, sheet, image) {
    const { high, wide, edge, columns } = book.tile;
    for (let cell = 0; cell < book.cells; cell++) {
      const code = book.at(image, cell), x = (code % columns) * wide + edge, y = Math.floor(code / columns) * high + edge;
      brush.drawImage(sheet, x, y, wide - 2 * edge, high - 2 * edge, ...this.box(book, cell, LENS));
    }
  }

  tell() {
    const { pointed, books } = this.page, columns = books[0].grid[1], cell = pointed.cells[0];
    const codes = books.map((book, number) => {
      const code = book.at(pointed.image, pointed.cells[number]), others = book.imagesOf(code).length - 1;
      const text = `${books.length > 1 ? `${"AB"[number]}: ` : ""}code ${code}`;
      return [make("span", { class: number ? "second-mark" : "first-mark" }, text), others > 0 ? `, also in ${count(others, "other image")}. ` : ", in no other image. "];
    });
    this.say.replaceChildren(`${this.page.nameOf(pointed.image)}, row ${Math.floor(cell / columns) + 1}, column ${(cell % columns) + 1}: `, ...codes.flat());
  }
}
