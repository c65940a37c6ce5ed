/**
 * A tree of calls in columns, each node before its children and siblings in order of their names.
 *
 * That order makes everything a walk over arrays from one end to the other: sums go from the last node to the
 * first, places from the first to the last, and what is too narrow to be seen is skipped with all that lies on it.
 */
export class Tree {
  /**
   * @param {Int32Array} depth 0 for the root alone
   * @param {Int32Array} frame
   * @param {number} frames number of different frames
   */
  constructor(depth, frame, frames) {
    const length = depth.length;
    this.length = length;
    this.depth = depth;
    this.frame = frame;
    this.frames = frames;
    this.parent = new Int32Array(length);
    /** First node behind all that lies on a node. */
    this.end = new Int32Array(length).fill(length);
    /** Whether the frame is among its own callers: such a node is no more of its function than they are. */
    this.repeated = new Uint8Array(length);
    const open = new Int32Array(depth.reduce((deepest, value) => Math.max(deepest, value), 0) + 2);
    const calls = new Int32Array(frames);
    let height = 0;
    for (let node = 0; node < length; node += 1) {
      while (height > depth[node]) {
        height -= 1;
        this.end[open[height]] = node;
        calls[frame[open[height]]] -= 1;
      }
      this.parent[node] = height > 0 ? open[height - 1] : -1;
      this.repeated[node] = calls[frame[node]] > 0 ? 1 : 0;
      calls[frame[node]] += 1;
      open[height] = node;
      height += 1;
    }
  }

  /**
   * What each node weighs with all that lies on it.
   * @param {Float64Array} self
   */
  totals(self) {
    const total = Float64Array.from(self);
    for (let node = this.length - 1; node > 0; node -= 1) {
      total[this.parent[node]] += total[node];
    }
    return total;
  }

  /**
   * Where each node begins, so that the children of a node stand on it side by side.
   * @param {Float64Array} width
   */
  places(width) {
    const place = new Float64Array(this.length);
    const next = new Float64Array(this.length);
    for (let node = 1; node < this.length; node += 1) {
      const parent = this.parent[node];
      place[node] = next[parent];
      next[node] = place[node];
      next[parent] += width[node];
    }
    return place;
  }

  /**
   * Depth of the deepest node with a width that lies on each node, itself included.
   * @param {Float64Array} width
   */
  deepest(width) {
    const deepest = Int32Array.from(this.depth);
    for (let node = this.length - 1; node > 0; node -= 1) {
      const parent = this.parent[node];
      if (width[node] > 0 && deepest[node] > deepest[parent]) {
        deepest[parent] = deepest[node];
      }
    }
    return deepest;
  }

  /**
   * Self and total of each function over all its stacks; a stack counts once, however often the function is in it.
   * @param {Float64Array} self
   * @param {Float64Array} total
   */
  functions(self, total) {
    const sums = { self: new Float64Array(this.frames), total: new Float64Array(this.frames) };
    for (let node = 1; node < this.length; node += 1) {
      sums.self[this.frame[node]] += self[node];
      if (!this.repeated[node]) {
        sums.total[this.frame[node]] += total[node];
      }
    }
    return sums;
  }

  /**
   * The nodes of a stack, root first, without the root of all.
   * @param {number} node
   */
  stack(node) {
    const nodes = [];
    for (let at = node; at > 0; at = this.parent[at]) {
      nodes.push(at);
    }
    return nodes.reverse();
  }

  /**
   * What is called by a function, merged over all its stacks.
   * @param {number} frame
   * @param {Float64Array[]} selves weights; each comes back for the merged tree
   */
  callees(frame, selves) {
    const merge = new Merge(frame, this.frames, selves.length);
    const open = new Int32Array(this.depth.reduce((deepest, value) => Math.max(deepest, value), 0) + 1);
    for (let top = 1; top < this.length; top += 1) {
      if (this.frame[top] !== frame || this.repeated[top]) {
        continue;
      }
      for (let node = top; node < this.end[top]; node += 1) {
        const above = this.depth[node] - this.depth[top];
        open[above] = above === 0 ? 0 : merge.child(open[above - 1], this.frame[node]);
        merge.add(open[above], selves, node);
      }
    }
    return merge.finish();
  }

  /**
   * What calls a function, merged over all its stacks: its callers lie on it, theirs on them.
   * @param {number} frame
   * @param {Float64Array[]} totals weights with all that lies on a node
   */
  callers(frame, totals) {
    const merge = new Merge(frame, this.frames, totals.length);
    for (let top = 1; top < this.length; top += 1) {
      if (this.frame[top] !== frame || this.repeated[top] || !totals.some((total) => total[top] > 0)) {
        continue;
      }
      let merged = 0;
      for (let node = this.parent[top]; node > 0; node = this.parent[node]) {
        merged = merge.child(merged, this.frame[node]);
      }
      merge.add(merged, totals, top);
    }
    return merge.finish();
  }

  /**
   * A number for each node that depends on the names from the root to it alone, so that it is the same in another
   * profile of the same program.
   * @param {Uint32Array} names hash of each frame
   */
  hashes(names) {
    const hash = new Uint32Array(this.length);
    for (let node = 1; node < this.length; node += 1) {
      hash[node] = Math.imul(hash[this.parent[node]] ^ names[this.frame[node]], 0x01000193) + this.depth[node];
    }
    return hash;
  }
}

/** A tree in the making, whose nodes come in any order. */
class Merge {
  /**
   * @param {number} frame of the root
   * @param {number} frames
   * @param {number} weights how many weights a node has
   */
  constructor(frame, frames, weights) {
    this.frames = frames;
    this.frame = [frame];
    /** @type {number[][]} */
    this.children = [[]];
    /** @type {number[][]} */
    this.selves = Array.from({ length: weights }, () => [0]);
    /** @type {Map<number, number>} */
    this.known = new Map();
  }

  /**
   * @param {number} parent
   * @param {number} frame
   */
  child(parent, frame) {
    const key = parent * this.frames + frame;
    let node = this.known.get(key);
    if (node === undefined) {
      node = this.frame.length;
      this.known.set(key, node);
      this.frame.push(frame);
      this.children.push([]);
      this.children[parent].push(node);
      for (const self of this.selves) {
        self.push(0);
      }
    }
    return node;
  }

  /**
   * @param {number} node
   * @param {Float64Array[]} weights
   * @param {number} from
   */
  add(node, weights, from) {
    for (let which = 0; which < weights.length; which += 1) {
      this.selves[which][node] += weights[which][from];
    }
  }

  /** The tree in the order that trees have, and its weights. */
  finish() {
    const length = this.frame.length;
    const depth = new Int32Array(length);
    const frame = new Int32Array(length);
    const selves = this.selves.map(() => new Float64Array(length));
    const waiting = [{ node: 0, depth: 0 }];
    for (let at = 0; at < length; at += 1) {
      const next = /** @type {{node: number, depth: number}} */ (waiting.pop());
      depth[at] = next.depth;
      frame[at] = this.frame[next.node];
      for (let which = 0; which < selves.length; which += 1) {
        selves[which][at] = this.selves[which][next.node];
      }
      // The last one pushed is the next one popped.
      const children = this.children[next.node].sort((a, b) => this.frame[b] - this.frame[a]);
      for (const child of children) {
        waiting.push({ node: child, depth: next.depth + 1 });
      }
    }
    return { tree: new Tree(depth, frame, this.frames), selves };
  }
}
