/** Puts the parts of the page together: what a person does changes the state, and the state is what is shown. */

import { fromHash, START, toHash } from "./address.js";
import { Flame } from "./flame.js";
import { Functions } from "./functions.js";
import { Heatmap } from "./heatmap.js";
import {
  change,
  changeColour,
  frameColours,
  isDeep,
  KIND_TEXT,
  kindColour,
  PROCESSES_SHOWN,
  processColour,
} from "./palette.js";
import { Past } from "./past.js";
import { load, Profile } from "./profile.js";
import { amount, clockTime, cpuTime, fnv, percent, points, seconds, thousands } from "./text.js";
import { Timeline, useOf } from "./timeline.js";

/**
 * @template {HTMLElement} [T=HTMLElement]
 * @param {string} id
 * @returns {T}
 */
function element(id) {
  const found = document.getElementById(id);
  if (!found) {
    throw new Error(`the page has no element ${id}`);
  }
  return /** @type {T} */ (found);
}

/** The page with a profile, which may give way to the next one. */
class Page {
  state = { ...START };
  dark = false;
  /** @type {string[]} */
  colours = [];
  /** Whether counting a range takes longer than a person's hand moves. */
  isSlow = false;
  nameHashes = new Uint32Array(0);
  nodeHashes = new Uint32Array(0);
  /** Samples of each process, and the processes from the busiest on. */
  busy = new Float64Array(0);
  /** @type {number[]} */
  ranking = [];
  /** Rows of the process and the thread that are asked for. */
  kept = new Uint8Array(0);
  after = new Float64Array(0);
  /** @type {Float64Array | null} */
  before = null;
  afterTotal = new Float64Array(0);
  /** @type {Float64Array | null} */
  beforeTotal = null;
  /** @type {Uint8Array | null} */
  found = null;
  /** What is pointed at, for copying: a flamegraph and its node. */
  target = { flame: /** @type {Flame | null} */ (null), node: -1 };

  /**
   * @param {Profile} profile
   * @param {Past | null} past of a running agent
   * @param {string} state what is shown where the address does not say
   */
  constructor(profile, past, state = "") {
    this.profile = profile;
    this.initial = state;
    this.past = past;
    this.adopt(profile);

    const selected = (/** @type {import("./profile.js").Range | null} */ range, /** @type {boolean} */ isOver) =>
      this.select(range, isOver);
    this.timeline = new Timeline(element("timeline"), {
      selected,
      pointed: (time, at) =>
        this.tip(at, [`${seconds(time)} after the start`, clockTime(this.profile.columns.start + time)]),
    });
    this.heatmap = new Heatmap(element("heatmap"), {
      selected,
      pointed: (time, count, at) =>
        this.tip(at, [`${amount(count, this.profile.columns.unit)} in 20 ms`, `${seconds(time)} after the start`]),
    });
    this.flame = new Flame(element("flame"), {
      zoomed: (node) => this.go({ zoom: this.nodeHashes[node] }, "push", "zoom"),
      pointed: (node, at) => this.pointed(this.flame, node, at),
    });
    this.callers = new Flame(element("callers"), {
      zoomed: () => {},
      pointed: (node, at) => this.pointed(this.callers, node, at),
    });
    this.callees = new Flame(element("callees"), {
      zoomed: () => {},
      pointed: (node, at) => this.pointed(this.callees, node, at),
    });
    this.callers.limit = 270;
    this.callees.limit = 300;
    this.functions = new Functions(element("table"), element("more"), {
      chosen: (frame) => this.go({ fn: this.nameHashes[frame], view: "functions" }, "push"),
      sorted: (sort) => this.go({ sort }, "replace"),
    });
    this.listen();
  }

