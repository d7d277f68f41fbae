package proxy

import (
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"sync/atomic"
	"time"
)

// uploadGrace is how long an upload may go on after the whole answer was
// relayed. Who answers after the last byte needs a moment of it only because the
// goroutine that sends is not done at once; who answers before, but reads on, lets
// the client keep its connection if the rest comes in this time. It delays nobody:
// the client has its answer.
const uploadGrace = 100 * time.Millisecond

// lastByteGrace is how long an answer may be whole before the goroutine that sent
// the last byte of the request says so.
const lastByteGrace = time.Millisecond

// upload is a request's body being sent by a goroutine of its own. It ends with
// the body, with an error, or with stop; whoever started it waits for that.
type upload struct {
	conn     *upstreamConn
	out      *outgoing
	stopping atomic.Bool
	done     chan struct{} // closed at the end
	err      error         // why body was not sent whole; to be read after done
}

var errUploadStopped = errors.New("the rest of the request body was not wanted any more")

// startUpload sends the body of out. Until it has ended c has no read deadline.
func startUpload(c *upstreamConn, out *outgoing) (*upload, error) {
	if err := c.setReadBy(time.Time{}); err != nil {
		return nil, err
	}
	u := &upload{conn: c, out: out, done: make(chan struct{})}
	go u.run()
	return u, nil
}

func (u *upload) run() {
	defer close(u.done)
	defer func() {
		if fault := recover(); fault != nil { // the body's reader is not ours; it costs this request only
			u.end(clientFault(fmt.Errorf("panic: %v\n%s", fault, debug.Stack())))
		}
	}()
	u.end(u.conn.sendBody(u.out))
}

// end wakes who waits for the head, by a read deadline that is over. If the
// client's body failed it closes the connection instead: whatever the upstream makes
// of a part of the body is nobody's answer.
func (u *upload) end(err error) {
	if err != nil && u.stopping.Load() {
		err = &upstreamError{faultClosed, errUploadStopped}
	}
	u.err = err
	if err != nil && faultOf(err) == faultClient {
		_ = u.conn.Conn.Close()
		return
	}
	_ = u.conn.Conn.SetReadDeadline(longAgo)
}

// stop ends the upload, unless it has ended before, and waits for that. The
// connection is of no use afterwards.
func (u *upload) stop() {
	if u.endsWithin(0) {
		return
	}
	u.stopping.Store(true)
	_ = u.conn.Conn.Close()
	if u.out.stopBody != nil {
		u.out.stopBody()
	}
	<-u.done
}

// endsWithin says whether the upload ends in this time.
func (u *upload) endsWithin(d time.Duration) bool {
	select {
	case <-u.done:
		return true
	default:
	}
	if d <= 0 {
		return false
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-u.done:
		return true
	case <-timer.C:
		return false
	}
}

// brokeOff says whether readErr came from the end of an upload whose client
// failed. It is safe on nil.
func (u *upload) brokeOff(readErr error) bool {
	if u == nil || !errors.Is(readErr, net.ErrClosed) {
		return false
	}
	u.stop() // it has ended already, unless somebody else closed the connection
	return u.err != nil && faultOf(u.err) == faultClient
}
