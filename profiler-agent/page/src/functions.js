/** The table of functions: self and total of each, over all its stacks. */

import { kindColour } from "./palette.js";
import { percent, points } from "./text.js";

/** How many rows are shown at once; a button shows more. */
const PAGE = 200;

/**
 * @typedef {object} Sums Shares of each function, by frame.
 * @property {Float64Array} self
 * @property {Float64Array} total
 * @property {Float64Array | null} selfBefore
 * @property {Float64Array | null} totalBefore
 */

export class Functions {
  /**
   * @param {HTMLTableElement} table
   * @param {HTMLButtonElement} more
   * @param {object} events
   * @param {(frame: number) => void} events.chosen
   * @param {(sort: string) => void} events.sorted
   */
  constructor(table, more, { chosen, sorted }) {
    this.head = /** @type {HTMLTableSectionElement} */ (table.tHead);
    this.body = table.tBodies[0];
    this.more = more;
    this.chosen = chosen;
    this.limit = PAGE;
    /** @type {{labels: string[], kinds: Uint8Array, modules: string[], sums: Sums, found: Uint8Array | null, sort: string, fn: number, dark: boolean} | null} */
    this.shown = null;
    for (const button of this.head.querySelectorAll("button")) {
      button.addEventListener("click", () => sorted(button.dataset.sort ?? "self"));
    }
    more.addEventListener("click", () => {
      this.limit += PAGE * 5;
      this.draw();
    });
  }

  /** @param {NonNullable<Functions["shown"]>} shown */
  show(shown) {
    this.shown = shown;
    this.limit = PAGE;
    this.draw();
  }

  draw() {
    if (!this.shown) {
      return;
    }
    const { labels, kinds, modules, sums, found, sort, fn, dark } = this.shown;
    const { selfBefore, totalBefore } = sums;
    const change = {
      self: (/** @type {number} */ frame) => sums.self[frame] - (selfBefore?.[frame] ?? 0),
      total: (/** @type {number} */ frame) => sums.total[frame] - (totalBefore?.[frame] ?? 0),
    };
    const frames = [];
    for (let frame = 1; frame < labels.length; frame += 1) {
      const isThere = sums.total[frame] > 0 || (totalBefore?.[frame] ?? 0) > 0;
      // Processes are no functions.
      if (isThere && kinds[frame] !== 0 && (!found || found[frame])) {
        frames.push(frame);
      }
    }
    /** @type {Record<string, (frame: number) => number>} */
    const keys = {
      self: (frame) => -sums.self[frame],
      total: (frame) => -sums.total[frame],
      name: (frame) => frame,
      dself: (frame) => -Math.abs(change.self(frame)),
      dtotal: (frame) => -Math.abs(change.total(frame)),
    };
    const key = keys[sort] ?? keys.self;
    frames.sort((a, b) => key(a) - key(b) || sums.total[b] - sums.total[a] || a - b);
    for (const cell of this.head.querySelectorAll("th")) {
      const is = cell.querySelector("button")?.dataset.sort === sort;
      cell.ariaSort = is ? (sort === "name" ? "ascending" : "descending") : "none";
      cell.hidden = cell.classList.contains("change") && !selfBefore;
    }
    const rows = frames.slice(0, this.limit).map((frame) => {
      const row = document.createElement("tr");
      row.classList.toggle("chosen", frame === fn);
      const cells = [
        [percent(sums.self[frame]), "number"],
        [percent(sums.total[frame]), "number"],
      ];
      if (selfBefore) {
        cells.push([points(change.self(frame)), "number change"], [points(change.total(frame)), "number change"]);
      }
      for (const [text, style] of cells) {
        const cell = row.insertCell();
        cell.className = style;
        cell.textContent = text;
        if (style.includes("change")) {
          cell.classList.toggle("grown", text.startsWith("+"));
          cell.classList.toggle("shrunk", text.startsWith("−"));
        }
      }
      const bar = /** @type {HTMLElement} */ (row.cells[0]);
      bar.style.setProperty("--part", `${(sums.self[frame] * 100).toFixed(2)}%`);
      row.cells[1].style.setProperty("--part", `${(sums.total[frame] * 100).toFixed(2)}%`);
      const name = row.insertCell();
      name.className = "name";
      const button = document.createElement("button");
      const swatch = document.createElement("i");
      swatch.style.background = kindColour(kinds[frame], dark);
      const module = document.createElement("small");
      module.textContent = modules[frame].slice(modules[frame].lastIndexOf("/") + 1);
      button.append(swatch, labels[frame], " ", module);
      button.title = labels[frame];
      button.addEventListener("click", () => this.chosen(frame));
      name.append(button);
      return row;
    });
    this.body.replaceChildren(...rows);
    this.more.hidden = frames.length <= this.limit;
    this.more.textContent = `${frames.length - rows.length} more functions`;
  }
}
