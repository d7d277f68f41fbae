//go:build !linux

package proxy

import (
	"errors"
	"syscall"
)

// hasLeft says whether the client has closed its side, as far as that shows
// before bytes that nobody has read. It's safe to call while the connection is read.
func (c *clientConn) hasLeft() bool {
	n, err := c.peek()
	return n == 0 && err == nil || errors.Is(err, syscall.ECONNRESET)
}
