package proxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// halfConn is a connection whose two directions end one by one: TCP, TLS and
// unix sockets.
type halfConn interface {
	net.Conn
	CloseWrite() error
}

var (
	errNotSwitched   = errors.New("the upstream has not switched protocols")
	errNoHalfClose   = errors.New("the connection can't be closed one way only")
	errOtherProtocol = errors.New("the upstream switched to another protocol than the client asked for")
	errTunnelIdle    = errors.New("nothing came through the tunnel for the idle time-out")
)

// tunnel copies both ways, first the bytes that were received already, until
// both sides have ended: the end of one is passed on by CloseWrite, and the other goes
// on. It ends with an error when one side fails, or when no byte passed either way
// for idle. A byte has passed when it was read, and again when the piece it is in was
// written.
//
// sent counts the bytes written to up, received those to client. The caller
// closes both connections afterwards. Closing one earlier, or setting its deadline,
// ends the tunnel. Both connections must come without deadlines.
func tunnel(client halfConn, early []byte, up halfConn, upEarly []byte, idle time.Duration) (sent, received int64, err error) {
	t := &tunnelState{client: client, up: up, idle: idle, began: time.Now()}
	t.mu.Lock()
	t.watch = time.AfterFunc(idle, t.check)
	t.mu.Unlock()
	var back sync.WaitGroup
	back.Go(func() {
		received = t.carry(client, up, upEarly, "from the upstream to the client")
	})
	sent = t.carry(up, client, early, "from the client to the upstream")
	back.Wait()
	t.end(nil)
	return sent, received, t.err
}

// tunnelState is what the two directions of a tunnel share.
//
// The time-out is a timer's that looks, once in idle, when the last byte
// passed. Deadlines would have to be set for each read and write: TLS, for one,
// doesn't survive a write that timed out and is tried again.
type tunnelState struct {
	client, up halfConn
	idle       time.Duration
	began      time.Time
	last       atomic.Int64 // when the last byte passed, in ns after began

	mu    sync.Mutex // guards what follows
	watch *time.Timer
	ended bool
	err   error // the first
}

func (t *tunnelState) touch() { t.last.Store(int64(time.Since(t.began))) }

// check ends an idle tunnel, or comes again when it may be one.
func (t *tunnelState) check() {
	left := t.idle - (time.Since(t.began) - time.Duration(t.last.Load()))
	if left <= 0 {
		t.end(errTunnelIdle)
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.ended {
		t.watch.Reset(left)
	}
}

// end stops the watch and, with an error, both directions.
func (t *tunnelState) end(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return
	}
	t.ended, t.err = true, err
	t.watch.Stop()
	if err != nil {
		_ = t.client.SetDeadline(longAgo)
		_ = t.up.SetDeadline(longAgo)
	}
}

// carry copies one way until the end of src, and passes that on. It says how
// many bytes dst took.
func (t *tunnelState) carry(dst, src halfConn, early []byte, way string) int64 {
	n, err := t.copyAll(dst, src, early)
	if err == nil {
		err = dst.CloseWrite()
	}
	if err != nil {
		t.end(fmt.Errorf("tunnel %s: %w", way, err))
	}
	return n
}

func (t *tunnelState) copyAll(dst io.Writer, src io.Reader, early []byte) (written int64, err error) {
	buf := pieces.Get().(*piece)
	defer pieces.Put(buf)
	var readErr error
	for data := early; ; data = nil {
		if len(data) == 0 {
			var n int
			n, readErr = src.Read(buf.room())
			data = buf.room()[:n]
		}
		if len(data) > 0 {
			t.touch()
			n, err := dst.Write(data)
			written += int64(n)
			if err != nil {
				return written, err
			}
			t.touch()
		}
		if readErr != nil {
			break
		}
	}
	if readErr == io.EOF {
		return written, nil
	}
	return written, readErr
}