  /**
   * Makes a profile the one that is shown from now on.
   * @param {Profile} profile
   */
  adopt(profile) {
    const cursor = this.flame?.cursor ?? -1;
    const hash = cursor >= 0 ? this.nodeHashes[cursor] : 0;
    this.profile = profile;
    this.isSlow = profile.tree.length > 200_000;
    this.nameHashes = Uint32Array.from(profile.labels, (label, frame) => fnv(label, profile.kinds[frame]) || 1);
    this.nodeHashes = profile.tree.hashes(this.nameHashes);
    if (cursor >= 0) {
      this.flame.cursor = this.nodeHashes.indexOf(hash);
    }
    this.kept = profile.kept({ process: -1, thread: -1 });
    this.after = new Float64Array(0);
    this.afterTotal = this.after;
    this.before = null;
    this.beforeTotal = null;
    this.found = null;
    this.target = { flame: null, node: -1 };
    const busy = new Float64Array(profile.processes.length);
    profile.rowCount.forEach((count, row) => {
      busy[profile.rowProcess[row]] += count;
    });
    this.busy = busy;
    this.ranking = [...profile.processes.keys()].sort((a, b) => busy[b] - busy[a]);
  }

  /** What times in the address count from: a running agent shows another profile next time. */
  origin() {
    return this.past ? this.profile.columns.start : 0;
  }

  /** What the controls do. */
  listen() {
    const search = element("search");
    search.addEventListener("input", () => this.go({ search: value("search") }, "replace"));
    search.addEventListener("keydown", (event) => {
      if (event.key === "Enter") {
        this.flame.nextFound(event.shiftKey ? -1 : 1);
      } else if (event.key === "Escape") {
        /** @type {HTMLInputElement} */ (search).value = "";
        this.go({ search: "" }, "replace");
        element("flame").focus();
      }
      event.stopPropagation();
    });
    element("view-flame").addEventListener("click", () => this.go({ view: "flame" }, "push"));
    element("view-functions").addEventListener("click", () => this.go({ view: "functions" }, "push"));
    element("icicle").addEventListener("click", () => this.go({ icicle: !this.state.icicle }, "replace"));
    element("whole").addEventListener("click", () => this.go({ zoom: 0 }, "push"));
    element("back").addEventListener("click", () => history.back());
    element("clear").addEventListener("click", () => this.go({ range: null }, "push"));
    element("compare").addEventListener("click", () => this.compare());
    element("swap").addEventListener("click", () => {
      const { range, base } = this.state;
      this.go({ range: base, base: range }, "push");
    });
    element("copy").addEventListener("click", () => this.copy());
    element("theme").addEventListener("click", () => this.paint(!this.dark, true));
    element("help").addEventListener("click", () => this.help());
    element("process").addEventListener("change", () =>
      this.go({ pid: Number.parseInt(value("process"), 10), tid: -1 }, "push"),
    );
    element("thread").addEventListener("change", () => this.go({ tid: Number.parseInt(value("thread"), 10) }, "push"));
    addEventListener("popstate", () => {
      if (!this.past?.follow()) {
        this.go(fromHash(location.hash || this.initial, this.profile.duration, this.origin()), "none");
      }
    });
    addEventListener("keydown", (event) => this.key(event));
    const preference = matchMedia("(prefers-color-scheme: dark)");
    preference.addEventListener("change", () => this.paint(preference.matches, false));
    this.paint(stored("theme") ? stored("theme") === "dark" : preference.matches, false);
  }

  /** Shows what the address says. */
  start() {
    const { columns } = this.profile;
    document.title = columns.title;
    element("title").textContent = columns.title;
    element("subtitle").textContent = columns.subtitle;
    const lost = Object.entries(columns.lost);
    element("lost").hidden = lost.length === 0;
    element("lost").textContent = `Lost: ${lost.map(([reason, count]) => `${thousands(count)} ${reason}`).join(", ")}`;
    element("measure").textContent = columns.period > 0 ? "CPUs in use" : "Samples";
    element("times").hidden = !this.profile.hasTimes;
    element("timeless").hidden = this.profile.hasTimes;
    this.colours = frameColours(this.profile.kinds, this.profile.names, this.dark);
    this.legends();
    this.choices();
    this.go(fromHash(location.hash || this.initial, this.profile.duration, this.origin()), "none");
    this.detail(this.flame, this.flame.cursor);
    this.past?.draw(this.ranking.map((process) => this.profile.processes[process].pid));
    document.body.classList.add("ready");
  }

