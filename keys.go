package main

import (
	"fmt"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/r8limiter/r8limiter/limiter"
)

// keysOf are the keys of a struct, in its order.
func keysOf(t reflect.Type) (keys []string) {
	for field := range t.Fields() {
		if key := field.Tag.Get("yaml"); key != "" {
			keys = append(keys, key)
		}
	}
	return keys
}

// fieldOf is the field of a struct for a key.
func fieldOf(t reflect.Type, key string) (field reflect.StructField, ok bool) {
	for field = range t.Fields() {
		if key != "" && field.Tag.Get("yaml") == key {
			return field, true
		}
	}
	return field, false
}

// unknownKey reports a key that the block at path, of type t, does not have, and
// what it may mean: one of the block's own, else one that belongs elsewhere.
func (d *decoder) unknownKey(key *yaml.Node, path string, t reflect.Type) {
	known := slices.Sorted(slices.Values(keysOf(t)))
	text := "is no known key; there are " + strings.Join(known, ", ")
	place, isElsewhere := placeOf(d.whole, key.Value, path)
	if isElsewhere {
		text = fmt.Sprintf("is no known key here, but one of %s; here there are %s", place, strings.Join(known, ", "))
	}
	isBelow := isElsewhere && isAtOrBelow(place, anyElement(path))
	near, ok := limiter.Nearest(key.Value, known)
	if !ok && !isElsewhere {
		near, ok = limiter.Meant(key.Value, known)
	}
	if ok && !isBelow {
		text = fmt.Sprintf("is no known key; did you mean %q?", near)
		d.meant = append(d.meant, strings.TrimPrefix(path+"."+near, "."))
	}
	if before, _, ok := strings.Cut(key.Value, ":"); ok && slices.Contains(known, before) {
		text = "is no known key; put a space behind the colon of " + before
	}
	d.report(key, strings.TrimPrefix(path+"."+key.Value, "."), text)
}

// placeOf is where in a file of type t a key belongs: below the block at path if it
// can be, else in one around it, NAME standing for any name and [] for any element.
func placeOf(t reflect.Type, key, path string) (place string, ok bool) {
	path = anyElement(path)
	nearness := func(block string) int {
		switch {
		case isAtOrBelow(block, path):
			return math.MaxInt
		case isAtOrBelow(path, block):
			return len(block)
		}
		return 0
	}
	eachKey(t, "", func(at string, _ reflect.StructField) {
		block, isOne := strings.CutSuffix(at, "."+key)
		if isOne && (!ok || nearness(block) > nearness(place)) {
			place, ok = block, true
		}
	})
	return place, ok
}

var element = regexp.MustCompile(`\[[0-9]+\]`)

// anyElement is a path with [] for each element of a list.
func anyElement(path string) string { return element.ReplaceAllString(path, "[]") }

// eachKey calls f for each key of a file of type t, with its path: NAME stands for
// any name of a map, [] for any element of a list.
func eachKey(t reflect.Type, path string, f func(path string, field reflect.StructField)) {
	switch t.Kind() {
	case reflect.Pointer:
		eachKey(t.Elem(), path, f)
	case reflect.Slice:
		eachKey(t.Elem(), path+"[]", f)
	case reflect.Map:
		eachKey(t.Elem(), path+".NAME", f)
	case reflect.Struct:
		for field := range t.Fields() {
			if key := field.Tag.Get("yaml"); key != "" {
				below := strings.TrimPrefix(path+"."+key, ".")
				f(below, field)
				eachKey(field.Type, below, f)
			}
		}
	}
}
