// Soak: does anything grow, leak or slow down? A steady mix for hours, nine of
// ten requests allowed and one of ten on limits that mostly deny, while the
// gateway's own /metrics are read: memory, goroutines and file descriptors
// against what they were when the first fifth was over, store errors, lost log
// lines, panics, refused connections.
//
//   RATE      1000 requests a second (QUICK: 200)
//   DURATION  3600 s (QUICK: 6)
//   GROWTH    1.5: how many times its memory the gateway may have later on
// k6 keeps every sample: some 0.5 kB a request, thus 1.7 GB for that hour.
// The rest is in lib.js.
import http from 'k6/http';
import { Counter, Trend } from 'k6/metrics';
import exec from 'k6/execution';
import { arrivals, ask, begin, complain, controlURL, number, options as make, p99, someone, summary } from './lib.js';

const rate = number('RATE', 1000, 200);
const duration = number('DURATION', 3600, 6);
const warm = duration / 5;
const every = Math.min(10, duration / 20);
const slack = 16 << 20; // bytes that come and go with the collector, whatever the size

export const options = make({
  mix: arrivals('mix', rate, duration),
  watch: { executor: 'constant-arrival-rate', rate: 1, timeUnit: `${every}s`, duration: `${duration}s`, preAllocatedVUs: 1, maxVUs: 1, exec: 'watch' },
}, ['allowed', 'limited'], {
  'http_req_duration{third:first}': [`p(99)<${p99}`],
  'http_req_duration{third:last}': [`p(99)<${p99}`],
  'http_reqs{status:429}': ['count>0'],
  memory_growth: [`max<${number('GROWTH', 1.5)}`],
  goroutines_growth: [`max<${number('GROWTH', 1.5)}`],
  fds_growth: [`max<${number('GROWTH', 1.5)}`],
  troubles: ['count==0'],
});

const memoryMB = new Trend('memory_mb');
const growth = { memory: new Trend('memory_growth'), goroutines: new Trend('goroutines_growth'), fds: new Trend('fds_growth') };
const troubles = new Counter('troubles'); // of the gateway, by its own count

export const setup = begin;

const elapsed = () => (Date.now() - exec.scenario.startTime) / 1000;

export function mix() {
  const third = ['first', 'middle', 'last'][Math.min(2, Math.floor((3 * elapsed()) / duration))];
  exec.vu.metrics.tags.third = third;
  if (Math.random() < 0.9) ask('open', someone(), { kind: 'allowed' });
  // One user for each 20 requests a second of this kind: four of five are denied.
  else ask('slow', `hot-${Math.floor((Math.random() * rate) / 200)}`, { kind: 'limited', expect: [200, 429] });
}

let start; // what there was after the warm-up; the one virtual user of `watch` keeps it

export function watch() {
  const { body } = http.get(`${controlURL}/metrics`, { tags: { kind: 'watch' }, responseType: 'text' });
  const now = { memory: sum(body, /^process_resident_memory_bytes /), goroutines: sum(body, /^go_goroutines /), fds: sum(body, /^process_open_fds /) };
  memoryMB.add(now.memory / (1 << 20));
  const bad = sum(body, /^r8limiter_(store_.*errors_total|panics_total|log_dropped_total|connections_refused_total\{listener="proxy",reason="connections)/);
  if (bad > 0) complain(`the gateway counts ${bad} store errors, panics, lost log lines and connections for which there was no room`);
  troubles.add(bad);
  if (elapsed() < warm) return;
  start = start || now;
  growth.memory.add((now.memory + slack) / (start.memory + slack));
  growth.goroutines.add((now.goroutines + 50) / (start.goroutines + 50));
  growth.fds.add((now.fds + 50) / (start.fds + 50));
}

// sum adds up the series of /metrics whose lines match; none is a failure, for
// a metric that is gone would pass every comparison.
function sum(text, which) {
  const lines = text.split('\n').filter((l) => which.test(l));
  if (lines.length === 0) throw new Error(`/metrics has nothing like ${which}`);
  return lines.reduce((n, l) => n + Number(l.slice(l.lastIndexOf(' '))), 0);
}

export function handleSummary(data) {
  return summary('soak', data, ['memory_mb', 'memory_growth', 'goroutines_growth', 'fds_growth', 'troubles']);
}
