package limiter

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// keysOf are the keys that a request asks the store about, the idempotency key
// last.
func (l *Limiter) keysOf(user, resource, idempotency string) (keys []string) {
	w := &work{}
	req := &Request{User: []byte(user), Resource: []byte(resource), IdempotencyKey: []byte(idempotency)}
	l.fillKeys(w, l.find(l.Current().inForce.Load(), w, req.Resource), req)
	for _, key := range w.spend.Keys {
		keys = append(keys, string(key))
	}
	if w.spend.IdempotencyKey != nil {
		keys = append(keys, string(w.spend.IdempotencyKey))
	}
	return keys
}

func TestKeys(t *testing.T) {
	l := newTestedLimiter(t, searchConfig)
	for _, test := range []struct {
		user, resource, idempotency string
		want                        []string
	}{
		{"a", "read", "", []string{"r8:{a}:read"}},
		{"a", "unheard of", "", []string{"r8:{a}:unheard%20of"}},
		{"", "", "", []string{"r8:{%}:"}},
		{"Ann_1.x@y=+~-", "read", "K-1", []string{"r8:{Ann_1.x@y=+~-}:read", "r8:{Ann_1.x@y=+~-}!read:K-1"}},
		{"a}:read", "read", "", []string{"r8:{a%7D%3Aread}:read"}},
		{"#%\x00\xff\u00e9/", "read", "", []string{"r8:{%23%25%00%FF%C3%A9%2F}:read"}},
		{"a", "search", "k", []string{
			"r8:{a}:search:burst", "r8:{a}:search:daily", "r8:{:search}:everyone", "r8:{a}:search:next",
			"r8:{a}!search:k",
		}},
		{strings.Repeat("a", 64), "read", "", []string{"r8:{" + strings.Repeat("a", 64) + "}:read"}},
		{strings.Repeat("a", 65), "read", "", []string{"r8:{#Y1NhxIu56rFBmOduqKt_Gg}:read"}},
		{strings.Repeat("\xff", 22), "read", "", []string{"r8:{#TO5wYPyFxmzbeDCtKm4JyA}:read"}},
	} {
		if diff := cmp.Diff(test.want, l.keysOf(test.user, test.resource, test.idempotency)); diff != "" {
			t.Errorf("%q %q %q (-want +got):\n%s", test.user, test.resource, test.idempotency, diff)
		}
	}
}

func TestKeyPrefixIsTheConfigured(t *testing.T) {
	c := DefaultConfig()
	c.Redis = &RedisConfig{KeyPrefix: "shop"}
	l := New(c, NewMemoryStore())
	if got := l.keysOf("a", "read", ""); !cmp.Equal(got, []string{"shop:{a}:read"}) {
		t.Errorf("keys %q", got)
	}
}

// hostile are texts that try to look like parts of other keys.
var hostile = []string{
	"", "a", "A", "a:b", "b", ":", "}", "{", "!", "#", "%", "%7D", "}:read", "a}:read", "a}!read", "{u:a}", "r8:{a}:read",
	"read", "search", "burst", "search:burst", "everyone", "k", "\x00", "\xff", "\u00e9", "e\u0301", "%25", "%2525",
	"#Y1NhxIu56rFBmOduqKt_Gg", "a\n", "a\r\n", " a", "a ", "a/../b", "../a", strings.Repeat("a", 64), strings.Repeat("a", 65),
	strings.Repeat("a", 66), strings.Repeat("}", 21), strings.Repeat("}", 22), strings.Repeat("x:", 100000),
}

func TestHostileTextsNeverShareAKey(t *testing.T) {
	l := newTestedLimiter(t, searchConfig)
	owner := map[string]string{}
	claim := func(key, by string) {
		if before, ok := owner[key]; ok && before != by {
			t.Errorf("%.100q and %.100q share %q", before, by, key)
		}
		owner[key] = by
	}
	for _, user := range hostile {
		for _, resource := range hostile {
			for i, key := range l.keysOf(user, resource, "of no other") {
				by := fmt.Sprintf("%q %q %d", user, resource, i)
				if strings.Contains(key, "{:") {
					by = fmt.Sprintf("everyone of %q", resource)
				}
				claim(key, by)
				checkKey(t, key)
			}
		}
		for _, idempotency := range hostile[1:] {
			keys := l.keysOf(user, "read", idempotency)
			claim(keys[1], fmt.Sprintf("%q %q idempotency %q", user, "read", idempotency))
		}
	}
}

// checkKey fails if a key is long, or holds what it should not.
func checkKey(t *testing.T, key string) {
	t.Helper()
	if len(key) > 300 || strings.ContainsFunc(key, func(c rune) bool { return c <= ' ' || c > '~' }) {
		t.Errorf("key %q is long or unprintable", key)
	}
	if strings.Count(key, "{") != 1 || strings.Count(key, "}") != 1 || strings.Contains(key, "{}") {
		t.Errorf("key %q has more than its hash tag", key)
	}
}

func TestHostileUsersAreLimitedEach(t *testing.T) {
	l := newTestedLimiter(t, "default: {capacity: 1, refill_rate: 1/h}")
	for _, user := range hostile {
		if d := l.ask(t, user, "read", 1); !d.Allowed {
			t.Errorf("user %.100q has spent before it came", user)
		}
	}
	for _, user := range hostile {
		if d := l.ask(t, user, "read", 1); d.Allowed {
			t.Errorf("user %.100q spends twice", user)
		}
	}
}

func TestRandomPartsAreDifferent(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 7))
	alphabet := []byte("a%7D:{}#!\x00\xff")
	parts := map[string]string{}
	for range 50_000 {
		text := make([]byte, rnd.IntN(30))
		for i := range text {
			text[i] = alphabet[rnd.IntN(len(alphabet))]
		}
		part := string(appendPart(nil, text))
		if before, ok := parts[part]; ok && before != string(text) {
			t.Fatalf("%q and %q are both %q", before, text, part)
		}
		parts[part] = string(text)
	}
}

func FuzzKeys(f *testing.F) {
	for i, a := range hostile {
		f.Add([]byte(a), []byte("read"), []byte(hostile[len(hostile)-1-i]), []byte("r"))
	}
	c := DefaultConfig()
	l := New(c, NewMemoryStore())
	f.Fuzz(func(t *testing.T, user1, resource1, user2, resource2 []byte) {
		one := l.keysOf(string(user1), string(resource1), "k")
		two := l.keysOf(string(user2), string(resource2), "k")
		same := bytes.Equal(user1, user2) && bytes.Equal(resource1, resource2)
		for i, key := range one {
			checkKey(t, key)
			if (key == two[i]) != same || key == two[1-i] {
				t.Errorf("%q %q has %q, %q %q has %q", user1, resource1, one, user2, resource2, two)
			}
		}
	})
}
