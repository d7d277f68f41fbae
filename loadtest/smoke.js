// Smoke: does every kind of answer look as the contract says, and is the latency
// within the SLO at a rate that is no load? A steady trickle of allowed requests,
// and beside it one pass over denials, costs, refusals and the health checks.
//
//   RATE      100 requests a second
//   DURATION  30 s (QUICK: 3)
// The rest is in lib.js.
import http from 'k6/http';
import { check } from 'k6';
import { arrivals, ask, begin, complain, controlURL, header, judge, limits, number, options as make, someone, summary, target } from './lib.js';

export const options = make({
  trickle: arrivals('trickle', number('RATE', 100), number('DURATION', 30, 3)),
  contract: { executor: 'per-vu-iterations', vus: 1, iterations: 1, exec: 'contract' },
}, ['load'], { 'http_reqs{status:429}': ['count>=2'] });

export const setup = begin;

export function trickle() {
  judge(ask('open', someone(), { body: true }), 'open');
}

export function contract() {
  const user = `smoke-${Date.now()}`;
  const deny = { kind: 'contract', expect: [429], body: true };
  spendAll(user);
  holds('a drained bucket denies', judge(ask('slow', user, deny), 'slow').allowed === false);
  holds('a larger cost waits longer', judge(ask('slow', user, { ...deny, cost: 3 }), 'slow', 3).retry_after > 0.25);
  const nothing = ask('slow', user, { kind: 'contract', cost: 0, body: true });
  holds('cost 0 is allowed with no tokens left', nothing.status === 200);
  target === 'allow' ? refusals(user) : denials(user, deny);
  health();
}

function spendAll(user) {
  const all = ask('slow', user, { kind: 'contract', cost: limits.slow.capacity, body: true });
  judge(all, 'slow', limits.slow.capacity);
  holds('a full bucket gives all it has', all.status === 200);
}

// denials are what only the proxy answers.
function denials(user, deny) {
  const head = ask('slow', user, { ...deny, method: 'HEAD', cost: 5 });
  holds('a denied HEAD has Retry-After and no body', header(head, 'Retry-After') === '2' && !head.body);
  const never = ask('slow', user, { ...deny, cost: 6 });
  holds('a cost above the capacity never passes', never.json('retry_after') === null && header(never, 'Retry-After') === undefined);
  holds('a negative cost is refused', ask('slow', user, { kind: 'contract', expect: [400], cost: -1 }).status === 400);
}

// refusals are what only /allow answers.
function refusals(user) {
  for (const cost of [6, -1, 0.5]) {
    const res = ask('slow', user, { kind: 'contract', expect: [400], cost, body: true });
    holds(`cost ${cost} is refused with a reason`, res.status === 400 && res.json('error').length > 0);
  }
}

function health() {
  const get = (path) => http.get(controlURL + path, { tags: { kind: 'contract' }, responseType: 'text' });
  holds('/livez says alive', get('/livez').json('alive') === true);
  holds('/readyz says ready', get('/readyz').json('ready') === true);
  holds('/metrics counts both results', /requests_total\{result="allow"\} \d[^]*requests_total\{result="deny"\} [1-9]/.test(get('/metrics').body));
}

function holds(name, ok) {
  if (!check(ok, { [name]: (x) => x })) complain(`not so: ${name}`);
}

export function handleSummary(data) {
  return summary('smoke', data);
}
