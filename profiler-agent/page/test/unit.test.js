/** The parts of the page that need no browser. Run by `cargo xtask test`, through tests/page.rs. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { fromHash, START, toHash } from "../src/address.js";
import { change } from "../src/palette.js";
import { DocumentError, Profile } from "../src/profile.js";
import { cut, percent, points, seconds, thousands } from "../src/text.js";
import { Tree } from "../src/tree.js";

/** main calls a and b; a calls itself and b; two threads; a sample each 10 ms. */
function columns() {
  return {
    version: 1,
    agent: "0",
    title: "t",
    subtitle: "s",
    start: 0,
    duration: 100,
    period: 10_000_000,
    unit: "count",
    lost: {},
    strings: ["", "p", "main", "a", "b"],
    frames: { name: [0, 1, 2, 3, 4], kind: [0, 0, 1, 1, 4], module: [0, 0, 0, 0, 0] },
    //                 all p main a  a  b  b
    nodes: { depth: [0, 1, 2, 3, 4, 5, 3], frame: [0, 1, 2, 3, 3, 4, 4] },
    processes: { pid: [7], name: [1] },
    threads: { tid: [7, 8], name: [1, 1], process: [0, 0] },
    samples: { thread: [0, 0, 1], node: [5, 6, 3], count: [3, 1, 2], time: [0, 50, 10, 20, 10, 30] },
  };
}

test("samples are in order of time, whatever row they are of", () => {
  const profile = new Profile(columns());
  assert.deepEqual([...profile.time], [0, 10, 20, 40, 50, 60]);
  assert.deepEqual([...profile.row], [0, 2, 1, 2, 0, 0]);
  assert.equal(profile.total, 6);
});

test("a range holds its beginning and not its end", () => {
  const profile = new Profile(columns());
  const all = profile.kept({ process: -1, thread: -1 });
  assert.deepEqual([...profile.count([10, 50], all)], [0, 0, 0, 2, 0, 0, 1]);
  assert.deepEqual([...profile.count(null, profile.kept({ process: -1, thread: 1 }))], [0, 0, 0, 2, 0, 0, 0]);
});

test("a function that calls itself counts once", () => {
  const profile = new Profile(columns());
  const self = profile.count(null, profile.kept({ process: -1, thread: -1 }));
  const total = profile.tree.totals(self);
  assert.deepEqual([...total], [6, 6, 6, 5, 3, 3, 1]);
  const functions = profile.tree.functions(self, total);
  assert.deepEqual([...functions.self], [0, 0, 0, 2, 4]);
  assert.deepEqual([...functions.total], [0, 6, 6, 5, 4]);
});

test("children stand side by side on their parent", () => {
  const { tree } = new Profile(columns());
  assert.deepEqual([...tree.end], [7, 7, 7, 6, 6, 6, 7]);
  assert.deepEqual([...tree.places(Float64Array.of(6, 6, 6, 5, 3, 3, 1))], [0, 0, 0, 0, 0, 0, 5]);
});

test("callers and callees are merged over all stacks, and add up to the function", () => {
  const { tree } = new Profile(columns());
  const self = Float64Array.of(0, 0, 0, 2, 0, 3, 1);
  const callees = tree.callees(3, [self]);
  assert.deepEqual([...callees.tree.frame], [3, 3, 4]);
  assert.deepEqual([...callees.tree.totals(callees.selves[0])], [5, 3, 3]);
  const callers = tree.callers(4, [tree.totals(self)]);
  // b, called by main, called by p; and by a, by a, by main, by p.
  assert.deepEqual([...callers.tree.frame], [4, 2, 1, 3, 3, 2, 1]);
  assert.deepEqual([...callers.tree.totals(callers.selves[0])], [4, 1, 1, 3, 3, 3, 3]);
});

test("a stack is known by its names", () => {
  const { tree } = new Profile(columns());
  const names = Uint32Array.of(1, 2, 3, 4, 5);
  const hashes = tree.hashes(names);
  assert.equal(new Set(hashes).size, tree.length);
  const alone = new Tree(Int32Array.of(0, 1, 2, 3), Int32Array.of(0, 1, 2, 4), 5);
  assert.equal(alone.hashes(names)[3], hashes[6]);
});

test("an address comes back as the state that it was made of", () => {
  const state = {
    range: /** @type {[number, number]} */ ([20, 80.5]),
    base: /** @type {[number, number]} */ ([0, 10]),
    pid: 7,
    tid: 8,
    zoom: 0xdeadbeef,
    search: "a&b=#+ ü|^x$",
    view: /** @type {const} */ ("functions"),
    fn: 5,
    icicle: true,
    sort: "dtotal",
  };
  assert.deepEqual(fromHash(`#${toHash(state)}`, 100), state);
  assert.deepEqual(fromHash("", 100), START);
});

test("an address that cannot be is the start", () => {
  for (const hash of [
    "#t=5-1",
    "#t=x",
    "#t=-5-9",
    "#pid=-4&tid=x",
    "#zoom=zz&sort=evil&view=none",
    "#%00&&=",
    "#t=NaN-NaN",
  ]) {
    assert.deepEqual(fromHash(hash, 100), START, hash);
  }
});

test("a difference that chance explains is pale, one that it does not is not", () => {
  assert.equal(change(10, 100, 100, 1000), 0);
  assert.ok(Math.abs(change(10, 100, 12, 100)) < 0.05);
  assert.ok(change(10, 1000, 500, 1000) > 0.9);
  assert.equal(change(500, 1000, 0, 1000), -1);
  assert.equal(change(0, 0, 0, 0), 0);
});

test("numbers as people read them", () => {
  assert.equal(thousands(1234567), "1,234,567");
  assert.equal(percent(0.12345), "12.3 %");
  assert.equal(percent(0.00123), "0.12 %");
  assert.equal(percent(1), "100 %");
  assert.equal(percent(0.00001), "<0.01 %");
  assert.equal(points(-0.5), "−50.0 %");
  assert.equal(seconds(12_340), "12.34 s");
  assert.equal(seconds(2000), "2 s");
  assert.equal(cut("function", 5), "func…");
});

test("data of another version are refused, not misread", () => {
  assert.throws(() => new Profile({ ...columns(), version: 2 }), DocumentError);
});
