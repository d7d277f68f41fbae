package proxy

// upstreamMetrics stands in for the real one until it is there.
type upstreamMetrics struct{}