  /**
   * Changes the state and what is shown of it.
   * @param {Partial<import("./address.js").State>} changes
   * @param {"push" | "replace" | "none"} how the address follows
   * @param {"all" | "zoom"} what has to be drawn anew
   */
  go(changes, how, what = "all") {
    const old = this.state;
    this.state = { ...old, ...changes };
    const { state } = this;
    if (state.pid !== old.pid) {
      state.tid = changes.tid ?? -1;
    }
    if (state.range || state.base) {
      this.past?.freeze();
    }
    if (how !== "none") {
      const hash = `#${toHash(state, this.origin())}`;
      if (hash !== (location.hash || "#")) {
        history[how === "push" ? "pushState" : "replaceState"](null, "", hash);
      }
    }
    if (what === "zoom") {
      this.controls();
      return;
    }
    const isFirst = this.after.length === 0;
    const is = (/** @type {(keyof import("./address.js").State)[]} */ ...keys) =>
      isFirst || keys.some((key) => state[key] !== old[key]);
    if (is("pid", "tid")) {
      this.filter();
    }
    if (is("pid", "tid", "range", "base")) {
      this.timeline.mark(state.range, state.base);
      this.heatmap.mark(state.range, state.base);
      this.count();
    }
    if (is("search")) {
      this.search();
    }
    if (is("pid", "tid", "range", "base", "icicle")) {
      this.draw();
    } else if (is("zoom")) {
      this.flame.zoomTo(this.node(state.zoom));
    }
    this.controls();
    if (state.view === "functions" && is("pid", "tid", "range", "base", "search", "sort", "fn", "view")) {
      this.table();
    }
    if (state.view === "functions" && is("pid", "tid", "range", "base", "fn", "view")) {
      this.sandwich();
    }
  }

  /**
   * Follows a range that is being dragged; where there is much to count, when it has been.
   * @param {import("./profile.js").Range | null} range
   * @param {boolean} isOver
   */
  select(range, isOver) {
    if (!isOver && this.isSlow) {
      this.timeline.mark(range, this.state.base);
      this.heatmap.mark(range, this.state.base);
      return;
    }
    const begin = performance.now();
    this.go({ range }, isOver ? "push" : "none");
    this.isSlow = performance.now() - begin > 40;
  }

  /**
   * The node of an address; the root where there is none.
   * @param {number} hash
   */
  node(hash) {
    return hash ? Math.max(0, this.nodeHashes.indexOf(hash)) : 0;
  }

  /** The rows of the process and thread that are asked for. */
  filter() {
    const { profile, state } = this;
    const process = profile.processes.findIndex(({ pid }) => pid === state.pid);
    const thread = profile.threads.findIndex(({ tid, process: of }) => tid === state.tid && of === process);
    this.kept = profile.kept({ process, thread });
    this.timeline.show(useOf(profile, this.ranking, this.kept));
    this.heatmap.show(profile, this.kept);
    const threads = process < 0 ? [] : profile.threads.filter((thread) => thread.process === process);
    const choice = element("thread");
    choice.hidden = threads.length < 2;
    choice.replaceChildren(option("-1", `all ${threads.length} threads`));
    for (const { tid, name } of threads.slice(0, 1000)) {
      choice.append(option(`${tid}`, `${name} (${tid})`));
    }
  }

  /** Counts the samples of what is selected. */
  count() {
    const { profile, state, kept } = this;
    this.after = profile.count(state.range, kept);
    this.afterTotal = profile.tree.totals(this.after);
    this.before = state.base ? profile.count(state.base, kept) : null;
    this.beforeTotal = this.before && profile.tree.totals(this.before);
  }

  /** What the search finds, by frame. */
  search() {
    const { profile, state } = this;
    const field = element("search");
    /** @type {HTMLInputElement} */ (field).value = state.search;
    this.found = null;
    field.removeAttribute("aria-invalid");
    element("matched").textContent = "";
    if (state.search) {
      try {
        const pattern = new RegExp(state.search, "iu");
        this.found = Uint8Array.from(profile.labels, (label, frame) => (frame > 0 && pattern.test(label) ? 1 : 0));
      } catch (error) {
        field.setAttribute("aria-invalid", "true");
        element("matched").textContent = error instanceof Error ? error.message : "not a regular expression";
      }
    }
    for (const flame of [this.flame, this.callers, this.callees]) {
      flame.highlight(this.found);
    }
  }

