// Limit accuracy, by what a client sees.
//
// accuracy: USERS users ask for `limited` more often than they may, each over
// LANES connections at once. Of what each was admitted:
//   - over ANY interval of t seconds at most capacity + refill * t, with t from
//     the sending of the first to the answer of the last (so it is never taken
//     too short, and one admission above the bound is seen);
//   - over the whole run at least 97 % of capacity + refill * t, with t from
//     the first denial to the last sending: until it is drained, a bucket may be
//     full again and gain nothing. Only where k6 or the gateway stands still for
//     the two seconds in which a bucket gets full is less admitted without a fault.
// waiting: users who are alone drain `slow`, then come again exactly
// `retry_after` after the denial, or `Retry-After`, and must be admitted; those
// who come before it must not. Every denial must be in the contract's form.
//
//   USERS     20 (QUICK: 8)
//   LANES     4 connections a user
//   DEMAND    4 times the refill rate
//   DURATION  30 s (QUICK: 5)
//   WAITERS   10 (QUICK: 4), and ROUNDS of waiting, 10 (QUICK: 2)
//   CAPACITY, REFILL   what `limited` should be: 40 and 20
// The rest is in lib.js.
import { check, sleep } from 'k6';
import { Counter, Trend } from 'k6/metrics';
import exec from 'k6/execution';
import { setTimeout } from 'k6/timers';
import { ask, askAsync, begin, complain, header, judge, limits, number, options as make, summary } from './lib.js';

const users = number('USERS', 20, 8);
const lanes = number('LANES', 4);
const demand = number('DEMAND', 4);
const duration = number('DURATION', 30, 5);
const waiters = number('WAITERS', 10, 4);
const rounds = number('ROUNDS', 10, 2);
const { capacity, refill } = limits.limited;

// once is a scenario in which each virtual user is one user, for one iteration.
const once = (name, vus) => ({ executor: 'per-vu-iterations', vus, iterations: 1, exec: name, maxDuration: `${duration + 60 * rounds}s` });

export const options = make({ accuracy: once('accuracy', users), waiting: once('waiting', waiters) }, ['accuracy', 'waiting'], {
  'http_reqs{status:429}': ['count>0'],
  upper: ['max<=1'],
  lower: ['min>=0.97'],
  judged: [`count==${users}`], // a Trend without samples passes everything
  early_denied: ['count>0'],
});

const upper = new Trend('upper'); // admitted of what the bound allows, the worst interval of each user
const lower = new Trend('lower'); // the same of the whole run, with the shorter t
const judged = new Counter('judged'); // users with an upper and a lower
const early = new Counter('early_denied'); // clients that came before their time

export const setup = begin;

// accuracy sends as one user over several connections, then judges what came back.
export async function accuracy() {
  const user = `accuracy-${Date.now()}-${exec.vu.idInTest}`;
  const answers = [];
  const end = Date.now() + duration * 1000;
  const running = [];
  for (let i = 0; i < lanes; i++) running.push(lane(user, end, answers));
  await Promise.all(running);
  const admitted = answers.filter((a) => a.status === 200);
  const most = worstInterval(admitted);
  upper.add(most.share);
  const denials = answers.filter((a) => a.status === 429);
  const bound = capacity + refill * seconds(Math.min(...denials.map((a) => a.received)), Math.max(...answers.map((a) => a.sent)));
  lower.add(admitted.length / bound);
  judged.add(1);
  if (!check(most, { 'never more than capacity + refill * t': (w) => w.share <= 1 })) {
    complain(`${user} was admitted ${most.count} times within ${most.t} s; the bound is ${capacity + refill * most.t}`, 'upper');
  }
  if (!check(admitted.length, { 'at least 97 % of what the bound allows': (n) => n >= 0.97 * bound })) {
    complain(`${user} was admitted ${admitted.length} times; the bound is ${bound}`, 'lower');
  }
  check(answers.length, { 'the demand is above the bound': (n) => n > 1.5 * bound });
}

