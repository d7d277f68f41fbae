// Command r8limiter is a rate-limiting reverse proxy and API gateway.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
)

// version is set by the linker; see the Makefile.
var version = ""

// Exit codes.
const (
	exitFine    = 0
	exitFailure = 1
	exitUsage   = 2
)

// program is one run of the command: all it needs of the world around it.
type program struct {
	args           []string
	stdin          io.Reader
	stdout, stderr io.Writer
	env            func(string) (string, bool)
	signals        <-chan os.Signal
	// listening is called once with the addresses of the listeners; the
	// proxy's is nil where it is off.
	listening func(proxy, control net.Addr)
}

func main() {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	p := &program{
		args: os.Args[1:], stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, env: os.LookupEnv,
		signals: signals, listening: func(net.Addr, net.Addr) {},
	}
	os.Exit(p.run())
}

func (p *program) version() int {
	fmt.Fprintln(p.stdout, "r8limiter "+buildVersion())
	return exitFine
}

// buildVersion is the linker's, else what the build knows of its source.
func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}

// reachable turns a wildcard listen address into one that can be dialled.
func reachable(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return listen
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}
