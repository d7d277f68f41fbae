package proxy

import (
	"fmt"
	"time"
)

// LimitsConfig bounds what a client may take up: time, bytes and connections.
// What is larger is refused with the status given here; what is slower ends the
// connection.
type LimitsConfig struct {
	// HeaderBytes bounds a request head, the request line included; 431.
	HeaderBytes int `yaml:"header_bytes"`
	// HeaderFields bounds the number of fields in a head; 431.
	HeaderFields int `yaml:"header_fields"`
	// TargetBytes bounds the request target; 414.
	TargetBytes int `yaml:"target_bytes"`
	// BodyBytes bounds a request body without its framing, chunked or not; 413.
	BodyBytes int64 `yaml:"body_bytes"`
	// HeaderTimeout bounds the time from the first byte of a head to its last,
	// and a TLS handshake; 408.
	HeaderTimeout time.Duration `yaml:"header_timeout"`
	// BodyTimeout bounds the wait between two reads of a body; 408.
	BodyTimeout time.Duration `yaml:"body_timeout"`
	// MinBodyRate is how many bytes a second a body must bring on average, once
	// it has been waited for longer than 10s (bodyGrace); 408. 0: any.
	MinBodyRate int `yaml:"min_body_rate"`
	// WriteTimeout bounds the wait until a client has taken a piece of an answer
	// (32 KiB at most).
	WriteTimeout time.Duration `yaml:"write_timeout"`
	// KeepAliveTimeout is how long a connection may wait for its next request.
	KeepAliveTimeout time.Duration `yaml:"keep_alive_timeout"`
	// Connections bounds the clients' connections; 503. 0: four fifths of the
	// process's limit of open files.
	Connections int `yaml:"connections"`
	// ConnectionsPerClient bounds those of one address, or of one IPv6 network of
	// ipv6_prefix bits; 503. Trusted proxies are not bounded. 0: no bound.
	ConnectionsPerClient int `yaml:"connections_per_client"`
	// Streams bounds the requests at a time on one HTTP/2 connection.
	Streams int `yaml:"streams"`
}

func defaultLimits() LimitsConfig {
	return LimitsConfig{
		HeaderBytes: 16 << 10, HeaderFields: 100, TargetBytes: 8 << 10, BodyBytes: 10 << 20,
		HeaderTimeout: 10 * time.Second, BodyTimeout: 60 * time.Second, MinBodyRate: 240,
		WriteTimeout: 30 * time.Second, KeepAliveTimeout: 60 * time.Second,
		Streams: 100,
	}
}

// withDefaults fills in what depends on the process.
func (l LimitsConfig) withDefaults() LimitsConfig {
	if l.Connections == 0 {
		l.Connections = defaultConnections()
	}
	return l
}

// bodyGrace is how long a body may be waited for before its rate counts.
const bodyGrace = 10 * time.Second

// tooThin says whether a body of which size bytes came in waited is below
// min_body_rate.
func (l *LimitsConfig) tooThin(size int64, waited time.Duration) bool {
	late := waited - bodyGrace
	return late > 0 && float64(size) < late.Seconds()*float64(l.MinBodyRate)
}

func (l *LimitsConfig) validate(report func(key, problem string)) {
	sound := true // header_bytes is
	checkCount("header_bytes", int64(l.HeaderBytes), 1<<10, 1<<20, " bytes", func(key, problem string) {
		sound = false
		report(key, problem)
	})
	checkCount("header_fields", int64(l.HeaderFields), 1, 10_000, " fields", report)
	switch {
	case l.TargetBytes < 1:
		report("target_bytes", fmt.Sprintf("is %d bytes; must be at least 1", l.TargetBytes))
	case sound && l.TargetBytes > l.HeaderBytes:
		report("target_bytes", fmt.Sprintf("is %d bytes; must be at most header_bytes (%d), for the target is part of the head", l.TargetBytes, l.HeaderBytes))
	}
	checkCount("body_bytes", l.BodyBytes, 0, 1<<50, " bytes", report)
	checkCount("min_body_rate", int64(l.MinBodyRate), 0, 1<<30, " bytes a second", report)
	l.validateConnections(report)
	checkWait("header_timeout", l.HeaderTimeout, time.Millisecond, report)
	checkWait("body_timeout", l.BodyTimeout, time.Millisecond, report)
	checkWait("write_timeout", l.WriteTimeout, time.Millisecond, report)
	checkWait("keep_alive_timeout", l.KeepAliveTimeout, time.Millisecond, report)
}

func (l *LimitsConfig) validateConnections(report func(key, problem string)) {
	checkCount("connections", int64(l.Connections), 0, 1<<30, "", report)
	checkCount("connections_per_client", int64(l.ConnectionsPerClient), 0, 1<<30, "", report)
	if l.Connections > 0 && l.ConnectionsPerClient > l.Connections {
		report("connections_per_client", fmt.Sprintf("is %d; must be at most connections (%d), which bounds all clients together", l.ConnectionsPerClient, l.Connections))
	}
	checkCount("streams", int64(l.Streams), 1, 10_000, " streams", report)
}
