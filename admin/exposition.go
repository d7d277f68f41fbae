package admin

import (
	"bytes"
	"slices"
	"sync"
)

// family is what /metrics says about the series of one name. A histogram and a
// summary also own the series of that name with _bucket, _sum and _count.
type family struct {
	kind string // counter, gauge, histogram, summary or untyped
	help string // one sentence, without a line end or a backslash
}

// families are all that this program exposes; a test compares them with what a
// running one shows. Three names of the library would be faulty for a counter
// or a gauge: they are untyped, which keeps them as dashboards know them.
var families = map[string]family{
	"requests_total":          {"counter", "Decisions of this gateway by result, allow or deny."},
	"active_keys":             {"gauge", "Buckets that are not full, as far as this gateway knows; it counts a million at most."},
	"request_latency_seconds": {"histogram", "Time from the end of a request's head to the end of its answer, the upstream's part included, by endpoint."},

	"r8limiter_config_last_reload_successful":                {"gauge", "Whether the configuration file could be put in force when it was last read, 0 or 1."},
	"r8limiter_config_last_reload_success_timestamp_seconds": {"gauge", "When the configuration file was last read and could be put in force, in Unix time."},
	"r8limiter_config_reloads_total":                         {"counter", "Reloads of the configuration file by result: applied, unchanged, or failed, which left the old one in force."},

	"r8limiter_build_info":                       {"gauge", "Always 1; the labels hold the version of this program and of Go."},
	"r8limiter_connections_refused_total":        {"counter", "Clients' connections refused, by the limit that was reached; handshake: TLS or PROXY protocol failed."},
	"r8limiter_certificate_not_after_seconds":    {"gauge", "When the first certificate of a listener expires, in Unix time."},
	"r8limiter_certificate_reload_successful":    {"gauge", "Whether all files of a listener's TLS could be used when they were last read, 0 or 1."},
	"r8limiter_connections":                      {"gauge", "Open connections of clients by listener."},
	"r8limiter_jwt_cache_hits_total":             {"counter", "Tokens that were verified before and served from the cache."},
	"r8limiter_jwt_keys":                         {"gauge", "Keys that tokens are verified with; 0 until they were fetched, or without proxy.jwt."},
	"r8limiter_jwt_refresh_errors_total":         {"counter", "Fetches of proxy.jwt.jwks_url that failed; the keys from before stay in force."},
	"r8limiter_jwt_verifications_total":          {"counter", "Tokens looked at, those from the cache excepted, by result."},
	"r8limiter_lease_tokens":                     {"gauge", "Tokens that this gateway has debited in advance and not spent."},
	"r8limiter_lease_tokens_total":               {"counter", "Tokens of leases by event: granted, returned unspent, or lost unspent."},
	"r8limiter_decisions_total":                  {"counter", "Decisions by route, binding limit, outcome and reason."},
	"r8limiter_figures_dropped_total":            {"counter", "Denials that found no room in the bounded statistics of users."},
	"r8limiter_figures_flush_errors_total":       {"counter", "Flushes of fleet-wide figures to Redis that failed; each loses a second of statistics."},
	"r8limiter_log_dropped_total":                {"counter", "Log lines dropped because the log's buffer was full."},
	"r8limiter_overhead_seconds":                 {"histogram", "Time that this gateway added to a request, without the upstream's part and the waits for the client, by endpoint."},
	"r8limiter_panics_total":                     {"counter", "Requests, streams and connections that ended by a bug in this program, by listener."},
	"r8limiter_problems_total":                   {"counter", "Answers of the proxy's own, denials excepted, by status; 499: the client left before there was one."},
	"r8limiter_settings_errors_total":            {"counter", "Polls of persisted limits and overrides that failed."},
	"r8limiter_settings_version":                 {"gauge", "Version of persisted limits and overrides in force here."},
	"r8limiter_store_breaker_open":               {"gauge", "Servers of Redis that fail and are being probed."},
	"r8limiter_store_breaker_opened_total":       {"counter", "How often a server of Redis was found to fail."},
	"r8limiter_store_condition":                  {"gauge", "Whether something is the matter with how Redis is set up, 0 or 1, by kind; the log says what."},
	"r8limiter_store_connections":                {"gauge", "Connections to Redis by state, idle or used."},
	"r8limiter_store_decisions_total":            {"counter", "Decisions of the Redis store by what made them: a call, a denial that was known, or a lease."},
	"r8limiter_store_degraded":                   {"gauge", "Whether on_store_error decides for some requests at present, 0 or 1."},
	"r8limiter_store_errors_total":               {"counter", "Decisions for which Redis gave no answer of use, by kind of error."},
	"r8limiter_store_evicted_keys_total":         {"counter", "Keys that Redis evicted since this gateway first looked, buckets or not."},
	"r8limiter_store_idempotency_overflow_total": {"counter", "Idempotency keys that the in-memory store forgot before their time for want of room."},
	"r8limiter_store_latency_seconds":            {"histogram", "Time that Redis took for a decision, failed ones included."},
	"r8limiter_store_noscript_total":             {"counter", "Decisions that had to send the script again because Redis had forgotten it."},
	"r8limiter_store_owed_buckets":               {"gauge", "Buckets with tokens that were spent while Redis failed and are to be debited."},
	"r8limiter_store_owed_tokens_dropped_total":  {"counter", "Tokens spent while Redis failed that could not be debited afterwards."},
	"r8limiter_store_owed_tokens_settled_total":  {"counter", "Tokens spent while Redis failed that were debited afterwards."},
	"r8limiter_store_refunds_lost_total":         {"counter", "Decisions in two slots of a cluster whose first part could not be given back after the second denied."},
	"r8limiter_store_overflow_total":             {"counter", "Buckets that the in-memory store forgot before they were full for want of room."},
	"r8limiter_upstream_connections":             {"gauge", "Connections to an upstream by state; those that are open include the idle ones."},
	"r8limiter_upstream_errors_total":            {"counter", "Forwarded requests that got no whole answer, by upstream and kind of error; client: its body failed or it left, local: no descriptor or port left here."},
	"r8limiter_upstream_latency_seconds":         {"histogram", "Time from forwarding a request until the head of the answer, by upstream."},
	"r8limiter_upstream_requests_total":          {"counter", "Answers of an upstream by class of status."},
	"r8limiter_upstream_retries_total":           {"counter", "Further attempts to send a request that the upstream had not begun with, by upstream."},
	"r8limiter_upstream_targets":                 {"gauge", "Targets of an upstream by state, healthy or ejected."},

	"go_cgo_calls_count":                            {"untyped", "Calls from Go to C."},
	"go_cpu_count":                                  {"untyped", "Logical processors that this process can use."},
	"go_gc_cpu_seconds_total":                       {"counter", "Estimated processor time spent on garbage collection."},
	"go_gc_duration_seconds":                        {"summary", "Time that the program stood still for garbage collections, by quantile."},
	"go_gc_forced_count":                            {"untyped", "Garbage collections that the program asked for."},
	"go_gc_mark_assist_cpu_seconds_total":           {"counter", "Estimated processor time that goroutines spent helping the garbage collector."},
	"go_gc_pauses_seconds":                          {"histogram", "Time that the program stood still for a garbage collection."},
	"go_gomaxprocs":                                 {"gauge", "Threads that can run Go code at the same time."},
	"go_goroutines":                                 {"gauge", "Goroutines that exist."},
	"go_info":                                       {"gauge", "Always 1; the label holds the version of Go."},
	"go_info_ext":                                   {"gauge", "Always 1; the labels hold the compiler and the platform."},
	"go_memlimit_bytes":                             {"gauge", "Soft limit of the Go runtime's memory, as set by GOMEMLIMIT."},
	"go_memstats_alloc_bytes":                       {"gauge", "Memory of heap objects, those included that wait to be freed."},
	"go_memstats_alloc_bytes_total":                 {"counter", "Memory allocated for heap objects so far, freed or not."},
	"go_memstats_buck_hash_sys_bytes":               {"gauge", "Memory of the profiler's hash tables."},
	"go_memstats_frees_total":                       {"counter", "Heap objects that were freed."},
	"go_memstats_gc_cpu_fraction":                   {"gauge", "Fraction of the available processor time that garbage collection took since the start."},
	"go_memstats_gc_sys_bytes":                      {"gauge", "Memory of the garbage collector's own data."},
	"go_memstats_heap_alloc_bytes":                  {"gauge", "Memory of heap objects, those included that wait to be freed."},
	"go_memstats_heap_idle_bytes":                   {"gauge", "Memory in heap spans without an object."},
	"go_memstats_heap_inuse_bytes":                  {"gauge", "Memory in heap spans with an object."},
	"go_memstats_heap_objects":                      {"gauge", "Heap objects, those included that wait to be freed."},
	"go_memstats_heap_released_bytes":               {"gauge", "Heap memory given back to the operating system."},
	"go_memstats_heap_sys_bytes":                    {"gauge", "Heap memory obtained from the operating system."},
	"go_memstats_last_gc_time_seconds":              {"gauge", "When the last garbage collection ended, in Unix time."},
	"go_memstats_lookups_total":                     {"counter", "Pointers that the runtime looked up."},
	"go_memstats_mallocs_total":                     {"counter", "Heap objects that were allocated."},
	"go_memstats_mcache_inuse_bytes":                {"gauge", "Memory of the allocator's caches in use."},
	"go_memstats_mcache_sys_bytes":                  {"gauge", "Memory obtained for the allocator's caches."},
	"go_memstats_mspan_inuse_bytes":                 {"gauge", "Memory of the descriptions of heap spans in use."},
	"go_memstats_mspan_sys_bytes":                   {"gauge", "Memory obtained for the descriptions of heap spans."},
	"go_memstats_next_gc_bytes":                     {"gauge", "Size of the heap at which the next garbage collection begins."},
	"go_memstats_other_sys_bytes":                   {"gauge", "Memory of the runtime that no other figure counts."},
	"go_memstats_stack_inuse_bytes":                 {"gauge", "Memory of stacks in use."},
	"go_memstats_stack_sys_bytes":                   {"gauge", "Memory obtained for stacks."},
	"go_memstats_sys_bytes":                         {"gauge", "Memory obtained from the operating system in all."},
	"go_mutex_wait_seconds_total":                   {"counter", "Estimated time that goroutines waited for a mutex."},
	"go_sched_latencies_seconds":                    {"histogram", "Time that goroutines were ready before they ran."},
	"go_scavenge_cpu_seconds_total":                 {"counter", "Estimated processor time spent on giving memory back."},
	"go_threads":                                    {"gauge", "Threads that the runtime created."},
	"process_cpu_seconds_system_total":              {"counter", "Processor time spent in the kernel."},
	"process_cpu_seconds_total":                     {"counter", "Processor time spent in the kernel and in the program."},
	"process_cpu_seconds_user_total":                {"counter", "Processor time spent in the program itself."},
	"process_io_read_bytes_total":                   {"counter", "Bytes read by system calls."},
	"process_io_read_syscalls_total":                {"counter", "System calls that read."},
	"process_io_storage_read_bytes_total":           {"counter", "Bytes read from storage."},
	"process_io_storage_written_bytes_total":        {"counter", "Bytes written to storage."},
	"process_io_write_syscalls_total":               {"counter", "System calls that wrote."},
	"process_io_written_bytes_total":                {"counter", "Bytes written by system calls."},
	"process_major_pagefaults_total":                {"counter", "Page faults that had to read from storage."},
	"process_max_fds":                               {"gauge", "File descriptors that the process may have open."},
	"process_minor_pagefaults_total":                {"counter", "Page faults that needed no storage."},
	"process_num_threads":                           {"gauge", "Threads of the process."},
	"process_open_fds":                              {"gauge", "File descriptors that are open."},
	"process_pressure_cpu_stalled_seconds_total":    {"counter", "Time in which no process of this control group got the processor it waited for."},
	"process_pressure_cpu_waiting_seconds_total":    {"counter", "Time in which some process of this control group waited for a processor."},
	"process_pressure_io_stalled_seconds_total":     {"counter", "Time in which all processes of this control group waited for input or output."},
	"process_pressure_io_waiting_seconds_total":     {"counter", "Time in which some process of this control group waited for input or output."},
	"process_pressure_memory_stalled_seconds_total": {"counter", "Time in which all processes of this control group waited for memory."},
	"process_pressure_memory_waiting_seconds_total": {"counter", "Time in which some process of this control group waited for memory."},
	"process_resident_memory_anon_bytes":            {"gauge", "Resident memory that no file backs."},
	"process_resident_memory_bytes":                 {"gauge", "Resident memory."},
	"process_resident_memory_file_bytes":            {"gauge", "Resident memory that maps files."},
	"process_resident_memory_peak_bytes":            {"gauge", "Largest resident memory so far."},
	"process_resident_memory_shared_bytes":          {"gauge", "Resident memory shared with other processes."},
	"process_start_time_seconds":                    {"gauge", "When the process started, in Unix time."},
	"process_virtual_memory_bytes":                  {"gauge", "Virtual memory."},
	"process_virtual_memory_peak_bytes":             {"gauge", "Largest virtual memory so far."},
}

