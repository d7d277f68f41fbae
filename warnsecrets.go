package main

import (
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"unicode"

	"github.com/r8limiter/r8limiter/proxy"
)

// outside are the secrets that a file should take from a variable, and what that may
// be called.
var outside = []struct{ path, variable string }{
	{"admin.token", "R8LIMITER_ADMIN_TOKEN"},
	{"admin.allow_token", "R8LIMITER_ALLOW_TOKEN"},
	{"limiter.redis.password", "REDIS_PASSWORD"},
	{"limiter.redis.sentinel_password", "SENTINEL_PASSWORD"},
	{"proxy.jwt.secret", "JWT_SECRET"},
}

// clearText warns of secrets that stand in the file.
func (w *warner) clearText() {
	for _, each := range outside {
		if isClear(w.written[each.path]) {
			w.warn(each.path, "is a secret in clear text: write ${"+each.variable+"} and set that variable")
		}
	}
	if u, err := url.Parse(inFile(w.written["limiter.redis.url"])); err == nil {
		if password, _ := u.User.Password(); password != "" && !strings.Contains(password, elsewhere) {
			w.warn("limiter.redis.url", "holds a password in clear text: write redis://user:${REDIS_PASSWORD}@host:6379/0 and set that variable")
		}
	}
	for i := range w.Proxy.Routes {
		match := &w.Proxy.Routes[i].Match
		path := fmt.Sprintf("proxy.routes[%d].match", i)
		w.clearMatches(path+".headers.", match.Headers)
		w.clearMatches(path+".query.", match.Query)
	}
}

// clearMatches warns of what must be some secret, or one of a few, or begin or go on
// like one.
func (w *warner) clearMatches(path string, matches map[string]proxy.ValueMatch) {
	for name := range matches {
		if !proxy.IsSecretName(name) {
			continue
		}
		for key, isSecret := range map[string]func(string) bool{
			"": isNotAny, ".exact": isNotEmpty, ".prefix": looksSecret, ".regexp": isSecretExpression,
		} {
			at := path + name + key
			if text := w.written[at]; isClear(text) && isSecret(inFile(text)) {
				w.warn(at, "is a secret in clear text: write ${NAME} and set that variable")
			}
		}
	}
}

func isNotAny(text string) bool   { return text != "*" }
func isNotEmpty(text string) bool { return text != "" }

var (
	// secretRun is what may be a secret; before = is the name of a cookie.
	secretRun = regexp.MustCompile(`[A-Za-z0-9+/_~-]{8,}=?`)
	// classText are the parts of an expression that stand for any of some characters.
	classText = regexp.MustCompile(`\[[^\]]*\]|\{[^}]*\}|\\[A-Za-z]`)
)

// looksSecret says whether text has in it what is surely a part of a secret: it is
// long, or of letters and digits. A scheme (Bearer) or kind of key (sk_live_) is not.
func looksSecret(text string) bool {
	if _, behind, ok := strings.Cut(text, " "); ok {
		text = behind
	}
	for _, run := range secretRun.FindAllString(text, -1) {
		if strings.HasSuffix(run, "=") {
			continue
		}
		mixed := strings.ContainsAny(run, "0123456789") && strings.ContainsFunc(run, unicode.IsLetter)
		isKind := strings.HasSuffix(text, run) && strings.TrimRight(run, "_-") != run && !mixed // of which it is the beginning
		if len(run) >= 16 && !isKind || len(run) >= 8 && mixed {
			return true
		}
	}
	return false
}

// isSecretExpression says so of an expression: one that is no more than a list of texts
// is as good as those.
func isSecretExpression(text string) bool {
	return !strings.ContainsAny(text, `.*+?[]{}^$`) || looksSecret(classText.ReplaceAllString(text, " "))
}

// isClear says whether the whole of a value stands in the file: written is
// without any variable, or its variables have it as defaults.
func isClear(written string) bool {
	text := inFile(written)
	return text != "" && !strings.Contains(text, elsewhere)
}

// elsewhere stands for what only a variable has.
const elsewhere = "__variable__"

var variableText = regexp.MustCompile(`\$?\$\{[^}:]*(?::-([^}]*))?\}`)

// inFile is what of a value stands in the file: variables are their defaults, or
// elsewhere.
func inFile(written string) string {
	return variableText.ReplaceAllStringFunc(written, func(text string) string {
		if strings.HasPrefix(text, "$$") {
			return text
		}
		if fallback := variableText.FindStringSubmatch(text)[1]; fallback != "" {
			return fallback
		}
		return elsewhere
	})
}
