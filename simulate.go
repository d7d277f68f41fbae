package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/mattn/go-isatty"

	"github.com/r8limiter/r8limiter/proxy/simulate"
)

// simulation is what the command line of simulate says.
type simulation struct {
	config, format, fields, host, output, target, file, decisions string
	top                                                           int
	logs                                                          []string
}

func (s *simulation) addFlags(flags *flag.FlagSet) {
	flags.StringVar(&s.config, "config", "", "configuration `FILE` whose rules are tried; default $R8LIMITER_CONFIG, else ./config.yaml")
	flags.StringVar(&s.format, "format", simulate.Formats[0], "`FORM` of the logs: "+strings.Join(simulate.Formats, ", "))
	flags.StringVar(&s.fields, "fields", "", "`MAP` of where JSON has what, as in time=ts,uri=req.uri,header.X-User-Id=headers.x_user,jwt.sub=user")
	flags.StringVar(&s.host, "host", "", "`HOST` of requests of which the log has none")
	flags.StringVar(&s.output, "output", "text", "`FORM` of the report: text, json or html")
	flags.StringVar(&s.target, "target", "", "find the smallest limits that deny at most this `SHARE`, as 0.1%")
	flags.IntVar(&s.top, "top", 10, "how many `USERS` are named")
	flags.StringVar(&s.file, "o", "", "write the report to this `FILE`")
	flags.StringVar(&s.decisions, "decisions", "", "write what was decided on each line to this `FILE`, as JSON lines")
}

// outputs are the forms of a report.
var outputs = map[string]func(*simulate.Report, io.Writer) error{
	"text": (*simulate.Report).WriteText,
	"json": (*simulate.Report).WriteJSON,
	"html": (*simulate.Report).WriteHTML,
}

// simulate runs recorded traffic through the rules of a configuration.
func (p *program) simulate(s *simulation) int {
	o, fault := s.options()
	if fault != nil {
		return p.misused("simulate", fault)
	}
	file := p.configFile(s.config)
	if file == "" {
		return p.misused("simulate", errors.New("there is no configuration to try: name one with -config FILE"))
	}
	c, problems := p.load(file)
	if p.complain(file, problems) {
		return exitUsage
	}
	o.Config, o.Proxy, o.Limiter = file, c.Proxy, c.Limiter
	o.Stdin, o.Progress = p.stdin, &simulate.Progress{}
	err := p.runSimulation(s, o)
	if fault, ok := errors.AsType[overlapError](err); ok {
		return p.misused("simulate", fault)
	}
	if err != nil {
		fmt.Fprintf(p.stderr, "simulate: %v\n", err)
		return exitFailure
	}
	return exitFine
}

// options are those of the command line.
func (s *simulation) options() (*simulate.Options, error) {
	o := &simulate.Options{Files: s.logs, Format: s.format, Host: s.host, Top: s.top}
	if len(o.Files) == 0 {
		o.Files = []string{"-"}
	}
	for _, name := range o.Files {
		if len(name) > 1 && name[0] == '-' {
			return nil, fmt.Errorf("%s stands behind a log; options go before the logs, and a log of that name is ./%s", name, name)
		}
	}
	var err error
	if o.Fields, err = simulate.ParseFields(s.fields); err != nil {
		return nil, fmt.Errorf("-fields: %w", err)
	}
	if s.target != "" {
		if o.Target, err = simulate.ParseShare(s.target); err != nil {
			return nil, fmt.Errorf("-target: %w", err)
		}
	}
	if s.top < 0 {
		return nil, fmt.Errorf("-top: %d users can't be named", s.top)
	}
	return o, cmp.Or(checkChoice("format", s.format, simulate.Formats), s.checkFields(), checkChoice("output", s.output, []string{"text", "json", "html"}))
}

// checkFields wants no map for a format that has fields of its own.
func (s *simulation) checkFields() error {
	if s.fields == "" || s.format == "json" || s.format == simulate.Formats[0] {
		return nil
	}
	return fmt.Errorf("-fields says what is where in JSON: leave it out, or -format %s", s.format)
}

// errInterrupted says that a signal came.
var errInterrupted = errors.New("interrupted")

// interruptGrace is how long a simulation may take to end after a signal. One that waits
// for standard input does not end before something comes.
const interruptGrace = time.Second

// runSimulation simulates, unless a signal comes, and writes the report. Until the logs
// are open no file that was there before is changed.
func (p *program) runSimulation(s *simulation, o *simulate.Options) (fault error) {
	if err := touch(s.file); err != nil {
		return err
	}
	if s.decisions != "" {
		file, err := os.OpenFile(s.decisions, os.O_CREATE|os.O_WRONLY, 0o666)
		if err != nil {
			return err
		}
		defer func() { fault = errors.Join(fault, file.Close()) }()
		o.Decisions, o.Begin = file, func() error { return empty(file) }
	}
	if err := s.checkOverlap(o); err != nil {
		return err
	}
	bar := newProgressBar(p.stderr, o)
	r, err := p.untilSignal(o)
	bar.end()
	if r == nil {
		return err
	}
	return errors.Join(err, p.writeReport(s, r))
}

