package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/valyala/fasthttp"
)

// Question is a request that an operator thinks of: what POST /admin/explain takes.
type Question struct {
	// Method is GET where it is left out.
	Method string `json:"method"`
	// URL is absolute, or a path; then the host is that of Headers.
	URL string `json:"url"`
	// IP is who connects; "" is 127.0.0.1.
	IP      string `json:"ip"`
	Headers Fields `json:"headers"`
	// Claims are what {jwt.NAME} is, as if a token with them had been verified.
	Claims map[string]string `json:"claims"`
}

// Explained is what becomes of the request, and why.
type Explained struct {
	JSON []byte
	Text string
}

// Fields are header fields in their order: in JSON an object, or pairs of a name and
// a value, for those that are there more than once.
type Fields [][2]string

// maxFieldsAsked is how many header fields a question may have.
const maxFieldsAsked = 100

var errFields = errors.New(`headers must be an object of strings, or pairs as in [["Name","value"]]`)

// UnmarshalJSON takes either form; the fields of an object are in the order of their
// names.
func (f *Fields) UnmarshalJSON(data []byte) error {
	var pairs [][]string
	object := map[string]string{}
	if json.Unmarshal(data, &pairs) != nil && json.Unmarshal(data, &object) != nil {
		return errFields
	}
	for _, name := range slices.Sorted(maps.Keys(object)) {
		pairs = append(pairs, []string{name, object[name]})
	}
	if len(pairs) > maxFieldsAsked {
		return fmt.Errorf("headers has more than %d fields", maxFieldsAsked)
	}
	for _, pair := range pairs {
		if len(pair) != 2 {
			return errFields
		}
		*f = append(*f, [2]string(pair))
	}
	return nil
}

// explain answers POST /admin/explain: what becomes of a request, and why. It spends
// and counts nothing.
func (s *Server) explain(x *exchange) {
	text := wantsText(string(x.ctx.Request.Header.Peek(fasthttp.HeaderAccept)))
	var q Question
	err := x.params(map[string]func(string) error{"format": func(v string) error {
		text = v == "text"
		if v != "text" && v != "json" {
			return fmt.Errorf("format %s is neither text nor json", quote([]byte(v)))
		}
		return nil
	}})
	if err == nil {
		err = x.readJSON(&q)
	}
	switch {
	case err != nil:
	case q.URL == "":
		err = errors.New("read the body: url is missing")
	case s.Explain == nil:
		err = errors.New("there are no rules here")
	}
	var answer Explained
	if err == nil {
		ctx, cancel := x.fleetContext()
		defer cancel()
		answer, err = s.Explain(ctx, &q)
	}
	if err != nil {
		x.refuse(fasthttp.StatusBadRequest, err.Error())
		return
	}
	if !text {
		x.answer(fasthttp.StatusOK, answer.JSON)
		return
	}
	x.answer(fasthttp.StatusOK, []byte(answer.Text))
	x.ctx.Response.Header.SetContentType("text/plain; charset=utf-8")
}

// wantsText says whether an Accept field names text and not JSON.
func wantsText(accept string) bool {
	return strings.Contains(accept, "text/plain") && !strings.Contains(accept, "json")
}
