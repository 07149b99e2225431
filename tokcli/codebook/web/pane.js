"use strict";
// One tokenizer: its atlas, and what is known of the code that was picked.

const FIRST_PATCHES = 24;

class Pane {
  constructor(book, number, page) {
    Object.assign(this, { book, number, page });
    this.picked = null; this.around = "3"; this.more = FIRST_PATCHES;
    const side = book.size > 3000 ? 28 : 40;
    this.tiles = new Tiles({
      label: `codes of ${book.name}`, side, gap: 4, kind: "tile",
      draw: (node, code, wide) => drawCode(node, book, code, wide),
      name: (code) => `code ${code}, ${count(book.counts[code], "token")}`,
      enter: (code) => page.light(this.pair(code)), leave: () => page.unlight(),
      pick: (code, event) => { this.pick(code); if (event) this.code.scrollIntoView({ block: "nearest" }); },
    });
    this.code = make("section", { class: "code", "aria-live": "off" });
    this.root = make("div", { class: `pane ${number ? "second" : "first"}` }, this.atlas(), this.code);
    this.search();
    this.describe();
  }

  // What lights up: this tokenizer's code, nothing of the other's.
  pair(code) { return this.page.books.map((_, i) => (i === this.number ? code : null)); }

  atlas() {
    const { book, page } = this, again = () => this.search();
    const options = (pairs) => pairs.map(([value, text]) => make("option", { value }, text));
    this.text = make("input", { type: "search", placeholder: "17, 20-30, >50, class", "aria-label": `search codes of ${book.name}`,
      list: "classes", oninput: again });
    this.usage = make("select", { onchange: again }, ...options([["all", "all codes"], ["used", "used"], ["unused", "never used"],
      ["most", "most used tenth"], ["least", "least used tenth"]]));
    this.sort = make("select", { onchange: again }, ...options([["alike", "like beside like"], ["most", "most used first"],
      ["least", "least used first"], ["pure", "purest class first"], ["index", "by number"]].filter(([key]) => key !== "pure" || page.images.classes.length)));
    this.found = make("span", { role: "status" });
    const used = book.counts.reduce((sum, number) => sum + (number > 0), 0);
    return make("section", { class: "codes" },
      make("h2", {}, page.books.length > 1 ? make("span", { class: "mark" }, `${"AB"[this.number]}  `) : "", `${book.name}: ${count(book.size, "code")}`),
      make("p", {}, `Each tile is a code, drawn by the cell nearest to it. ${used.toLocaleString("en")} are used ` +
        `(${((100 * used) / book.size).toFixed(1)} %), perplexity ${Math.round(book.perplexity).toLocaleString("en")}.`),
      make("div", { class: "controls" }, this.text, make("label", {}, "show", this.usage), make("label", {}, "order", this.sort), this.found),
      this.tiles.root);
  }

  search() {
    const found = this.book.find(this.text.value, this.usage.value, this.sort.value);
    this.tiles.set(found);
    this.found.textContent = found.length ? count(found.length, "code") : "no code fits";
  }

  pick(code, tell = true) {
    this.picked = code; this.more = FIRST_PATCHES;
    this.tiles.select(code);
    this.tiles.show(code);
    this.describe();
    this.code.scrollTop = 0;
    if (tell) this.page.pickedIn(this);
  }

  describe() {
    const within = this.code.contains(document.activeElement), kept = document.activeElement.dataset.stays;
    const top = this.code.scrollTop;
    this.draw();
    this.code.scrollTop = top;
    if (within) this.refocus(kept);
  }

  // What had the focus was drawn anew: it goes to the same control, or to the heading where that is gone.
  refocus(kept) {
    const control = kept && this.code.querySelector(`[data-stays="${kept}"]`), heading = this.code.querySelector("h2");
    if (control) return control.focus({ preventScroll: true });
    heading.tabIndex = -1;
    heading.focus(); // which scrolls to it
  }

