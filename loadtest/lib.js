// What the k6 scripts share: where to ask, how, what an answer must look like,
// which latency is allowed, and the summary. All of it is set by environment:
//
//   TARGET       proxy | allow: the proxy listener, or POST /allow of the control listener
//   STORE        memory | redis: which SLO holds; the gateway's configuration must agree
//   PROXY_URL    http://127.0.0.1:8080
//   CONTROL_URL  http://127.0.0.1:8000
//   ALLOW_TOKEN  admin.allow_token, if it is set
//   P99          milliseconds, instead of the SLO: 10 in memory, 25 with Redis
//   QUICK=1      seconds at low rates, to see that everything works
//
// The limits below are those of config.yaml and config.redis.yaml.
import http from 'k6/http';
import { check } from 'k6';

export const target = oneOf('TARGET', ['proxy', 'allow']);
export const store = oneOf('STORE', ['memory', 'redis']);
export const quick = !['', '0'].includes(__ENV.QUICK || '');
export const proxyURL = __ENV.PROXY_URL || 'http://127.0.0.1:8080';
export const controlURL = __ENV.CONTROL_URL || 'http://127.0.0.1:8000';
export const p99 = number('P99', store === 'redis' ? 25 : 10);

// limits: what the gateway is expected to enforce. CAPACITY and REFILL are for
// a gateway whose `limited` is another than that of the files here.
export const limits = {
  open: { capacity: 1e9, refill: 1e6 },
  limited: { capacity: number('CAPACITY', 40), refill: number('REFILL', 20) },
  slow: { capacity: 5, refill: 4 },
};

function oneOf(name, words) {
  const word = __ENV[name] || words[0];
  if (!words.includes(word)) throw new Error(`${name} is ${word}; write ${words.join(' or ')}`);
  return word;
}

// number reads a positive number from the environment, with another default for QUICK.
export function number(name, normal, hurried = normal) {
  const n = __ENV[name] ? Number(__ENV[name]) : quick ? hurried : normal;
  if (!(n > 0)) throw new Error(`${name} is ${__ENV[name]}; write a number above 0`);
  return n;
}

// Only what the scripts look at: a label `url` would make a series of each user.
const systemTags = ['status', 'scenario', 'check', 'group'];

// options of a script: its scenarios, and the thresholds that all have in
// common. kinds are the kinds of requests whose latency the SLO is about.
export function options(scenarios, kinds, more = {}) {
  const thresholds = {
    http_req_failed: ['rate==0'], // a status that was not expected, or none at all
    checks: ['rate==1'],
    // Load that k6 could not send measured nothing: 1 % may be missing.
    dropped_iterations: [`count<=${Math.floor(planned(scenarios) / 100)}`],
    'http_reqs{status:200}': ['count>0'],
    'http_reqs{status:429}': ['count>=0'], // shows the count
  };
  for (const kind of kinds) thresholds[`http_req_duration{kind:${kind}}`] = [`p(99)<${p99}`];
  Object.assign(thresholds, more);
  latencies.push(...Object.keys(thresholds).filter((name) => name.startsWith('http_req_duration{')));
  return {
    scenarios,
    systemTags,
    summaryTrendStats: ['min', 'med', 'p(95)', 'p(99)', 'max', 'count'],
    noVUConnectionReuse: false,
    thresholds,
  };
}

// latencies are the thresholds' metrics of latency, in the order of the script.
const latencies = [];
const shownStats = ['min', 'med', 'p(95)', 'p(99)', 'max', 'count', 'value', 'passes', 'fails'];

// planned is how many iterations the arrival-rate scenarios are to start.
function planned(scenarios) {
  let sum = 0;
  for (const s of Object.values(scenarios)) {
    if (s.executor === 'constant-arrival-rate') sum += s.rate * seconds(s.duration);
    let rate = s.startRate || 0;
    for (const stage of s.stages || []) {
      sum += ((rate + stage.target) / 2) * seconds(stage.duration);
      rate = stage.target;
    }
  }
  return sum;
}

export function seconds(duration) {
  return Number(duration.replace(/s$/, ''));
}

// arrivals is a scenario that starts `rate` iterations a second, whatever the
// answers take: a closed loop would slow down with the gateway and hide it.
export function arrivals(exec, rate, duration, startTime = 0) {
  return Object.assign({
    executor: 'constant-arrival-rate', rate, duration: `${duration}s`, startTime: `${startTime}s`, exec, gracefulStop: '5s',
  }, virtualUsers(rate));
}

