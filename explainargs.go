package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// queryLine is the command line of explain.
type queryLine struct {
	config, format, method, user, ip, agent string
	head                                    bool // the method is HEAD, if none is said
	headers, cookies, claims                []string
	positional                              []string
}

// addFlags adds the options; what l says already stays. Those of curl have its names.
func (l *queryLine) addFlags(flags *flag.FlagSet) {
	flags.StringVar(&l.config, "config", l.config, configUsage)
	flags.StringVar(&l.format, "format", cmp.Or(l.format, "text"), "`FORM` of the answer: text or json")
	flags.StringVar(&l.ip, "ip", cmp.Or(l.ip, "127.0.0.1"), "`ADDRESS` of who connects")
	add := func(list *[]string) func(string) error {
		return func(text string) error { *list = append(*list, text); return nil }
	}
	flags.Func("claim", "what {jwt.NAME} is, as `NAME=VALUE`; may be there several times", add(&l.claims))
	for i, name := range []string{"X", "request"} {
		flags.StringVar(&l.method, name, l.method, alias(i, "X", "`METHOD`, where only a URL follows"))
	}
	for i, name := range []string{"I", "head"} {
		flags.BoolVar(&l.head, name, l.head, alias(i, "I", "the method HEAD, where none is named"))
	}
	for i, name := range []string{"H", "header"} {
		flags.Func(name, alias(i, "H", "a header field as `'Name: value'`; may be there several times"), add(&l.headers))
	}
	for i, name := range []string{"b", "cookie"} {
		flags.Func(name, alias(i, "b", "a cookie as `NAME=VALUE`; may be there several times"), add(&l.cookies))
	}
	for i, name := range []string{"u", "user"} {
		flags.StringVar(&l.user, name, l.user, alias(i, "u", "`USER:PASSWORD` of Basic authentication"))
	}
	for i, name := range []string{"A", "user-agent"} {
		flags.StringVar(&l.agent, name, l.agent, alias(i, "A", "the `TEXT` of User-Agent"))
	}
	for _, name := range []string{"i", "k", "s", "v", "L", "S"} {
		flags.Bool(name, false, "nothing: it is curl's, and not about the request")
	}
}

// alias is the usage of an option, or of its other names: those behind the first.
func alias(i int, first, usage string) string {
	if i == 0 {
		return usage
	}
	_, value, _ := strings.Cut(usage, "`")
	value, _, quoted := strings.Cut(value, "`")
	if !quoted {
		return "as -" + first
	}
	return "as -" + first + " `" + value + "`"
}

// glued are curl's options of one letter that take a value, and what the value looks
// like where it hangs on the letter: else the word is a slip of another option.
var glued = map[string]*regexp.Regexp{
	"X": regexp.MustCompile(`^[A-Z]+$`),
	"H": regexp.MustCompile(`[:;]`),
	"b": regexp.MustCompile(`=`),
	"u": regexp.MustCompile(`:`),
	"A": regexp.MustCompile(`.`),
}

// asCurl takes apart what curl lets its users write as one word: -XPOST, -sI.
func asCurl(flags *flag.FlagSet, args []string) (apart []string) {
	for len(args) > 0 && args[0] != "--" {
		if words := unglue(flags, args[0]); words != nil {
			args = slices.Concat(words, args[1:])
		}
		n := 1
		if takesNext(flags, args[0]) {
			n = min(2, len(args)) // a value is left alone, whatever it looks like
		}
		apart, args = append(apart, args[:n]...), args[n:]
	}
	return append(apart, args...)
}

// unglue is the words that hang together in one; nil if none do.
func unglue(flags *flag.FlagSet, word string) []string {
	if len(word) < 3 || word[0] != '-' || isOption(flags, word) {
		return nil
	}
	letter, rest := word[:2], word[2:]
	if looks := glued[letter[1:]]; looks != nil && looks.MatchString(rest) {
		return []string{letter, rest}
	}
	if known := flags.Lookup(letter[1:]); known == nil || !isSwitch(known) {
		return nil
	}
	if behind := "-" + rest; len(rest) == 1 && isOption(flags, behind) {
		return []string{letter, behind}
	}
	if behind := unglue(flags, "-"+rest); behind != nil {
		return slices.Insert(behind, 0, letter)
	}
	return nil
}

