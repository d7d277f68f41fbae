package admin

import (
	"errors"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/rs/zerolog"
)

// How long Accept waits after the first failure, and at most, before it tries
// again. The same as in net/http.
const (
	minAcceptDelay = 5 * time.Millisecond
	maxAcceptDelay = time.Second
)

// patientListener is a listener whose Accept outlives a shortage of file
// descriptors or memory. fasthttp takes EMFILE for permanent (acceptConn in
// its server.go), so that a burst of connections would end the listener.
type patientListener struct {
	net.Listener
	stop <-chan struct{} // closed by Shutdown
	log  zerolog.Logger
	said time.Time // when it complained last, which it does once a second at most
}

// Accept returns io.EOF, which fasthttp takes for an orderly end, once stop is
// closed, also when that was before the server knew of this listener.
func (l *patientListener) Accept() (net.Conn, error) {
	for delay := minAcceptDelay; ; delay = min(2*delay, maxAcceptDelay) {
		select {
		case <-l.stop:
			_ = l.Close() // closed already, or nobody else would
			return nil, io.EOF
		default:
		}
		c, err := l.Listener.Accept()
		if err == nil || !isTransient(err) {
			return c, err
		}
		if time.Since(l.said) >= time.Second {
			l.said = time.Now()
			l.log.Warn().Err(err).Str("listener", "control").Msg("no connection can be accepted: raise the limit of open files (ulimit -n)")
		}
		l.wait(delay)
	}
}

func (l *patientListener) wait(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-l.stop:
	case <-t.C:
	}
}

// isTransient says whether an error of Accept goes away by itself, or when others
// give something back.
func isTransient(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