// virtualUsers is enough of them for answers of 50 ms. None are added during
// the run, which would take CPU time when it is scarcest.
export function virtualUsers(rate) {
  const n = Math.min(Math.max(Math.ceil(rate / 20), 50), 1000);
  return { preAllocatedVUs: n, maxVUs: n };
}

// request is what to send for one decision: [method, url, body, params].
// Options: cost; kind, the tag that thresholds go by; method (of the proxy);
// expect, the statuses that are no failure; body: true to read the answer's.
export function request(resource, user, { cost, kind = 'load', method = 'GET', expect = [200], body = false } = {}) {
  const headers = {};
  const params = { headers, tags: { kind }, responseCallback: expected(expect), responseType: body ? 'text' : 'none' };
  if (target === 'allow') {
    if (__ENV.ALLOW_TOKEN) headers.Authorization = `Bearer ${__ENV.ALLOW_TOKEN}`;
    const more = cost === undefined ? '' : `&cost=${cost}`;
    return ['POST', `${controlURL}/allow?user_id=${encodeURIComponent(user)}&resource=${resource}${more}`, null, params];
  }
  headers['X-User-Id'] = user;
  if (cost !== undefined) headers['X-Cost'] = String(cost);
  return [method, `${proxyURL}/${resource}/item`, null, params];
}

const callbacks = {};
function expected(statuses) {
  const key = statuses.join();
  callbacks[key] = callbacks[key] || http.expectedStatuses(...statuses);
  return callbacks[key];
}

export function ask(resource, user, how) {
  return http.request(...request(resource, user, how));
}

export function askAsync(resource, user, how) {
  return http.asyncRequest(...request(resource, user, how));
}

export function header(res, name) {
  const found = Object.keys(res.headers).find((k) => k.toLowerCase() === name.toLowerCase());
  return found === undefined ? undefined : res.headers[found];
}

// judge checks that an answer of 200 or 429 is in the contract's form, and
// returns its body where that is a decision ({} for what the upstream answered).
export function judge(res, resource, cost = 1) {
  const { body, faults } = faultsOf(res, resource, cost);
  const good = check(faults, { 'answers are in the form of the contract': (f) => f.length === 0 });
  if (!good) complain(`${faults.join('; ')}, in the answer ${res.status} ${res.body}`, 'form');
  return body;
}

// complain writes the first fault of each sort that a virtual user sees; a
// broken gateway would otherwise fill the screen.
const complaints = {};
export function complain(text, sort = text) {
  if (!complaints[sort]) console.error(text);
  complaints[sort] = true;
}

function faultsOf(res, resource, cost) {
  const faults = [];
  const must = (holds, text) => { if (!holds) faults.push(text); };
  let body = {};
  try { body = JSON.parse(res.body); } catch { must(false, 'the body is no JSON'); }
  const { capacity, refill } = limits[resource];
  const window = Math.max(1, Math.ceil(capacity / refill));
  const policy = header(res, 'RateLimit-Policy');
  must(policy === `"${resource}";q=${capacity};w=${window}`, `RateLimit-Policy is ${policy}`);
  const state = (header(res, 'RateLimit') || '').match(/^"([^"]+)";r=(\d+);t=(\d+)$/);
  must(state && state[1] === resource && Number(state[2]) <= capacity, `RateLimit is ${header(res, 'RateLimit')}`);
  must(header(res, 'Cache-Control') === 'no-store', 'Cache-Control is not no-store');
  if (res.status === 429) denied(body, state, { res, cost, refill, resource, must });
  else if (target === 'allow') {
    fields(body, ['allowed', 'retry_after', 'tokens_left'], must);
    must(body.allowed === true && body.retry_after === 0, 'a 200 without allowed or with a wait');
    must(header(res, 'Retry-After') === undefined, 'a 200 with Retry-After');
  }
  return { body, faults };
}

function fields(body, wanted, must) {
  const found = Object.keys(body).sort().join();
  must(found === [...wanted].sort().join(), `the body has the fields ${found}`);
}

