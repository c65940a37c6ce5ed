/** CPU use by process over time; a range of it can be dragged. Of one profile, or of all that a running agent keeps. */

import { BELOW, drag, LEFT, prepare, styled } from "./canvas.js";
import { PROCESSES_SHOWN, processColour } from "./palette.js";
import { seconds } from "./text.js";

const TIMELINE_HEIGHT = 138;
/** What may lie between two labels of time, in milliseconds. */
const STEPS = [1, 2, 5, 10, 20, 50, 100, 200, 500].concat(
  [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800].map((step) => step * 1000),
);
/** Width of a bar. */
const BAR = 4;

/** @typedef {import("./profile.js").Range} Range */

/**
 * What a time line shows.
 * @typedef {object} Source
 * @property {number} duration milliseconds
 * @property {(bars: number) => Float64Array[]} use CPUs in use, one list for each process by its rank, the last one for all others;
 *   about so many bars
 */

/**
 * CPU use of a profile.
 * @param {import("./profile.js").Profile} profile
 * @param {number[]} ranking processes, busiest first
 * @param {Uint8Array} kept rows
 * @returns {Source}
 */
export function useOf(profile, ranking, kept) {
  const use = (/** @type {number} */ bars) => {
    const rank = new Int32Array(profile.processes.length).fill(PROCESSES_SHOWN);
    ranking.slice(0, PROCESSES_SHOWN).forEach((process, place) => {
      rank[process] = place;
    });
    const lists = Array.from({ length: PROCESSES_SHOWN + 1 }, () => new Float64Array(bars));
    // A sample stands for its period, of which a bar has so many for each CPU; where that is not known, samples are counted.
    const { period } = profile.columns;
    const share = period > 0 ? period / 1e6 / (profile.duration / bars) : 1;
    for (let event = 0; event < profile.time.length; event += 1) {
      const row = profile.row[event];
      const bar = Math.min(bars - 1, Math.floor((profile.time[event] / profile.duration) * bars));
      lists[rank[profile.rowProcess[row]] ?? PROCESSES_SHOWN][bar] += kept[row] * share;
    }
    return lists;
  };
  return { duration: profile.duration, use };
}

