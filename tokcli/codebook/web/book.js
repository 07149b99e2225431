"use strict";
// The tokens of one tokenizer, and questions to them. Arrays come as base64 of little-endian numbers.

function numbers(packed) {
  const text = atob(packed.data), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const kinds = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, i4: Int32Array, f4: Float32Array };
  return new kinds[packed.type](bytes.buffer);
}

class Book {
  constructor(data, images) {
    Object.assign(this, data); // name, size, grid, tile, ...
    this.images = images;
    for (const key of ["indices", "order", "near", "owner", "purity"]) this[key] = numbers(data[key]);
    this.cells = this.grid[0] * this.grid[1];
    this.nearEach = this.near.length / this.size;
    this.sortTokens();
  }

  // All tokens by code, in the order of images: starts[c] .. starts[c + 1] of `tokens` are those of code c.
  sortTokens() {
    const { size, indices } = this;
    this.counts = new Uint32Array(size);
    for (const code of indices) this.counts[code]++;
    this.starts = new Uint32Array(size + 1);
    for (let code = 0; code < size; code++) this.starts[code + 1] = this.starts[code] + this.counts[code];
    const next = this.starts.slice(0, size);
    this.tokens = new Uint32Array(indices.length);
    for (let at = 0; at < indices.length; at++) this.tokens[next[indices[at]]++] = at;
    const ranked = Array.from(this.order).sort((a, b) => this.counts[b] - this.counts[a] || a - b);
    this.rank = new Uint32Array(size);
    ranked.forEach((code, place) => { this.rank[code] = place + 1; });
  }

  tokensOf(code) { return this.tokens.subarray(this.starts[code], this.starts[code + 1]); }

  at(image, cell) { return this.indices[image * this.cells + cell]; }

  // Cells of an image that hold a code.
  cellsOf(image, code) {
    const found = [];
    for (let cell = 0; cell < this.cells; cell++) if (this.at(image, cell) === code) found.push(cell);
    return found;
  }

  imagesOf(code) {
    const found = [];
    for (const token of this.tokensOf(code)) {
      const image = Math.floor(token / this.cells);
      if (found[found.length - 1] !== image) found.push(image);
    }
    return found;
  }

  // One token of each image first, evenly spread over them, then the rest.
  spread(code) {
    const first = [], rest = [];
    let last = -1;
    for (const token of this.tokensOf(code)) {
      const image = Math.floor(token / this.cells);
      (image === last ? rest : first).push(token);
      last = image;
    }
    const step = Math.max(1, Math.floor(first.length / 24));
    const mixed = [];
    for (let from = 0; from < step; from++) for (let i = from; i < first.length; i += step) mixed.push(first[i]);
    return mixed.concat(rest);
  }

  places(code) {
    const found = new Uint32Array(this.cells);
    for (const token of this.tokensOf(code)) found[token % this.cells]++;
    return found;
  }

  // [class, tokens] by falling number of tokens; images without a class are left out.
  classesOf(code) {
    const found = new Map();
    for (const token of this.tokensOf(code)) {
      const label = this.images.labels[Math.floor(token / this.cells)];
      if (label >= 0) found.set(label, (found.get(label) || 0) + 1);
    }
    return [...found].sort((a, b) => b[1] - a[1] || a[0] - b[0]);
  }

  // The codes that a search and a filter leave, sorted: what the atlas shows.
  find(text, usage, sort) {
    const wanted = this.matcher(text.trim());
    const used = this.counts.reduce((sum, count) => sum + (count > 0), 0);
    const tenth = Math.max(1, Math.ceil(used / 10));
    const keeps = {
      all: () => true, used: (c) => this.counts[c] > 0, unused: (c) => this.counts[c] === 0,
      most: (c) => this.counts[c] > 0 && this.rank[c] <= tenth,
      least: (c) => this.counts[c] > 0 && this.rank[c] > used - tenth,
    }[usage];
    const found = Array.from(this.order).filter((code) => wanted(code) && keeps(code));
    const orders = {
      alike: null, index: (a, b) => a - b, most: (a, b) => this.rank[a] - this.rank[b],
      least: (a, b) => this.rank[b] - this.rank[a], pure: (a, b) => this.purity[b] - this.purity[a] || a - b,
    };
    if (orders[sort]) return found.sort(orders[sort]);
    return [...found.filter((code) => this.counts[code] > 0), ...found.filter((code) => this.counts[code] === 0)];
  }

  // "17", "17-40", "17-", "17, 90" are indices; "> 50", "< 3" numbers of tokens; other words are looked for in classes.
  matcher(text) {
    if (!text) return () => true;
    const compare = text.match(/^([<>])\s*(\d+)$/);
    if (compare) return (code) => (compare[1] === ">" ? this.counts[code] > +compare[2] : this.counts[code] < +compare[2]);
    if (/^[\d\s,–-]+$/.test(text)) {
      const parts = text.split(",").map((part) => part.trim()).filter((part) => /\d/.test(part));
      const ranges = parts.map((part) => part.split(/\s*[–-]\s*/)).map(([from, to = from]) => [+from, to === "" ? Infinity : +to]);
      return (code) => ranges.some(([from, to]) => code >= from && code <= to);
    }
    const word = text.toLowerCase();
    const fits = new Set(this.images.classes.flatMap((name, i) => (name.toLowerCase().includes(word) ? [i] : [])));
    return (code) => fits.has(this.owner[code]);
  }
}