  /**
   * The share of the samples that have a frame in their stack that the search found.
   * @param {Float64Array} total
   */
  matched(total) {
    const { tree } = this.profile;
    let matched = 0;
    for (let node = 1; node < tree.length; ) {
      if (this.found?.[tree.frame[node]]) {
        matched += total[node];
        node = tree.end[node];
      } else {
        node += 1;
      }
    }
    return total[0] > 0 ? matched / total[0] : 0;
  }

  /**
   * How a tree is drawn: by kind, or by change where two ranges are compared.
   * @param {import("./tree.js").Tree} tree
   * @param {Float64Array} after
   * @param {Float64Array | null} before
   * @param {boolean} icicle
   * @returns {import("./flame.js").Picture}
   */
  picture(tree, after, before, icicle) {
    const { labels } = this.profile;
    if (!before) {
      return {
        tree,
        width: after,
        labels,
        icicle,
        colour: (node) => this.colours[tree.frame[node]],
        isDeep: () => false,
      };
    }
    const [allAfter, allBefore] = [this.afterTotal[0], this.beforeTotal?.[0] ?? 0];
    // Both ranges weigh the same however long they are, so what is gone is seen as well as what is new.
    const width = after.map((count, node) => count / Math.max(allAfter, 1) + before[node] / Math.max(allBefore, 1));
    const changed = (/** @type {number} */ node) => change(before[node], allBefore, after[node], allAfter);
    return {
      tree,
      width,
      labels,
      icicle,
      colour: (node) => changeColour(changed(node), this.dark),
      isDeep: (node) => isDeep(changed(node), this.dark),
    };
  }

  draw() {
    const { profile, state } = this;
    const picture = this.picture(profile.tree, this.afterTotal, this.beforeTotal, state.icicle);
    this.flame.show(picture, this.node(state.zoom));
    const isEmpty = !(picture.width[0] > 0);
    element("empty").hidden = !isEmpty;
    element("flame").hidden = isEmpty;
    this.legends();
  }

  table() {
    const { profile, state } = this;
    const shares = (/** @type {Float64Array} */ self, /** @type {Float64Array} */ total) => {
      const all = Math.max(total[0], 1);
      const sums = profile.tree.functions(self, total);
      return [sums.self.map((count) => count / all), sums.total.map((count) => count / all)];
    };
    const [self, total] = shares(this.after, this.afterTotal);
    const [selfBefore, totalBefore] =
      this.before && this.beforeTotal ? shares(this.before, this.beforeTotal) : [null, null];
    this.functions.show({
      labels: profile.labels,
      kinds: profile.kinds,
      modules: profile.modules,
      sums: { self, total, selfBefore, totalBefore },
      found: this.found,
      sort: state.sort,
      fn: this.nameHashes.indexOf(state.fn),
      dark: this.dark,
    });
  }

  /** Callers and callees of the chosen function. */
  sandwich() {
    const { profile, state } = this;
    const frame = state.fn ? this.nameHashes.indexOf(state.fn) : -1;
    element("sandwich").hidden = frame < 0;
    element("choose").hidden = frame >= 0;
    if (frame < 0) {
      return;
    }
    element("sandwich-name").textContent = profile.labels[frame];
    const selves = this.before ? [this.after, this.before] : [this.after];
    const totals = this.beforeTotal ? [this.afterTotal, this.beforeTotal] : [this.afterTotal];
    for (const [flame, merged, icicle] of /** @type {const} */ ([
      [this.callers, profile.tree.callers(frame, totals), false],
      [this.callees, profile.tree.callees(frame, selves), true],
    ])) {
      const [after, before] = merged.selves.map((self) => merged.tree.totals(self));
      flame.cursor = -1;
      flame.show(this.picture(merged.tree, after, before ?? null, icicle));
      flame.highlight(this.found);
    }
    const share = this.callees.picture ? this.callees.picture.width[0] : 0;
    const all = this.flame.picture?.width[0] ?? 0;
    element("sandwich-share").textContent = `${percent(all > 0 ? share / all : 0)} of the samples`;
  }

