// Command r8limiter is a rate-limiting reverse proxy and API gateway.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
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

const usage = `usage: r8limiter [serve] [-config FILE]   run
       r8limiter check [-config FILE] [-format text|json] [-strict]
                                          every error and warning of a configuration
       r8limiter simulate -config FILE [-format F] [-fields MAP] [-output text|json|html] [-target SHARE] LOG...
                                          what these rules would have done to recorded traffic
       r8limiter explain [-config FILE] [-ip ADDR] [-H 'Name: value']... [-u USER:PASSWORD]
                         [-claim NAME=VALUE]... [-format text|json] METHOD URL
                                          what becomes of a request, and why; spends nothing
       r8limiter health [-url URL] [-ca FILE | -insecure] [-cert FILE -key FILE]
                                          ask a running instance whether it is ready
       r8limiter version
`

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

// verb is one of the commands that the program has.
type verb struct {
	flags func(*flag.FlagSet)     // nil for none
	run   func(rest []string) int // rest is what stands behind the flags
	bare  bool                    // nothing may stand there
}

// verbs are all there are, by name.
func (p *program) verbs() map[string]verb {
	var config string
	asked, h, sim, line := &checkup{}, &healthCheck{}, &simulation{}, &queryLine{}
	configFlag := func(flags *flag.FlagSet) { flags.StringVar(&config, "config", "", "configuration file") }
	return map[string]verb{
		"serve":    {configFlag, func([]string) int { return p.serve(p.configFile(config)) }, true},
		"check":    {asked.addFlags, func([]string) int { return p.check(p.configFile(asked.config), *asked) }, true},
		"simulate": {sim.addFlags, func(logs []string) int { sim.logs = logs; return p.simulate(sim) }, false},
		"explain":  {line.addFlags, func(rest []string) int { return p.explain(line, rest) }, false},
		"health":   {h.addFlags, func([]string) int { return p.health(h, p.configFile(h.config)) }, true},
		"version":  {nil, func([]string) int { return p.version() }, true},
	}
}

// run carries out the command and is the exit code.
func (p *program) run() int {
	name, args := "serve", p.args
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		name, args = args[0], args[1:]
	}
	c, known := p.verbs()[name]
	if !known {
		fmt.Fprintf(p.stderr, "unknown command %q\n%s", name, usage)
		return exitUsage
	}
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(p.stderr)
	flags.Usage = func() { fmt.Fprint(p.stderr, usage) }
	if c.flags != nil {
		c.flags(flags)
	}
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return exitFine
	} else if err != nil {
		return exitUsage
	}
	if flags.NArg() > 0 && c.bare {
		fmt.Fprintf(p.stderr, "unexpected argument %q\n%s", flags.Arg(0), usage)
		return exitUsage
	}
	return c.run(flags.Args())
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
