package main

import (
	"encoding/json"
	"flag"
	"fmt"
)

// checkup is what the check command was asked for.
type checkup struct {
	config string
	format string // text or json
	strict bool   // warnings fail too
}

func (c *checkup) addFlags(flags *flag.FlagSet) {
	flags.StringVar(&c.config, "config", "", configUsage)
	flags.StringVar(&c.format, "format", "text", "`FORM` of the report: text, or json for one object")
	flags.BoolVar(&c.strict, "strict", false, "fail for warnings too")
}

// finding is a problem as JSON has it.
type finding struct {
	Severity string `json:"severity"` // error or warning
	Line     int    `json:"line"`     // from 1
	Column   int    `json:"column"`   // from 1, in characters
	Path     string `json:"path"`     // of the key; "" for the file itself
	Message  string `json:"message"`
}

// findings are the report of a file as JSON.
type findings struct {
	File     string    `json:"file"` // "" for the built-in defaults
	OK       bool      `json:"ok"`   // the exit code is 0
	Problems []finding `json:"problems"`
}

// check says every problem of a configuration, errors and warnings in the file's
// order.
func (p *program) check(file string, asked checkup) int {
	if fault := checkChoice("format", asked.format, []string{"text", "json"}); fault != nil {
		return p.misused("check", fault)
	}
	c, problems := p.load(file)
	code := exitFine
	if len(problems) > 0 || asked.strict && len(c.warnings) > 0 {
		code = exitUsage
	}
	problems = inOrder(problems, c.warnings)
	if asked.format == "json" {
		return p.reportJSON(file, problems, code)
	}
	p.complain(file, problems)
	if code == exitFine {
		p.reportFine(file, len(c.warnings))
	}
	return code
}

func (p *program) reportFine(file string, warnings int) {
	if file == "" {
		file = "built-in defaults"
	}
	switch warnings {
	case 0:
		fmt.Fprintf(p.stdout, "%s: ok\n", file)
	case 1:
		fmt.Fprintf(p.stdout, "%s: ok, with a warning\n", file)
	default:
		fmt.Fprintf(p.stdout, "%s: ok, with %d warnings\n", file, warnings)
	}
}

// reportJSON writes one object and passes the exit code on.
func (p *program) reportJSON(file string, problems []problem, code int) int {
	all := findings{File: file, OK: code == exitFine, Problems: []finding{}}
	for _, each := range problems {
		all.Problems = append(all.Problems, finding{each.severity.String(), each.line, each.col, each.path, each.text})
	}
	out := json.NewEncoder(p.stdout)
	out.SetEscapeHTML(false) // `<` in a path is no markup here
	if err := out.Encode(all); err != nil {
		fmt.Fprintf(p.stderr, "write the report: %v\n", err)
		return exitFailure
	}
	return code
}

// complain prints problems and says whether there are any.
func (p *program) complain(file string, problems []problem) bool {
	for _, each := range problems {
		fmt.Fprintln(p.stderr, each.format(file))
	}
	return len(problems) > 0
}