// denied is what holds of a 429, beside its RateLimit fields.
function denied(body, state, { res, cost, refill, resource, must }) {
  const decision = ['allowed', 'retry_after', 'tokens_left'];
  if (target === 'allow') {
    fields(body, decision, must);
  } else {
    fields(body, decision.concat('type', 'title', 'status', 'detail', 'violated-policies'), must);
    must(header(res, 'Content-Type') === 'application/problem+json', 'Content-Type is not application/problem+json');
    must(body.type === 'https://iana.org/assignments/http-problem-types#quota-exceeded', 'another problem type');
    must(body.status === 429 && body.title === 'Too Many Requests', 'another status or title');
    must(JSON.stringify(body['violated-policies']) === JSON.stringify([resource]), 'other violated-policies');
  }
  must(body.allowed === false, 'a 429 that is allowed');
  must(body.tokens_left >= 0 && body.tokens_left < cost, 'denied with enough tokens left');
  // The wait is the time that the missing tokens take, rounded up to the millisecond.
  const wait = (cost - body.tokens_left) / refill;
  must(body.retry_after >= wait - 1e-6 && body.retry_after <= wait + 0.0015, `retry_after should be ${wait.toFixed(6)}, rounded up`);
  const whole = String(Math.max(1, Math.ceil(body.retry_after)));
  must(header(res, 'Retry-After') === whole, `Retry-After is ${header(res, 'Retry-After')}`);
  must(state && state[3] === whole && Number(state[2]) === Math.floor(body.tokens_left), 'RateLimit tells another wait or rest');
}

// begin fails the run before it starts if the gateway is not there and ready.
export function begin() {
  const ready = http.get(`${controlURL}/readyz`, { tags: { kind: 'setup' } });
  if (ready.status !== 200) throw new Error(`${controlURL}/readyz answers ${ready.status} ${ready.body || ready.error}`);
  const first = ask('open', 'setup', { kind: 'setup' });
  if (first.status !== 200) throw new Error(`the first request is answered ${first.status} ${first.error}`);
}

// someone is one of USERS users of equal demand.
const users = number('USERS', 100000, 1000);
export function someone() {
  return `user-${Math.floor(Math.random() * users)}`;
}

// summary is what handleSummary returns: a few lines, and `shown` of the
// script's own metrics.
export function summary(script, data, shown = []) {
  const m = data.metrics;
  const value = (name, stat) => (m[name] ? m[name].values[stat] || 0 : 0);
  const lines = [
    `${script}: store ${store}, target ${target}${quick ? ', quick' : ''}`,
    `requests ${value('http_reqs', 'count')} (${value('http_reqs', 'rate').toFixed(0)}/s)` +
      `, 200: ${value('http_reqs{status:200}', 'count')}, 429: ${value('http_reqs{status:429}', 'count')}` +
      `, unexpected: ${value('http_req_failed', 'passes')}, not sent: ${value('dropped_iterations', 'count')}`,
  ];
  for (const name of latencies.filter((n) => value(n, 'count') > 0)) {
    const label = name.replace(/.*\{(kind:)?(.*)\}/, '$2').padEnd(20);
    const ms = ['med', 'p(95)', 'p(99)', 'max'].map((s) => `${s.replace('med', 'p50').replace(/[()]/g, '')} ${value(name, s).toFixed(2)}`);
    lines.push(`  ${label} ${ms.join('  ')} ms  (${value(name, 'count')})`);
  }
  for (const name of shown.filter((n) => m[n])) {
    const stats = shownStats.filter((k) => m[name].values[k] !== undefined).map((k) => `${k} ${Number(m[name].values[k].toFixed(4))}`);
    lines.push(`  ${name}: ${stats.join(', ')}`);
  }
  let failed = 0;
  for (const name of Object.keys(m)) {
    for (const [rule, { ok }] of Object.entries(m[name].thresholds || {})) {
      if (!ok) lines.push(`  FAILED ${name} ${rule} (${JSON.stringify(m[name].values)})`);
      failed += ok ? 0 : 1;
    }
  }
  for (const c of (data.root_group || { checks: [] }).checks) {
    if (c.fails > 0) lines.push(`  FAILED "${c.name}" ${c.fails} times of ${c.fails + c.passes}`);
  }
  lines.push(failed ? `${failed} thresholds failed` : 'all thresholds hold', '');
  return { stdout: lines.join('\n') };
}