  /** Makes the controls say what is. */
  controls() {
    const { state } = this;
    this.links();
    const { unit, period } = this.profile.columns;
    const [after, before] = [this.afterTotal[0] ?? 0, this.beforeTotal?.[0]];
    const range = (/** @type {import("./profile.js").Range} */ [from, to]) => `${seconds(from)} to ${seconds(to)}`;
    const parts = [];
    const all = this.past ? "all that is shown" : "all of the capture";
    if (state.base) {
      parts.push(`A: ${range(state.base)}, ${amount(before ?? 0, unit)}`);
      parts.push(`B: ${state.range ? range(state.range) : all}, ${amount(after, unit)}`);
    } else {
      const time = period > 0 && unit === "count" ? ` (${cpuTime(after * period)} of CPU time)` : "";
      parts.push(`${state.range ? range(state.range) : all}: ${amount(after, unit)}${time}`);
    }
    element("selection").textContent = parts.join("  ·  ");
    element("clear").hidden = !state.range;
    element("clear").textContent = all.replace(/^a/, "A");
    element("compare").hidden = !state.range && !state.base;
    element("compare").textContent = state.base ? "End comparison" : "Compare with…";
    element("swap").hidden = !state.base || !state.range;
    element("hint").textContent =
      state.base && !state.range
        ? "Now select range B in the time line or in the heat map."
        : state.base && state.range?.join() === state.base.join()
          ? "A and B are the same: select another range B."
          : "";
    element("view-flame").ariaPressed = `${state.view === "flame"}`;
    element("view-functions").ariaPressed = `${state.view === "functions"}`;
    element("flame-view").hidden = state.view !== "flame";
    element("functions-view").hidden = state.view !== "functions";
    element("icicle").ariaPressed = `${state.icicle}`;
    element("icicle").hidden = state.view !== "flame";
    element("whole").hidden = state.view !== "flame" || !state.zoom;
    setValue("process", `${state.pid}`);
    setValue("thread", `${state.tid}`);
    if (this.found) {
      const share = percent(this.matched(this.afterTotal));
      element("matched").textContent = this.beforeTotal
        ? `matched: A ${percent(this.matched(this.beforeTotal))}, B ${share}`
        : `matched: ${share}`;
    }
    for (const key of document.querySelectorAll("#processes button")) {
      const { pid } = /** @type {HTMLElement} */ (key).dataset;
      key.ariaPressed = `${Number.parseInt(pid ?? "", 10) === state.pid}`;
    }
  }

  /** Whether a person is at something that a new profile would disturb. */
  isBusy() {
    const { range, base } = this.state;
    const isChoosing = document.activeElement instanceof HTMLSelectElement;
    const dialog = /** @type {HTMLDialogElement} */ (element("keys"));
    const isReading = !element("tip").hidden;
    return Boolean(
      range || base || isChoosing || dialog.open || isReading || this.timeline.isHeld || this.heatmap.isHeld,
    );
  }

  /** The same as what is shown, in other formats, from the agent. */
  links() {
    const { past, profile, state } = this;
    if (!past) {
      return;
    }
    const parameters = past.parameters();
    const time = (/** @type {number} */ at) => `${(profile.columns.start + at) / 1000}`;
    if (state.range) {
      parameters.delete("last");
      parameters.set("since", time(state.range[0]));
      parameters.set("until", time(state.range[1]));
    }
    if (state.pid >= 0) {
      parameters.set("pid", `${state.pid}`);
    }
    if (state.tid >= 0) {
      parameters.set("thread", `${state.tid}`);
    }
    const links = FORMATS.map(([path, name]) => [`${path}?${parameters}`, name]);
    if (state.base && state.range) {
      for (const name of ["since", "until", "by"]) {
        parameters.delete(name);
      }
      parameters.set("a", state.base.map(time).join(".."));
      parameters.set("b", state.range.map(time).join(".."));
      links.unshift([`diff.svg?${parameters}`, "difference as SVG"]);
    }
    element("links").hidden = false;
    element("links").replaceChildren(
      "As a file:",
      ...links.map(([address, name]) => {
        const link = document.createElement("a");
        link.href = address;
        link.textContent = name;
        return link;
      }),
    );
  }

  /** Keeps what is selected as A, so that the next range is B; or ends that. */
  compare() {
    const { range, base } = this.state;
    this.go(base ? { base: null } : { base: range, range: null }, "push");
    if (!base) {
      element("timeline").focus();
    }
  }