  draw() {
    const { book, page, picked: code } = this;
    const letter = page.books.length > 1 ? `${"AB"[this.number]}: ` : "";
    if (code === null) {
      this.code.replaceChildren(make("h2", {}, `${letter}No code chosen`), make("p", {}, "Choose one of the tiles to see what it stands for."));
      return;
    }
    const tokens = book.counts[code], total = book.indices.length;
    const tile = make("div", { class: "tile" });
    drawCode(tile, book, code, 96, true);
    this.code.replaceChildren(
      make("h2", {}, `${letter}Code ${code}`),
      make("p", {}, tokens
        ? `${count(tokens, "token")} of ${total.toLocaleString("en")} (${((100 * tokens) / total).toFixed(3)} %), place ${book.rank[code].toLocaleString("en")} ` +
          `by use; in ${count(book.imagesOf(code).length, "image")} of ${page.images.count.toLocaleString("en")}.`
        : "None of these images holds it."),
      ...(tokens ? [make("div", { class: "facts" }, make("figure", {}, make("div", { class: "big" }, tile), make("figcaption", {}, "nearest to the code, with surroundings")),
        this.heat(code), this.bars(code)), ...this.patches(code)] : []),
      ...this.nearest(code));
  }

  heat(code) {
    const [rows, columns] = this.book.grid, places = this.book.places(code), most = Math.max(...places);
    const canvas = make("canvas", { class: "heat", width: columns, height: rows, role: "img",
      "aria-label": `${places.filter((n) => n).length} of ${places.length} places hold this code` });
    const brush = canvas.getContext("2d");
    places.forEach((number, cell) => {
      const share = number / most;
      brush.fillStyle = `rgb(${Math.round(247 - 239 * share)}, ${Math.round(251 - 203 * share)}, ${Math.round(255 - 148 * share)})`;
      brush.fillRect(cell % columns, Math.floor(cell / columns), 1, 1);
    });
    return make("figure", {}, canvas, make("figcaption", {}, `where in the image; darkest: ${count(most, "token")}`));
  }

  bars(code) {
    const classes = this.book.classesOf(code), all = classes.reduce((sum, [, number]) => sum + number, 0);
    if (!all) return "";
    return make("div", { class: "bars" }, ...classes.slice(0, 5).map(([label, number]) => {
      const bar = make("i");
      bar.style.width = `${(100 * number) / classes[0][1]}%`;
      const name = this.page.images.classes[label];
      return make("div", { class: "bar" }, make("span", { title: name }, name), make("span", {}, bar), make("span", {}, `${((100 * number) / all).toFixed(0)} %`));
    }), make("p", {}, classes.length > 5 ? `and ${count(classes.length - 5, "more class").replace("classs", "classes")}` : "classes of the images that hold it"));
  }

  patches(code) {
    const tokens = this.book.spread(code), cells = { 1: 1, 3: 3, 5: 5, all: 0 }[this.around];
    const box = make("div", { class: "strip patches" }, ...tokens.slice(0, this.more).map((token) => {
      const image = Math.floor(token / this.book.cells), cell = token % this.book.cells;
      const node = make("button", { class: "patch", "aria-label": this.page.nameOf(image), title: this.page.nameOf(image),
        onpointerenter: () => this.page.point(image, this.number, cell, false), onfocus: () => this.page.point(image, this.number, cell, false) });
      drawPatch(node, this.book, token, cells, 64);
      return node;
    }));
    const choice = make("select", { "data-stays": "around", onchange: (event) => { this.around = event.target.value; this.describe(); } },
      ...[["1", "the cell"], ["3", "3 x 3 cells"], ["5", "5 x 5 cells"], ["all", "the whole image"]].map(([value, text]) =>
        make("option", { value, selected: value === this.around }, text)));
    const more = tokens.length > this.more
      ? [make("button", { "data-stays": "more", onclick: () => this.unfold() }, `more of ${tokens.length.toLocaleString("en")}`)] : [];
    return [make("h3", {}, "Its patches"), make("p", {}, "Places that the tokenizer calls by this code, from as many images as possible."),
      make("div", { class: "controls" }, make("label", {}, "show", choice)), box, ...more];
  }

  // More patches, and the focus, where the button had it, on the first of them.
  unfold() {
    const first = this.more;
    this.more += 96;
    this.describe();
    if (this.code.contains(document.activeElement)) this.code.querySelectorAll(".patch")[first].focus({ preventScroll: true });
  }

  nearest(code) {
    const { book } = this, from = code * book.nearEach;
    const near = Array.from(book.near.subarray(from, from + book.nearEach));
    return [make("h3", {}, "Its neighbours"), make("p", {}, "The codes that the tokenizer finds most like it, nearest first."),
      make("div", { class: "strip near" }, ...near.map((other) => {
        const tile = make("span", { class: "tile" });
        drawCode(tile, book, other, 40);
        return make("button", { "aria-label": `code ${other}`, onclick: () => this.pick(other),
          onpointerenter: () => this.page.light(this.pair(other)), onpointerleave: () => this.page.unlight() }, tile, String(other));
      }))];
  }
}
