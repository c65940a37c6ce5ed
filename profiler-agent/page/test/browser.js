/**
 * The page in a real browser, on profiles that tests/page.rs has made.
 *
 *     node browser.js FOLDER BROWSER MODULES ADDRESS
 *
 * ADDRESS is that of a running agent on a host where the program `cycle` does one thing after the other. FOLDER holds the files, gets the pictures (`shots/`) and what was measured (`figures.txt`). Ends with 1, and says why, when
 * something is not as it should be.
 */

import assert from "node:assert/strict";
import { mkdirSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";

/** @typedef {import("playwright-core").Page} BrowserPage */

const [folder, executablePath, modules, agent] = process.argv.slice(2);
/** @type {typeof import("playwright-core")} */
const { chromium } = createRequire(`${modules}/`)("playwright-core");
const shots = `${folder}/shots`;
mkdirSync(shots, { recursive: true });
/** @type {string[]} */
const figures = [];

// The tests run as root, for whom Chromium has no sandbox.
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
/** What no page may do: errors, words on the console, requests, dialogs. */
/** @type {string[]} */
let troubles = [];
let origin = "file:";

/**
 * Opens a file or an address in a browser that knows nothing yet.
 * @param {string} place
 * @param {{dark?: boolean, width?: number}} options
 */
async function open(place, { dark = false, width = 1280 } = {}) {
  const context = await browser.newContext({
    viewport: { width, height: 900 },
    colorScheme: dark ? "dark" : "light",
    permissions: ["clipboard-read", "clipboard-write"],
  });
  const page = await context.newPage();
  page.on("console", (message) => troubles.push(`console: ${message.text()}`));
  page.on("pageerror", (error) => troubles.push(`error: ${error.message}`));
  page.on("request", (request) => {
    if (!request.url().startsWith(origin) && !request.url().startsWith("data:")) {
      troubles.push(`request: ${request.url()}`);
    }
  });
  page.on("dialog", (dialog) => {
    if (dialog.type() === "prompt") {
      dialog.accept("beta");
    } else {
      troubles.push(`dialog: ${dialog.message()}`);
      dialog.dismiss();
    }
  });
  await page.goto(place.includes("://") ? place : `file://${folder}/${place}`);
  return page;
}

/**
 * Opens the page, and waits until it shows its profile.
 * @param {string} place
 * @param {{dark?: boolean, width?: number}} options
 */
async function ready(place, options = {}) {
  const page = await open(place, options);
  await page.waitForSelector("body.ready", { timeout: 30_000 });
  return page;
}

/**
 * @param {string} name
 * @param {() => Promise<void>} steps
 */
async function check(name, steps) {
  troubles = [];
  try {
    await steps();
    assert.deepEqual(troubles, [], "a page that is used as it should be has nothing to complain of");
  } catch (error) {
    for (const context of browser.contexts()) {
      for (const page of context.pages()) {
        await page.screenshot({ path: `${shots}/failed.png` }).catch(() => {});
      }
    }
    process.stdout.write(`${name}: FAILED, see ${shots}/failed.png; ${troubles.join("; ")}\n`);
    throw error;
  }
  for (const context of browser.contexts()) {
    await context.close();
  }
  process.stdout.write(`${name}: fine\n`);
}

/**
 * @param {BrowserPage} page
 * @param {string} name
 */
async function shot(page, name) {
  await page.screenshot({ path: `${shots}/${name}.png` });
}

/**
 * @param {BrowserPage} page
 * @param {string} id
 */
async function text(page, id) {
  return (await page.locator(`#${id}`).textContent()) ?? "";
}

/**
 * The address as the page has it; the driver hears of changes later.
 * @param {BrowserPage} page
 */
function address(page) {
  return page.evaluate(() => location.href);
}

/**
 * Drags from one part of an element to another; parts are of its width and height.
 * @param {BrowserPage} page
 * @param {string} id
 * @param {[number, number]} from
 * @param {[number, number]} to
 * @param {number} axis what stands left of the drawing, in pixels
 */
async function dragIn(page, id, from, to, axis = 34) {
  const box = await page.locator(`#${id} canvas`).boundingBox();
  assert.ok(box);
  const at = (/** @type {[number, number]} */ [x, y]) =>
    /** @type {const} */ ([box.x + axis + x * (box.width - axis), box.y + y * box.height]);
  await page.mouse.move(...at(from));
  await page.mouse.down();
  await page.mouse.move(...at([(from[0] + to[0]) / 2, (from[1] + to[1]) / 2]));
  await page.mouse.move(...at(to));
  await page.mouse.up();
}

/**
 * The functions in the table, as `[self, total, name]`, or with the changes before the name.
 * @param {BrowserPage} page
 */
async function rows(page) {
  return page
    .locator("#table tbody tr")
    .evaluateAll((all) =>
      all.map((row) =>
        [...row.querySelectorAll("td")].map(
          (cell) => (cell.querySelector("button") ?? cell).title || cell.textContent || "",
        ),
      ),
    );
}

/** @param {BrowserPage} page */
async function names(page) {
  return (await rows(page)).map((row) => row[row.length - 1]);
}

/**
 * Share of a function in the table.
 * @param {string[][]} table
 * @param {string} name
 * @param {number} column
 */
function share(table, name, column) {
  const row = table.find((row) => row[row.length - 1] === name);
  return row ? Number.parseFloat(row[column].replace("−", "-")) : 0;
}

// A round of the program: alpha, beta, alpha, delta, each a quarter of the time.
const ALPHA = /** @type {const} */ ([0.04, 0.21]);
const BETA = /** @type {const} */ ([0.29, 0.46]);

await check("a range of time shows that time alone", async () => {
  const page = await ready("real.html");
  assert.match(await text(page, "title"), /phases/);
  assert.match(await text(page, "selection"), /all of the capture: [\d,]+ samples/);
  await shot(page, "whole");
  await page.keyboard.press("2");
  const whole = await rows(page);
  for (const name of ["alpha", "beta", "delta"]) {
    assert.ok(share(whole, name, 1) > 3, `${name} is in all of the capture: ${whole.slice(0, 9).join("\n")}`);
  }
  await dragIn(page, "timeline", [BETA[0], 0.5], [BETA[1], 0.5]);
  assert.match(await address(page), /#t=\d+-\d+/);
  const beta = await rows(page);
  assert.ok(share(beta, "beta", 1) > 80, `${beta.slice(0, 9).join("\n")}`);
  assert.equal(share(beta, "alpha", 1) + share(beta, "delta", 1), 0);
  await shot(page, "range");
  await page.locator("#clear").click();
  assert.match(await text(page, "selection"), /all of the capture/);
});

await check("a burst can be taken from the heat map", async () => {
  const page = await ready("real.html");
  await dragIn(page, "heatmap", [0.01, 0.8], [0.01, 0.6]);
  const [from, to] =
    /#t=(\d+)-(\d+)/
      .exec(await address(page))
      ?.slice(1)
      .map(Number) ?? [];
  assert.ok(from % 20 === 0 && to - from >= 40 && to - from < 400 && to <= 1000, await address(page));
  await shot(page, "burst");
  await page.locator("#heatmap").focus();
  await page.keyboard.press("ArrowRight");
  await page.keyboard.press("Shift+ArrowUp");
  const [begin, end] =
    /#t=(\d+)-(\d+)/
      .exec(await address(page))
      ?.slice(1)
      .map(Number) ?? [];
  assert.ok(begin >= 1000 && end - begin === 40, await address(page));
});

await check("the difference of two ranges is what changed", async () => {
  const page = await ready("real.html");
  await dragIn(page, "timeline", [ALPHA[0], 0.5], [ALPHA[1], 0.5]);
  await page.keyboard.press("a");
  assert.match(await text(page, "hint"), /select range B/);
  await dragIn(page, "timeline", [BETA[0], 0.5], [BETA[1], 0.5]);
  assert.match(await text(page, "selection"), /^A: .* B: /);
  assert.match(await text(page, "legend"), /more in B/);
  await shot(page, "difference");
  await page.keyboard.press("2");
  await page.locator('[data-sort="dtotal"]').click();
  const changed = await rows(page);
  assert.ok(share(changed, "beta", 3) > 80, `${changed.slice(0, 5).join("\n")}`);
  assert.ok(share(changed, "alpha", 3) < -80, `${changed.slice(0, 5).join("\n")}`);
  assert.deepEqual((await names(page)).slice(0, 2).sort(), ["alpha", "beta"], "and nothing else did");
  await shot(page, "difference-table");
  await page.locator("#swap").click();
  assert.ok(share(await rows(page), "beta", 3) < -80);
  await page.locator("#compare").click();
  assert.doesNotMatch(await text(page, "selection"), /A:/);
});

await check("zoom by click, by key, and back", async () => {
  const page = await ready("real.html");
  const flame = page.locator("#flame");
  await flame.focus();
  await page.keyboard.press("ArrowUp");
  const path = [];
  for (let row = 0; row < 12; row += 1) {
    path.push((await text(page, "detail")).split("  ·  ")[0]);
    if (path.at(-1) === "main") {
      break;
    }
    await page.keyboard.press("ArrowUp");
  }
  assert.ok(path.includes("main"), `${path}`);
  await page.keyboard.press("Enter");
  const zoomed = await address(page);
  assert.match(zoomed, /zoom=[0-9a-f]+/);
  await shot(page, "zoomed");
  await page.keyboard.press("Backspace");
  assert.notEqual(await address(page), zoomed);
  await page.locator("#back").click();
  await page.waitForURL(zoomed);
  await page.keyboard.press("Escape");
  assert.doesNotMatch(await address(page), /zoom=/);
  const box = await page.locator("#flame canvas").boundingBox();
  assert.ok(box);
  // The third row from below, somewhere in the middle.
  await page.mouse.click(box.x + box.width / 2, box.y + box.height - 2.5 * 18);
  assert.match(await address(page), /zoom=/);
  await page.goBack();
  await page.waitForFunction(() => !location.hash.includes("zoom="));
  await page.keyboard.press("i");
  assert.match(await address(page), /icicle=1/);
  await shot(page, "icicle");
});

await check("a search tells its share, and a bad one its error", async () => {
  const page = await ready("real.html");
  await page.keyboard.press("/");
  await page.keyboard.type("^(alpha|beta)$");
  const matched = Number.parseFloat(/matched: ([\d.]+) %/.exec(await text(page, "matched"))?.[1] ?? "");
  assert.ok(matched > 40 && matched < 99, `${matched}`);
  await shot(page, "search");
  await page.keyboard.press("Enter");
  assert.match(await text(page, "detail"), /^(alpha|beta)/);
  await page.keyboard.press("2");
  await page.locator("#view-functions").click();
  await page.locator("#search").fill("^(alpha|beta)$");
  assert.deepEqual((await names(page)).sort(), ["alpha", "beta"]);
  await page.locator("#search").fill("(");
  assert.equal(await page.locator("#search").getAttribute("aria-invalid"), "true");
  assert.match(await text(page, "matched"), /regular expression/i);
});

await check("callers and callees of a function, over all stacks", async () => {
  const page = await ready("real.html");
  await page.locator("#view-functions").click();
  await page.locator("#table button", { hasText: /^count/ }).click();
  assert.equal(await text(page, "sandwich-name"), "count");
  const seen = new Set();
  const callers = page.locator("#callers");
  await callers.focus();
  await page.keyboard.press("ArrowUp");
  await page.keyboard.press("ArrowUp");
  for (let step = 0; step < 3; step += 1) {
    seen.add((await text(page, "detail")).split("  ·  ")[0]);
    await page.keyboard.press("ArrowLeft");
  }
  for (let step = 0; step < 3; step += 1) {
    seen.add((await text(page, "detail")).split("  ·  ")[0]);
    await page.keyboard.press("ArrowRight");
  }
  for (const name of ["alpha", "beta", "delta"]) {
    assert.ok(seen.has(name), `${name} calls count: ${[...seen]}`);
  }
  await shot(page, "sandwich");
  for (const sort of ["total", "name", "self"]) {
    await page.locator(`[data-sort="${sort}"]`).click();
    const column = sort === "total" ? 1 : 0;
    const table = await rows(page);
    const values = table.map((row) => (sort === "name" ? 0 : Number.parseFloat(row[column])));
    assert.deepEqual(
      values,
      [...values].sort((a, b) => b - a),
      sort,
    );
  }
});

await check("a stack is copied as text", async () => {
  const page = await ready("real.html");
  await page.locator("#search").fill("^beta$");
  await page.keyboard.press("Enter");
  await page.locator("#flame").focus();
  await page.keyboard.press("c");
  await page.waitForFunction(() => document.getElementById("detail")?.textContent?.startsWith("copied"));
  const copied = (await page.evaluate(() => navigator.clipboard.readText())).split("\n");
  assert.equal(copied[0], "phases");
  assert.equal(copied.at(-1), "beta");
  assert.ok(copied.includes("main"), `${copied}`);
});

await check("an address shows the same again", async () => {
  const page = await ready("real.html");
  await dragIn(page, "timeline", [ALPHA[0], 0.5], [ALPHA[1], 0.5]);
  await page.locator("#search").fill("count");
  await page.locator("#view-functions").click();
  await page.locator("#table button", { hasText: /^count/ }).click();
  const parts = ["selection", "matched", "sandwich-name", "sandwich-share"];
  const before = await Promise.all(parts.map((part) => text(page, part)));
  const again = await ready(await address(page));
  assert.deepEqual(await Promise.all(parts.map((part) => text(again, part))), before);
  assert.equal(await again.locator("#search").inputValue(), "count");
});

await check("dark where the person wants it dark", async () => {
  const theme = (/** @type {BrowserPage} */ page) => page.locator("html").getAttribute("data-theme");
  const dark = await ready("real.html", { dark: true });
  assert.equal(await theme(dark), "dark");
  await shot(dark, "dark");
  await dark.keyboard.press("2");
  await dark.locator("#table button", { hasText: /^count/ }).click();
  await shot(dark, "dark-functions");
  await dark.keyboard.press("d");
  assert.equal(await theme(dark), "light");
  const light = await ready("real.html");
  assert.equal(await theme(light), "light");
  await light.keyboard.press("?");
  await shot(light, "keys");
  await light.keyboard.press("Escape");
  assert.equal(await light.locator("#keys").isVisible(), false);
});

await check("a narrow window", async () => {
  const page = await ready("real.html", { width: 480 });
  const wide = await page.evaluate(() => document.documentElement.scrollWidth);
  assert.ok(wide <= 480, `${wide}`);
  await shot(page, "narrow");
});

await check("names that mean harm are text", async () => {
  const page = await ready("hostile.html");
  await page.keyboard.press("2");
  const shown = (await names(page)).join("\n");
  for (const name of [
    "<script>alert(1)</script>",
    "]]></script><script>alert(1)</script>",
    "--><!-- &amp; &#0;",
    "[unknown]",
  ]) {
    assert.ok(shown.includes(name), `${name} is not in ${shown}`);
  }
  assert.doesNotMatch(shown.replaceAll("\n", ""), /[\p{Cc}\u202e]/u);
  assert.equal(await page.locator("script").count(), 2);
  await shot(page, "hostile");
  await page.locator("#table button").first().click();
  await page.keyboard.press("1");
  await page.locator("#flame").hover();
  await shot(page, "hostile-flame");
});

await check("a capture without times", async () => {
  const page = await ready("timeless.html");
  assert.equal(await page.locator("#times").isVisible(), false);
  assert.equal(await page.locator("#timeless").isVisible(), true);
  assert.match(await text(page, "selection"), /2,800 samples/);
  await shot(page, "timeless");
});

await check("100,000 distinct stacks", async () => {
  const begin = performance.now();
  const page = await ready("many.html");
  figures.push(`many: shown after ${(performance.now() - begin).toFixed(0)} ms`);
  await shot(page, "many");
  // Until the picture is on the screen: two frames of it.
  const timed = (/** @type {string} */ what, /** @type {string} */ key) =>
    page.evaluate(
      async ([what, key]) => {
        const flame = /** @type {HTMLElement} */ (document.getElementById(what));
        flame.focus();
        const begin = performance.now();
        flame.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
        const script = performance.now() - begin;
        await new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
        return [script, performance.now() - begin];
      },
      [what, key],
    );
  /** @type {number[][]} */
  const zooms = [];
  for (let row = 0; row < 24; row += 1) {
    await page.keyboard.press("Escape");
    await page.locator("#flame").focus();
    for (let step = 0; step <= row; step += 1) {
      await page.keyboard.press("ArrowUp");
    }
    zooms.push(await timed("flame", "Enter"), await timed("flame", "Backspace"), await timed("flame", "Escape"));
  }
  const worst = (/** @type {number} */ which) => Math.max(...zooms.map((zoom) => zoom[which])).toFixed(1);
  const middle = zooms
    .map((zoom) => zoom[0])
    .sort((a, b) => a - b)
    [zooms.length >> 1].toFixed(1);
  figures.push(
    `many: ${zooms.length} zooms: ${middle} ms of script in the middle, ${worst(0)} ms at most; ${worst(1)} ms at most until drawn`,
  );
  for (const [what, act] of /** @type {[string, () => Promise<void>][]} */ ([
    ["search", () => page.locator("#search").fill("function_17")],
    ["range", () => dragIn(page, "timeline", [0.2, 0.5], [0.5, 0.5])],
    ["functions", () => page.locator("#view-functions").click()],
    [
      "callers and callees",
      () =>
        page
          .locator("#table button", { hasText: /function_17/ })
          .first()
          .click(),
    ],
  ])) {
    const begin = performance.now();
    await act();
    await page.evaluate(() => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve))));
    figures.push(`many: ${what}: ${(performance.now() - begin).toFixed(0)} ms, the browser's driver included`);
  }
  await shot(page, "many-functions");
});

