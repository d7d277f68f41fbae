package simulate

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// gzipped is data as gzip has it, in two members as rotation with append makes it.
func gzipped(t *testing.T, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	for _, half := range [][]byte{data[:len(data)/2], data[len(data)/2:]} {
		w := gzip.NewWriter(&out)
		if _, err := w.Write(half); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return out.Bytes()
}

func TestCompressedLogsAreReadWhateverTheyAreCalled(t *testing.T) {
	plain := []byte(at(0, 1, "GET /whose HTTP/1.1") + "\r\n" + at(0, 1, "GET /whose HTTP/1.1") + "\n" + at(0, 1, "GET /whose HTTP/1.1"))
	const want = "1 allow whose 10.0.0.1 whose whose\n2 allow whose 10.0.0.1 whose whose\n3 deny whose 10.0.0.1 whose whose 60\n"
	packed, marked := gzipped(t, plain), append([]byte(byteOrderMark), plain...)
	for name, data := range map[string][]byte{"plain": plain, "packed": packed, "with a byte order mark": marked, "packed with it": gzipped(t, marked)} {
		o := options(t)
		o.Files, o.Stdin = []string{"-"}, bytes.NewReader(data)
		if got, r := decided(t, o); got != want || r.Input.Requests != 3 {
			t.Errorf("%s: got %s", name, got)
		}
	}
	o := options(t)
	o.Progress = &Progress{}
	o.Files, o.Stdin = []string{"-"}, bytes.NewReader(packed[:len(packed)-10])
	r, err := Run(context.Background(), o)
	if want := []Broken{{standardInput, 2, "unexpected EOF"}}; !errors.Is(err, ErrBroken) || !slices.Equal(r.Input.Broken, want) {
		t.Errorf("cut off: got %+v, %v", r.Input, err)
	}
	if got := o.Progress.Bytes.Load(); got != int64(len(packed)-10) {
		t.Errorf("progress is %d bytes, want %d", got, len(packed)-10)
	}
}

func TestLongLinesAreReadUpToABound(t *testing.T) {
	request := func(n int) string { return "GET /whose?" + strings.Repeat("x", n) + " HTTP/1.1" }
	o := options(t)
	o.Files = []string{logFile(t,
		at(0, 1, request(100<<10)), at(0, 1, request(2<<20)), at(0, 2, request(sourceBuffer)), at(0, 3, request(maxLine)), at(0, 4, request(1)))}
	got, _ := decided(t, o)
	if want := "1 refuse 431\n2 unreadable\n3 refuse 431\n4 unreadable\n5 allow whose 10.0.0.4 whose whose\n"; got != want {
		t.Errorf("got %s", got)
	}
}

func TestReadingGoesOnBehindALogThatCantBeRead(t *testing.T) {
	o := options(t)
	o.Files = []string{logFile(t, "what", "is this"), logFile(t, at(0, 1, "GET /whose HTTP/1.1"))}
	_, r := decided(t, o)
	if r.Input.Unreadable != 2 || r.Input.Requests != 1 || !strings.Contains(r.Input.Examples[0].Why, "-format") {
		t.Errorf("got %+v", r.Input)
	}
	o.Files = o.Files[:1]
	r, err := Run(context.Background(), o)
	if !errors.Is(err, ErrNothing) || r == nil || r.Input.Unreadable != 2 {
		t.Errorf("got %+v, %v, want a report and ErrNothing", r, err)
	}
	o.Files = []string{filepath.Join(t.TempDir(), "none.log")}
	if _, err := Run(context.Background(), o); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

// faulty gives an error once behind some text, and nothing more than the end from then on.
type faulty struct {
	io.Reader
	told bool
}

func (f *faulty) Read(p []byte) (int, error) {
	n, err := f.Reader.Read(p)
	if err == io.EOF && !f.told {
		f.told, err = true, errors.New("bad\nsector")
	}
	return n, err
}

func TestALogThatBreaksOffIsAlwaysNamed(t *testing.T) {
	long, unreadable := []string{}, []string{}
	for i := range 3000 {
		long = append(long, at(i, 1, "GET /whose HTTP/1.1"))
		unreadable = append(unreadable, "what is this")
	}
	for name, c := range map[string]struct {
		lines    []string
		read     uint64
		line     int64
		requests uint64
	}{
		"at once":               {nil, 0, 0, 0},
		"in the first bytes":    {long[:2], 2, 2, 2},
		"in a line":             {append(long[:2:2], "10.0.0.1 - - [26/Nov"), 2, 2, 2},
		"later":                 {long, 3000, 3000, 3000},
		"where nothing is read": {unreadable, 3000, 3000, 0},
		"in a long line":        {append(long[:2:2], strings.Repeat("x", 2*sourceBuffer)), 2, 2, 2},
	} {
		text := strings.Join(c.lines, "\n")
		if int64(len(c.lines)) == c.line && c.line > 0 {
			text += "\n"
		}
		o := options(t)
		o.Files, o.Stdin = []string{logFile(t, at(0, 2, "GET /whose HTTP/1.1")), "-"}, &faulty{Reader: strings.NewReader(text)}
		r, err := Run(context.Background(), o)
		if name == "at once" {
			if err == nil || !strings.Contains(err.Error(), "standard input: bad\nsector") || r != nil {
				t.Errorf("%s: got %v, %v", name, r, err)
			}
			continue
		}
		const words = `standard input: can't be read on behind line %d: bad\nsector`
		want := fmt.Sprintf(words, c.line)
		if !errors.Is(err, ErrBroken) || !strings.Contains(err.Error(), want) || r.Input.Lines != c.read+1 || r.Input.Requests != c.requests+1 {
			t.Errorf("%s: got %+v, %v", name, r, err)
			continue
		}
		var text1, js, html bytes.Buffer
		if err := errors.Join(r.WriteText(&text1), r.WriteJSON(&js), r.WriteHTML(&html)); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(text1.String(), "\n"+want+"\n") {
			t.Errorf("%s: the text is %s", name, text1.String())
		}
		if !strings.Contains(html.String(), strings.ReplaceAll(want, "'", "&#39;")) {
			t.Errorf("%s: the page is %s", name, html.String())
		}
		if !strings.Contains(js.String(), `"broken": [`) || !strings.Contains(js.String(), `"why": "bad\nsector"`) {
			t.Errorf("%s: the JSON is %s", name, js.String())
		}
	}
}
