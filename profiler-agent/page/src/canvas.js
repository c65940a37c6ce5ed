/** A canvas as large as what can be seen of it, sharp on every screen. */

/** Reads well in small sizes, and all its characters are of one width, so that text need not be measured. */
export const FONT = '11px ui-monospace, "DejaVu Sans Mono", "Liberation Mono", Menlo, Consolas, monospace';

/** Room for the labels of axes, in pixels. */
export const LEFT = 34;
export const BELOW = 18;

/**
 * Makes the canvas so large, clears it, and returns what to draw with, in CSS pixels.
 * @param {HTMLCanvasElement} canvas
 * @param {number} width
 * @param {number} height
 */
export function prepare(canvas, width, height) {
  const scale = globalThis.devicePixelRatio || 1;
  const [columns, rows] = [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
  if (canvas.width !== columns || canvas.height !== rows) {
    canvas.width = columns;
    canvas.height = rows;
    canvas.style.height = `${height}px`;
  }
  const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = FONT;
  return pen;
}

/**
 * A colour of the style sheet, such as `--line`.
 * @param {string} name
 */
export function styled(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/**
 * Follows a pointer that is pressed on an element until it is released.
 * @param {HTMLElement} element
 * @param {(event: PointerEvent) => ((event: PointerEvent, isOver: boolean) => void) | null} begin
 *   what is to follow the pointer, if anything is
 */
export function drag(element, begin) {
  element.addEventListener("pointerdown", (down) => {
    const follow = down.button === 0 ? begin(down) : null;
    if (!follow) {
      return;
    }
    element.setPointerCapture(down.pointerId);
    const move = (/** @type {PointerEvent} */ event) => follow(event, false);
    const up = (/** @type {PointerEvent} */ event) => {
      element.removeEventListener("pointermove", move);
      element.removeEventListener("pointerup", up);
      element.removeEventListener("pointercancel", up);
      follow(event, true);
    };
    element.addEventListener("pointermove", move);
    element.addEventListener("pointerup", up);
    element.addEventListener("pointercancel", up);
  });
}
