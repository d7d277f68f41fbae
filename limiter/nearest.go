package limiter

import (
	"fmt"
	"strings"
)

// DidYouMean ends a message about a word that is none of those known: with the one
// that was surely meant, as in `; did you mean "read"?`, or with "" where none is
// near. Of several as near it is the first.
func DidYouMean(word string, known []string) string {
	if meant, ok := Meant(word, known); ok {
		return fmt.Sprintf("; did you mean %q?", meant)
	}
	return ""
}

// Meant is the word of known that word was surely meant to be: the nearest, else the
// only one that begins or ends as word does and goes on, or the other way round, as
// rate and refill_rate.
func Meant(word string, known []string) (meant string, ok bool) {
	if meant, ok = Nearest(word, known); ok {
		return meant, true
	}
	bare := bareLetters(word)
	for _, each := range known {
		other := bareLetters(each)
		long, short := bare, other
		if len(short) > len(long) {
			long, short = short, long
		}
		if len(short) < minPartOfWord || !strings.HasPrefix(long, short) && !strings.HasSuffix(long, short) {
			continue
		}
		if ok {
			return "", false // it may be either
		}
		meant, ok = each, true
	}
	return meant, ok
}

// minPartOfWord is how many letters of a word tell it.
const minPartOfWord = 3

// Nearest is the word of known that has the fewest slips from word, if it is near
// enough to be meant: one slip in up to 4 letters, two in up to 8, three in more.
// Letter case, dashes and underscores don't count, so that maxConns is max_conns.
func Nearest(word string, known []string) (near string, ok bool) {
	bare := bareLetters(word)
	if len(bare) > maxNearWord {
		return "", false
	}
	least := 1 + min(3, (len(bare)+3)/4)
	for _, each := range known {
		other := bareLetters(each)
		if n := slips(bare, other, least); n < least && n < min(len(bare), len(other)) {
			near, ok, least = each, true, n
		}
	}
	return near, ok
}

// maxNearWord bounds what a comparison costs, in letters: no name is longer.
const maxNearWord = 64

var separators = strings.NewReplacer("-", "", "_", "")

func bareLetters(word string) string { return separators.Replace(strings.ToLower(word)) }

// slips is how many letters must be put in, taken out, changed or swapped with the
// next to make b of a (optimal string alignment); enough where that is not fewer
// than enough.
func slips(a, b string, enough int) int {
	if len(b) >= len(a)+enough || len(a) >= len(b)+enough {
		return enough
	}
	before, row, next := []int(nil), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		next[0] = i + 1
		for j := range len(b) {
			change := row[j]
			if a[i] != b[j] {
				change++
			}
			next[j+1] = min(change, row[j+1]+1, next[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				next[j+1] = min(next[j+1], before[j-1]+1)
			}
		}
		before, row, next = row, next, make([]int, len(b)+1)
	}
	return min(row[len(b)], enough)
}
