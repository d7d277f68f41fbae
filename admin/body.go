package admin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"unicode/utf8"

	"github.com/r8limiter/r8limiter/limiter"
)

// readJSON reads the body strictly into v. What encoding/json would pass over
// is an error: it could have been what mattered.
func (x *exchange) readJSON(v any) error {
	kind, _, _ := strings.Cut(string(x.ctx.Request.Header.ContentType()), ";")
	if !strings.EqualFold(strings.TrimSpace(kind), "application/json") {
		return errors.New("send the body as Content-Type: application/json")
	}
	body := x.ctx.Request.Body()
	if !utf8.Valid(body) {
		return errors.New("read the body: it is not UTF-8")
	}
	if err := checkNames(json.NewDecoder(bytes.NewReader(body))); err != nil {
		return err
	}
	in := json.NewDecoder(bytes.NewReader(body))
	in.DisallowUnknownFields()
	if err := in.Decode(v); err != nil {
		return describeJSON(err)
	}
	if _, err := in.Token(); err != io.EOF {
		return errors.New("read the body: something follows the JSON object")
	}
	return nil
}

// level is an object or array that has begun and not ended.
type level struct {
	seen  map[string]bool // an object's names so far; nil for an array
	named bool            // a name came, its value is next
	last  string          // that name
	free  bool            // its names are not ours: those of header fields, or claims
}

// checkNames refuses names that are there twice, of which encoding/json takes
// the last, and those that it takes for another spelling of a field. What is
// no JSON at all is left to who decodes it.
func checkNames(in *json.Decoder) error {
	open := []level{{}} // what stands outside of all counts as an array
	for {
		token, err := in.Token()
		if err != nil {
			return nil
		}
		at := &open[len(open)-1]
		if name, ok := token.(string); ok && at.seen != nil && !at.named {
			if err := at.name(name); err != nil {
				return err
			}
			continue
		}
		if token == nil && len(open) > 1 {
			return errors.New("read the body: null is no value: leave the field out")
		}
		at.named = false
		switch token {
		case json.Delim('{'):
			open = append(open, level{seen: map[string]bool{}, free: len(open) == 2 && (at.last == "headers" || at.last == "claims")})
		case json.Delim('['):
			open = append(open, level{})
		case json.Delim('}'), json.Delim(']'):
			open = open[:len(open)-1]
		}
	}
}

func (l *level) name(name string) error {
	switch {
	case !l.free && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz_") != "":
		return fmt.Errorf("read the body: unknown field %s", quote([]byte(name)))
	case l.seen[name]:
		return fmt.Errorf("read the body: field %s is there twice", quote([]byte(name)))
	}
	l.seen[name], l.named, l.last = true, true, name
	return nil
}

// describeJSON says what is wrong in the words of JSON, not of Go.
func describeJSON(err error) error {
	var wrong *json.UnmarshalTypeError
	switch {
	case errors.Is(err, io.EOF):
		return errors.New("read the body: it is empty: send a JSON object")
	case !errors.As(err, &wrong):
		return errors.New("read the body: " + strings.TrimPrefix(err.Error(), "json: "))
	case wrong.Field == "":
		return fmt.Errorf("read the body: it must be an object, not %s", wrong.Value)
	}
	return fmt.Errorf("read the body: %s must be %s, not %s", wrong.Field, expected(wrong.Type), quote([]byte(wrong.Value)))
}

// expected is what JSON writes for a type.
func expected(t reflect.Type) string {
	if t == reflect.TypeFor[limiter.Rate]() {
		return `a string like "10/s"`
	}
	switch t.Kind() {
	case reflect.Int64:
		return "a whole number"
	case reflect.Bool:
		return "true or false"
	case reflect.Slice:
		return "an array"
	case reflect.Struct:
		return "an object"
	}
	return "a string"
}
