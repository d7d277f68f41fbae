package main

import (
	"os"
	"strings"
	"testing"
)

func TestMisusesSayWhatWasMeant(t *testing.T) {
	for line, want := range map[string]string{
		"nonsense":                          "unknown command \"nonsense\"\nusage: r8limiter [COMMAND]",
		"chek":                              "unknown command \"chek\"; did you mean \"check\"?\n",
		"serve -nonsense":                   "serve: -nonsense is no option\nusage: r8limiter serve ",
		"-confg x.yaml":                     "serve: -confg is no option; did you mean -config?\n",
		"check extra.yaml":                  "check: unexpected argument \"extra.yaml\"; is it the configuration? Write -config extra.yaml\nusage: r8limiter check ",
		"check -config a.yaml b.yaml":       "check: unexpected argument \"b.yaml\"\n",
		"check -config testdata/none.yaml":  "testdata/none.yaml:1:1: read: ",
		"check -format jso":                 "check: -format \"jso\" is none of text, json; did you mean \"json\"?\n",
		"version x":                         "version: unexpected argument \"x\"\nusage: r8limiter version\n",
		"explain":                           "explain: there is no URL\nusage: r8limiter explain ",
		"explain /x -clam a=b":              "explain: -clam is no option; did you mean -claim?\n",
		"explain http://h/x GET":            "explain: the method stands before the URL: write GET http://h/x\n",
		"explain -format jsn /x":            "explain: -format \"jsn\" is none of text, json; did you mean \"json\"?\n",
		"simulate -format combind":          "simulate: -format \"combind\" is none of auto, combined, ",
		"simulate -output htm -config a -":  "simulate: -output \"htm\" is none of text, json, html; did you mean \"html\"?\n",
		"simulate access.log":               "simulate: there is no configuration to try: name one with -config FILE\n",
		"simulate -top many -config a.yaml": "simulate: invalid value \"many\" for flag -top: parse error\n",
	} {
		code, stdout, stderr := command(strings.Fields(line)...)
		if code != exitUsage || stdout != "" || !strings.HasPrefix(stderr, want) {
			t.Errorf("%s: got %d %q %q, want %q", line, code, stdout, stderr, want)
		}
	}
}

// Help is asked for: it is no error, and each command has its own.
func TestHelpIsOfTheCommand(t *testing.T) {
	all := (&program{}).verbs()
	for _, args := range []string{"-h", "--help", "help"} {
		code, stdout, stderr := command(args)
		if code != exitFine || stderr != "" {
			t.Errorf("%s: got %d %q", args, code, stderr)
		}
		for i := range all {
			if !strings.Contains(stdout, "\n  "+all[i].synopsis()+"\n        "+all[i].about+"\n") {
				t.Errorf("%s does not say how %s is used:\n%s", args, all[i].name, stdout)
			}
		}
	}
	for line, options := range map[string]string{
		"serve -h":        "-config FILE",
		"check -help":     "-config FILE,-format FORM,-strict",
		"simulate -h":     "-config FILE,-decisions FILE,-fields MAP,-format FORM,-host HOST,-o FILE,-output FORM,-target SHARE,-top USERS",
		"explain /x -h":   "-A TEXT,-H 'Name: value',-I,-L,-S,-X METHOD,-b NAME=VALUE,-claim NAME=VALUE,-config FILE,-cookie NAME=VALUE,-format FORM,-head,-header 'Name: value',-i,-ip ADDRESS,-k,-request METHOD,-s,-u USER:PASSWORD,-user USER:PASSWORD,-user-agent TEXT,-v",
		"health --help":   "-ca FILE,-cert FILE,-config FILE,-insecure,-key FILE,-url URL",
		"version -h":      "",
		"explain -h /x y": "-A TEXT,-H 'Name: value',-I,-L,-S,-X METHOD,-b NAME=VALUE,-claim NAME=VALUE,-config FILE,-cookie NAME=VALUE,-format FORM,-head,-header 'Name: value',-i,-ip ADDRESS,-k,-request METHOD,-s,-u USER:PASSWORD,-user USER:PASSWORD,-user-agent TEXT,-v",
	} {
		code, stdout, stderr := command(strings.Fields(line)...)
		var got []string
		for line := range strings.Lines(stdout) {
			line, _, _ = strings.Cut(line, "\t") // behind a short one is what it does
			if option, ok := strings.CutPrefix(line, "  -"); ok {
				got = append(got, "-"+strings.TrimSpace(option))
			}
		}
		if code != exitFine || stderr != "" || strings.Join(got, ",") != options || !strings.HasPrefix(stdout, "usage: r8limiter "+strings.Fields(line)[0]) {
			t.Errorf("%s: got %d %q %q", line, code, stdout, stderr)
		}
	}
}

func TestVersionIsPrinted(t *testing.T) {
	for _, arg := range []string{"version", "-version", "--version"} {
		if code, stdout, _ := command(arg); code != exitFine || !strings.HasPrefix(stdout, "r8limiter ") {
			t.Errorf("%s: got %d %q", arg, code, stdout)
		}
	}
}

func TestSchemaIsPrinted(t *testing.T) {
	want, err := os.ReadFile("deploy/schema/config.schema.json")
	if code, stdout, stderr := command("schema"); err != nil || code != exitFine || stdout != string(want) || stderr != "" {
		t.Errorf("got %d, %d bytes, %q, %v, want %d", code, len(stdout), stderr, err, len(want))
	}
}
