package main

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/r8limiter/r8limiter/limiter"
)

// watched runs a watch until the test ends and counts its calls.
type watched struct{ calls chan struct{} }

func watch(t *testing.T, w *fileWatch) *watched {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	got, done := &watched{make(chan struct{}, 100)}, make(chan struct{})
	go func() {
		defer close(done)
		w.run(ctx, func() { got.calls <- struct{}{} })
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return got
}

func (w *watched) await(t *testing.T, what string) {
	t.Helper()
	select {
	case <-w.calls:
	case <-time.After(10 * time.Second):
		t.Fatalf("nothing was told of %s", what)
	}
}

func TestWatchTellsOfEveryKindOfChange(t *testing.T) {
	dir := t.TempDir()
	file, side := dir+"/a", dir+"/b"
	write(t, file, []byte("1"))
	w := watch(t, newFileWatch([]string{file, dir + "/sub/late"}, zerolog.Nop()))
	for _, step := range []struct {
		what string
		do   func()
	}{
		{"a write in place", func() { write(t, file, []byte("2")) }},
		{"a rename", func() { write(t, side, []byte("3")); rename(t, side, file) }},
		{"a deletion", func() { remove(t, file) }},
		{"a creation", func() { write(t, file, []byte("4")) }},
		{"a link in its place", func() { write(t, side, []byte("5")); link(t, "b", file) }},
		{"a write through the link", func() { write(t, side, []byte("6")) }},
		{"the directory of another file", func() { mkdir(t, dir+"/sub"); write(t, dir+"/sub/late", []byte("7")) }},
		{"a directory that is made anew", func() {
			if err := os.RemoveAll(dir + "/sub"); err != nil {
				t.Fatal(err)
			}
		}},
		{"a file in it", func() { mkdir(t, dir+"/sub"); write(t, dir+"/sub/late", []byte("8")) }},
		{"a change of that", func() { write(t, dir+"/sub/late", []byte("9")) }},
	} {
		step.do()
		w.await(t, step.what)
	}
}

func mkdir(t *testing.T, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
}

func TestWatchIsSilentWhereNoContentChanges(t *testing.T) {
	dir := t.TempDir()
	file := dir + "/a"
	write(t, file, []byte("1"))
	w := watch(t, newFileWatch([]string{file}, zerolog.Nop()))
	write(t, dir+"/neighbour", []byte("1"))
	rename(t, dir+"/neighbour", file) // written in place it would be empty for a moment
	if err := os.Chtimes(file, time.Now(), time.Now()); err != nil {
		t.Fatal(err)
	}
	// What counts comes well after all of that has settled, and is told once.
	timer := time.NewTimer(5 * settleTime)
	defer timer.Stop()
	select {
	case <-w.calls:
		t.Error("something was told though no content changed")
	case <-timer.C:
	}
	write(t, file, []byte("2"))
	w.await(t, "a change")
}

func TestWatchMissesNoChangeBeforeItRuns(t *testing.T) {
	file := t.TempDir() + "/a"
	write(t, file, []byte("1"))
	w := newFileWatch([]string{file}, zerolog.Nop())
	write(t, file, []byte("2"))
	watch(t, w).await(t, "the change before")
}

// Without the system's help, as on NFS, the files are read again and again.
func TestWatchSeesWhatNobodyTellsOf(t *testing.T) {
	far, near := t.TempDir(), t.TempDir()
	mkdir(t, far+"/x")
	write(t, far+"/x/a", []byte("1"))
	link(t, far+"/x", near+"/link")
	w := newFileWatch([]string{near + "/link/a"}, zerolog.Nop())
	w.every = 20 * time.Millisecond
	seen := watch(t, w)
	// The whole tree is replaced two levels up, where no watch is.
	mkdir(t, far+"/y")
	write(t, far+"/y/a", []byte("2"))
	rename(t, far+"/x", far+"/old")
	rename(t, far+"/y", far+"/x")
	for {
		seen.await(t, "the other tree") // the file is missing in between
		if data, err := limiter.ReadSmallFile(near + "/link/a"); err == nil && string(data) == "2" {
			return
		}
	}
}

func TestDirectoriesOfAreThoseThatDecide(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	mkdir(t, dir+"/etc")
	mkdir(t, dir+"/etc/..v1")
	mkdir(t, dir+"/archive")
	write(t, dir+"/etc/..v1/k8s", nil)
	write(t, dir+"/archive/one", nil)
	link(t, "..v1", dir+"/etc/..data")
	link(t, "..data/k8s", dir+"/etc/k8s")
	link(t, "../archive/one", dir+"/etc/certbot")
	link(t, dir+"/etc", dir+"/alias")
	link(t, "loop", dir+"/loop")
	for path, want := range map[string]string{
		"/etc/..v1/k8s":  "/etc/..v1",
		"/etc/k8s":       "/etc /etc /etc/..v1",
		"/etc/certbot":   "/etc /archive",
		"/alias/certbot": " /etc /archive",
		"/etc/none":      "/etc",
		"/none/none":     "",
	} {
		var got []string
		for _, each := range directoriesOf(dir + path) {
			got = append(got, strings.TrimPrefix(each, dir))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: got %q, want %q", path, got, want)
		}
	}
	if got := directoriesOf(dir + "/loop"); len(slices.Compact(got)) != 1 {
		t.Errorf("a link to itself: got %q", got)
	}
	if got := directoriesOf("watch.go"); len(got) == 0 || !filepath.IsAbs(got[0]) {
		t.Errorf("a relative path: got %q", got)
	}
}
