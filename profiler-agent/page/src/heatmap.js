/** Each second a column, each row a part of it: bursts that last milliseconds show, and can be selected. */

import { BELOW, drag, LEFT, prepare, styled } from "./canvas.js";
import { heatColour } from "./palette.js";

/** Rows; each is 20 ms. */
const ROWS = 50;
const STEP = 1000 / ROWS;
/** A capture ends some milliseconds late: so little behind the last whole second has no column. */
const REST = 100;
/** What is beyond the first day has no columns. */
const LONGEST = 86_400_000;
/** Height of a cell, in pixels. */
const CELL = 3;
const HEATMAP_HEIGHT = ROWS * CELL + BELOW;

/** @typedef {import("./profile.js").Range} Range */

export class Heatmap {
  /**
   * @param {HTMLElement} window what scrolls
   * @param {object} events
   * @param {(range: Range | null, isOver: boolean) => void} events.selected
   * @param {(time: number, count: number, at: {x: number, y: number} | null) => void} events.pointed
   */
  constructor(window, { selected, pointed }) {
    this.window = window;
    this.canvas = document.createElement("canvas");
    this.filler = document.createElement("div");
    window.replaceChildren(this.canvas, this.filler);
    this.selected = selected;
    /** @type {import("./profile.js").Profile | null} */
    this.profile = null;
    this.counts = new Uint32Array(0);
    this.most = 1;
    /** @type {Range | null} */
    this.range = null;
    /** @type {Range | null} */
    this.base = null;
    this.width = 0;
    this.column = 8;
    /** Cell that the keyboard is at, and the one where it began to select. */
    this.cursor = 0;
    this.anchor = 0;
    /** Whether a range is being dragged. */
    this.isHeld = false;
    drag(this.canvas, (down) => {
      const from = this.cell(down);
      if (from < 0) {
        return null;
      }
      this.anchor = from;
      return (event, isOver) => {
        this.isHeld = !isOver;
        this.cursor = Math.max(0, this.cell(event));
        this.selected(this.between(this.anchor, this.cursor), isOver);
      };
    });
    this.canvas.addEventListener("pointermove", (event) => {
      const cell = this.cell(event);
      pointed(cell * STEP, this.counts[cell] ?? 0, cell >= 0 ? { x: event.clientX, y: event.clientY } : null);
    });
    this.canvas.addEventListener("pointerleave", () => pointed(0, 0, null));
    window.addEventListener("scroll", () => this.draw());
    window.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.fit()).observe(window);
  }

  /**
   * @param {import("./profile.js").Profile} profile
   * @param {Uint8Array} kept rows
   */
  show(profile, kept) {
    this.profile = profile;
    const columns = Math.max(1, Math.ceil((Math.min(profile.duration, LONGEST) - REST) / 1000));
    this.counts = new Uint32Array(columns * ROWS);
    const [, behind] = profile.events([0, columns * 1000]);
    for (let event = 0; event < behind; event += 1) {
      this.counts[Math.floor(profile.time[event] / STEP)] += kept[profile.row[event]];
    }
    // A single wild cell is not to make all others pale.
    const busy = this.counts.filter((count) => count > 0).sort();
    this.most = Math.max(1, busy[Math.floor(busy.length * 0.995)] ?? 1);
    this.fit();
  }

  /**
   * @param {Range | null} range
   * @param {Range | null} base
   */
  mark(range, base) {
    this.range = range;
    this.base = base;
    this.draw();
  }

  fit() {
    this.width = this.window.clientWidth;
    const columns = Math.max(1, this.counts.length / ROWS);
    this.column = Math.min(40, Math.max(4, Math.floor((this.width - LEFT) / columns)));
    this.filler.style.width = `${LEFT + columns * this.column}px`;
    this.draw();
  }

  draw() {
    if (!this.profile || this.width === 0) {
      return;
    }
    const pen = prepare(this.canvas, this.width, HEATMAP_HEIGHT);
    const dark = document.documentElement.dataset.theme === "dark";
    const colours = Array.from({ length: 33 }, (_, step) => heatColour(step / 32, dark));
    const scroll = this.window.scrollLeft;
    const columns = this.counts.length / ROWS;
    const first = Math.max(0, Math.floor(scroll / this.column));
    const last = Math.min(columns, Math.ceil((scroll + this.width) / this.column) + 1);
    const end = this.profile.duration / STEP;
    for (let column = first; column < last; column += 1) {
      for (let row = 0; row < ROWS; row += 1) {
        const cell = column * ROWS + row;
        if (cell < end) {
          const part = Math.min(1, this.counts[cell] / this.most);
          pen.fillStyle = colours[part === 0 ? 0 : 3 + Math.round(part * 29)];
          const y = (ROWS - 1 - row) * CELL;
          pen.fillRect(LEFT + column * this.column - scroll, y, this.column - 0.5, CELL - 0.5);
        }
      }
    }
    this.cells(pen, this.base, styled("--shrunk"));
    this.cells(pen, this.range, styled(this.base ? "--grown" : "--accent"));
    pen.fillStyle = styled("--ground");
    pen.fillRect(0, 0, LEFT - 1, HEATMAP_HEIGHT);
    pen.fillRect(0, ROWS * CELL, this.width, BELOW);
    pen.fillStyle = styled("--faint");
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    for (const [text, y] of /** @type {[string, number][]} */ ([
      ["1 s", 7],
      ["0.5", (ROWS * CELL) / 2],
      ["0", ROWS * CELL - 6],
    ])) {
      pen.fillText(text, LEFT - 4, y);
    }
    pen.textAlign = "left";
    const every = [1, 2, 5, 10, 20, 30, 60, 120, 300].find((step) => step * this.column >= 56) ?? 600;
    for (let column = Math.ceil(first / every) * every; column < last; column += every) {
      const x = LEFT + column * this.column - scroll;
      if (x >= LEFT - 1) {
        pen.fillText(`${column} s`, x, ROWS * CELL + BELOW / 2 + 1);
      }
    }
  }

  /**
   * Outlines the cells of a range.
   * @param {CanvasRenderingContext2D} pen
   * @param {Range | null} range
   * @param {string} colour
   */
  cells(pen, range, colour) {
    if (!range) {
      return;
    }
    const [first, behind] = [Math.floor(range[0] / STEP), Math.ceil(range[1] / STEP)];
    const scroll = this.window.scrollLeft;
    pen.lineWidth = 2;
    pen.strokeStyle = colour;
    pen.fillStyle = colour;
    for (let column = Math.floor(first / ROWS); column * ROWS < behind; column += 1) {
      const x = LEFT + column * this.column - scroll;
      if (x < -this.column || x > this.width) {
        continue;
      }
      const low = Math.max(first - column * ROWS, 0);
      const high = Math.min(behind - column * ROWS, ROWS);
      const [top, height] = [(ROWS - high) * CELL, (high - low) * CELL];
      pen.globalAlpha = 0.22;
      pen.fillRect(x, top, this.column, height);
      pen.globalAlpha = 1;
      pen.strokeRect(x + 0.5, top + 1, this.column - 1.5, Math.max(height - 2, 2));
    }
  }

  /**
   * The cell below a pointer, counted in order of time, or -1.
   * @param {MouseEvent} event
   */
  cell(event) {
    const box = this.canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left - LEFT + this.window.scrollLeft) / this.column);
    const row = ROWS - 1 - Math.floor((event.clientY - box.top) / CELL);
    const isInside = column >= 0 && column < this.counts.length / ROWS && row >= 0 && row < ROWS;
    return isInside ? column * ROWS + row : -1;
  }

  /**
   * The time from one cell to another, both included.
   * @param {number} one
   * @param {number} other
   * @returns {Range}
   */
  between(one, other) {
    const end = (Math.max(one, other) + 1) * STEP;
    return [Math.min(one, other) * STEP, Math.min(end, Math.max(this.profile?.duration ?? end, 1))];
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const step = { ArrowUp: 1, ArrowDown: -1, ArrowLeft: -ROWS, ArrowRight: ROWS }[event.key];
    if (!step || event.altKey || event.ctrlKey || event.metaKey) {
      return;
    }
    this.cursor = Math.min(Math.max(this.cursor + step, 0), this.counts.length - 1);
    if (!event.shiftKey) {
      this.anchor = this.cursor;
    }
    const x = LEFT + Math.floor(this.cursor / ROWS) * this.column;
    if (x - LEFT < this.window.scrollLeft) {
      this.window.scrollLeft = x - LEFT;
    } else if (x + this.column > this.window.scrollLeft + this.width) {
      this.window.scrollLeft = x + this.column - this.width;
    }
    this.selected(this.between(this.anchor, this.cursor), true);
    event.preventDefault();
    event.stopPropagation();
  }
}
