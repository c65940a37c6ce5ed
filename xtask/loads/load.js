// JSON, sorting by a closure, regular expressions, recursion, exceptions, typed arrays, promises: compiled at run time by V8.
const zlib = require('zlib');
const fib = (n) => (n < 2 ? n : fib(n - 1) + fib(n - 2));
async function round() {
  const rows = Array.from({ length: 5000 }, (_, id) => ({ id, name: String(Math.random()), tags: ['x', 'y'] }));
  const text = JSON.stringify(rows);
  if (JSON.parse(text).length !== rows.length) throw new Error('unequal');
  rows.sort((a, b) => (a.name < b.name ? -1 : 1));
  text.replace(/(\d)(\d+)/g, (_, a, b) => b + a);
  const counts = new Map();
  for (const word of text.split('"')) counts.set(word, (counts.get(word) ?? 0) + 1);
  fib(25);
  const numbers = Float64Array.from({ length: 50000 }, Math.random).sort();
  for (let i = 0; i < 1000; i++) try { throw numbers[i]; } catch {}
  zlib.gzipSync(text);
  await Promise.all(rows.map(async (row) => row.id));
}
(async () => { for (;;) await round(); })();