  /**
   * @param {boolean} dark
   * @param {boolean} isChosen by the person, who will find it so again
   */
  paint(dark, isChosen) {
    this.dark = dark;
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    element("theme").textContent = dark ? "Light" : "Dark";
    if (isChosen) {
      store("theme", dark ? "dark" : "light");
    }
    this.colours = frameColours(this.profile.kinds, this.profile.names, dark);
    this.past?.timeline.draw();
    this.timeline.draw();
    this.heatmap.draw();
    for (const flame of [this.flame, this.callers, this.callees]) {
      flame.draw();
    }
    if (this.after.length > 0) {
      this.legends();
      if (this.state.view === "functions") {
        this.table();
      }
    }
  }

  /** What the colours mean. */
  legends() {
    const legend = element("legend");
    legend.replaceChildren();
    if (this.before) {
      for (const [step, text] of /** @type {[number, string][]} */ ([
        [-1, "less in B"],
        [-0.5, ""],
        [0, "the same, or chance"],
        [0.5, ""],
        [1, "more in B"],
      ])) {
        legend.append(key(changeColour(step, this.dark), text));
      }
      return;
    }
    const kinds = new Set(this.profile.kinds.subarray(1));
    KIND_TEXT.forEach((text, kind) => {
      if (kinds.has(kind)) {
        legend.append(key(kindColour(kind, this.dark), text));
      }
    });
  }

  /** The processes to choose from. */
  choices() {
    const { profile, ranking, busy } = this;
    const choice = element("process");
    choice.replaceChildren(option("-1", `all ${profile.processes.length} processes`));
    choice.hidden = profile.processes.length < 2;
    const list = element("processes");
    list.replaceChildren();
    const share = (/** @type {number} */ process) => percent(busy[process] / Math.max(profile.total, 1));
    ranking.slice(0, 1000).forEach((process, rank) => {
      const { pid, name } = profile.processes[process];
      choice.append(option(`${pid}`, `${name} (${pid}) ${share(process)}`));
      if (rank < PROCESSES_SHOWN) {
        const button = document.createElement("button");
        button.dataset.pid = `${pid}`;
        button.append(key(processColour(rank), `${name} (${pid}) ${share(process)}`));
        button.addEventListener("click", () => this.go({ pid: this.state.pid === pid ? -1 : pid }, "push"));
        list.append(button);
      }
    });
    if (ranking.length > PROCESSES_SHOWN) {
      const others = ranking.slice(PROCESSES_SHOWN).reduce((sum, process) => sum + busy[process], 0);
      const text = `${ranking.length - PROCESSES_SHOWN} others ${percent(others / Math.max(profile.total, 1))}`;
      list.append(key(processColour(PROCESSES_SHOWN), text));
    }
  }

  /**
   * Tells about a node.
   * @param {Flame} flame
   * @param {number} node
   * @param {{x: number, y: number} | null} at
   */
  pointed(flame, node, at) {
    if (!flame.picture || node < 0) {
      this.tip(null, []);
      this.detail(flame, flame.cursor >= 0 ? flame.cursor : -1);
      return;
    }
    this.detail(flame, node);
    if (at) {
      this.tip(at, this.facts(flame, node));
    } else {
      this.tip(null, []);
    }
  }

  /**
   * What there is to say about a node: its name first.
   * @param {Flame} flame
   * @param {number} node
   */
  facts(flame, node) {
    const { profile } = this;
    if (!flame.picture) {
      return [];
    }
    const { tree, width } = flame.picture;
    const frame = tree.frame[node];
    const facts = [profile.labels[frame]];
    const all = this.flame.picture?.width[0] ?? 1;
    if (flame === this.flame) {
      const [after, self] = [this.afterTotal[node], this.after[node]];
      const sum = Math.max(this.afterTotal[0], 1);
      const { unit, period } = profile.columns;
      if (this.beforeTotal) {
        const before = this.beforeTotal[node];
        const [was, is] = [before / Math.max(this.beforeTotal[0], 1), after / sum];
        facts.push(`${percent(was)} in A, ${percent(is)} in B: ${points(is - was)}`);
        facts.push(`${amount(before, unit)} in A, ${amount(after, unit)} in B`);
      } else {
        const time = period > 0 && unit === "count" ? `, ${cpuTime(after * period)}` : "";
        facts.push(`${percent(after / sum)}: ${amount(after, unit)}${time}`);
        facts.push(`itself ${percent(self / sum)}: ${amount(self, unit)}`);
      }
    } else {
      facts.push(`${percent(width[node] / all)} of all, ${percent(width[node] / Math.max(width[0], 1e-9))} of these`);
    }
    if (profile.modules[frame]) {
      facts.push(profile.modules[frame]);
    }
    return facts;
  }

