#!/usr/bin/env bash
# The web page in a real Chromium: it asks for the token, shows the figures of
# some load and the health of upstreams, looks a user up, blocks and refills them,
# explains a request, and says while Redis fails that it does. Needs Go, Node, npm and
# redis-server; installs Chromium and playwright-core; about 20 s once they are there.
#
#   deploy/test/page.sh [PICTURE]     also saves a screenshot
set -euo pipefail
cd "$(dirname "$0")/../.."
source deploy/test/tools.sh
deb_tool chromium chromium
deb_tool curl curl
deb_tool redis-server redis-server
playwright=1.65.1
if [ ! -e "$tools/playwright-$playwright/node_modules" ]; then
  npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$tools/playwright-$playwright" "playwright-core@$playwright"
fi
dir=$(mktemp -d)
pids=()
finish() {
  for pid in "${pids[@]}"; do
    # A stopped process takes no other signal.
    kill -CONT "$pid" 2>/dev/null || true
    kill "$pid" 2>/dev/null || true
  done
  wait
  rm -rf "$dir"
}
trap finish EXIT

redis-server --port 0 --unixsocket "$dir/redis.sock" --save '' --appendonly no --dir "$dir" >"$dir/redis.log" &
redis=$!
pids+=("$redis")
go build -o "$dir/r8limiter" .
export R8LIMITER_ADMIN_TOKEN=a-token-for-the-page
cat >"$dir/config.yaml" <<EOF
proxy:
  listen: "127.0.0.1:28480"
  upstreams:
    api: {targets: ["echo:"]}
    half: {targets: ["http://127.0.0.1:28400", "http://127.0.0.1:1"]}
  routes:
    - {name: half, match: {path: /half}, action: bypass, upstream: half}
    - {name: all, user_id: ["{header.X-User-Id}", "{client_ip}"], resource: read, upstream: api}
limiter: {default: {capacity: 3, refill_rate: 1/h}, redis: {url: "unix://$dir/redis.sock"}}
admin: {listen: "127.0.0.1:28400", token: "\${R8LIMITER_ADMIN_TOKEN}"}
log: {requests: none}
EOF
"$dir/r8limiter" -config "$dir/config.yaml" 2>"$dir/log" &
pids+=($!)
for _ in $(seq 100); do curl -fsS -o /dev/null http://127.0.0.1:28400/livez 2>/dev/null && break; sleep 0.1; done
curl -s -o /dev/null -H 'X-User-Id: <b>ann</b>' 'http://127.0.0.1:28480/?[1-10]'
# Three attempts that fail eject a target.
curl -s -o /dev/null 'http://127.0.0.1:28480/half?[1-8]'

cat >"$dir/page.mjs" <<'EOF'
import { createRequire } from "node:module";
import assert from "node:assert/strict";
const { chromium } = createRequire(process.argv[2] + "/")("playwright-core");
const browser = await chromium.launch({
  executablePath: "/usr/bin/chromium",
  args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
const page = await browser.newPage({ viewport: { width: 1200, height: 1100 } });
const faults = [];
page.on("pageerror", (e) => faults.push(String(e)));
let expected = /40[01]/; // no token at first, and a bad question
page.on("console", (m) => { if (m.type() === "error" && !expected.test(m.text())) faults.push(m.text()); });
page.setDefaultTimeout(15000);
const text = (id) => page.locator("#" + id).innerText();
const until = (what, id, pattern) => page.waitForFunction(
  ([id, pattern]) => new RegExp(pattern).test(document.getElementById(id).innerText), [id, pattern])
  .catch(async () => { throw new Error(`${what}: ${id} shows ${JSON.stringify(await text(id))}`); });

await page.goto("http://127.0.0.1:28400/admin/");
await page.locator("#token input").fill(process.env.R8LIMITER_ADMIN_TOKEN);
await page.locator("#token button").click();
await until("totals", "allowed", "^3$");
await until("totals", "denied", "^7$");
await until("rates", "allow-rate", "^0\\.0$");
await until("health", "health", "^ready$");
await until("offenders", "offenders", "<b>ann</b>\\s+7");
assert.equal(await page.locator("#offenders b").count(), 0, "a user's name became markup");
await until("resources", "resources", "read\\s+default\\s+read: 3, 1/h\\s+3\\s+7");
assert.equal(await page.locator("canvas").count(), 2, "two charts");
await until("upstreams", "parts", "upstream: api\\s+built in");
await until("upstreams", "parts", "upstream: half\\s+1 of 2 healthy");
await until("clients", "parts", "clients\\s+\\d+ connections\\s+–\\s+0");
await until("targets", "targets", "half\\s+http://127\\.0\\.0\\.1:28400\\s+healthy\\s+\\d+\\nhalf\\s+http://127\\.0\\.0\\.1:1\\s+ejected\\s+0");

await page.locator("#offenders a").first().click();
await until("buckets", "buckets", "read\\s+read\\s+0\\.\\d of 3");
await page.locator("#reset").click();
await until("refilled", "buckets", "3\\.0 of 3");
await until("audit", "audit", "user\\.reset\\s+<b>ann</b>");
await page.locator("#block").click();
await until("blocked", "overrides", "blocked, \\d+ s left: blocked on the page");
await page.locator("#drop").click();
await until("dropped", "overrides", "^$");
await until("audit", "audit", "override\\.drop");

const question = page.locator("#question");
await question.locator("[name=url]").fill("https://api.example.com/v1/<i>7</i>");
await question.locator("[name=ip]").fill("203.0.113.9");
await question.locator("[name=headers]").fill("X-User-Id: <b>ann</b>\n\nAccept: a:b\n");
await question.locator("button").click();
await until("explained", "explanation", "user_id +<b>ann</b>(.|\\n)*resource +read(.|\\n)*; 3\\.0 tokens(.|\\n)*now +allowed and forwarded");
assert.equal(await page.locator("#explanation b, #explanation i").count(), 0, "a request became markup");
await question.locator("[name=headers]").fill("nonsense");
await question.locator("button").click();
await until("no field", "explanation", '^"nonsense" is no header field');
await question.locator("[name=headers]").fill("");
await question.locator("[name=ip]").fill("nobody");
await question.locator("button").click();
await until("no address", "explanation", '"nobody" is no IP address');
await question.locator("[name=ip]").fill("203.0.113.9");
await question.locator("button").click();
await until("explained again", "explanation", "user_id +203\\.0\\.113\\.9\\n");
assert.equal(await page.locator("#trouble").isVisible(), false, await text("trouble"));
if (process.argv[3]) await page.screenshot({ path: process.argv[3] });

// A Redis that stands still, until some decisions have failed.
assert.equal(await page.locator("#degraded").isVisible(), false, "degraded before Redis fails");
expected = /401|503/;
process.kill(Number(process.argv[4]), "SIGSTOP");
for (let i = 0; i < 5; i++) await fetch("http://127.0.0.1:28480/", { headers: { "X-User-Id": "bob" } });
await page.locator("#degraded").waitFor({ state: "visible" });
await until("health", "health", "^not ready: ");
await until("store", "parts", "store: Redis\\s+fails, is being probed");
process.kill(Number(process.argv[4]), "SIGCONT");
await page.locator("#degraded").waitFor({ state: "hidden" });
await until("health", "health", "^ready$");
await until("store", "parts", "store: Redis\\s+answers");
await browser.close();
assert.deepEqual(faults, [], "faults in the console");
console.log("page: ok");
EOF
timeout 120 node "$dir/page.mjs" "$tools/playwright-$playwright" "${1:-}" "$redis"
