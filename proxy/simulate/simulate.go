// Package simulate runs recorded traffic through the routes and limits of a
// configuration, on a clock that the lines of a log drive: what would have been denied,
// to whom, when and by which limit, and how small a limit may be.
//
// It judges with the code that the gateway judges with. Its memory grows with the users,
// not with the lines.
package simulate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/r8limiter/r8limiter/limiter"
	"github.com/r8limiter/r8limiter/proxy"
)

// Options say what is simulated, and on what.
type Options struct {
	// Config is the name of the configuration, for the report.
	Config string
	// Proxy and Limiter are the configuration; it has no fault. Redis is not asked.
	Proxy   proxy.Config
	Limiter limiter.Config
	// Files are the logs; "-" is Stdin.
	Files []string
	Stdin io.Reader
	// Format is one of Formats.
	Format string
	// Fields says what is where in JSON that no known program has written. Where it says
	// more than what is usual, the first of Formats means json.
	Fields FieldMap
	// Host is the Host field of requests of which the log has none.
	Host string
	// Target is the largest share of denials that limits are sought for; the zero
	// Share seeks none.
	Target Share
	// Top is how many users the report names.
	Top int
	// Decisions gets a line of JSON for each line of the logs; nil for none.
	Decisions io.Writer
	// Begin is called when all logs are open and nothing has been written yet; an error
	// of its ends the simulation. nil does nothing.
	Begin func() error
	// Progress is told how far it is; nil for nobody.
	Progress *Progress
}

// Progress is how far a simulation is. It is safe for concurrent use, and a nil one
// keeps nothing.
type Progress struct {
	Bytes atomic.Int64 // read of the logs as they lie on the disk
	Lines atomic.Int64
	// Steps and Done count searches for limits, which follow when all is read.
	Steps, Done atomic.Int64
}

func (p *Progress) read(n int) {
	if p != nil {
		p.Bytes.Add(int64(n))
	}
}

// progressEvery is how many lines pass before Progress and the context are looked at.
const progressEvery = 1024

// ErrNothing says that no line of the logs could be read as a request. The Report has
// the reasons.
var ErrNothing = errors.New("no line could be read as a request")

// ErrBroken says that a log could not be read to its end. The Report has what was read.
var ErrBroken = errors.New("a log could not be read to its end")

// Run simulates. It ends early, with ctx's error, when ctx does. With ErrNothing and
// ErrBroken there is a Report all the same.
func Run(ctx context.Context, o *Options) (*Report, error) {
	e, err := newEngine(o)
	if err != nil {
		return nil, err
	}
	defer e.close()
	if err := e.replay(ctx); err != nil {
		return nil, err
	}
	r := e.report()
	broken := r.broken()
	if e.requests == 0 && broken != nil {
		return r, fmt.Errorf("%w; %w", ErrNothing, broken)
	}
	if e.requests == 0 {
		return r, ErrNothing
	}
	if o.Target.isSet() {
		if r.Target, err = e.search(ctx); err != nil {
			return nil, err
		}
	}
	return r, broken
}

// replay takes all lines of all logs in.
func (e *engine) replay(ctx context.Context) error {
	all, err := openAll(e.o)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer all.close()
	all.bad, all.broken = e.unread, e.broke
	if e.o.Begin != nil {
		if err := e.o.Begin(); err != nil {
			return err
		}
	}
	all.begin()
	for n := 0; ; n++ {
		if n%progressEvery == 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
			if e.o.Progress != nil {
				e.o.Progress.Lines.Store(e.lines())
			}
		}
		s := all.first()
		if s == nil {
			return e.finish()
		}
		if err := e.take(s); err != nil {
			return err
		}
		all.pop()
	}
}