  /**
   * @param {Flame} flame
   * @param {number} node
   */
  detail(flame, node) {
    this.target = { flame, node };
    element("copy").hidden = node < 0;
    const facts = node < 0 ? [] : this.facts(flame, node);
    element("detail").textContent = facts.join("  ·  ");
  }

  /**
   * A note beside the pointer.
   * @param {{x: number, y: number} | null} at
   * @param {string[]} lines the first in bold
   */
  tip(at, lines) {
    const tip = element("tip");
    tip.hidden = !at;
    if (!at) {
      return;
    }
    tip.replaceChildren(
      ...lines.map((line, nth) => {
        const part = document.createElement(nth === 0 ? "b" : "span");
        part.textContent = line;
        return part;
      }),
    );
    const box = tip.getBoundingClientRect();
    const left = at.x + 14 + box.width > innerWidth ? at.x - 10 - box.width : at.x + 14;
    const top = at.y + 18 + box.height > innerHeight ? at.y - 10 - box.height : at.y + 18;
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${Math.max(4, top)}px`;
  }

  /** Copies the stack of what is pointed at, one frame a line, root first. */
  async copy() {
    const { flame, node } = this.target;
    if (!flame?.picture || node < 0) {
      return;
    }
    const { tree } = flame.picture;
    let nodes = flame === this.flame ? tree.stack(node) : [0, ...tree.stack(node)];
    if (flame === this.callers) {
      nodes = nodes.reverse();
    }
    const text = nodes.map((at) => this.profile.labels[tree.frame[at]]).join("\n");
    const isCopied = await write(text);
    element("detail").textContent = isCopied
      ? `copied ${nodes.length} frames`
      : "the browser does not let this page copy";
  }

  help() {
    const dialog = /** @type {HTMLDialogElement} */ (element("keys"));
    if (dialog.open) {
      dialog.close();
    } else {
      dialog.showModal();
    }
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const isTyping = event.target instanceof HTMLInputElement || event.target instanceof HTMLSelectElement;
    if (isTyping || event.altKey || event.ctrlKey || event.metaKey) {
      return;
    }
    /** @type {Record<string, () => void>} */
    const keys = {
      "/": () => element("search").focus(),
      "?": () => this.help(),
      1: () => this.go({ view: "flame" }, "push"),
      2: () => this.go({ view: "functions" }, "push"),
      a: () => this.compare(),
      c: () => void this.copy(),
      d: () => this.paint(!this.dark, true),
      f: () => this.chooseTarget(),
      i: () => this.go({ icicle: !this.state.icicle }, "replace"),
      n: () => this.flame.nextFound(1),
      N: () => this.flame.nextFound(-1),
      Escape: () => this.go(this.state.zoom ? { zoom: 0 } : { range: null }, "push"),
    };
    if (Object.hasOwn(keys, event.key) && !(/** @type {HTMLDialogElement} */ (element("keys")).open)) {
      keys[event.key]();
      event.preventDefault();
    }
  }

  /** Callers and callees of what is pointed at. */
  chooseTarget() {
    const { flame, node } = this.target;
    if (flame?.picture && node > 0) {
      this.go({ view: "functions", fn: this.nameHashes[flame.picture.tree.frame[node]] }, "push");
    }
  }
}

/** What the agent hands out. */
const FORMATS = [
  ["flamegraph.svg", "SVG"],
  ["flamegraph.html", "this page"],
  ["profile.folded", "folded stacks"],
  ["profile.pb.gz", "pprof"],
  ["profile.otlp", "OTLP"],
  ["profile.json", "speedscope"],
  ["processes.json", "processes"],
];

/** The page of a running agent. */
function serve() {
  /** @type {Page | null} */
  let page = null;
  const past = new Past({
    strip: element("strip"),
    isBusy: () => page?.isBusy() ?? false,
    pointed: (time, at) => page?.tip(at, [clockTime(time)]),
    failed: (reason) => {
      fail(reason);
      follow();
    },
    shown: (columns) => {
      const profile = new Profile(columns);
      element("failure").hidden = true;
      element("stacks").hidden = false;
      if (page) {
        page.adopt(profile);
      } else {
        page = new Page(profile, past);
      }
      page.start();
      follow();
    },
  });
  const follow = () => {
    element("live").ariaPressed = `${past.isLive()}`;
    for (const button of document.querySelectorAll("#lasts button")) {
      button.ariaPressed = `${/** @type {HTMLElement} */ (button).dataset.last === past.last()}`;
    }
    setValue("by", past.query.get("by") ?? "");
    element("filters").replaceChildren(
      ...past.filters().map(([name, value]) => {
        const button = document.createElement("button");
        button.textContent = `${name}=${value} ×`;
        button.title = "ask for all";
        button.addEventListener("click", () => past.go({ [name]: null }));
        return button;
      }),
    );
  };
  const live = () => {
    if (!past.isLive()) {
      past.go({ last: null });
    } else if (past.columns) {
      past.freeze();
      follow();
    }
  };
  for (const button of document.querySelectorAll("#lasts button")) {
    const { last } = /** @type {HTMLElement} */ (button).dataset;
    button.addEventListener("click", () => past.go({ last: last ?? null }));
  }
  element("live").addEventListener("click", live);
  element("by").addEventListener("change", () => {
    // Else what goes on would wait for the choice to be over.
    element("by").blur();
    past.go({ by: value("by") || null });
  });
  addEventListener("keydown", (event) => {
    const isTyping = event.target instanceof HTMLInputElement || event.target instanceof HTMLSelectElement;
    if (event.key === "l" && !isTyping && !event.altKey && !event.ctrlKey && !event.metaKey) {
      live();
    }
  });
  element("past").hidden = false;
  element("times").hidden = true;
  element("stacks").hidden = true;
  void past.load();
}

/** @param {unknown} reason */
function fail(reason) {
  element("failure").hidden = false;
  element("failure").textContent = `${reason instanceof Error ? reason.message : reason}`;
}

/** @param {string} id */
function value(id) {
  return /** @type {HTMLInputElement | HTMLSelectElement} */ (element(id)).value;
}

/**
 * @param {string} id
 * @param {string} text
 */
function setValue(id, text) {
  const field = /** @type {HTMLSelectElement} */ (element(id));
  field.value = text;
  if (field.selectedIndex < 0) {
    field.selectedIndex = 0;
  }
}

/**
 * @param {string} text
 * @param {string} label
 */
function option(text, label) {
  const made = document.createElement("option");
  made.value = text;
  made.textContent = label;
  return made;
}

/**
 * A colour and what it means.
 * @param {string} colour
 * @param {string} text
 */
function key(colour, text) {
  const made = document.createElement("span");
  made.className = "key";
  const swatch = document.createElement("i");
  swatch.style.background = colour;
  made.append(swatch, text);
  return made;
}

/**
 * Puts text on the clipboard; a page that is a file may not be allowed the new way.
 * @param {string} text
 */
async function write(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = document.createElement("textarea");
    field.value = text;
    document.body.append(field);
    field.select();
    const isCopied = document.execCommand("copy");
    field.remove();
    return isCopied;
  }
}

/** @param {string} name */
function stored(name) {
  try {
    return localStorage.getItem(`profiler-agent-${name}`);
  } catch {
    return null;
  }
}

/**
 * @param {string} name
 * @param {string} text
 */
function store(name, text) {
  try {
    localStorage.setItem(`profiler-agent-${name}`, text);
  } catch {
    // Some browsers give a file no storage: then it is forgotten.
  }
}

const embedded = document.getElementById("profile");
try {
  if (embedded) {
    new Page(new Profile(await load(embedded)), null, embedded.dataset.state).start();
  } else {
    serve();
  }
} catch (error) {
  fail(`This profile cannot be shown: ${error instanceof Error ? error.message : error}`);
}