await check("an SVG from the disk zooms and searches", async () => {
  const page = await open("real.svg");
  await page.waitForSelector("#search");
  await page.locator("#frames g", { hasText: "main (" }).first().click();
  await page.waitForFunction(() => document.getElementById("unzoom")?.classList.contains("hide") === false);
  await page.locator("#unzoom").click();
  await page.locator("#search").click();
  await page.waitForFunction(() => /Matched: [\d.]+%/.test(document.getElementById("matched")?.textContent ?? ""));
  await shot(page, "svg");
});

await check("the page of a running agent", async () => {
  origin = `http://${agent}/`;
  try {
    const page = await ready(`${origin}?comm=cycle`);
    assert.match(await text(page, "selection"), /samples/);
    assert.equal(await page.locator("#live").getAttribute("aria-pressed"), "true");
    assert.equal(await page.locator("#lasts [aria-pressed=true]").textContent(), "5 min");
    assert.match(await text(page, "filters"), /comm=cycle/);
    await shot(page, "live");

    // What goes on goes on: the picture follows, and the address stays.
    const before = await text(page, "subtitle");
    await page.mouse.move(2, 2);
    await page.waitForFunction((before) => document.getElementById("subtitle")?.textContent !== before, before);
    assert.equal(new URL(await address(page)).search, "?comm=cycle");

    // A part of the past, out of the time line of all.
    await dragIn(page, "strip", [0.3, 0.5], [0.6, 0.5]);
    await page.waitForFunction(() => /since=.*until=/.test(location.search));
    await page.waitForFunction(() => document.getElementById("live")?.ariaPressed === "false");
    const window = new URL(await address(page)).searchParams;
    const length = Number(window.get("until")) - Number(window.get("since"));
    assert.ok(length > 1, `${length}`);
    // With its tenths, cut off by the agent and perhaps rounded on the way there: 4.0, not 4.
    const tenths = [Math.floor(length * 10), Math.round(length * 10)].map((count) => (count / 10).toFixed(1));
    const said = new RegExp(`\\((${tenths.join("|")}) s\\)`);
    await page.waitForFunction(
      (said) => new RegExp(said).test(document.getElementById("subtitle")?.textContent ?? ""),
      said.source,
    );
    await shot(page, "past");

    // A range of that, and what is next to it; the address has both, and shows them again.
    await dragIn(page, "timeline", [0.05, 0.5], [0.25, 0.5]);
    await page.keyboard.press("a");
    await dragIn(page, "timeline", [0.6, 0.5], [0.8, 0.5]);
    assert.match(await text(page, "selection"), /^A: .* B: /);
    await shot(page, "past-difference");
    const link = page.locator("#links a", { hasText: "difference" });
    const drawn = await page.request.get(new URL((await link.getAttribute("href")) ?? "", origin).href);
    assert.ok([200, 404].includes(drawn.status()), `${drawn.status()} ${await drawn.text()}`);
    const again = await ready(await address(page));
    assert.equal(await text(again, "selection"), await text(page, "selection"));
    for (const link of await again.locator("#links a").all()) {
      const answer = await again.request.get(new URL((await link.getAttribute("href")) ?? "", origin).href);
      assert.ok(answer.ok() || answer.status() === 404, `${await link.textContent()}: ${answer.status()}`);
    }
    await again.close();

    // Back goes to where one has been.
    await page.locator("#compare").click();
    await page.locator("#clear").click();
    await page.locator("#live").click();
    await page.waitForFunction(() => !location.search.includes("since="));
    await page.goBack();
    await page.waitForFunction(() => location.search.includes("since="));
    await page.waitForFunction(() => document.getElementById("live")?.ariaPressed === "false");

    // By CPU, and of everybody.
    await page.locator("#by").selectOption("cpu");
    await page.waitForFunction(() => location.search.includes("by=cpu"));
    await page.locator("#search").fill("^CPU \\d+$");
    await page.waitForFunction(() =>
      /matched: (100|99\.\d*)/.test(document.getElementById("matched")?.textContent ?? ""),
    );
    await shot(page, "by-cpu");
    await page.locator("#filters button").click();
    await page.waitForFunction(() => !location.search.includes("comm="));
    await page.waitForFunction(() => document.getElementById("filters")?.textContent === "");

    // Nobody there: it says so, and who is.
    const nobody = await open(`${origin}?pid=4194305`);
    await nobody.waitForFunction(() => document.getElementById("failure")?.hidden === false);
    assert.match(await text(nobody, "failure"), /in that range there are/);
    await shot(nobody, "nobody");
    troubles = troubles.filter((trouble) => !trouble.includes("status of 404"));
  } finally {
    origin = "file:";
  }
});