// partSuffixes name the series that a histogram or a summary consists of.
var partSuffixes = [][]byte{[]byte("_bucket"), []byte("_sum"), []byte("_count")}

// familyOf is the name of the family that a series of this name belongs to:
// its own, unless it is a part of a histogram or a summary that is known.
func familyOf(series []byte) []byte {
	if _, known := families[string(series)]; known {
		return series
	}
	for _, suffix := range partSuffixes {
		name, ok := bytes.CutSuffix(series, suffix)
		if kind := families[string(name)].kind; ok && (kind == "histogram" || kind == "summary") {
			return name
		}
	}
	return series
}

// exposition gathers series from wherever they come and shows them as the text
// format wants them: each family in one piece, with HELP and TYPE before it.
// The library's own metadata has no texts, and would be there once for each set.
type exposition struct {
	raw     bytes.Buffer // what was gathered
	samples []sample
	shown   []byte
}

// sample is one line. Both parts lie in the exposition's raw.
type sample struct{ family, line []byte }

// expositions keep the memory of a scrape for the next one.
var expositions = sync.Pool{New: func() any { return new(exposition) }}

// end gives e back.
func (e *exposition) end() {
	e.raw.Reset()
	clear(e.samples)
	expositions.Put(e)
}

// text is what was gathered, by family; it is e's memory. A family that the
// table lacks is untyped and has no help.
func (e *exposition) text() []byte {
	e.split()
	// Within a family the order stays: text order is not that of le.
	slices.SortStableFunc(e.samples, func(a, b sample) int { return bytes.Compare(a.family, b.family) })
	e.shown = e.shown[:0]
	var last []byte
	for _, s := range e.samples {
		if !bytes.Equal(s.family, last) {
			last = s.family
			e.shown = appendHead(e.shown, last)
		}
		e.shown = append(append(e.shown, s.line...), '\n')
	}
	return e.shown
}

// split finds the samples. A label's value has no line end in this format, and
// a name has neither a brace nor a space.
func (e *exposition) split() {
	e.samples = e.samples[:0]
	for line := range bytes.Lines(e.raw.Bytes()) {
		line = bytes.TrimSuffix(line, []byte("\n"))
		if end := bytes.IndexAny(line, "{ "); end > 0 && line[0] != '#' {
			e.samples = append(e.samples, sample{familyOf(line[:end]), line})
		}
	}
}

// appendHead appends the lines that precede a family.
func appendHead(dst, name []byte) []byte {
	f, known := families[string(name)]
	if !known {
		f.kind = "untyped"
	}
	if known {
		dst = append(append(dst, "# HELP "...), name...)
		dst = append(append(append(dst, ' '), f.help...), '\n')
	}
	dst = append(append(dst, "# TYPE "...), name...)
	return append(append(append(dst, ' '), f.kind...), '\n')
}
