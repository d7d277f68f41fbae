// The page of the control listener: it asks what /admin and /metrics answer to
// everybody with the token, every two seconds while it is looked at.
"use strict";

const every = 2000; // ms between two looks
const kept = 150; // points of a chart: five minutes
const $ = (id) => document.getElementById(id);
const show = (id, text) => { $(id).textContent = text; };
const count = (n) => n.toLocaleString("en");

// The token lives as long as the tab.
let token = sessionStorage.getItem("token") || "";

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (token) headers.Authorization = "Bearer " + token;
  const answer = await fetch(path, { ...options, headers, cache: "no-store" });
  if (answer.status === 401) $("token").hidden = false;
  if (!answer.ok && path !== "/readyz") {
    const body = await answer.json().catch(() => ({}));
    throw new Error(body.error || answer.status + " from " + path);
  }
  return answer;
}
const json = async (path, options) => (await ask(path, options)).json();

// rows fills a table's body: texts only, whatever they hold.
function rows(id, lists) {
  $(id).replaceChildren(...lists.map((cells) => {
    const row = document.createElement("tr");
    for (const cell of cells) {
      const each = document.createElement("td");
      if (typeof cell === "function") each.append(cell());
      else each.textContent = typeof cell === "number" ? count(cell) : cell;
      if (typeof cell === "number") each.className = "number";
      row.append(each);
    }
    return row;
  }));
}

function chart(id, unit, names) {
  const colours = ["#1a7f37", "#cf222e", "#0969da"];
  const data = [[], ...names.map(() => [])];
  const plot = new uPlot({
    width: $(id).clientWidth || 400, height: 180,
    scales: { y: { range: (_, __, max) => [0, max > 0 ? max * 1.1 : 1] } },
    axes: [{ stroke: "gray", grid: { width: .3 } }, { stroke: "gray", grid: { width: .3 }, label: unit, size: 60 }],
    series: [{}, ...names.map((label, i) => ({ label, stroke: colours[i], width: 2 }))],
  }, data, $(id));
  addEventListener("resize", () => plot.setSize({ width: $(id).clientWidth, height: 180 }));
  return (values) => {
    data[0].push(Date.now() / 1000);
    values.forEach((v, i) => data[i + 1].push(v));
    if (data[0].length > kept) data.forEach((d) => d.shift());
    plot.setData(data);
  };
}
const addRates = chart("rates", "per second", ["allowed", "denied"]);
const addLatency = chart("latency", "ms", ["p50", "p95", "p99"]);

