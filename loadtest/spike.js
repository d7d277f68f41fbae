// Spike: a crowd of a few users falls upon a gateway with ordinary traffic. It
// must be denied what is above its limits, and neither it nor the ordinary
// users, during the spike and after it, may wait longer than the SLO says.
//
//   BASE    1000 requests a second of ordinary users, all the time (QUICK: 50)
//   RATE    10000 requests a second of the crowd (QUICK: 500)
//   CROWD   10 users (QUICK: 2)
//   BEFORE, SPIKE, AFTER   30, 60 and 60 s (QUICK: 1 each)
// The rest is in lib.js.
import { Counter, Rate } from 'k6/metrics';
import exec from 'k6/execution';
import { arrivals, ask, begin, limits, number, options as make, someone, summary } from './lib.js';

const base = number('BASE', 1000, 50);
const rate = number('RATE', 10000, 500);
const crowdSize = number('CROWD', 10, 2);
const before = number('BEFORE', 30, 1);
const spike = number('SPIKE', 60, 1);
const after = number('AFTER', 60, 1);

// What all limits of the crowd let through from its first request until the
// last answer that k6 waits for, 5 s after the end.
const { capacity, refill } = limits.limited;
const bound = crowdSize * (capacity + refill * (spike + 5));

export const options = make({
  before: arrivals('ordinary', base, before),
  during: arrivals('ordinary', base, spike, before),
  after: arrivals('ordinary', base, after, before + spike),
  crowd: arrivals('crowd', rate, spike, before),
}, ['before', 'during', 'after', 'crowd'], {
  crowd_admitted: [`count<=${bound}`],
  crowd_denied: ['rate>0.5'], // or it was no spike
});

const crowdAdmitted = new Counter('crowd_admitted');
const crowdDenied = new Rate('crowd_denied');

export function setup() {
  begin();
  return { run: Date.now() }; // fresh users, whose buckets are full
}

export function ordinary() {
  ask('open', someone(), { kind: exec.scenario.name });
}

export function crowd(data) {
  const user = `crowd-${data.run}-${Math.floor(Math.random() * crowdSize)}`;
  const res = ask('limited', user, { kind: 'crowd', expect: [200, 429] });
  crowdDenied.add(res.status === 429);
  if (res.status === 200) crowdAdmitted.add(1);
}

export function handleSummary(data) {
  return summary('spike', data, ['crowd_admitted', 'crowd_denied']);
}
