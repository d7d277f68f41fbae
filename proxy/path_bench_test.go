package proxy

import (
	"strings"
	"testing"
)

// BenchmarkResolve measures a plain path, and paths that make resolve try
// every reading there is because they all lead to the same route.
func BenchmarkResolve(b *testing.B) {
	rt := newTestRouter(b, "/internal/{id}/x", "/*")
	const hostile = "/a;b%2Fc%5Cd%2Ee%3B//./f" // every point there is
	for _, c := range []struct{ name, path string }{
		{"plain", "/v1/service/42/items/7"},
		{"escaped", "/v1/service/a%20b/items/7"},
		{"encoded-slash", "/v1/group%2Fproject/items/7"},
		{"hostile-short", hostile},
		{"hostile-segments", hostile + strings.Repeat("/x", 52)},
		{"hostile-dots", hostile + strings.Repeat("/..", 52)},
		{"hostile-long", hostile + strings.Repeat("%2E", 2700)},
		{"hostile-too-long", hostile + strings.Repeat("/%2E", 2040)},
	} {
		b.Run(c.name, func(b *testing.B) {
			r := &request{path: []byte(c.path), method: []byte("GET")}
			b.ReportAllocs()
			for b.Loop() {
				r.scratch = r.scratch[:0]
				_, _ = rt.resolve(r)
			}
		})
	}
}