// lane is one connection of a user. It drains the bucket as fast as it can and
// then keeps to a pace, out of step with the others; up to a second of a stall
// is made up for, so that the demand stays what it should be.
async function lane(user, end, answers) {
  const pause = (1000 * lanes) / (demand * refill);
  let drained = false;
  for (let next = Date.now(), now = next; now < end; now = Date.now()) {
    await wait(next - now);
    const sent = Date.now();
    const res = await askAsync('limited', user, { kind: 'accuracy', expect: [200, 429], body: true });
    answers.push({ sent, received: Date.now() + 1, status: res.status }); // the clock cuts off what is below a millisecond
    judge(res, 'limited');
    if (drained) next = Math.max(next + pause, sent - 1000);
    else if (res.status === 429) next = sent + pause * (1 + Math.random());
    drained = drained || res.status === 429;
  }
}

function wait(ms) {
  return ms > 0 ? new Promise((done) => setTimeout(done, ms)) : undefined;
}

const seconds = (from, to) => (to - from) / 1000;

// worstInterval looks at every interval from the sending of one admitted
// request to the answer of another, and returns the one that used most of its bound.
function worstInterval(admitted) {
  const byAnswer = [...admitted].sort((a, b) => a.received - b.received);
  let worst = { share: 0, count: 0, t: 0 };
  for (const { sent } of admitted) {
    let count = 0;
    for (const a of byAnswer) {
      if (a.sent < sent) continue;
      count++;
      const t = seconds(sent, a.received);
      const share = count / (capacity + refill * t);
      if (share > worst.share) worst = { share, count, t };
    }
  }
  return worst;
}

// waiting is a user who is alone and comes again when it was told to.
export function waiting() {
  const user = `waiting-${Date.now()}-${exec.vu.idInTest}`;
  const spend = ask('slow', user, { kind: 'waiting', cost: limits.slow.capacity, body: true });
  check(spend, { 'a full bucket gives all it has': (r) => r.status === 200 });
  for (let round = 0; round < rounds; round++) {
    for (const cost of [1, 3]) {
      comeEarly(user, cost);
      comeBack(user, cost, (res, body) => body.retry_after, 'who waits exactly retry_after is admitted');
    }
    comeBack(user, limits.slow.capacity, (res) => Number(header(res, 'Retry-After')), 'who waits exactly Retry-After is admitted');
  }
}

// refused spends until it is denied and returns what the denial says; a machine
// that is slow may have refilled the bucket a little since the last answer.
function refused(user, cost) {
  for (let i = 0; i < 20; i++) {
    const sent = Date.now();
    const res = ask('slow', user, { kind: 'waiting', cost, expect: [200, 429], body: true });
    const body = judge(res, 'slow', cost);
    if (res.status === 429) return { sent, res, body };
  }
  throw new Error(`${user} was never denied cost ${cost}`);
}

// comeEarly asks again after half of the wait. Only an answer that came before
// the whole of it was over, counted from before the first question, is judged.
function comeEarly(user, cost) {
  const { sent, body } = refused(user, cost);
  sleep(body.retry_after / 2);
  const res = ask('slow', user, { kind: 'waiting', cost, expect: [200, 429], body: true });
  const left = sent + body.retry_after * 1000 - Date.now();
  judge(res, 'slow', cost);
  if (left <= 1) return;
  check(res, { 'who comes early is denied': (r) => r.status === 429 });
  early.add(1);
}

function comeBack(user, cost, waitOf, name) {
  const { res, body } = refused(user, cost);
  sleep(waitOf(res, body));
  const again = ask('slow', user, { kind: 'waiting', cost, expect: [200, 429], body: true });
  judge(again, 'slow', cost);
  if (!check(again, { [name]: (r) => r.status === 200 })) complain(`${user} waited ${waitOf(res, body)} s for ${cost} and got ${again.body}`, name);
}

export function handleSummary(data) {
  return summary('limits', data, ['upper', 'lower', 'judged', 'early_denied']);
}
