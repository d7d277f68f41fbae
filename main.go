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
       r8limiter health [-url URL] [-ca FILE | -insecure] [-cert FILE -key FILE]
                                          ask a running instance whether it is ready
       r8limiter version
`

// program is one run of the command: all it needs of the world around it.
type program struct {
	args           []string
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
		args: os.Args[1:], stdout: os.Stdout, stderr: os.Stderr, env: os.LookupEnv,
		signals: signals, listening: func(net.Addr, net.Addr) {},
	}
	os.Exit(p.run())
}

// run carries out the command and is the exit code.
func (p *program) run() int {
	command, args := "serve", p.args
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		command, args = args[0], args[1:]
	}
	flags := flag.NewFlagSet(command, flag.ContinueOnError)
	flags.SetOutput(p.stderr)
	flags.Usage = func() { fmt.Fprint(p.stderr, usage) }
	config, h, asked := "", &healthCheck{}, checkup{}
	switch command {
	case "serve":
		flags.StringVar(&config, "config", "", "configuration file")
	case "check":
		flags.StringVar(&config, "config", "", "configuration file")
		flags.StringVar(&asked.format, "format", "text", "text, or json for one object")
		flags.BoolVar(&asked.strict, "strict", false, "fail for warnings too")
	case "health":
		flags.StringVar(&config, "config", "", "configuration file, for the address")
		flags.StringVar(&h.url, "url", "", "address of /readyz")
		flags.BoolVar(&h.insecure, "insecure", false, "take any certificate")
		flags.StringVar(&h.ca, "ca", "", "who signs the certificate of an https address")
		flags.StringVar(&h.pair.cert, "cert", "", "certificate to show, where admin.tls.client_ca_file wants one")
		flags.StringVar(&h.pair.key, "key", "", "its private key")
	case "version":
	default:
		fmt.Fprintf(p.stderr, "unknown command %q\n%s", command, usage)
		return exitUsage
	}
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return exitFine
	} else if err != nil {
		return exitUsage
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(p.stderr, "unexpected argument %q\n%s", flags.Arg(0), usage)
		return exitUsage
	}
	return map[string]func() int{
		"serve":   func() int { return p.serve(p.configFile(config)) },
		"check":   func() int { return p.check(p.configFile(config), asked) },
		"health":  func() int { return p.health(h, p.configFile(config)) },
		"version": p.version,
	}[command]()
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