// metrics reads the text format into [name, labels, value].
function metrics(text) {
  const series = [];
  for (const line of text.split("\n")) {
    const m = /^([a-z_0-9]+)(?:\{(.*)\})? (\S+)$/i.exec(line);
    if (!m) continue;
    const labels = {};
    for (const [, name, value] of (m[2] || "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) labels[name] = value;
    series.push([m[1], labels, Number(m[3])]);
  }
  return series;
}

const sum = (series, name, label, value) => series.reduce((total, [n, labels, v]) =>
  n === name && (!label || labels[label] === value) ? total + v : total, 0);

// buckets are the cumulated counts of a histogram, over all its endpoints.
function buckets(series, name) {
  const all = new Map();
  for (const [n, labels, v] of series) {
    if (n === name + "_bucket") all.set(labels.le, (all.get(labels.le) || 0) + v);
  }
  return [...all].map(([le, v]) => [le === "+Inf" ? Infinity : Number(le), v]).sort((a, b) => a[0] - b[0]);
}

// quantile is in ms, of what came between two looks; null if nothing did.
function quantile(q, now, before) {
  const old = new Map(before);
  const fresh = now.map(([le, v]) => [le, v - (old.get(le) || 0)]);
  const total = fresh.length ? fresh[fresh.length - 1][1] : 0;
  if (total <= 0) return null;
  let [lower, below] = [0, 0];
  for (const [le, v] of fresh) {
    if (v >= q * total) {
      if (le === Infinity) return lower * 1000;
      return (lower + (le - lower) * (v > below ? (q * total - below) / (v - below) : 1)) * 1000;
    }
    [lower, below] = [le, v];
  }
  return null;
}

let last = null; // the look before: {at, allowed, denied}
let lastBuckets = null;

async function totals() {
  const stats = await json("/admin/stats?top_n=1");
  const now = { at: performance.now(), allowed: stats.allowed_total, denied: stats.denied_total };
  show("allowed", count(stats.allowed_total));
  show("denied", count(stats.denied_total));
  show("active", count(stats.active_keys));
  if (last) {
    const seconds = (now.at - last.at) / 1000;
    const rate = (what) => Math.max(0, (now[what] - last[what]) / seconds);
    show("allow-rate", rate("allowed").toFixed(1));
    show("deny-rate", rate("denied").toFixed(1));
    addRates([rate("allowed"), rate("denied")]);
  }
  last = now;
}

async function thisGateway() {
  const series = metrics(await (await ask("/metrics")).text());
  const now = buckets(series, "request_latency_seconds");
  if (lastBuckets) addLatency([.5, .95, .99].map((q) => quantile(q, now, lastBuckets)));
  lastBuckets = now;
  const mean = (name, label, value) => {
    const n = sum(series, name + "_count", label, value);
    return n ? (sum(series, name + "_sum", label, value) / n * 1000).toFixed(2) : "–";
  };
  const ready = await json("/readyz");
  $("health").className = "badge " + (ready.ready ? "good" : "bad");
  show("health", ready.ready ? "ready" : "not ready: " + ready.reason);
  const degraded = sum(series, "r8limiter_store_degraded") > 0;
  $("degraded").hidden = !degraded;
  const redis = series.some(([n]) => n.startsWith("r8limiter_store_latency"));
  const upstreams = [...new Set(series.filter(([n]) => n.startsWith("r8limiter_upstream_")).map(([, l]) => l.upstream))];
  rows("parts", [
    [redis ? "store: Redis" : "store: memory", degraded ? "fails, is being probed" : ready.ready ? ready.degraded || "answers" : ready.reason,
      mean("r8limiter_store_latency_seconds"), sum(series, "r8limiter_store_errors_total")],
    ...upstreams.filter(Boolean).map((u) => ["upstream: " + u, fitness(series, u),
      mean("r8limiter_upstream_latency_seconds", "upstream", u), sum(series, "r8limiter_upstream_errors_total", "upstream", u)]),
    ...(series.some(([n]) => n === "r8limiter_connections") ? [["clients", count(sum(series, "r8limiter_connections")) + " connections",
      "–", sum(series, "r8limiter_connections_refused_total")]] : []),
  ]);
  const build = series.find(([n]) => n === "r8limiter_build_info");
  show("version", build ? build[1].version : "");
}

// fitness is how many targets of an upstream are in use; echo: has no series of them.
function fitness(series, upstream) {
  const of = (state) => series.reduce((n, [name, l, v]) =>
    name === "r8limiter_upstream_targets" && l.upstream === upstream && l.state === state ? n + v : n, 0);
  const all = of("healthy") + of("ejected");
  return all ? `${of("healthy")} of ${all} healthy` : "built in";
}

async function targets() {
  const list = (await json("/admin/upstreams")).upstreams;
  rows("targets", list.flatMap((u) => u.targets.map((t) => [u.upstream, t.target, () => {
    const state = document.createElement("span");
    state.className = "badge " + (t.state === "healthy" ? "good" : "bad");
    state.textContent = t.state;
    return state;
  }, t.connections])));
}

async function offenders() {
  const [window, bucket] = $("window").elements.window.value.split(" ");
  const list = await json(`/admin/top_offenders?window=${window}&bucket=${bucket}`);
  rows("offenders", list.top_offenders.map((o) => [() => userLink(o.user_id), o.denies]));
}

function userLink(id) {
  const link = document.createElement("a");
  link.href = "#user";
  link.textContent = id;
  link.onclick = () => { $("lookup").elements.user.value = id; lookUp(); };
  return link;
}

async function resources() {
  const list = (await json("/admin/resources")).resources;
  rows("resources", list.map((r) => [r.resource, r.source,
    r.limits.map((l) => `${l.limit}: ${count(l.capacity)}, ${l.refill_rate}${l.per === "resource" ? " for all" : ""}${l.shadow ? " (shadow)" : ""}`).join("; "),
    r.allowed, r.denied, r.last_seen ? new Date(r.last_seen).toLocaleString() : "never"]));
}

async function audit() {
  const list = (await json("/admin/audit?n=10")).audit;
  rows("audit", list.map((e) => [new Date(e.time).toLocaleString(), e.action + (e.detail ? " " + JSON.stringify(e.detail) : ""),
    [e.user_id, e.resource].filter(Boolean).join(", "), e.by.client_ip]));
}

// shown is the user that is looked at, "" for none.
let shown = "";

async function lookUp() {
  shown = $("lookup").elements.user.value;
  await attempt(user);
}

const userPath = () => "/admin/user/" + encodeURIComponent(shown);

async function user() {
  if (!shown) return;
  const state = await json(userPath());
  rows("buckets", state.resources.map((b) => [b.resource, b.limit + (b.per ? " (shared)" : "") + (b.shadow ? " (shadow)" : ""),
    `${b.tokens.toFixed(1)} of ${count(b.capacity)}`, b.full_refill_seconds.toFixed(1) + " s"]));
  $("overrides").replaceChildren(...(state.overrides || []).map((o) => {
    const item = document.createElement("li");
    item.textContent = (o.block ? "blocked" : o.exempt ? "exempt" : `${count(o.capacity)}, ${o.refill_rate}`) +
      (o.resource ? " for " + o.resource : "") + (o.seconds_left ? `, ${Math.ceil(o.seconds_left)} s left` : "") + (o.reason ? ": " + o.reason : "");
    return item;
  }));
  $("user").hidden = false;
}

async function change(path, options) {
  await attempt(async () => { await ask(path, options); await look(); });
}
$("reset").onclick = () => change(userPath() + "/reset", { method: "POST" });
$("drop").onclick = () => change(userPath() + "/override", { method: "DELETE" });
$("block").onclick = () => change(userPath() + "/override", {
  method: "PUT", headers: { "Content-Type": "application/json" },
  body: JSON.stringify({ block: true, ttl: "10m", reason: "blocked on the page" }),
});

// explain says what would become of a request now, by this gateway's rules, or what is
// wrong with the question.
async function explain() {
  const { method, url, ip, headers } = $("question").elements;
  try {
    const question = { method: method.value, url: url.value, headers: fieldsOf(headers.value) };
    if (ip.value) question.ip = ip.value;
    const answer = await ask("/admin/explain?format=text", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(question),
    });
    show("explanation", await answer.text());
  } catch (error) {
    show("explanation", error.message || String(error));
  }
  $("explanation").hidden = false;
}

// fieldsOf reads "Name: value" lines.
function fieldsOf(text) {
  return text.split("\n").filter((line) => line.trim()).map((line) => {
    const colon = line.indexOf(":");
    if (colon < 1) throw new Error(`"${line}" is no header field; write Name: value`);
    return [line.slice(0, colon).trim(), line.slice(colon + 1).trim()];
  });
}
$("question").onsubmit = (event) => { event.preventDefault(); explain(); };

$("lookup").onsubmit = (event) => { event.preventDefault(); lookUp(); };
$("window").onchange = () => attempt(offenders);
$("token").onsubmit = (event) => {
  event.preventDefault();
  token = $("token").querySelector("input").value;
  sessionStorage.setItem("token", token);
  $("token").hidden = true;
  look();
};

// attempt shows what goes wrong, until something goes right.
async function attempt(what) {
  try {
    await what();
    $("trouble").hidden = true;
  } catch (error) {
    $("trouble").hidden = false;
    show("trouble", error.message || String(error));
  }
}

const look = () => attempt(async () => {
  await thisGateway();
  await totals();
  await Promise.all([targets(), offenders(), resources(), audit(), user()]);
});

async function keepLooking() {
  if (!document.hidden) await look();
  setTimeout(keepLooking, every);
}
keepLooking();
