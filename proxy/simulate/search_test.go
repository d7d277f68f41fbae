package simulate

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/r8limiter/r8limiter/limiter"
	"github.com/r8limiter/r8limiter/proxy"
)

func share(t testing.TB, text string) Share {
	t.Helper()
	s, err := ParseShare(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// crowd are lines of users of whom few ask for much, for /items and /search.
func crowd(lines int, request func(*rand.Rand) string) []string {
	random := rand.New(rand.NewPCG(7, 7))
	zipf := rand.NewZipf(random, 1.3, 4, 200)
	all := make([]string, lines)
	for i := range all {
		all[i] = at(i/40, int(zipf.Uint64()), request(random))
	}
	return all
}

// single are options with one limit for everything.
func single(t *testing.T, l limiter.LimitConfig) *Options {
	t.Helper()
	o := options(t)
	o.Proxy.Routes = []proxy.RouteConfig{{Name: "all", Cost: tmpl(t, "{query.cost}")}}
	o.Limiter.Resources = map[string]limiter.ResourceConfig{"all": {Limits: []limiter.LimitConfig{l}}}
	return o
}

// deniedBy simulates a limit alone.
func deniedBy(t *testing.T, l limiter.LimitConfig, file string) uint64 {
	t.Helper()
	o := single(t, l)
	o.Files = []string{file}
	r, err := Run(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	return r.Total.Denied
}

// What the search finds must hold when it is simulated, and what is one step smaller
// must not.
func TestFoundLimitsAreTheSmallestThatHold(t *testing.T) {
	plain := func(*rand.Rand) string { return "GET /x HTTP/1.1" }
	mixed := func(r *rand.Rand) string { return fmt.Sprintf("GET /x?cost=%d HTTP/1.1", 1+r.IntN(4)) }
	for _, c := range []struct {
		name, per, rate, target string
		capacity                int64
		request                 func(*rand.Rand) string
	}{
		{"too small", "user", "1/s", "0.1%", 20, plain},
		{"no rate is enough", "user", "1/s", "0.1%", 5, plain},
		{"too large", "user", "50/s", "1%", 500, plain},
		{"nobody denied", "user", "30/m", "0%", 20, plain},
		{"slow", "user", "100/h", "2%", 50, plain},
		{"shared", "resource", "30/s", "0.5%", 100, plain},
		{"of many costs", "user", "2/s", "0.3%", 10, mixed},
		{"a day", "user", "5000/d", "10%", 100, plain},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := limiter.LimitConfig{Name: "l", Per: c.per, Capacity: c.capacity, RefillRate: rate(t, c.rate)}
			file := logFile(t, crowd(8000, c.request)...)
			o := single(t, l)
			o.Files, o.Target = []string{file}, share(t, c.target)
			r, err := Run(context.Background(), o)
			if err != nil {
				t.Fatal(err)
			}
			found := r.Target.Limits[0]
			if found.Now.Denied != r.Total.Denied {
				t.Errorf("as it is it denies %d, simulated %d", found.Now.Denied, r.Total.Denied)
			}
			verify(t, found, l, file)
		})
	}
}

func verify(t *testing.T, found LimitTarget, l limiter.LimitConfig, file string) {
	t.Helper()
	if found.Capacity == nil || found.Scale == nil {
		t.Fatalf("found only %+v", found)
	}
	holds := func(what string, c *Candidate) {
		t.Helper()
		with := l
		with.Capacity, with.RefillRate = c.Capacity, rate(t, c.RefillRate)
		if got := deniedBy(t, with, file); got != c.Denied || got > found.Budget {
			t.Errorf("%s %d at %s denies %d, was said to deny %d, and may %d", what, c.Capacity, c.RefillRate, got, c.Denied, found.Budget)
		}
	}
	fails := func(what string, capacity int64, r limiter.Rate) {
		t.Helper()
		if capacity == 0 {
			return
		}
		with := l
		with.Capacity, with.RefillRate = capacity, r
		if got := deniedBy(t, with, file); got <= found.Budget {
			t.Errorf("%s: %d at %s would do, with %d denied of %d", what, capacity, r, got, found.Budget)
		}
	}
	grid := ratesLike(l.RefillRate)
	holds("capacity", found.Capacity)
	fails("capacity", found.Capacity.Capacity-1, l.RefillRate)
	if found.Rate == nil { // more come in one second of the log than there is room for
		fails("rate", l.Capacity, rate(t, "1000000/s"))
	} else if n := gridAtLeast(exact(t, found.Rate.RefillRate), grid.decimals); n > grid.first {
		holds("rate", found.Rate)
		slower, err := grid.at(n - 1)
		if err != nil {
			t.Fatal(err)
		}
		fails("rate", l.Capacity, slower)
	}
	holds("both", found.Scale)
	factor, _ := new(big.Rat).SetString(found.Scale.Factor)
	less := gridRat(gridAtLeast(factor, scaleDecimals)-1, scaleDecimals)
	slower, err := grid.scaled(less)
	if err != nil {
		t.Fatal(err)
	}
	fails("both", scaledCapacity(l.Capacity, less), slower)
}

// exact is the number of a rate's text.
func exact(t *testing.T, text string) *big.Rat {
	t.Helper()
	var number, unit string
	for i := range text {
		if text[i] == '/' {
			number, unit = text[:i], text[i:]
		}
	}
	x, ok := new(big.Rat).SetString(number)
	if !ok || unit == "" {
		t.Fatalf("%q is no rate", text)
	}
	return x
}

func TestWhatNoLimitCanDoIsNotFound(t *testing.T) {
	// Ten requests at once, with room for two: no rate helps.
	var lines []string
	for range 10 {
		lines = append(lines, at(0, 1, "GET /x HTTP/1.1"))
	}
	o := single(t, limiter.LimitConfig{Name: "l", Capacity: 2, RefillRate: rate(t, "1/s")})
	o.Files, o.Target = []string{logFile(t, lines...)}, share(t, "0.1%")
	r, err := Run(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	found := r.Target.Limits[0]
	if found.Rate != nil || found.Capacity == nil || found.Capacity.Capacity != 10 || found.Scale == nil || found.Scale.Capacity != 10 {
		t.Errorf("got %+v %+v %+v", found.Capacity, found.Rate, found.Scale)
	}
}

func TestEachLimitIsSearchedAlone(t *testing.T) {
	o := options(t)
	o.Proxy.Routes = []proxy.RouteConfig{{Name: "read"}}
	o.Files, o.Target, o.Progress = []string{logFile(t, crowd(3000, func(*rand.Rand) string { return "GET /x HTTP/1.1" })...)}, share(t, "1%"), &Progress{}
	r, err := Run(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Target.Limits) != 3 || !r.Target.Limits[2].Shadow {
		t.Fatalf("got %+v", r.Target.Limits)
	}
	for i, l := range o.Limiter.Resources["read"].Limits {
		l.Shadow = false // alone it must decide
		verify(t, r.Target.Limits[i], l, o.Files[0])
	}
	if steps, done := o.Progress.Steps.Load(), o.Progress.Done.Load(); steps != 9 || done != 9 {
		t.Errorf("%d of %d searches are done, want 9", done, steps)
	}
}

func TestSearchEndsWithItsContextAndLeavesNoFile(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	o := options(t)
	o.Files, o.Target = []string{logFile(t, crowd(8000, func(*rand.Rand) string { return "GET /x HTTP/1.1" })...)}, share(t, "1%")
	e, err := newEngine(o)
	if err != nil {
		t.Fatal(err)
	}
	defer e.close()
	ctx, cancel := context.WithCancel(context.Background())
	if err := e.replay(ctx); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("there are %v, %v", left, err)
	}
	cancel()
	if _, err := e.search(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestTraceOnAFullDiskSaysSo(t *testing.T) {
	t.Setenv("TMPDIR", "/nonexistent")
	o := options(t)
	o.Target = share(t, "1%")
	if _, err := newEngine(o); err == nil {
		t.Error("there is no error")
	}
}

func TestGridNumbersGoUpByFourDigits(t *testing.T) {
	for n, want := range map[int64]string{
		1: "0.001", 999: "0.999", 1000: "1", 1001: "1.001", 9999: "9.999", 10000: "10", 10001: "10.01",
		18999: "99.99", 19000: "100", 28000: "1000", 37000: "10000", 37001: "10010",
	} {
		if got := gridText(n, 3); got != want {
			t.Errorf("%d: got %s, want %s", n, got, want)
		}
	}
	before := new(big.Rat)
	for n := int64(1); n < 60_000; n += 37 {
		x := gridRat(n, 6)
		if x.Cmp(before) <= 0 || gridAtLeast(x, 6) != n {
			t.Fatalf("number %d is %v, after %v, and %d is the first that is not less", n, x, before, gridAtLeast(x, 6))
		}
		before = x
	}
}

func TestEveryRateOfTheGridIsARate(t *testing.T) {
	for _, text := range []string{"50/s", "0.5", "3/m", "0.1/h", "1000000/s", "7/d", "0.03334/d"} {
		g := ratesLike(rate(t, text))
		for n := g.first; n <= g.last; n += 1 + (g.last-g.first)/500 {
			if _, err := g.at(n); err != nil {
				t.Errorf("%s, number %d: %v", text, n, err)
			}
		}
		for _, n := range []int64{g.first, g.last, g.start()} {
			if _, err := g.at(n); err != nil {
				t.Errorf("%s, number %d: %v", text, n, err)
			}
		}
		if _, err := g.at(g.first - 1); err == nil {
			t.Errorf("%s: the rate before the first is one", text)
		}
		if _, err := g.at(g.last + 1); err == nil {
			t.Errorf("%s: the rate behind the last is one", text)
		}
		for _, factor := range []string{"0.000001", "0.3333", "1", "1.001", "9.999", "999900000"} {
			x, _ := new(big.Rat).SetString(factor)
			r, err := g.scaled(x)
			if err != nil || factor == "1" && r.String() != text {
				t.Errorf("%s times %s: %v %v", text, factor, r, err)
			}
		}
	}
}

func TestSharesAreExact(t *testing.T) {
	for text, want := range map[string]uint64{"0.1%": 1000, "0.001": 1000, "0": 0, "0%": 0, "33.3333%": 333333, " 12.5 %": 125000} {
		if got := share(t, text).of(1_000_000); got != want {
			t.Errorf("%s of a million: got %d, want %d", text, got, want)
		}
	}
	for _, text := range []string{"", "%", "100%", "1", "2%%", "-1%", "1/3", "1e-3", "0x1p-3", "much"} {
		if _, err := ParseShare(text); err == nil {
			t.Errorf("%q is a share", text)
		}
	}
}

func TestNothingSmallerHoldsWhereAllCostTheSame(t *testing.T) {
	l := limiter.LimitConfig{Name: "l", Capacity: 50, RefillRate: rate(t, "20/m")}
	file := logFile(t, crowd(1500, func(*rand.Rand) string { return "GET /x?cost=2 HTTP/1.1" })...)
	o := single(t, l)
	o.Files, o.Target = []string{file}, share(t, "2%")
	r, err := Run(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	found := r.Target.Limits[0]
	if !found.Smallest || found.Capacity == nil || found.Capacity.Capacity < 10 {
		t.Fatalf("found %+v %+v", found, found.Capacity)
	}
	for l.Capacity = 1; l.Capacity < found.Capacity.Capacity; l.Capacity++ {
		if denied := deniedBy(t, l, file); denied <= found.Budget {
			t.Errorf("a capacity of %d denies %d, which may be %d", l.Capacity, denied, found.Budget)
		}
	}
}
