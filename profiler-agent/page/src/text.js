/** Numbers and times as people read them, and labels of frames. */

/**
 * 1234567 as `1,234,567`.
 * @param {number} value
 */
export function thousands(value) {
  return Math.round(value)
    .toString()
    .replace(/\B(?=(\d{3})+$)/g, ",");
}

/**
 * A share of one as `12.3 %`; small ones keep two digits that say something.
 * @param {number} share
 */
export function percent(share) {
  const value = share * 100;
  const size = Math.abs(value);
  if (size > 0 && size < 0.005) {
    return "<0.01 %";
  }
  return `${value.toFixed(size >= 99.95 || size === 0 ? 0 : size >= 0.95 ? 1 : 2)} %`;
}

/**
 * A difference of two shares, with its sign, in points.
 * @param {number} difference
 */
export function points(difference) {
  const text = percent(Math.abs(difference));
  return difference > 0 ? `+${text}` : difference < 0 ? `−${text}` : text;
}

/**
 * Milliseconds as `12.34 s`, as exact as the number is.
 * @param {number} milliseconds
 */
export function seconds(milliseconds) {
  const text = (milliseconds / 1000).toFixed(3).replace(/\.?0+$/, "");
  return `${text} s`;
}

/**
 * Nanoseconds of CPU time as a person would say them.
 * @param {number} nanoseconds
 */
export function cpuTime(nanoseconds) {
  const milliseconds = nanoseconds / 1e6;
  if (milliseconds < 1000) {
    return `${milliseconds.toFixed(milliseconds < 10 ? 1 : 0)} ms`;
  }
  return milliseconds < 600_000 ? `${(milliseconds / 1000).toFixed(2)} s` : `${thousands(milliseconds / 60_000)} min`;
}

/**
 * What samples add up to, in the unit of the profile.
 * @param {number} value
 * @param {string} unit
 */
export function amount(value, unit) {
  if (unit === "nanoseconds") {
    return cpuTime(value);
  }
  return `${thousands(value)} ${unit === "count" ? "samples" : unit}`;
}

/**
 * A moment of the capture on the wall clock, in UTC.
 * @param {number} epoch milliseconds since the Unix epoch
 */
export function clockTime(epoch) {
  return new Date(epoch).toISOString().slice(11, 23);
}

/**
 * What fits into so many characters.
 * @param {string} text
 * @param {number} room
 */
export function cut(text, room) {
  if (text.length <= room) {
    return text;
  }
  return room < 2 ? "" : `${text.slice(0, room - 1)}…`;
}

/**
 * A hash of 32 bits (FNV-1a), to tell names apart in colours and addresses; it keeps no secret.
 * @param {string} text
 * @param {number} seed
 */
export function fnv(text, seed = 0x811c9dc5) {
  let hash = seed;
  for (let at = 0; at < text.length; at += 1) {
    hash = Math.imul(hash ^ text.charCodeAt(at), 0x01000193);
  }
  return hash >>> 0;
}