// nameOf is the name of the option that a word may be.
func nameOf(word string) (name string, hasValue bool) {
	name, _, hasValue = strings.Cut(strings.TrimPrefix(strings.TrimPrefix(word, "-"), "-"), "=")
	return name, hasValue
}

func isOption(flags *flag.FlagSet, word string) bool {
	name, _ := nameOf(word)
	return flags.Lookup(name) != nil
}

// takesNext says whether word is an option whose value is the next word.
func takesNext(flags *flag.FlagSet, word string) bool {
	name, hasValue := nameOf(word)
	known := flags.Lookup(name)
	return strings.HasPrefix(word, "-") && known != nil && !hasValue && !isSwitch(known)
}

func isSwitch(f *flag.Flag) bool {
	is, ok := f.Value.(interface{ IsBoolFlag() bool })
	return ok && is.IsBoolFlag()
}

// read reads the rest of a command line, in which options stand between and behind
// the method and the URL too.
func (l *queryLine) read(rest []string) (*question, error) {
	flags := flag.NewFlagSet("explain", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // the error is returned too
	l.addFlags(flags)
	rest = asCurl(flags, rest)
	for {
		if err := flags.Parse(rest); err != nil {
			return nil, withOption(err, flags)
		}
		if flags.NArg() == 0 {
			return l.question()
		}
		l.positional, rest = append(l.positional, flags.Arg(0)), flags.Args()[1:]
	}
}

// question is what the command line asks about.
func (l *queryLine) question() (*question, error) {
	if l.method == "" && l.head {
		l.method = http.MethodHead
	}
	q := &question{method: l.method}
	url, err := l.take(q)
	if err != nil {
		return nil, err
	}
	if err := checkChoice("format", l.format, []string{"text", "json"}); err != nil {
		return nil, err
	}
	if q.ip, err = netip.ParseAddr(l.ip); err != nil {
		return nil, fmt.Errorf("ip %q is no IP address; write one as 203.0.113.9 or 2001:db8::1", l.ip)
	}
	if err := q.setURL(url); err != nil {
		return nil, err
	}
	for _, text := range l.headers {
		if err := q.addHeader(text); err != nil {
			return nil, err
		}
	}
	if err := q.addOptions(l); err != nil {
		return nil, err
	}
	for _, text := range l.claims {
		name, value, ok := strings.Cut(text, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("-claim %q: write NAME=VALUE", text)
		}
		q.claims = append(q.claims, [2]string{name, value})
	}
	return q, nil
}

// addOptions adds the fields that options stand for: like curl, where -H does not
// say them.
func (q *question) addOptions(l *queryLine) error {
	for _, text := range l.cookies {
		if name, _, ok := strings.Cut(text, "="); !ok || name == "" {
			return fmt.Errorf("-b %q: write NAME=VALUE; files of cookies are not read", text)
		}
	}
	q.addMissing("Cookie", strings.Join(l.cookies, "; "))
	q.addMissing("User-Agent", l.agent)
	if l.user != "" {
		q.addMissing("Authorization", basic(l.user))
	}
	return nil
}

// addMissing adds a field that is not there yet, unless it is empty.
func (q *question) addMissing(name, value string) {
	isIt := func(h [2]string) bool { return strings.EqualFold(h[0], name) }
	if value != "" && !slices.ContainsFunc(q.headers, isIt) {
		q.headers = append(q.headers, [2]string{name, value})
	}
}

// take finds the method and the URL among the positional arguments.
func (l *queryLine) take(q *question) (url string, err error) {
	switch {
	case len(l.positional) == 2 && slices.Contains(methods, l.positional[1]) && !slices.Contains(methods, l.positional[0]):
		return "", fmt.Errorf("the method stands before the URL: write %s %s", l.positional[1], l.positional[0])
	case len(l.positional) == 2 && l.method == "":
		q.method, url = l.positional[0], l.positional[1]
	case len(l.positional) == 1 && slices.Contains(methods, l.positional[0]):
		return "", fmt.Errorf("there is no URL behind %s", l.positional[0])
	case len(l.positional) == 1:
		url = l.positional[0]
		if q.method == "" {
			q.method = "GET"
		}
	case len(l.positional) == 0:
		return "", errors.New("there is no URL")
	default:
		return "", fmt.Errorf("unexpected argument %q", l.positional[len(l.positional)-1])
	}
	return url, nil
}

// methods are words that are surely no host.
var methods = []string{
	http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodConnect, http.MethodOptions, http.MethodTrace,
}
