package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// startWithFiles starts the program with a limit of open files.
func startWithFiles(t *testing.T, files int, config string) *process {
	t.Helper()
	return startProcessBy(t, config, func(c *exec.Cmd) {
		// The shell becomes the program.
		c.Args = append([]string{"sh", "-c", fmt.Sprintf(`ulimit -n %d && exec "$@"`, files), "sh", c.Path}, c.Args[1:]...)
		c.Path = "/bin/sh"
	})
}

const manyMoreThanFiles = 300 // connections, to a process of 256 files

// crowdIn opens so many connections that ask nothing yet. The kernel accepts
// them, whatever the process does.
func crowdIn(t *testing.T, p *process, count int) (conns []*wireConn) {
	t.Helper()
	for range count {
		conns = append(conns, dialWire(t, p.proxy))
	}
	return conns
}

// A gateway whose limit of connections is higher than that of files runs out of
// files. It lives, says so once a second at most, answers the connections that it
// has, and takes others within a second of getting files back.
func TestWireGatewayOutlivesAWantOfFiles(t *testing.T) {
	p := startWithFiles(t, 256, slowConfig(t, "connections: 10000, header_timeout: 60s"))
	control := dialWire(t, p.control) // stands already
	control.want("GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n", "200")
	conns := crowdIn(t, p, manyMoreThanFiles)
	start := time.Now()
	p.awaitLog(t, "no connection can be accepted")
	fresh := make(chan string, 1)
	go func() { fresh <- rawAnswer(p.control, "GET /readyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n") }()
	for range 30 {
		control.want("GET /livez HTTP/1.1\r\nHost: a\r\n\r\n", "200")
		<-time.After(100 * time.Millisecond)
	}
	seconds := int(time.Since(start)/time.Second) + 2
	if got := p.logged("no connection can be accepted"); got > 2*seconds { // for there are two listeners
		t.Errorf("%d lines about it in %v, want one a second of each listener at most", got, time.Since(start))
	}
	for _, c := range conns[:150] {
		_ = c.Close()
	}
	freed := time.Now()
	if got := rawAnswer(p.proxy, "GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
		t.Errorf("afterwards: got %q, want 200", got)
	}
	t.Logf("a connection is taken and answered %v after files came back", time.Since(freed))
	if took := time.Since(freed); took > 3*time.Second {
		t.Errorf("it took %v to take connections again, want a second", took)
	}
	if got := <-fresh; !strings.HasPrefix(got, "HTTP/1.1 200 ") {
		t.Errorf("/readyz over a connection that had to wait: got %q, want 200", got)
	}
	eventually(t, "the gateway is ready", func() bool { return status(t, "GET", p.control+"/readyz") == 200 })
	conns[299].want("GET /x HTTP/1.1\r\nHost: a\r\n\r\n", "200") // it waited in the kernel
}

// With the limit of connections as it is by default no file is missed: who comes
// too late is told so, and the control listener answers all the time.
func TestWireDefaultLimitOfConnectionsLeavesFilesForTheRest(t *testing.T) {
	p := startWithFiles(t, 256, slowConfig(t, "header_timeout: 60s"))
	conns := crowdIn(t, p, 204) // four fifths
	eventually(t, "the gateway is full", func() bool { return p.connections(t) == 204 })
	for range 5 { // some of them linger for a moment after they were turned away
		late := crowdIn(t, p, manyMoreThanFiles-204)
		late[0].told(t)
		if got := rawAnswer(p.control, "GET /readyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
			t.Errorf("/readyz: got %q, want 200", got)
		}
	}
	conns[0].want("GET /x HTTP/1.1\r\nHost: a\r\n\r\n", "200")
	if got := p.logged("no connection can be accepted"); got > 0 {
		t.Errorf("%d times no connection could be accepted, want never", got)
	}
}

// told fails unless the connection was turned away with a 503, or at once.
func (c *wireConn) told(t *testing.T) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(wireWait))
	resp, err := http.ReadResponse(c.r, nil)
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
		return
	}
	if err != nil || resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
		t.Errorf("got %v, %v, want 503 with Retry-After", resp, err)
	}
}
