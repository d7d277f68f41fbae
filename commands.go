package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/r8limiter/r8limiter/limiter"
)

// verb is one of the commands that the program has.
type verb struct {
	name  string
	args  string                                 // as its usage shows them
	about string                                 // what it does, in a line
	flags func(*flag.FlagSet)                    // adds its options; nil for none
	spell func(*flag.FlagSet, []string) []string // the arguments as flag takes them; nil: they are so already
	run   func(rest []string) int                // rest is what stands behind the options
	bare  bool                                   // nothing may stand there
}

// configUsage is what -config is.
const configUsage = "configuration `FILE`; default $R8LIMITER_CONFIG, else ./config.yaml"

// verbs are all there are. The first is carried out where none is named.
func (p *program) verbs() []verb {
	var config string
	asked, h, sim, line := &checkup{}, &healthCheck{}, &simulation{}, &queryLine{}
	return []verb{
		{
			name: "serve", args: "[-config FILE]", about: "run the gateway; what r8limiter does without a command",
			flags: func(flags *flag.FlagSet) { flags.StringVar(&config, "config", "", configUsage) },
			run:   func([]string) int { return p.serve(p.configFile(config)) }, bare: true,
		},
		{
			name: "check", args: "[-config FILE] [-format text|json] [-strict]", about: "every error and warning of a configuration",
			flags: asked.addFlags,
			run:   func([]string) int { return p.check(p.configFile(asked.config), *asked) }, bare: true,
		},
		{
			name: "simulate", args: "-config FILE [-format F] [-fields MAP] [-output text|json|html] [-target SHARE] LOG...",
			about: "what these rules would have done to recorded traffic",
			flags: sim.addFlags,
			run:   func(logs []string) int { sim.logs = logs; return p.simulate(sim) },
		},
		{
			name: "explain", args: "[-config FILE] [-ip ADDR] [-H 'Name: value']... [-u USER:PASSWORD] [-b NAME=VALUE]... [-claim NAME=VALUE]... [-format text|json] METHOD URL",
			about: "what becomes of a request, and why; spends nothing; takes the arguments of curl",
			flags: line.addFlags, spell: asCurl,
			run: func(rest []string) int { return p.explain(line, rest) },
		},
		{
			name: "health", args: "[-url URL] [-ca FILE | -insecure] [-cert FILE -key FILE]", about: "ask a running instance whether it is ready",
			flags: h.addFlags,
			run:   func([]string) int { return p.health(h, p.configFile(h.config)) }, bare: true,
		},
		{name: "schema", about: "print the JSON Schema of configuration files, for editors and CI", run: func([]string) int { return p.schema() }, bare: true},
		{name: "version", about: "print the version", run: func([]string) int { return p.version() }, bare: true},
	}
}

// run carries out the command and is the exit code.
func (p *program) run() int {
	all := p.verbs()
	switch {
	case len(p.args) > 0 && isHelp(p.args[0]):
		fmt.Fprint(p.stdout, usageOf(all))
		return exitFine
	case len(p.args) == 1 && isVersion(p.args[0]):
		return p.version()
	case len(p.args) == 0 || strings.HasPrefix(p.args[0], "-"):
		return p.carryOut(&all[0], p.args)
	}
	name := p.args[0]
	i := slices.IndexFunc(all, func(v verb) bool { return v.name == name })
	if i < 0 {
		names := make([]string, len(all))
		for i := range all {
			names[i] = all[i].name
		}
		fmt.Fprintf(p.stderr, "unknown command %q%s\n%s", name, limiter.DidYouMean(name, names), usageOf(all))
		return exitUsage
	}
	return p.carryOut(&all[i], p.args[1:])
}

func isHelp(arg string) bool { return slices.Contains([]string{"-h", "-help", "--help", "help"}, arg) }

func isVersion(arg string) bool { return slices.Contains([]string{"-version", "--version"}, arg) }

// carryOut reads the options of a command and runs it.
func (p *program) carryOut(v *verb, args []string) int {
	flags := flag.NewFlagSet(v.name, flag.ContinueOnError)
	flags.SetOutput(io.Discard) // what is said, and where, is said here
	if v.flags != nil {
		v.flags(flags)
	}
	if v.spell != nil {
		args = v.spell(flags, args)
	}
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(p.stdout, v.help(flags))
		return exitFine
	case err != nil:
		return p.misused(v.name, withOption(err, flags))
	case flags.NArg() > 0 && v.bare:
		return p.misused(v.name, unexpected(flags))
	}
	return v.run(flags.Args())
}

// unexpected is what is wrong with an argument where none may stand.
func unexpected(flags *flag.FlagSet) error {
	hint := ""
	if flags.Lookup("config") != nil && flags.Lookup("config").Value.String() == "" {
		hint = fmt.Sprintf("; is it the configuration? Write -config %s", flags.Arg(0))
	}
	return fmt.Errorf("unexpected argument %q%s", flags.Arg(0), hint)
}

// withOption adds to an error about an option that is none the one that was surely
// meant.
func withOption(err error, flags *flag.FlagSet) error {
	name, ok := strings.CutPrefix(err.Error(), "flag provided but not defined: -")
	if !ok {
		return err
	}
	var known []string
	flags.VisitAll(func(f *flag.Flag) { known = append(known, f.Name) })
	near, ok := limiter.Meant(name, known)
	if !ok {
		return fmt.Errorf("-%s is no option", name)
	}
	return fmt.Errorf("-%s is no option; did you mean -%s?", name, near)
}

// misused says what is wrong with a command line, how the command is used, and is the
// exit code.
func (p *program) misused(name string, fault error) int {
	fmt.Fprintf(p.stderr, "%s: %v\n", name, fault)
	all := p.verbs()
	for i := range all {
		if v := &all[i]; v.name == name {
			fmt.Fprintf(p.stderr, "usage: r8limiter %s\n", v.synopsis())
			if v.flags != nil {
				fmt.Fprintf(p.stderr, "       r8limiter %s -h   says what each option is\n", name)
			}
		}
	}
	return exitUsage
}

// synopsis is how a command is written.
func (v *verb) synopsis() string { return strings.TrimSuffix(v.name+" "+v.args, " ") }

// help is all about a command.
func (v *verb) help(flags *flag.FlagSet) string {
	var text strings.Builder
	fmt.Fprintf(&text, "usage: r8limiter %s\n\n%s\n", v.synopsis(), v.about)
	if v.flags != nil {
		text.WriteString("\noptions:\n")
		flags.SetOutput(&text)
		flags.PrintDefaults()
	}
	return text.String()
}

// usageOf is how all commands are used.
func usageOf(all []verb) string {
	var text strings.Builder
	text.WriteString("usage: r8limiter [COMMAND] [OPTION]...\n\n")
	for i := range all {
		fmt.Fprintf(&text, "  %s\n        %s\n", all[i].synopsis(), all[i].about)
	}
	text.WriteString("\nr8limiter COMMAND -h says what each option of a command is.\n")
	return text.String()
}

// checkChoice reports the value of an option that is none of words.
func checkChoice(option, value string, words []string) error {
	if slices.Contains(words, value) {
		return nil
	}
	return fmt.Errorf("-%s %q is none of %s%s", option, value, strings.Join(words, ", "), limiter.DidYouMean(value, words))
}
