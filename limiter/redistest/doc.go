// Package redistest runs real Redis servers for tests, as net/http/httptest
// does HTTP servers: one (Start), a primary with replicas and sentinels
// (StartSentinel), a cluster (StartCluster), and a relay that spoils the wire in
// front of any of them (NewRelay).
//
// Only tests import it; no product code does. It imports nothing of r8limiter,
// so that every package's tests may. It needs redis-server 7.0 or later, which
// `make test` installs, and fails the test where there is none.
//
// All that a test starts ends with the test. Methods that take a t fail that
// test by Fatal, and so belong into its goroutine; all others are safe in any.
package redistest
