package proxy

import (
	"errors"
	"net"
	"sync"
	"time"
)

// statusClientLeft is what the log says of a client that left before its answer
// (as nginx writes it); nobody is there to get it.
const statusClientLeft = 499

// departureInterval is how often it is looked for clients that have left.
const departureInterval = 500 * time.Millisecond

// Why nobody waits for an answer any more.
var (
	errClientLeft = errors.New("the client closed its connection before the answer was whole")
	errDrained    = errors.New("cut off because proxy.drain_timeout was over")
)

// departure ends a conversation with an upstream whose answer nobody waits for
// any more. A client that closes its side counts as gone, also where it could
// still read, as with nginx: the two can't be told apart.
type departure struct {
	mu   sync.Mutex
	conn net.Conn // the upstream connection of the conversation; nil: none
	why  error    // the client is gone, or is made to go
}

// begin says which connection to close when the client leaves. It gives the
// reason if the client has left. A nil departure is of nobody who could leave.
func (d *departure) begin(conn net.Conn) error {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.why == nil {
		d.conn = conn
	}
	return d.why
}

// end is called before the connection is used by anybody else. If the client has
// left it says why, which is the reason for whatever error there was.
func (d *departure) end() error {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.conn = nil
	return d.why
}

// leave is called when the client has left. The first reason stays.
func (d *departure) leave(why error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.why == nil {
		d.why = why
	}
	if d.conn != nil {
		_ = d.conn.Close()
	}
}

// waits says whether there is a conversation to end.
func (d *departure) waits() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.conn != nil
}

// watchDepartures looks, until stop is closed, for clients that left while an
// upstream works for them. Looking now and then costs a request nothing; a
// goroutine for each that waits in a read would.
func (s *server) watchDepartures() {
	tick := time.NewTicker(departureInterval)
	defer tick.Stop()
	for {
		select {
		case <-s.stopped:
			return
		case <-tick.C:
		}
		for _, c := range s.working() {
			if c.hasLeft() {
				c.departure.leave(errClientLeft)
			}
		}
	}
}

// working lists the connections whose upstream is at work.
func (s *server) working() []*clientConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	var working []*clientConn
	for c := range s.conns {
		if !c.idle.Load() && c.departure.waits() {
			working = append(working, c)
		}
	}
	return working
}
