/**
 * Colours, light and dark.
 *
 * Kinds of frames differ in lightness as well as in hue, and each also has a mark in its label. Grown and shrunk are
 * vermilion and blue, which the common forms of colour blindness keep apart, and the sign stands beside them.
 * Processes have the colours of Okabe and Ito.
 */

import { fnv } from "./text.js";

/** @typedef {[number, number, number]} Rgb */

/** What a colour means, by kind; those that are sorts of functions are shaded by their names. */
export const KIND_TEXT = [
  "process",
  "function",
  "inlined function [i]",
  "code without a name",
  "kernel [k]",
  "generated code [j]",
  "stack not whole",
];

/** @type {Rgb[]} */
const KIND_COLOURS = [
  [214, 219, 226],
  [248, 196, 92],
  [136, 206, 214],
  [216, 200, 168],
  [232, 124, 84],
  [142, 200, 112],
  [178, 156, 196],
];

/** @type {Rgb[]} */
const PROCESS_COLOURS = [
  [230, 159, 0],
  [86, 180, 233],
  [0, 158, 115],
  [204, 121, 167],
  [0, 114, 178],
  [213, 94, 0],
  [240, 228, 66],
];

/** @type {Rgb} */
const OTHER_PROCESSES = [150, 150, 150];
/** @type {Rgb} */
const GROWN = [213, 94, 0];
/** @type {Rgb} */
const SHRUNK = [0, 114, 178];

/** How many processes have a colour of their own. */
export const PROCESSES_SHOWN = PROCESS_COLOURS.length;

/** @param {Rgb} colour */
export function css([red, green, blue]) {
  return `rgb(${Math.round(red)},${Math.round(green)},${Math.round(blue)})`;
}

/**
 * @param {Rgb} from
 * @param {Rgb} to
 * @param {number} part 0 is the one, 1 the other
 * @returns {Rgb}
 */
function mix(from, to, part) {
  return [from[0] + (to[0] - from[0]) * part, from[1] + (to[1] - from[1]) * part, from[2] + (to[2] - from[2]) * part];
}

/** @param {boolean} dark */
function dimmed(dark) {
  return dark ? 0.8 : 1;
}

/**
 * The colour of a kind, as in the legend.
 * @param {number} kind
 * @param {boolean} dark
 */
export function kindColour(kind, dark) {
  return css(mix([0, 0, 0], KIND_COLOURS[kind] ?? OTHER_PROCESSES, dimmed(dark)));
}

/**
 * The colours of all frames: that of the kind, in a shade that tells neighbours apart.
 * @param {ArrayLike<number>} kinds
 * @param {string[]} names
 * @param {boolean} dark
 */
export function frameColours(kinds, names, dark) {
  return names.map((name, frame) => {
    const kind = kinds[frame];
    const isShaded = kind > 0 && kind < 6;
    const shade = isShaded ? 0.88 + (fnv(name) % 18) / 100 : 1;
    return css(mix([0, 0, 0], KIND_COLOURS[kind] ?? OTHER_PROCESSES, Math.min(1.06, shade) * dimmed(dark)));
  });
}

/**
 * The colour of the process with the nth most samples.
 * @param {number} rank
 */
export function processColour(rank) {
  return css(PROCESS_COLOURS[rank] ?? OTHER_PROCESSES);
}

/**
 * The colour of a difference.
 * @param {number} change -1: all gone, 0: the same, 1: all new
 * @param {boolean} dark
 */
export function changeColour(change, dark) {
  /** @type {Rgb} */
  const same = dark ? [96, 100, 108] : [232, 232, 230];
  const size = Math.min(1, Math.abs(change));
  return css(mix(same, change > 0 ? GROWN : SHRUNK, size));
}

/**
 * Whether text on a change's colour is to be light.
 * @param {number} change
 * @param {boolean} dark
 */
export function isDeep(change, dark) {
  return dark || Math.abs(change) > 0.55;
}

/**
 * The colour of a cell that is so busy. From the background on, lightness goes one way, so that it reads in grey.
 * @param {number} part 0 to 1
 * @param {boolean} dark
 */
export function heatColour(part, dark) {
  /** @type {Rgb[]} */
  const steps = dark
    ? [
        [34, 37, 44],
        [120, 50, 20],
        [224, 122, 30],
        [255, 236, 160],
      ]
    : [
        [246, 246, 244],
        [255, 205, 120],
        [214, 96, 30],
        [90, 15, 20],
      ];
  const at = Math.min(Math.max(part, 0), 1) * (steps.length - 1);
  const step = Math.min(Math.floor(at), steps.length - 2);
  return css(mix(steps[step], steps[step + 1], at - step));
}

/**
 * How a share changed between two counts: -1 to 1, nearer to 0 where chance alone would explain it.
 *
 * The relative difference of the shares, scaled down below three standard deviations of the difference of two
 * proportions.
 * @param {number} before samples, of
 * @param {number} allBefore
 * @param {number} after samples, of
 * @param {number} allAfter
 */
export function change(before, allBefore, after, allAfter) {
  const was = allBefore > 0 ? before / allBefore : 0;
  const is = allAfter > 0 ? after / allAfter : 0;
  if (was === is || was + is === 0) {
    return 0;
  }
  const pooled = (before + after) / (allBefore + allAfter);
  const deviation = Math.sqrt(pooled * (1 - pooled) * (1 / Math.max(allBefore, 1) + 1 / Math.max(allAfter, 1)));
  const certainty = deviation > 0 ? Math.min(1, Math.abs(is - was) / (3 * deviation)) : 1;
  return ((is - was) / (is + was)) * certainty;
}