export class Timeline {
  /**
   * @param {HTMLElement} window
   * @param {object} events
   * @param {(range: Range | null, isOver: boolean) => void} events.selected
   * @param {(time: number, at: {x: number, y: number} | null) => void} events.pointed
   * @param {(time: number) => string} label what stands below a time
   * @param {number} height
   */
  constructor(window, { selected, pointed }, label = seconds, height = TIMELINE_HEIGHT) {
    this.window = window;
    this.label = label;
    this.height = height;
    this.canvas = document.createElement("canvas");
    window.replaceChildren(this.canvas);
    this.selected = selected;
    /** @type {Source | null} */
    this.source = null;
    /** Whether a range is being dragged. */
    this.isHeld = false;
    /** @type {Range | null} */
    this.range = null;
    /** @type {Range | null} */
    this.base = null;
    this.width = 0;
    /** @type {Float64Array[]} */
    this.use = [];
    drag(this.canvas, (down) => {
      if (!this.source) {
        return null;
      }
      const from = this.time(down);
      return (event, isOver) => {
        this.isHeld = !isOver;
        const to = this.time(event);
        const isClick = Math.abs(this.x(to) - this.x(from)) < 4;
        this.selected(isClick ? null : from < to ? [from, to] : [to, from], isOver);
      };
    });
    this.canvas.addEventListener("pointermove", (event) =>
      pointed(this.time(event), { x: event.clientX, y: event.clientY }),
    );
    this.canvas.addEventListener("pointerleave", () => pointed(-1, null));
    window.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => {
      if (this.window.clientWidth !== this.width) {
        this.measure();
      }
    }).observe(window);
  }

  /** @param {Source} source */
  show(source) {
    this.source = source;
    this.measure();
  }

  /** Has the bars counted that there is room for. */
  measure() {
    this.width = this.window.clientWidth;
    if (!this.source || this.width === 0) {
      return;
    }
    this.use = this.source.use(Math.max(1, Math.floor((this.width - LEFT) / BAR)));
    this.draw();
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

  /** @param {MouseEvent} event */
  time(event) {
    const box = this.canvas.getBoundingClientRect();
    const part = (event.clientX - box.left - LEFT) / Math.max(1, this.width - LEFT);
    return Math.round(Math.min(Math.max(part, 0), 1) * (this.source?.duration ?? 0));
  }

  /** @param {number} time */
  x(time) {
    return LEFT + (time / (this.source?.duration ?? 1)) * (this.width - LEFT);
  }

  draw() {
    const { source, use } = this;
    if (!source || use.length === 0) {
      return;
    }
    const pen = prepare(this.canvas, this.width, this.height);
    const floor = this.height - BELOW;
    const bars = use[0].length;
    const sums = new Float64Array(bars);
    for (const list of use) {
      for (let bar = 0; bar < bars; bar += 1) {
        sums[bar] += list[bar];
      }
    }
    const most = Math.max(1, Math.ceil(sums.reduce((most, sum) => Math.max(most, sum), 0) * 10) / 10);
    const line = styled("--line");
    const faint = styled("--faint");
    pen.textBaseline = "middle";
    for (const level of [0, 0.5, 1]) {
      const y = floor - level * (floor - 8);
      pen.fillStyle = line;
      pen.fillRect(LEFT, y, this.width - LEFT, 1);
      pen.fillStyle = faint;
      pen.textAlign = "right";
      pen.fillText((most * level).toFixed(most < 10 ? 1 : 0), LEFT - 4, y);
    }
    const wide = (this.width - LEFT) / bars;
    const height = new Float64Array(bars);
    use.forEach((list, rank) => {
      pen.fillStyle = processColour(rank);
      for (let bar = 0; bar < bars; bar += 1) {
        const high = (list[bar] / most) * (floor - 8);
        if (high > 0) {
          height[bar] += high;
          pen.fillRect(LEFT + bar * wide, floor - height[bar], Math.max(wide - 0.5, 0.5), high);
        }
      }
    });
    pen.fillStyle = faint;
    const room = Math.max(1, (this.width - LEFT) / 90);
    const every = STEPS.find((step) => source.duration / step <= room) ?? 3_600_000;
    for (let time = 0; this.x(time) < this.width - 20; time += every) {
      pen.textAlign = time === 0 ? "left" : "center";
      pen.fillText(this.label(time), this.x(time), floor + BELOW / 2 + 1);
    }
    pen.textAlign = "left";
    for (const [range, name, colour] of /** @type {[Range | null, string, string][]} */ ([
      [this.base, "A", styled("--shrunk")],
      [this.range, this.base ? "B" : "", styled(this.base ? "--grown" : "--accent")],
    ])) {
      if (range) {
        this.band(pen, range, name, colour, floor);
      }
    }
  }

  /**
   * @param {CanvasRenderingContext2D} pen
   * @param {Range} range
   * @param {string} name
   * @param {string} colour
   * @param {number} floor
   */
  band(pen, range, name, colour, floor) {
    const [left, right] = [this.x(range[0]), this.x(range[1])];
    pen.globalAlpha = 0.16;
    pen.fillStyle = colour;
    pen.fillRect(left, 0, right - left, floor);
    pen.globalAlpha = 1;
    pen.fillRect(left - 1, 0, 2, floor);
    pen.fillRect(right - 1, 0, 2, floor);
    if (name) {
      pen.fillRect(left, 0, 16, 15);
      pen.fillStyle = "#fff";
      pen.fillText(name, left + 5, 8);
    }
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const { source } = this;
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!source || !step || event.altKey || event.ctrlKey || event.metaKey) {
      return;
    }
    const [from, to] = this.range ?? [0, source.duration / 10];
    const by = this.range ? step * Math.max(1, Math.round(source.duration / 100)) : 0;
    const begin = event.shiftKey ? from : Math.min(Math.max(from + by, 0), source.duration - (to - from));
    const end = event.shiftKey ? Math.min(Math.max(to + by, from + 1), source.duration) : begin + (to - from);
    this.selected([Math.round(begin), Math.round(end)], true);
    event.preventDefault();
    event.stopPropagation();
  }
}
