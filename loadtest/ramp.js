// Ramp: which rate does a gateway hold? STEPS steps up to RATE, each a climb and
// then a plateau, with allowed requests of many users. Each plateau's latency is
// judged by itself: the first step that fails is beyond the knee.
//
//   RATE   20000 requests a second at the last step (QUICK: 500)
//   STEPS  5
//   CLIMB  10 s to the next rate (QUICK: 1)
//   HOLD   30 s on it (QUICK: 1)
// The rest is in lib.js.
import exec from 'k6/execution';
import { ask, begin, number, options as make, p99, someone, summary, virtualUsers } from './lib.js';

const rate = number('RATE', 20000, 500);
const steps = number('STEPS', 5, 2);
const climb = number('CLIMB', 10, 1);
const hold = number('HOLD', 30, 1);

// nameOf says a step by its rate, padded so that the summary sorts.
const rateOf = (step) => Math.round((rate * step) / steps);
const nameOf = (step) => `step_${step}_${rateOf(step)}`;

const stages = [];
const perStep = {};
for (let step = 1; step <= steps; step++) {
  stages.push({ target: rateOf(step), duration: `${climb}s` }, { target: rateOf(step), duration: `${hold}s` });
  perStep[`http_req_duration{kind:${nameOf(step)}}`] = [`p(99)<${p99}`];
}

export const options = make({
  ramp: Object.assign({ executor: 'ramping-arrival-rate', startRate: 0, stages, exec: 'ramp', gracefulStop: '5s' }, virtualUsers(rate)),
}, [], perStep);

export const setup = begin;

export function ramp() {
  const elapsed = (Date.now() - exec.scenario.startTime) / 1000;
  const step = Math.min(Math.floor(elapsed / (climb + hold)) + 1, steps);
  const plateau = elapsed - (step - 1) * (climb + hold) >= climb;
  ask('open', someone(), { kind: plateau ? nameOf(step) : 'climb' });
}

export function handleSummary(data) {
  return summary('ramp', data);
}
