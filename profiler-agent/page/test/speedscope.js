/**
 * Files for speedscope, held against the schema that it publishes.
 *
 *     node speedscope.js MODULES FILE...
 *
 * Ends with 1, and says why, when one is not as it should be, or when something wrong is not found.
 */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [modules, ...files] = process.argv.slice(2);
const require = createRequire(`${modules}/`);
/** @type {typeof import("ajv")} */
const { Ajv } = require("ajv");
// It names a format of its own for strings that are links.
const ajv = new Ajv({ allErrors: true, strict: false });
const isValid = ajv.compile(require("speedscope/dist/release/file-format-schema.json"));

for (const file of files) {
  const text = readFileSync(file, "utf8");
  assert(isValid(JSON.parse(text)), `${file}: ${ajv.errorsText(isValid.errors)}`);
  const wrong = JSON.parse(text);
  wrong.profiles[0].unit = "fortnights";
  assert(!isValid(wrong), "a wrong unit is found");
  process.stdout.write(`${file}: fine\n`);
}
