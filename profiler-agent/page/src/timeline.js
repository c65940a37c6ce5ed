/** CPU use by process over time; a range of it can be dragged. */

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

export class Timeline {
  /**
   * @param {HTMLElement} window
   * @param {object} events
   * @param {(range: Range | null, isOver: boolean) => void} events.selected
   * @param {(time: number, at: {x: number, y: number} | null) => void} events.pointed
   */
  constructor(window, { selected, pointed }) {
    this.window = window;
    this.canvas = document.createElement("canvas");
    window.replaceChildren(this.canvas);
    this.selected = selected;
    /** @type {import("./profile.js").Profile | null} */
    this.profile = null;
    /** @type {number[]} processes, busiest first */
    this.ranking = [];
    /** @type {Uint8Array} */
    this.kept = new Uint8Array(0);
    /** @type {Range | null} */
    this.range = null;
    /** @type {Range | null} */
    this.base = null;
    this.width = 0;
    /** @type {Float64Array[]} CPUs in use, by bar, one list for each process shown and one for the others */
    this.use = [];
    drag(this.canvas, (down) => {
      if (!this.profile) {
        return null;
      }
      const from = this.time(down);
      return (event, isOver) => {
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

  /**
   * @param {import("./profile.js").Profile} profile
   * @param {number[]} ranking
   * @param {Uint8Array} kept rows
   */
  show(profile, ranking, kept) {
    this.profile = profile;
    this.ranking = ranking;
    this.kept = kept;
    this.measure();
  }

  /** Counts the samples of each bar. */
  measure() {
    const { profile } = this;
    this.width = this.window.clientWidth;
    if (!profile || this.width === 0) {
      return;
    }
    const bars = Math.max(1, Math.floor((this.width - LEFT) / BAR));
    const rank = new Int32Array(profile.processes.length).fill(PROCESSES_SHOWN);
    this.ranking.slice(0, PROCESSES_SHOWN).forEach((process, place) => {
      rank[process] = place;
    });
    this.use = Array.from({ length: PROCESSES_SHOWN + 1 }, () => new Float64Array(bars));
    // A sample stands for its period, of which a bar has so many for each CPU; where that is not known, samples are counted.
    const { period } = profile.columns;
    const share = period > 0 ? period / 1e6 / (profile.duration / bars) : 1;
    for (let event = 0; event < profile.time.length; event += 1) {
      const row = profile.row[event];
      const bar = Math.min(bars - 1, Math.floor((profile.time[event] / profile.duration) * bars));
      this.use[rank[profile.rowProcess[row]] ?? PROCESSES_SHOWN][bar] += this.kept[row] * share;
    }
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
    return Math.round(Math.min(Math.max(part, 0), 1) * (this.profile?.duration ?? 0));
  }

  /** @param {number} time */
  x(time) {
    return LEFT + (time / (this.profile?.duration ?? 1)) * (this.width - LEFT);
  }

  draw() {
    const { profile, use } = this;
    if (!profile || use.length === 0) {
      return;
    }
    const pen = prepare(this.canvas, this.width, TIMELINE_HEIGHT);
    const floor = TIMELINE_HEIGHT - BELOW;
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
    const every = STEPS.find((step) => profile.duration / step <= room) ?? 3_600_000;
    for (let time = 0; this.x(time) < this.width - 20; time += every) {
      pen.textAlign = time === 0 ? "left" : "center";
      pen.fillText(seconds(time), this.x(time), floor + BELOW / 2 + 1);
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
    const { profile } = this;
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!profile || !step || event.altKey || event.ctrlKey || event.metaKey) {
      return;
    }
    const [from, to] = this.range ?? [0, profile.duration / 10];
    const by = this.range ? step * Math.max(1, Math.round(profile.duration / 100)) : 0;
    const begin = event.shiftKey ? from : Math.min(Math.max(from + by, 0), profile.duration - (to - from));
    const end = event.shiftKey ? Math.min(Math.max(to + by, from + 1), profile.duration) : begin + (to - from);
    this.selected([Math.round(begin), Math.round(end)], true);
    event.preventDefault();
    event.stopPropagation();
  }
}
