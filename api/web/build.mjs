// Makes static/vendor: copies what the pages load from node_modules, with the licences. Nothing is transformed, so what
// a browser runs is byte for byte what the lock file's integrity hash covers. A .gz of each script lies beside it.
import { cp, mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

const here = dirname(fileURLToPath(import.meta.url));
const vendor = join(here, "static", "vendor");

const FILES = [
  ["hls.js/dist/hls.light.min.mjs", "hls.light.min.mjs"],
  ["hls.js/dist/hls.worker.js", "hls.worker.js"],
  ["hls.js/LICENSE", "hls.LICENSE"],
];

await rm(vendor, { recursive: true, force: true });
await mkdir(vendor, { recursive: true });
for (const [from, to] of FILES) {
  await cp(join(here, "node_modules", from), join(vendor, to));
  if (/\.m?js$/.test(to)) await writeFile(join(vendor, `${to}.gz`), gzipSync(await readFile(join(vendor, to)), { level: 9 }));
}
