/**
 * What the page shows: the columns that the agent wrote, unpacked into typed arrays.
 *
 * The same document comes packed in the page itself, or from the agent that serves the page. Its fields are
 * described in docs/outputs.md.
 */

import { Tree } from "./tree.js";

/** What stands behind a name, so that its kind can be read without its colour: by the number of the kind. */
const MARKS = ["", "", " [i]", "", " [k]", " [j]", ""];

/**
 * @typedef {object} Columns The document as it comes.
 * @property {number} version
 * @property {string} agent
 * @property {string} title
 * @property {string} subtitle
 * @property {number} start milliseconds since the Unix epoch
 * @property {number} duration milliseconds
 * @property {number} period nanoseconds of CPU time that a sample stands for; 0 where that is not known
 * @property {string} unit what counts are of: `count`, `nanoseconds`, `bytes`
 * @property {Record<string, number>} lost
 * @property {string[]} strings
 * @property {{name: number[], kind: number[], module: number[]}} frames sorted by name; row 0 is the root
 * @property {{depth: number[], frame: number[]}} nodes the tree of stacks, each node before its children
 * @property {{pid: number[], name: number[]}} processes
 * @property {{tid: number[], name: number[], process: number[]}} threads
 * @property {{thread: number[], node: number[], count: number[], time: number[]}} samples
 *   `time`: of all rows one after the other, each row's as differences from one to the next; empty without times
 */

/**
 * A range of time in milliseconds from the start of the capture, its end not included.
 * @typedef {[number, number]} Range
 */

/**
 * Which samples: of a process, of a thread; of all where it is -1.
 * @typedef {object} Filter
 * @property {number} process row
 * @property {number} thread row
 */

/** Why a document cannot be shown. */
export class DocumentError extends Error {}

/** One profile, ready to be asked. */
export class Profile {
  /** @param {Columns} columns */
  constructor(columns) {
    if (columns.version !== 1) {
      throw new DocumentError(`this page reads version 1 of the data, and these are of version ${columns.version}`);
    }
    const { frames, nodes, processes, threads, samples, strings } = columns;
    this.columns = columns;
    this.duration = Math.max(columns.duration, 1);
    /** Names of frames, as they are. */
    this.names = frames.name.map((id, row) => (row === 0 ? "all" : (strings[id] ?? "")));
    this.kinds = Uint8Array.from(frames.kind);
    /** Names of frames with the mark of their kind, as they are shown. */
    this.labels = this.names.map((name, row) => name + (MARKS[this.kinds[row]] ?? ""));
    this.modules = frames.module.map((id) => strings[id] ?? "");
    this.tree = new Tree(Int32Array.from(nodes.depth), Int32Array.from(nodes.frame), frames.name.length);
    this.processes = processes.pid.map((pid, row) => ({ pid, name: strings[processes.name[row]] ?? "" }));
    this.threads = threads.tid.map((tid, row) => ({
      tid,
      name: strings[threads.name[row]] ?? "",
      process: threads.process[row],
    }));
    this.rowThread = Int32Array.from(samples.thread);
    this.rowNode = Int32Array.from(samples.node);
    this.rowCount = Float64Array.from(samples.count);
    this.rowProcess = this.rowThread.map((thread) => this.threads[thread]?.process ?? -1);
    this.total = this.rowCount.reduce((sum, count) => sum + count, 0);
    /** Whether samples have times; without them there is no time line. */
    this.hasTimes = samples.time.length > 0;
    const { times, rows } = inOrder(samples.time, samples.count);
    /** Every event in order of time, and the row that it is of. */
    this.time = times;
    this.row = rows;
  }

  /**
   * The events of a range: first, and first behind.
   * @param {Range} range
   * @returns {[number, number]}
   */
  events([from, to]) {
    return [lowerBound(this.time, from), lowerBound(this.time, to)];
  }

  /**
   * The rows that a filter keeps.
   * @param {Filter} filter
   */
  kept({ process, thread }) {
    const kept = new Uint8Array(this.rowNode.length).fill(1);
    for (let row = 0; row < kept.length; row += 1) {
      if ((process >= 0 && this.rowProcess[row] !== process) || (thread >= 0 && this.rowThread[row] !== thread)) {
        kept[row] = 0;
      }
    }
    return kept;
  }

  /**
   * Samples of a range at the node where they were taken; of all time without a range.
   * @param {Range | null} range
   * @param {Uint8Array} kept rows
   */
  count(range, kept) {
    const self = new Float64Array(this.tree.length);
    if (range && this.hasTimes) {
      const [first, behind] = this.events(range);
      for (let event = first; event < behind; event += 1) {
        const row = this.row[event];
        self[this.rowNode[row]] += kept[row];
      }
    } else {
      for (let row = 0; row < kept.length; row += 1) {
        self[this.rowNode[row]] += kept[row] * this.rowCount[row];
      }
    }
    return self;
  }
}

/**
 * The document that stands in the page.
 * @param {HTMLElement} embedded
 * @returns {Promise<Columns>}
 */
export async function load(embedded) {
  const text = atob(embedded.textContent ?? "");
  const packed = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at += 1) {
    packed[at] = text.charCodeAt(at);
  }
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(unpacked).json();
}

/**
 * Times of all rows as one list in order of time, each with its row.
 * @param {number[]} differences
 * @param {number[]} counts
 */
function inOrder(differences, counts) {
  const length = differences.length;
  // Time and place in one number, so that sorting numbers sorts both: four million samples of 24 days still fit.
  const places = 2 ** Math.ceil(Math.log2(length + 1));
  const rowOf = new Int32Array(length);
  const keys = new Float64Array(length);
  let place = 0;
  for (let row = 0; row < counts.length && place < length; row += 1) {
    let time = 0;
    for (let nth = 0; nth < counts[row] && place < length; nth += 1, place += 1) {
      time += differences[place];
      rowOf[place] = row;
      keys[place] = time * places + place;
    }
  }
  keys.sort();
  const rows = new Int32Array(length);
  for (let at = 0; at < length; at += 1) {
    const time = Math.floor(keys[at] / places);
    rows[at] = rowOf[keys[at] - time * places];
    keys[at] = time;
  }
  return { times: keys, rows };
}

/**
 * First place of a sorted list that is not below a value.
 * @param {Float64Array} list
 * @param {number} value
 */
function lowerBound(list, value) {
  let low = 0;
  let high = list.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (list[middle] < value) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}
