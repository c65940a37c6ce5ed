/** What the page shows, as the part of its address behind `#`: a link to it shows the same. */

/**
 * @typedef {object} State
 * @property {import("./profile.js").Range | null} range
 * @property {import("./profile.js").Range | null} base what `range` is compared with
 * @property {number} pid -1: all
 * @property {number} tid -1: all
 * @property {number} zoom hash of the names from the root to the node; 0 is the root
 * @property {string} search
 * @property {"flame" | "functions"} view
 * @property {number} fn hash of a function's name and kind; 0 is none
 * @property {boolean} icicle
 * @property {string} sort
 */

/** @type {Readonly<State>} */
export const START = Object.freeze({
  range: null,
  base: null,
  pid: -1,
  tid: -1,
  zoom: 0,
  search: "",
  view: "flame",
  fn: 0,
  icicle: false,
  sort: "self",
});

export const SORTS = ["self", "total", "name", "dself", "dtotal"];

/**
 * @param {State} state
 * @param {number} origin what times count from: 0 where the profile stays the same, else its start
 */
export function toHash(state, origin = 0) {
  const fields = new URLSearchParams();
  const times = (/** @type {number[]} */ range) => range.map((time) => time + origin).join("-");
  if (state.range) {
    fields.set("t", times(state.range));
  }
  if (state.base) {
    fields.set("base", times(state.base));
  }
  if (state.pid >= 0) {
    fields.set("pid", `${state.pid}`);
  }
  if (state.tid >= 0) {
    fields.set("tid", `${state.tid}`);
  }
  if (state.view !== START.view) {
    fields.set("view", state.view);
  }
  if (state.fn) {
    fields.set("fn", state.fn.toString(16));
  }
  if (state.zoom) {
    fields.set("zoom", state.zoom.toString(16));
  }
  if (state.search) {
    fields.set("search", state.search);
  }
  if (state.icicle) {
    fields.set("icicle", "1");
  }
  if (state.sort !== START.sort) {
    fields.set("sort", state.sort);
  }
  return fields.toString();
}

/**
 * Anybody may have written an address: what cannot be is left out.
 * @param {string} hash
 * @param {number} duration
 * @param {number} origin
 * @returns {State}
 */
export function fromHash(hash, duration, origin = 0) {
  const fields = new URLSearchParams(hash.replace(/^#/, ""));
  const sort = fields.get("sort") ?? START.sort;
  return {
    range: range(fields.get("t"), duration, origin),
    base: range(fields.get("base"), duration, origin),
    pid: number(fields.get("pid"), 10, -1),
    tid: number(fields.get("tid"), 10, -1),
    zoom: number(fields.get("zoom"), 16, 0),
    search: fields.get("search") ?? "",
    view: fields.get("view") === "functions" ? "functions" : "flame",
    fn: number(fields.get("fn"), 16, 0),
    icicle: fields.get("icicle") === "1",
    sort: SORTS.includes(sort) ? sort : START.sort,
  };
}

/**
 * @param {string | null} text
 * @param {number} base
 * @param {number} otherwise
 */
function number(text, base, otherwise) {
  const value = Number.parseInt(text ?? "", base);
  return Number.isSafeInteger(value) && value >= 0 ? value : otherwise;
}

/**
 * @param {string | null} text
 * @param {number} duration
 * @param {number} origin
 * @returns {import("./profile.js").Range | null}
 */
function range(text, duration, origin) {
  const [from, to] = (text ?? "").split("-").map((part) => Number.parseFloat(part) - origin);
  const isRange = Number.isFinite(from) && Number.isFinite(to) && from < to && to > 0 && from < duration;
  return isRange ? [Math.max(from, 0), Math.min(to, duration)] : null;
}
