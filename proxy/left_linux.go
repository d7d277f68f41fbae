package proxy

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// hasLeft says whether the client has closed its side. It's safe to call while
// the connection is read. The kernel is asked for the state, and not for bytes: an
// alert of TLS or another request may lie before the end.
func (c *clientConn) hasLeft() bool {
	sc, ok := c.socket.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	left := false
	failed := raw.Control(func(fd uintptr) {
		state := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Poll(state, 0)
		left = err == nil && n > 0 && state[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
	})
	return failed == nil && left
}