// touch makes sure, before the work, that a report can be written. Whoever reads a pipe
// would take that for its end.
func touch(name string) error {
	if info, err := os.Stat(name); name == "" || err == nil && !info.Mode().IsRegular() && !info.IsDir() {
		return nil
	}
	file, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o666)
	if err != nil {
		return err
	}
	return file.Close()
}

// empty makes a file empty, if it is one that holds something.
func empty(file *os.File) error {
	info, err := file.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return err
	}
	return file.Truncate(0)
}

// overlapError says that an output would destroy something.
type overlapError struct{ error }

// checkOverlap wants outputs that are neither read nor each other, by whatever name. They
// are there.
func (s *simulation) checkOverlap(o *simulate.Options) error {
	outputs := []used{{"-o", statOf(s.file)}, {"-decisions", statOf(s.decisions)}}
	others := []used{{"the configuration", statOf(o.Config)}, {"the log on standard input", nil}, outputs[1]}
	for _, name := range o.Files {
		others = append(others, used{"the log " + name, statOf(name)})
	}
	if stdin, ok := o.Stdin.(*os.File); ok && slices.Contains(o.Files, "-") {
		others[1].info, _ = stdin.Stat()
	}
	for _, output := range outputs {
		for _, other := range others {
			if other.as != output.as && output.is(other) {
				return overlapError{fmt.Errorf("%s and %s are the same file", output.as, other.as)}
			}
		}
	}
	return nil
}

// used is a file, and what it is used as. One that is not there, or has no name, has no
// info.
type used struct {
	as   string
	info os.FileInfo
}

func statOf(name string) os.FileInfo {
	info, _ := os.Stat(name)
	return info
}

// is says whether both are one file that keeps what is written to it.
func (u used) is(other used) bool {
	return u.info != nil && other.info != nil && u.info.Mode().IsRegular() && os.SameFile(u.info, other.info)
}

// untilSignal simulates, unless a signal comes: then there is no report.
func (p *program) untilSignal(o *simulate.Options) (*simulate.Report, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	type result struct {
		report *simulate.Report
		err    error
	}
	done := make(chan result, 1)
	go func() {
		report, err := simulate.Run(ctx, o)
		done <- result{report, err}
	}()
	select {
	case r := <-done:
		return r.report, r.err
	case <-p.signals:
	}
	cancel()
	select {
	case <-done:
	case <-time.After(interruptGrace):
	}
	return nil, errInterrupted
}

// writeReport writes a report to where it is wanted.
func (p *program) writeReport(s *simulation, r *simulate.Report) error {
	write := outputs[s.output]
	if s.file == "" {
		return write(r, p.stdout)
	}
	file, err := os.Create(s.file)
	if err != nil {
		return err
	}
	return errors.Join(write(r, file), file.Close())
}

// progressBar shows on a terminal how far a simulation is.
type progressBar struct {
	to       io.Writer
	progress *simulate.Progress
	total    int64 // bytes; 0 if it is not known
	start    time.Time
	stop     chan struct{}
	stopped  chan struct{}
}

// progressEvery is how often it is drawn.
const progressEvery = 200 * time.Millisecond

// newProgressBar draws on to until end, or not at all if that is no terminal.
func newProgressBar(to io.Writer, o *simulate.Options) *progressBar {
	b := &progressBar{to: to, progress: o.Progress, total: sizeOf(o.Files), start: time.Now()}
	if file, ok := to.(*os.File); !ok || !isatty.IsTerminal(file.Fd()) {
		return b
	}
	b.stop, b.stopped = make(chan struct{}), make(chan struct{})
	go b.run()
	return b
}

// sizeOf is how many bytes the files have together; 0 if one is no regular file.
func sizeOf(files []string) (total int64) {
	for _, name := range files {
		info, err := os.Stat(name)
		if name == "-" || err != nil || !info.Mode().IsRegular() {
			return 0
		}
		total += info.Size()
	}
	return total
}

func (b *progressBar) run() {
	defer close(b.stopped)
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		select {
		case <-b.stop:
			fmt.Fprint(b.to, "\r\x1b[K")
			return
		case <-tick.C:
			fmt.Fprint(b.to, "\r\x1b[K"+b.text(time.Since(b.start)))
		}
	}
}

// end takes the bar away.
func (b *progressBar) end() {
	if b.stop != nil {
		close(b.stop)
		<-b.stopped
	}
}

// text is the bar after some time, of at most 79 columns.
func (b *progressBar) text(since time.Duration) string {
	if steps := b.progress.Steps.Load(); steps > 0 {
		done := b.progress.Done.Load()
		return fmt.Sprintf("searching for limits [%s] %d of %d", barOf(done, steps), done, steps)
	}
	lines, bytes := b.progress.Lines.Load(), b.progress.Bytes.Load()
	rate := int64(float64(lines) / max(since.Seconds(), 0.001))
	speed := fmt.Sprintf("%d lines, %d lines/s", lines, rate)
	if b.total == 0 {
		return fmt.Sprintf("%d MB, %s", bytes>>20, speed)
	}
	return fmt.Sprintf("[%s] %3d %% of %d MB, %s", barOf(bytes, b.total), min(100*bytes/b.total, 100), b.total>>20, speed)
}

// barOf draws a part of a whole.
func barOf(part, whole int64) string {
	const width = 20
	full := int(min(part, whole) * width / whole)
	return strings.Repeat("#", full) + strings.Repeat(".", width-full)
}
