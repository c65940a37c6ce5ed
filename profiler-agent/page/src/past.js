/**
 * What a running agent keeps: its time line, a part of which is chosen and shown, and which goes on while it is looked at.
 *
 * The address says what is asked for: `?last=5m` goes on, `?since=…&until=…` stays; other parameters are those of all answers
 * of the agent. A page that is a file has nothing of this.
 */

import { PROCESSES_SHOWN } from "./palette.js";
import { clockTime } from "./text.js";
import { Timeline } from "./timeline.js";

const STRIP_HEIGHT = 84;
/** How often what goes on is asked for anew, in milliseconds. */
const EVERY = 5000;
/** What is shown when the address does not say. */
const LAST = "5m";
/** Parameters that say when. */
const WHEN = ["since", "until", "last"];
/** Parameters that have a control of their own, or say how a picture is drawn. */
const CONTROLLED = [...WHEN, "by", "reverse", "icicle"];

/**
 * @typedef {object} Bars The time line as it comes.
 * @property {number} start milliseconds since the Unix epoch
 * @property {number} duration milliseconds
 * @property {number} bars
 * @property {{pid: number, name: string, cpus: number[]}[]} processes busiest first
 * @property {number[]} others CPUs that all others used
 */

/** @typedef {import("./profile.js").Range} Range */

/** Why there is no answer. */
export class AnswerError extends Error {}

/**
 * @param {string} address
 * @param {AbortSignal} signal
 */
async function ask(address, signal) {
  const answer = await fetch(address, { signal });
  if (!answer.ok) {
    throw new AnswerError((await answer.text()).trim().slice(0, 1000) || `the agent answered ${answer.status}`);
  }
  return answer.json();
}

export class Past {
  /**
   * @param {object} parts
   * @param {HTMLElement} parts.strip
   * @param {(columns: import("./profile.js").Columns) => void} parts.shown
   * @param {(reason: string) => void} parts.failed
   * @param {() => boolean} parts.isBusy whether a person is at something that a new picture would disturb
   * @param {(time: number, at: {x: number, y: number} | null) => void} parts.pointed milliseconds since the Unix epoch
   */
  constructor({ strip, shown, failed, isBusy, pointed }) {
    this.shown = shown;
    this.failed = failed;
    this.isBusy = isBusy;
    this.query = new URLSearchParams(location.search);
    /** @type {Bars | null} */
    this.bars = null;
    /** @type {import("./profile.js").Columns | null} */
    this.columns = null;
    /** @type {number[]} pids, as their colours are given */
    this.ranking = [];
    this.asking = new AbortController();
    this.timeline = new Timeline(
      strip,
      {
        selected: (range, isOver) => {
          this.timeline.mark(range ?? this.window(), null);
          if (isOver) {
            this.choose(range);
          }
        },
        pointed: (time, at) => pointed((this.bars?.start ?? 0) + time, at),
      },
      (time) => clockTime((this.bars?.start ?? 0) + time).slice(0, 8),
      STRIP_HEIGHT,
    );
    setInterval(() => {
      if (this.isLive() && document.visibilityState === "visible" && !this.timeline.isHeld && !this.isBusy()) {
        void this.load();
      }
    }, EVERY);
  }

  /** Whether what is shown goes on. */
  isLive() {
    return !this.query.has("since") && !this.query.has("until");
  }

  /** How long the past is that is shown, where it goes on. */
  last() {
    return this.isLive() ? (this.query.get("last") ?? LAST) : "";
  }

  /** The parameters of what is shown. */
  parameters() {
    const parameters = new URLSearchParams(this.query);
    if (this.isLive()) {
      parameters.set("last", this.last());
    }
    return parameters;
  }

  /** What is asked for beside the time: of whom, and which stacks. */
  filters() {
    return [...this.query].filter(([name]) => !CONTROLLED.includes(name));
  }

  /** Asks for what the address says, and shows it. */
  async load() {
    this.asking.abort();
    this.asking = new AbortController();
    const { signal } = this.asking;
    const whole = new URLSearchParams(this.filters());
    try {
      const [bars, columns] = await Promise.all([
        ask(`timeline.json?${whole}`, signal),
        ask(`page.json?${this.parameters()}`, signal),
      ]);
      // What was begun meanwhile is not to be disturbed, nor what nobody waits for any more.
      if (signal.aborted || (this.columns && this.isLive() && (this.timeline.isHeld || this.isBusy()))) {
        return;
      }
      this.bars = bars;
      this.columns = columns;
      this.shown(columns);
    } catch (error) {
      if (!signal.aborted) {
        this.failed(error instanceof AnswerError ? error.message : "the agent does not answer");
      }
    }
  }

  /**
   * Draws the time line in the colours of what is shown.
   * @param {number[]} ranking pids, as their colours are given
   */
  draw(ranking) {
    const { bars } = this;
    this.ranking = ranking;
    if (!bars) {
      return;
    }
    const use = () => {
      const lists = Array.from({ length: PROCESSES_SHOWN + 1 }, () => new Float64Array(bars.bars));
      for (const { pid, cpus } of [...bars.processes, { pid: -1, cpus: bars.others }]) {
        const rank = ranking.indexOf(pid);
        const list = lists[rank >= 0 && rank < PROCESSES_SHOWN ? rank : PROCESSES_SHOWN];
        cpus.forEach((cpus, bar) => {
          list[bar] += cpus;
        });
      }
      return lists;
    };
    this.timeline.show({ duration: Math.max(bars.duration, 1), use });
    this.timeline.mark(this.window(), null);
  }

  /**
   * What is shown, in the time of the time line.
   * @returns {Range | null}
   */
  window() {
    const { bars, columns } = this;
    if (!bars || !columns) {
      return null;
    }
    const from = Math.max(columns.start - bars.start, 0);
    return [from, Math.max(from + 1, Math.min(columns.start - bars.start + columns.duration, bars.duration))];
  }

  /**
   * Shows a range of the time line; nothing chosen is what goes on.
   * @param {Range | null} range
   */
  choose(range) {
    const start = this.bars?.start ?? 0;
    this.go(
      range ? { since: (start + range[0]) / 1000, until: (start + range[1]) / 1000 } : { last: this.query.get("last") },
    );
  }

  /**
   * Shows something else.
   * @param {Record<string, string | number | null>} changes parameters; one of time replaces all of time
   */
  go(changes) {
    if (WHEN.some((name) => name in changes)) {
      for (const name of WHEN) {
        this.query.delete(name);
      }
    }
    for (const [name, value] of Object.entries(changes)) {
      if (value === null) {
        this.query.delete(name);
      } else {
        this.query.set(name, `${value}`);
      }
    }
    // Ranges in the address are of what was shown until now.
    const hash = new URLSearchParams(location.hash.slice(1));
    hash.delete("t");
    hash.delete("base");
    history.pushState(null, "", `?${this.query}#${hash}`);
    void this.load();
  }

  /** Stays with what is shown, since a range of it is being looked at. */
  freeze() {
    if (!this.isLive() || !this.columns) {
      return;
    }
    this.asking.abort();
    const { start, duration } = this.columns;
    this.query.delete("last");
    this.query.set("since", `${start / 1000}`);
    this.query.set("until", `${(start + duration) / 1000}`);
    history.replaceState(null, "", `?${this.query}${location.hash}`);
  }

  /** Follows the address; says whether there is something else to be shown. */
  follow() {
    const query = new URLSearchParams(location.search);
    const isOther = `${query}` !== `${this.query}`;
    this.query = query;
    if (isOther) {
      void this.load();
    }
    return isOther;
  }
}