await check("what the agent's page may not do", async () => {
  origin = `http://${agent}/`;
  try {
    const page = await ready(origin);
    const policy = (await page.request.get(origin)).headers()["content-security-policy"] ?? "";
    assert.match(policy, /^default-src 'none'; script-src 'sha256-[^;]*; style-src 'sha256-/);
    assert.match(policy, /connect-src 'self';.*frame-ancestors 'none'/);
    assert.doesNotMatch(policy, /unsafe/);
  } finally {
    origin = "file:";
  }
});

await check("no word leaves the page, whatever runs in it", async () => {
  let heard = 0;
  const server = createServer((_, answer) => {
    heard += 1;
    answer.end();
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", () => resolve(null)));
  const { port } = /** @type {import("node:net").AddressInfo} */ (server.address());
  const page = await ready("real.html");
  const tried = await page.evaluate(async (host) => {
    const fetched = await fetch(host).then(
      () => "fetched",
      () => "refused",
    );
    const image = await new Promise((resolve) => {
      const image = new Image();
      image.onload = () => resolve("loaded");
      image.onerror = () => resolve("refused");
      image.src = `${host}x.png`;
    });
    const script = document.createElement("script");
    script.textContent = "document.title = 'ran'";
    document.body.append(script);
    return [fetched, image, document.title === "ran" ? "ran" : "refused"];
  }, `http://127.0.0.1:${port}/`);
  server.close();
  assert.deepEqual(tried, ["refused", "refused", "refused"]);
  assert.equal(heard, 0);
  // What the policy refuses it tells on the console.
  assert.ok(troubles.some((trouble) => trouble.includes("Content Security Policy")));
  troubles = [];
});

await browser.close();
writeFileSync(`${folder}/figures.txt`, `${figures.join("\n")}\n`);
process.stdout.write(`${figures.join("\n")}\n`);
