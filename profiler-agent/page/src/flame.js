/**
 * A flamegraph on a canvas: root at the bottom, or at the top as icicles.
 *
 * Only what can be seen is drawn: frames narrower than a pixel are one pixel wide at most and hide what lies on them,
 * rows outside the window are left out. So the work of a zoom depends on the size of the window, and on the number
 * of stacks only where they lie side by side.
 */

import { prepare, styled } from "./canvas.js";
import { cut } from "./text.js";

/** Height of a frame, in pixels. */
const ROW = 18;

/**
 * @typedef {object} Picture
 * @property {import("./tree.js").Tree} tree
 * @property {Float64Array} width
 * @property {string[]} labels by frame
 * @property {(node: number) => string} colour
 * @property {(node: number) => boolean} isDeep whether text is to be light
 * @property {boolean} icicle
 */

export class Flame {
  /**
   * @param {HTMLElement} window what scrolls
   * @param {object} events
   * @param {(node: number) => void} events.zoomed the person zoomed
   * @param {(node: number, at: {x: number, y: number} | null) => void} events.pointed to a node, or to none (-1)
   */
  constructor(window, { zoomed, pointed }) {
    this.window = window;
    this.canvas = document.createElement("canvas");
    this.filler = document.createElement("div");
    window.replaceChildren(this.canvas, this.filler);
    this.zoomed = zoomed;
    this.pointed = pointed;
    /** @type {Picture | null} */
    this.picture = null;
    this.place = new Float64Array(0);
    /** Depth of the deepest node that lies on each. */
    this.deepest = new Int32Array(0);
    /** The node that is as wide as the window. */
    this.zoom = 0;
    /** The node that the keyboard is at, or -1. */
    this.cursor = -1;
    /** @type {Uint8Array | null} by frame: what a search found */
    this.found = null;
    this.rows = 1;
    /** What was scrolled to when it was drawn last. */
    this.drawnAt = -1;
    this.size = { width: 0, height: 0 };
    /** Height of the window at most; as much of the screen as is left, where it is 0. */
    this.limit = 0;
    window.addEventListener("scroll", () => {
      if (window.scrollTop !== this.drawnAt) {
        this.draw();
      }
    });
    this.canvas.addEventListener("pointermove", (event) => {
      const node = this.at(event);
      this.canvas.style.cursor = node >= 0 ? "pointer" : "default";
      this.pointed(node, { x: event.clientX, y: event.clientY });
    });
    this.canvas.addEventListener("pointerleave", () => this.pointed(-1, null));
    this.canvas.addEventListener("click", (event) => {
      const node = this.at(event);
      if (node >= 0) {
        this.cursor = node;
        this.zoomTo(node, true);
      }
    });
    window.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => {
      if (window.clientWidth !== this.size.width || window.clientHeight !== this.size.height) {
        this.fit();
        this.draw();
      }
    }).observe(window);
  }

  /**
   * @param {Picture} picture
   * @param {number} zoom
   */
  show(picture, zoom = 0) {
    this.picture = picture;
    this.place = picture.tree.places(picture.width);
    this.deepest = picture.tree.deepest(picture.width);
    this.zoom = picture.width[zoom] > 0 ? zoom : 0;
    if (!(picture.width[this.cursor] > 0)) {
      this.cursor = -1;
    }
    this.layOut(true);
  }

  /**
   * @param {number} node
   * @param {boolean} isByHand whether others are to be told
   */
  zoomTo(node, isByHand = false) {
    if (!this.picture || !(this.picture.width[node] > 0)) {
      return;
    }
    performance.mark("zoom");
    this.zoom = node;
    this.layOut(false);
    performance.measure("zoom", "zoom");
    if (isByHand) {
      this.zoomed(node);
    }
  }

  /** @param {Uint8Array | null} found by frame */
  highlight(found) {
    this.found = found;
    this.draw();
  }

  /**
   * Finds out how many rows there are, and how large the window is to be.
   * @param {boolean} isNew
   */
  layOut(isNew) {
    if (!this.picture) {
      return;
    }
    this.rows = this.deepest[this.zoom] + 1;
    if (isNew) {
      // The window keeps its height while one zooms, so that the page stands still.
      const top = this.window.getBoundingClientRect().top + globalThis.scrollY;
      const limit = this.limit || Math.max(360, globalThis.innerHeight - top - 52);
      const height = Math.min(limit, Math.max(this.rows, 8) * ROW);
      this.window.style.height = `${height}px`;
    }
    this.fit();
    // What was zoomed to is to be seen, and its callers where there is room.
    this.window.scrollTop = this.picture.icicle ? 0 : this.rows * ROW;
    if (!isNew) {
      this.reveal(this.zoom);
    }
    this.draw();
  }

  fit() {
    this.size = { width: this.window.clientWidth, height: this.window.clientHeight };
    this.filler.style.height = `${Math.max(0, this.rows * ROW - this.size.height)}px`;
  }

  /**
   * Upper edge of a row, as if nothing were scrolled.
   * @param {number} depth
   */
  top(depth) {
    if (this.picture?.icicle) {
      return depth * ROW;
    }
    return Math.max(this.size.height, this.rows * ROW) - (depth + 1) * ROW;
  }

  draw() {
    const { picture, size, place, zoom } = this;
    if (!picture || size.width === 0) {
      return;
    }
    const pen = prepare(this.canvas, size.width, size.height);
    const { tree, width, labels } = picture;
    const scroll = this.window.scrollTop;
    this.drawnAt = scroll;
    const character = pen.measureText("0").width;
    const scale = size.width / width[zoom];
    const ground = styled("--ground");
    const text = { light: "#fff", dark: "#16181d", faint: styled("--faint") };
    pen.textBaseline = "middle";

    const frame = (/** @type {number} */ node, /** @type {number} */ left, /** @type {number} */ right) => {
      const top = this.top(tree.depth[node]) - scroll;
      const isFound = !this.found || this.found[tree.frame[node]] === 1;
      pen.globalAlpha = isFound ? 1 : 0.28;
      pen.fillStyle = picture.colour(node);
      // Half a pixel of ground between neighbours.
      pen.fillRect(left, top, Math.max(right - left - 0.5, 0.6), ROW - 1);
      pen.globalAlpha = 1;
      const room = right - left - 7;
      if (room > character * 2) {
        pen.fillStyle = isFound ? (picture.isDeep(node) ? text.light : text.dark) : text.faint;
        const label = labels[tree.frame[node]];
        pen.fillText(cut(label, Math.floor(room / character)), left + 4, top + ROW / 2, room + 2);
      }
      if (this.found && isFound && right - left > 3) {
        pen.strokeStyle = styled("--text");
        pen.lineWidth = 1.5;
        pen.strokeRect(left + 0.75, top + 0.75, right - left - 2, ROW - 2.5);
      }
    };

    for (const node of tree.stack(zoom).slice(0, -1)) {
      frame(node, 0, size.width);
    }
    if (zoom > 0) {
      frame(0, 0, size.width);
    }
    const painted = new Int32Array(this.rows + 1).fill(-1);
    const end = tree.end[zoom];
    let node = zoom;
    while (node < end) {
      const left = (place[node] - place[zoom]) * scale;
      const wide = width[node] * scale;
      const top = this.top(tree.depth[node]) - scroll;
      const isBeyond = picture.icicle ? top > size.height : top < -ROW;
      if (!(wide > 0) || isBeyond) {
        node = tree.end[node];
        continue;
      }
      if (wide < 1) {
        const pixel = Math.floor(left);
        if (pixel > painted[tree.depth[node]] && top > -ROW && top < size.height) {
          painted[tree.depth[node]] = pixel;
          frame(node, pixel, pixel + 1);
        }
        node = tree.end[node];
        continue;
      }
      if (top > -ROW && top < size.height) {
        painted[tree.depth[node]] = Math.floor(left + wide - 0.5);
        frame(node, left, left + wide);
      }
      node += 1;
    }
    if (this.cursor >= 0) {
      this.outline(pen, this.cursor, ground);
    }
  }

  /**
   * A frame around the node that the keyboard is at.
   * @param {CanvasRenderingContext2D} pen
   * @param {number} node
   * @param {string} ground
   */
  outline(pen, node, ground) {
    const edges = this.edges(node);
    if (!edges) {
      return;
    }
    const top = this.top(this.picture?.tree.depth[node] ?? 0) - this.window.scrollTop;
    pen.lineWidth = 3;
    pen.strokeStyle = ground;
    pen.strokeRect(edges[0] + 1, top + 1, Math.max(edges[1] - edges[0] - 2, 2), ROW - 3);
    pen.lineWidth = 2;
    pen.strokeStyle = styled("--accent");
    pen.strokeRect(edges[0] + 1, top + 1, Math.max(edges[1] - edges[0] - 2, 2), ROW - 3);
  }

  /**
   * Left and right of a node in the window, or null when it is outside.
   * @param {number} node
   * @returns {[number, number] | null}
   */
  edges(node) {
    const { picture, place, zoom, size } = this;
    if (!picture) {
      return null;
    }
    const { tree, width } = picture;
    if (node < zoom) {
      return tree.end[node] > zoom ? [0, size.width] : null;
    }
    const scale = size.width / width[zoom];
    const left = (place[node] - place[zoom]) * scale;
    return node < tree.end[zoom] ? [left, left + width[node] * scale] : null;
  }

  /**
   * The node below a pointer, or -1.
   * @param {MouseEvent} event
   */
  at(event) {
    const { picture, place, zoom, size } = this;
    if (!picture || size.width === 0) {
      return -1;
    }
    const { tree, width, icicle } = picture;
    const box = this.canvas.getBoundingClientRect();
    const y = event.clientY - box.top + this.window.scrollTop;
    const depth = Math.floor((icicle ? y : Math.max(size.height, this.rows * ROW) - y) / ROW);
    if (depth < tree.depth[zoom]) {
      let node = zoom;
      while (node > 0 && tree.depth[node] > depth) {
        node = tree.parent[node];
      }
      return depth < 0 ? -1 : node;
    }
    const x = place[zoom] + ((event.clientX - box.left) / size.width) * width[zoom];
    let node = zoom;
    while (node < tree.end[zoom]) {
      if (place[node] + width[node] <= x || !(width[node] > 0)) {
        node = tree.end[node];
      } else if (place[node] > x) {
        return -1;
      } else if (tree.depth[node] === depth) {
        return node;
      } else {
        node += 1;
      }
    }
    return -1;
  }

  /** @param {number} node */
  reveal(node) {
    const top = this.top(this.picture?.tree.depth[node] ?? 0);
    if (top < this.window.scrollTop) {
      this.window.scrollTop = top;
    } else if (top + ROW > this.window.scrollTop + this.size.height) {
      this.window.scrollTop = top + ROW - this.size.height;
    }
  }

  /**
   * The child that weighs most, or -1.
   * @param {number} node
   */
  widestChild(node) {
    if (!this.picture) {
      return -1;
    }
    const { tree, width } = this.picture;
    let widest = -1;
    for (let child = node + 1; child < tree.end[node]; child = tree.end[child]) {
      if (width[child] > 0 && (widest < 0 || width[child] > width[widest])) {
        widest = child;
      }
    }
    return widest;
  }

  /**
   * The nearest node beside a node, in its row, or -1.
   * @param {number} node
   * @param {number} step 1 or -1
   */
  neighbour(node, step) {
    if (!this.picture) {
      return -1;
    }
    const { tree, width } = this.picture;
    const [first, behind] = [this.zoom, tree.end[this.zoom]];
    for (let at = node + step; at >= first && at < behind; at += step) {
      if (tree.depth[at] === tree.depth[node] && width[at] > 0) {
        return at;
      }
    }
    return -1;
  }

  /**
   * Goes to the next node that a search found, widest rows first seen.
   * @param {number} step 1 or -1
   */
  nextFound(step) {
    const { picture, found } = this;
    if (!picture || !found) {
      return;
    }
    const { tree, width } = picture;
    const length = tree.end[this.zoom] - this.zoom;
    let at = this.cursor >= this.zoom && this.cursor < tree.end[this.zoom] ? this.cursor - this.zoom : 0;
    for (let tried = 0; tried < length; tried += 1) {
      at = (at + step + length) % length;
      const node = this.zoom + at;
      if (found[tree.frame[node]] && width[node] > 0 && width[node] * this.size.width >= width[this.zoom]) {
        this.moveTo(node);
        return;
      }
    }
  }

  /** @param {number} node */
  moveTo(node) {
    this.cursor = node;
    this.reveal(node);
    this.draw();
    this.pointed(node, null);
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    if (!this.picture || event.altKey || event.ctrlKey || event.metaKey) {
      return;
    }
    const { tree, icicle } = this.picture;
    const at = this.cursor >= 0 ? this.cursor : this.zoom;
    const [away, back] = icicle ? ["ArrowDown", "ArrowUp"] : ["ArrowUp", "ArrowDown"];
    /** @type {Record<string, () => number>} */
    const moves = {
      [away]: () => (this.cursor < 0 ? this.zoom : this.widestChild(at)),
      [back]: () => tree.parent[at],
      ArrowLeft: () => this.neighbour(at, -1),
      ArrowRight: () => this.neighbour(at, 1),
      Home: () => this.zoom,
    };
    if (Object.hasOwn(moves, event.key)) {
      const node = moves[event.key]();
      if (node >= 0) {
        this.moveTo(node);
      }
    } else if (event.key === "Enter") {
      this.zoomTo(at, true);
    } else if (event.key === "Backspace") {
      this.zoomTo(Math.max(0, tree.parent[this.zoom]), true);
    } else if (event.key === "Escape" && this.zoom > 0) {
      this.zoomTo(0, true);
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  }
}
